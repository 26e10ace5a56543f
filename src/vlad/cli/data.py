"""``vlad data``: what data sets there are, getting them, checking them, and their indices."""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from vlad.cli.listing import datasets
from vlad.datamodules.catalog import get_protocol, get_record, list_datasets, list_protocols
from vlad.datamodules.record import Record
from vlad.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from vlad.datamodules.check import Report
    from vlad.datamodules.notes import Note

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
    verb("info", "show all information on a dataset", _info).add_argument("name")
    getting = verb("get", "download a data set, or tell how to get it", _get)
    getting.add_argument("name")
    getting.add_argument("--root", required=True, help="folder that holds the data sets")
    getting.add_argument("--yes", action="store_true", help="accept the licence without being asked")
    getting.add_argument("--keep", action="store_true", help="keep the archive")
    checking = verb("check", "read every file of a data set and say what is wrong", _check)
    checking.add_argument("name", help="a data set of the catalogue, a record (.toml), folder, or table; may be left "
                          "out for your own folder or table")  # fmt: skip
    checking.add_argument("root", nargs="?", help="its folder, or the file of a table")
    checking.add_argument("--list", action="store_true", help="say of each image what it was taken for")
    checking.add_argument("--intensity-range", nargs=2, type=float, metavar=("LOW", "HIGH"), help="black and white of "
                          "images of more than 8 bits, as --data.intensity_range")  # fmt: skip
    checking.add_argument("--max-pixels", type=int, help="largest image, as --data.max_pixels")
    checking.add_argument("--against", action="append", default=[], metavar="NAME=ROOT", help="find images that "
                          "another data set has too")  # fmt: skip
    checking.add_argument("--json", action="store_true", help="print JSON")
    indexing = verb("index", "write the index of a folder, table or data set", _index)
    indexing.add_argument("root", help="folder, table, or meta.json")
    indexing.add_argument("--name", help="the data set of the catalogue that it is; else an own folder")
    indexing.add_argument("-o", "--output", required=True, help=".csv, .jsonl, .parquet, or meta.json")
    options = parser.parse_args(arguments[1:])
    function: Callable[[argparse.Namespace], int] = options.function
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = _note
        return function(options)


def _note(message: Warning | str, *_: object, **__: object) -> None:
    """Prints a warning as one line, without where in the code it comes from."""
    print(f"note: {message}", file=sys.stderr)


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
        place = root / (*record.folders, record.name)[0]
        print(f"  put it at {place}, then: vlad data check {record.name} {place}")
        return 1
    target = root / (record.downloads[0].folder or (*record.folders, record.name)[0])
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
    """Returns an index, saying what was left open, and its record."""
    from vlad.datamodules.image_files import printable
    from vlad.datamodules.notes import say_ignored, say_notes

    indexed = _read(name, root)
    say_notes(indexed.notes, printable(root))
    say_ignored(indexed.ignored, printable(root))
    return indexed.frame, indexed.record


class _Indexed(NamedTuple):
    """An index, and what was found on the way."""

    frame: pd.DataFrame
    record: Record | None = None
    notes: Sequence[Note] = ()
    ignored: Mapping[str, Sequence[str]] = MappingProxyType({})


def _read(name: str, root: Path) -> _Indexed:
    from vlad.datamodules.folder import read_folder
    from vlad.datamodules.index import index_record
    from vlad.datamodules.meta import from_meta
    from vlad.datamodules.table_rows import read_rows

    root = root.expanduser()
    if name in list_datasets() or name.endswith(".toml"):
        record = get_record(name)
        frame = index_record(record, root)
        return _Indexed(frame, record, *_beyond(frame, root))
    if name not in {"", "folder", "table"}:
        get_record(name)  # says which names there are
    if root.name == "meta.json":
        return _Indexed(from_meta(root))
    if root.is_dir() or name == "folder":
        folder = read_folder(root)
        return _Indexed(folder.frame, None, folder.notes, folder.ignored)
    table = read_rows(root)
    return _Indexed(table.frame, None, table.notes)


def _beyond(frame: pd.DataFrame, root: Path) -> tuple[list[Note], dict[str, list[str]]]:
    """Returns what is in the folder of a data set and not in its layout."""
    from vlad.datamodules.image_files import survey
    from vlad.datamodules.masks_of import split_masks
    from vlad.datamodules.notes import BYSTANDERS, Note

    seen = survey(root)
    masks = [path for cell in frame["mask_path"] for path in split_masks(cell)]
    known = {os.path.normpath(path) for path in (*frame["image_path"], *masks)}
    other = [f for f in seen.files if not known & {os.path.normpath(root / f), os.path.normpath((root / f).parent)}]
    ignored = {reason: paths for reason, paths in seen.ignored.items() if reason not in BYSTANDERS}
    notes = [Note("files do not match its layout", [*other, *(p for ps in ignored.values() for p in ps)])]
    return notes, {}


