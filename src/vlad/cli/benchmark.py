"""``vlad benchmark`` and ``vlad reproduce``: a plan of cells, run and gathered."""

from __future__ import annotations

import argparse
import re
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from vlad.errors import OptionError, nearest
from vlad.results.tables import render

__all__ = ["reproduce", "run"]

_TEXT = """Runs methods on data sets with numbers of references and seeds, as a plan says, and prints one table of
them. What is finished stays; run it again, or on other machines at the same time, and the rest is done."""

_EXAMPLES = """examples:
  vlad benchmark plan.yaml --data.root DATA
  vlad benchmark plan.yaml --cell 2/8                   the second of eight shares: one per machine or array task
  vlad benchmark plan.yaml --tables-only --format latex
  vlad benchmark plan.yaml --model.backbone vlad-tiny   with another encoder, to try the plan"""

_REPRODUCE = """examples:
  vlad reproduce                                        which papers there are plans of
  vlad reproduce adaclip --data.root DATA
  vlad reproduce clip_ad --print > plan.yaml            the plan, to change it"""

_SETTING = re.compile(r"--(model|data|trainer|metrics|features|heatmaps|report)\.([\w.]+)")


def _parser(verb: str, text: str, examples: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"vlad {verb}",
        description=text,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--output", "-o", metavar="DIR", help="folder of results and runs (benchmarks_NAME by default)")
    parser.add_argument("--cell", default="1/1", metavar="I/N", help="share I of N, counted from 1")
    parser.add_argument("--list", action="store_true", help="list the cells, and which are finished")
    parser.add_argument("--tables-only", action="store_true", help="only print tables of finished cells")
    parser.add_argument("--format", default="text", choices=("text", "markdown", "latex", "html"), help="of the tables")
    parser.add_argument("--results", metavar="FILE", help="all numbers, .csv or .parquet (results.csv by default)")
    text = "an option of vlad test or fit over the plan's own: --data.root DATA, --features.cache true"
    parser.add_argument("--SECTION.NAME", dest="settings", metavar="VALUE", help=text)
    return parser


def run(arguments: list[str]) -> int:
    """Runs ``vlad benchmark``; the arguments start with the verb."""
    rest, settings = _settings(arguments[1:])
    parser = _parser("benchmark", _TEXT, _EXAMPLES)
    parser.add_argument("plan", metavar="PLAN", help="a YAML or TOML file: docs/benchmark.md")
    options = parser.parse_args(rest)
    path = Path(options.plan)
    return _run(options, path, settings)


def reproduce(arguments: list[str]) -> int:
    """Runs ``vlad reproduce``; the arguments start with the verb."""
    rest, settings = _settings(arguments[1:])
    plans = {one.name.removesuffix(".yaml"): one for one in files("vlad.benchmark").joinpath("plans").iterdir()}
    text = f"Runs a paper's own table, with its published numbers below ours. Plans: {', '.join(sorted(plans))}."
    parser = _parser("reproduce", text, _REPRODUCE)
    parser.add_argument("paper", metavar="PAPER", nargs="?", help="a plan's name; without one they are listed")
    parser.add_argument("--print", action="store_true", help="print the plan")
    options = parser.parse_args(rest)
    if options.paper is None:
        for name, plan in sorted(plans.items()):
            first = plan.read_text(encoding="utf-8").splitlines()[0]
            print(f"{name:<12} {first.lstrip('# ')}")
        return 0
    name = options.paper.lower().replace("-", "_")
    if name not in plans:
        raise OptionError(f"there is no plan for the paper '{options.paper}'; {nearest(name, plans)}")
    if options.print:
        print(plans[name].read_text(encoding="utf-8"), end="")
        return 0
    return _run(options, Path(str(plans[name])), settings)


def _settings(arguments: list[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Takes options of vlad's verbs (``--model.backbone NAME``) out of a command line."""
    import yaml

    rest: list[str] = []
    found: dict[str, dict[str, Any]] = {}
    position = 0
    while position < len(arguments):
        name, equals, value = arguments[position].partition("=")
        match = _SETTING.fullmatch(name)
        if match is None:
            rest.append(arguments[position])
        else:
            if not equals:
                position += 1
                if position == len(arguments):
                    raise OptionError(f"{name} needs a value")
                value = arguments[position]
            section, key = match.groups()
            if "." in key or (section, key) in {("data", "test"), ("data", "shots"), ("model", "class_path")}:
                raise OptionError(f"{name} is the plan's own; change it there")
            found.setdefault(section, {})[key] = yaml.safe_load(value)
        position += 1
    return rest, found


def _run(options: argparse.Namespace, path: Path, settings: dict[str, dict[str, Any]]) -> int:
    from vlad.benchmark.gather import gather, tables
    from vlad.benchmark.plan import read_plan
    from vlad.benchmark.run import result_file, run_cells, worthwhile

    share = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", options.cell)
    if share is None or int(share[1]) > int(share[2]):
        raise OptionError(f"--cell is a share such as 2/8, counted from 1, not {options.cell}")
    plan = read_plan(path, settings)
    folder = Path(options.output or f"benchmarks_{path.stem}")
    cells, told = worthwhile(plan.cells)
    plan = type(plan)(plan.title, cells, plan.metrics, plan.published, plan.stages)
    if options.list:
        for cell in cells:
            print(f"{'finished' if result_file(folder, cell).is_file() else 'to do':<9} {cell.key}")
        return 0
    for line in told:
        print(line, file=sys.stderr, flush=True)
    status = 0
    if not options.tables_only:
        status = run_cells(plan.share(int(share[1]), int(share[2])), folder)
        if status in {130, 143}:
            return status
    found = gather(plan, folder)
    _write(options, folder, found, tables(plan, found))
    if found.missing:
        print(f"\n{len(found.missing)} of {len(cells)} cells are not finished", file=sys.stderr)
    return status


def _write(options: argparse.Namespace, folder: Path, found: Any, made: list[Any]) -> None:
    """Prints tables, and writes them in every format beside the numbers they are made of."""
    from vlad.benchmark.gather import COLUMNS, rows
    from vlad.files import write_atomic, write_text
    from vlad.table import write_table

    if not made:
        return
    print("\n" + "\n\n".join(render(table, options.format) for table in made), flush=True)
    for name, suffix in (("text", "txt"), ("markdown", "md"), ("latex", "tex"), ("html", "html")):
        text = "\n\n".join(render(table, name) for table in made)
        write_text(folder / f"tables.{suffix}", text + "\n")
    target = Path(options.results or folder / "results.csv")
    if target.suffix == ".csv":
        write_table(target, list(COLUMNS), rows(found))
    elif target.suffix == ".parquet":
        import pandas as pd

        frame = pd.DataFrame(rows(found), columns=list(COLUMNS))
        write_atomic(target, lambda partial: frame.to_parquet(partial, index=False))
    else:
        raise OptionError(f"--results {target} must end in .csv or .parquet")
    if options.format == "text":
        print(f"\ntables: {folder}/tables.{{txt,md,tex,html}}\nnumbers: {target}", flush=True)
