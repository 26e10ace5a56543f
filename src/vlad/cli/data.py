"""``vlad data``: what data sets there are, getting them, checking them, and their indices."""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vlad.cli.listing import datasets
from vlad.datamodules.catalog import Record, get_protocol, get_record, list_datasets, list_protocols
from vlad.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["run"]


def run(arguments: list[str]) -> int:
    """Runs ``vlad data VERB …``; the arguments start with ``data``."""
    parser = argparse.ArgumentParser(prog="vlad data", description="Data sets: list, get, check, index.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str, function: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        one = verbs.add_parser(name, help=text, description=text)
        one.set_defaults(function=function)
        return one

    listing = verb("list", "list the data sets of the catalogue", lambda o: datasets(["data", *["--json"] * o.json]))
    listing.add_argument("--json", action="store_true", help="print JSON")
    verb("protocols", "list which papers train and test on what", _protocols)
    verb("info", "tell everything known of a data set", _info).add_argument("name")
    getting = verb("get", "download a data set, or tell how to get it", _get)
    getting.add_argument("name")
    getting.add_argument("--root", required=True, help="folder that holds the data sets")
    getting.add_argument("--yes", action="store_true", help="accept the licence without being asked")
    getting.add_argument("--keep", action="store_true", help="keep the archive")
    checking = verb("check", "read every file of a data set and say what is wrong", _check)
    checking.add_argument("name", help="a data set of the catalogue, a record (.toml), folder, or table")
    checking.add_argument("root", help="its folder, or the file of a table")
    checking.add_argument("--against", action="append", default=[], metavar="NAME=ROOT", help="find images that "
                          "another data set has too")  # fmt: skip
    checking.add_argument("--json", action="store_true", help="print JSON")
    indexing = verb("index", "write the index of a folder, table or data set", _index)
    indexing.add_argument("root", help="folder, table, or meta.json")
    indexing.add_argument("--name", help="the data set of the catalogue that it is; else an own folder")
    indexing.add_argument("-o", "--output", required=True, help=".csv, .jsonl, .parquet, or meta.json")
    options = parser.parse_args(arguments[1:])
    function: Callable[[argparse.Namespace], int] = options.function
    return function(options)


def _protocols(options: argparse.Namespace) -> int:
    for name in list_protocols():
        protocol = get_protocol(name)
        print(f"{name}\n  {protocol['title']}")
        for part in ("train", "test"):
            names = [item if isinstance(item, str) else item["name"] for item in protocol.get(part, [])]
            print(textwrap.fill(f"{part}: {', '.join(names) or 'nothing'}", 100, initial_indent="  ",
                                subsequent_indent="    "))  # fmt: skip
    return 0


def _info(options: argparse.Namespace) -> int:
    record = get_record(options.name)
    print(f"{record.title}  ({record.name}, {record.domain})")
    print(f"  paper       {record.citation}")
    print(f"  licence     {record.licence}")
    print(f"  from        {record.url}")
    print(textwrap.fill(record.steps, 100, initial_indent="  to get it   ", subsequent_indent=" " * 14))
    print(f"  folder      {', '.join(record.folders)} (below data.root)")
    print(f"  truth       {' and '.join(record.levels)}")
    for split, counts in record.expected.items():
        print(f"  {split:<11} " + ", ".join(f"{number} {kind}" for kind, number in counts.items()))
    for other, text in record.overlaps.items():
        print(f"  beware      {other}: {text}")
    for layout in record.layouts:
        print(f"  layout      {layout.name}: {layout.wanted}")
    for file in record.downloads:
        print(f"  download    {file.url}\n              {file.checksum}")
    print("  categories  name in prompts: raw, natural")
    for raw, natural in record.categories.items():
        print(f"              {raw}, {natural}")
    return 0


def _get(options: argparse.Namespace) -> int:
    from vlad.datamodules.download import fetch, unpack

    record, root = get_record(options.name), Path(options.root)
    if record.rendered:
        print(f"{record.title} needs no download: vlad renders it when it is used")
        return 0
    if not record.downloads:
        print(f"{record.title} has no open direct link. {record.steps[:1].upper()}{record.steps[1:]}\n  {record.url}")
        print(f"  put it at {root / record.folders[0]}, then: vlad data check {record.name} {root / record.folders[0]}")
        return 1
    target = root / (record.downloads[0].folder or record.folders[0])
    if target.exists() and any(target.iterdir()):
        raise DataError(f"{target} exists already; check it with: vlad data check {record.name} {target}")
    print(f"{record.title}: licence {record.licence}; {record.url}")
    if not options.yes:
        if not sys.stdin.isatty():
            raise DataError("accept the licence with --yes")
        if input("Do you accept the licence? [y/N] ").strip().lower() not in {"y", "yes"}:
            return 1
    archives = [fetch(file, root / ".downloads") for file in record.downloads]
    unpack(archives, target)
    if not options.keep:
        for archive in archives:
            archive.unlink()
    print(f"unpacked into {target}")
    return 0


def _index_of(name: str, root: Path) -> tuple[pd.DataFrame, Record | None]:
    from vlad.datamodules.custom import index_folder, index_table
    from vlad.datamodules.index import index_record
    from vlad.datamodules.meta import from_meta

    if name in list_datasets() or name.endswith(".toml"):
        record = get_record(name)
        return index_record(record, root), record
    if name not in {"", "folder", "table"}:
        get_record(name)  # says which names there are
    if root.name == "meta.json":
        return from_meta(root), None
    return (index_folder(root) if root.is_dir() else index_table(root)), None


def _check(options: argparse.Namespace) -> int:
    from vlad.datamodules.check import check_index

    frame, record = _index_of(options.name, Path(options.root))
    others = []
    for text in options.against:
        name, _, root = text.partition("=")
        others.append(_index_of(name, Path(root))[0])
    report = check_index(frame, record, others=others)
    if options.json:
        print(json.dumps(report.as_json(), indent=2))
        return 0 if report.sound else 1
    columns = ("category", "split", "normal", "anomalous", "unknown", "masks")
    table = [columns, *[tuple(str(row[column]) for column in columns) for row in report.counts]]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    for line in table:
        print("  ".join(cell.ljust(width) if i < 2 else cell.rjust(width)
                        for i, (cell, width) in enumerate(zip(line, widths, strict=True))))  # fmt: skip
    for finding in report.findings:
        print(f"\n{'WRONG' if finding.serious else 'note'}: {finding.count} x {finding.kind}")
        for example in finding.examples:
            print(f"  {example}")
        if finding.count > len(finding.examples):
            print("  …")
    print(f"\n{len(frame)} images: {'sound' if report.sound else 'something is wrong'}")
    return 0 if report.sound else 1


def _from(base: str, path: str) -> str:
    """Returns a path below the working folder as seen from another one; absolute paths stay."""
    return path if not path or os.path.isabs(path) else Path(os.path.relpath(path, base)).as_posix()


def _index(options: argparse.Namespace) -> int:
    from vlad.datamodules.meta import to_meta
    from vlad.files import write_atomic, write_json, write_text

    output = Path(options.output)
    frame, _ = _index_of(options.name or "", Path(options.root))
    if output.name == "meta.json":
        write_json(output, to_meta(frame, output.resolve().parent))
        print(f"{len(frame)} images in {output}")
        return 0
    base = os.path.realpath(output.parent)  # where a table's relative paths start from
    for column in ("image_path", "mask_path"):
        frame[column] = [_from(base, path) for path in frame[column].tolist()]
    if output.suffix == ".csv":
        write_text(output, frame.to_csv(index=False))
    elif output.suffix == ".jsonl":
        write_text(output, frame.to_json(orient="records", lines=True))
    elif output.suffix == ".parquet":
        try:
            write_atomic(output, lambda partial: frame.to_parquet(partial, index=False))
        except ImportError as error:
            raise DataError("writing parquet needs pyarrow; pip install 'vlad[parquet]'") from error
    else:
        raise DataError(f"{output}: give a file ending in .csv, .jsonl or .parquet, or meta.json")
    print(f"{len(frame)} images in {output}")
    return 0