def _check(options: argparse.Namespace) -> int:
    from vlad.datamodules.check import check_index
    from vlad.datamodules.decode import Reading
    from vlad.datamodules.taken import list_rows

    name, root = (options.name, options.root) if options.root is not None else ("", options.name)
    if options.root is None and not Path(root).expanduser().exists():
        if root in list_datasets():
            raise DataError(f"where is {root}? Give its folder: vlad data check {root} FOLDER")
        raise DataError(f"folder or table {root} does not exist")
    indexed = _read(name, Path(root))
    others = []
    for text in options.against:
        other, _, place = text.partition("=")
        others.append(_index_of(other, Path(place))[0])
    given = {"max_pixels": options.max_pixels} if options.max_pixels is not None else {}
    if options.intensity_range:
        given["intensity_range"] = tuple(options.intensity_range)
    frame = indexed.frame
    report = check_index(frame, indexed.record, others=others, notes=indexed.notes, ignored=indexed.ignored,
                         reading=Reading(**given))  # fmt: skip
    if options.json:
        images = {"images": list_rows(frame)} if options.list else {}
        print(json.dumps({**report.as_json(), **images}, indent=2))
        return 0 if report.sound else 1
    _print_table(("category", "split", "normal", "anomalous", "unknown", "masks"), report.counts, left=2)
    print()
    _print_table(("folder", "category", "split", "label", "images", "masks", "example", "mask"),
                 [asdict(one) for one in report.taken[:_SHOWN]], left=4)  # fmt: skip
    if len(report.taken) > _SHOWN:
        print(f"… and {len(report.taken) - _SHOWN} more folders (--list names every image)")
    if options.list:
        print()
        rows = [{**row, "masks": ", ".join(row["masks"])} for row in list_rows(frame)]
        _print_table(("path", "category", "split", "label", "masks"), rows, left=5)
    for finding in report.findings:
        print(f"\n{'WRONG' if finding.serious else 'note'}: {finding.count} x {finding.kind}")
        for example in finding.examples:
            print(f"  {example}")
        if finding.count > len(finding.examples):
            print("  …")
    print(f"\n{len(frame)} images: {_conclusion(report)}")
    return 0 if report.sound else 1


_SHOWN = 40


def _conclusion(report: Report) -> str:
    if report.sound:
        return "sound"
    left = f"{report.left_out} files are left out, or have no label or mask" if report.left_out else ""
    wrong = any(finding.serious for finding in report.findings)
    return ", ".join(part for part in ("something is wrong" * wrong, left) if part)


def _print_table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], *, left: int) -> None:
    """Prints rows in columns; the first ones, and those of text behind the numbers, to the left."""
    table = [tuple(columns), *[tuple(str(row[column]) for column in columns) for row in rows]]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    text = {"example", "mask", *columns[:left]}
    for line in table:
        cells = zip(columns, line, widths, strict=True)
        print("  ".join(cell.ljust(width) if column in text else cell.rjust(width)
                        for column, cell, width in cells).rstrip())  # fmt: skip


def _from(base: str, path: str) -> str:
    """Returns a path below the working folder as seen from another one; absolute paths stay."""
    return path if not path or os.path.isabs(path) else Path(os.path.relpath(os.path.abspath(path), base)).as_posix()


def _index(options: argparse.Namespace) -> int:
    import pandas as pd

    from vlad.datamodules.image_files import printable
    from vlad.datamodules.masks_of import join_masks, split_masks
    from vlad.datamodules.meta import to_meta
    from vlad.files import write_atomic, write_json, write_text
    from vlad.table import write_frame

    output = Path(options.output).expanduser()
    if output.name != "meta.json" and output.suffix.lower() not in {".csv", ".tsv", ".jsonl", ".parquet"}:
        raise DataError(f"{output}: give a file ending in .csv, .tsv, .jsonl or .parquet, or meta.json")
    frame, _ = _index_of(options.name or "", Path(options.root))
    unwritten = [path for path in (*frame["image_path"], *frame["mask_path"]) if printable(path) != path]
    if unwritten and output.suffix.lower() not in {".csv", ".tsv"}:
        raise DataError(
            f"{len(unwritten)} names of files cannot be written into a {output.suffix} file (first: "
            f"{printable(unwritten[0])}); write a .csv, or rename them: names are UTF-8, without line breaks"
        )
    if output.name == "meta.json":
        write_json(output, to_meta(frame, output.resolve().parent))
        print(f"{len(frame)} images in {output}")
        return 0
    base = os.path.realpath(output.parent)  # where a table's relative paths start from
    images = [_from(base, path) for path in frame["image_path"]]
    masks = [join_masks([_from(base, path) for path in split_masks(cell)]) for cell in frame["mask_path"]]
    for name, paths in (("image_path", images), ("mask_path", masks)):  # pandas' own kind of text must be UTF-8
        frame[name] = pd.Series(paths, index=frame.index, dtype=object)
    suffix = output.suffix.lower()
    if suffix in {".csv", ".tsv"}:
        write_frame(output, frame, "\t" if suffix == ".tsv" else ",")
    elif suffix == ".jsonl":
        write_text(output, frame.to_json(orient="records", lines=True, force_ascii=False))
    else:
        try:
            write_atomic(output, lambda partial: frame.to_parquet(partial, index=False))
        except ImportError as error:
            raise DataError("writing parquet needs pyarrow; pip install 'vlad[parquet]'") from error
    print(f"{len(frame)} images in {output}")
    return 0
