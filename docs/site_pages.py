"""Pages and parts of pages that are made from data when the site is built.

A page per data set from its record, the table of methods, and on each method's page its card, its docstring and its
options. Nothing of it is written by hand twice: records are what vlad reads, cards are ``methods/cards.toml``.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlad.cli import VERBS
from vlad.datamodules.catalog import get_record, list_datasets
from vlad.registry import discover

if TYPE_CHECKING:
    from sphinx.application import Sphinx

    from vlad.datamodules.record import Record

HERE = Path(__file__).parent
PAGES_OF_FILES = {
    "CONTRIBUTING.md": "contributing",
    "CODE_OF_CONDUCT.md": "conduct",
    "SECURITY.md": "security",
    "CHANGELOG.md": "changelog",
}
GENERATED = ("datasets", "measurements")  # folders of generated pages, but for an index.md
CARDS: dict[str, dict[str, str]] = tomllib.loads((HERE / "methods" / "cards.toml").read_text(encoding="utf-8"))
COLUMNS = {
    "paper": "paper",
    "trains": "what is trained",
    "shots": "reference images",
    "faithful": "faithful to",
    "licence": "licence of the published code",
}


def paper(card: dict[str, str]) -> str:
    """Returns the paper of a card, linked where it is on arXiv."""
    link = card.get("arxiv")
    text = ", ".join(part for part in (card["paper"], card.get("venue", "")) if part)
    return f"{text}, [arXiv {link}](https://arxiv.org/abs/{link})" if link else text


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def methods_table(link: str) -> str:
    """Returns the table of all methods.

    Args:
        link: Where a method's page is, with ``{page}`` for its name.
    """
    rows = [
        [
            f"[`{name}`]({link.format(page=card['page'])})",
            paper(card),
            card["trains"],
            card["shots"],
            card["faithful"],
        ]
        for name, card in CARDS.items()
    ]
    return table(["name", "paper", "trains", "shots", "faithful to"], rows)


def method_card(page: str) -> str:
    """Returns the cards of a page's methods."""
    names = [name for name, card in CARDS.items() if card["page"] == page]
    rows = [["paper", *(paper(CARDS[name]) for name in names)]]
    rows += [[text, *(CARDS[name][key] for name in names)] for key, text in COLUMNS.items() if key != "paper"]
    return table(["", *(f"`{name}`" for name in names)], rows)


def method_reference(page: str) -> str:
    """Returns the docstring and the options of a page's methods."""
    classes = [discover()[name].class_path for name, card in CARDS.items() if card["page"] == page]
    blocks = [f"```{{eval-rst}}\n.. autoclass:: {path}\n   :no-members:\n```" for path in classes]
    return "\n\n## Reference\n\n" + "\n\n".join(blocks) + "\n"


def record_page(record: Record) -> str:
    """Returns the page of a data set."""
    facts = {
        "name": f"`{record.name}`",
        "domain": record.domain,
        "ground truth": " and ".join(record.levels),
        "paper": record.citation,
        "licence": record.licence,
        "from": f"<{record.url}>" if record.url.startswith("http") else record.url,
        "to get it": record.steps,
        "folder below `data.root`": ", ".join(f"`{folder}`" for folder in record.folders),
        "a mask pixel is anomalous above": str(record.mask_threshold),
    }
    for split, counts in record.expected.items():
        facts[f"{split} split"] = f"{counts.get('normal', 0)} normal, {counts.get('anomalous', 0)} anomalous"
    parts = [f"# {record.title}", table(["", ""], [[key, value] for key, value in facts.items() if value])]
    if record.rendered:
        parts.append("vlad renders it, into its cache, when it is first used: [rendered benchmark](../rendered.md).")
    for other, shared in record.overlaps.items():
        parts.append(f"Overlaps with `{other}`: {shared}. Training on one and testing on the other is warned of.")
    parts.append(f"```\nvlad data info {record.name}\nvlad test --model sdp --data.test {record.name}\n```")
    columns = ["category", "natural words", "train", "test normal", "test anomalous"]
    counted = bool(record.counts)
    rows = [
        [f"`{name}`", words, *(map(str, record.counts.get(name, ("", "", ""))) if counted else ())]
        for name, words in record.categories.items()
    ]
    parts += ["## Categories", table(columns if counted else columns[:2], rows)]
    layouts = [
        [layout.name, f"`{layout.wanted}`", ", ".join(f"`{m}`" for m in layout.masks)] for layout in record.layouts
    ]
    parts += [
        "## Layouts that are recognised",
        "In this order, after the `meta.json` of AdaCLIP's and AnomalyCLIP's scripts.",
        table(["layout", "images", "masks"], layouts),
    ]
    return "\n\n".join(parts) + "\n"


def datasets_table() -> str:
    """Returns the table of all data sets."""
    rows = []
    for name in list_datasets():
        record = get_record(name)
        tests = sum(record.expected.get("test", {}).values())
        cells = [record.title, record.domain, " + ".join(record.levels), str(len(record.categories))]
        rows.append([f"[`{name}`]({name}.md)", *cells, str(tests or "?"), record.licence])
    return table(["name", "title", "domain", "ground truth", "categories", "test images", "licence"], rows)


def verbs_table() -> str:
    """Returns the table of the command's verbs."""
    return table(["verb", "what it does"], [[f"`vlad {verb}`", text] for verb, (text, _) in VERBS.items()])


def write_pages(folder: Path, pages: dict[str, str]) -> None:
    """Writes generated pages, those that have changed alone, and takes away those that are no longer made."""
    folder.mkdir(exist_ok=True)
    for stale in set(folder.glob("*.md")) - {folder / f"{name}.md" for name in [*pages, "index"]}:
        stale.unlink()
    for name, text in pages.items():
        page = folder / f"{name}.md"
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def generate(app: Sphinx) -> None:
    """Writes the pages of the data sets, and those of the measurements in ``benchmarks/``."""
    here = Path(app.srcdir)
    write_pages(here / "datasets", {name: record_page(get_record(name)) for name in list_datasets()})
    measured = sorted((here.parent / "benchmarks").glob("*.md"))
    write_pages(
        here / "measurements", {file.stem: f"---\norphan: true\n---\n\n{file.read_text()}" for file in measured}
    )


def file_of_the_repository(name: str) -> str:
    """Returns a file of the repository's root as a page: its links lead to the pages of this site."""
    text = (HERE.parent / name).read_text(encoding="utf-8").replace("](docs/", "](")
    for other, page in PAGES_OF_FILES.items():
        text = text.replace(f"]({other})", f"]({page}.md)")
    return text


def fill(app: Sphinx, docname: str, source: list[str]) -> None:
    """Puts tables and cards where a page asks for them, and on every method's page."""
    folder, _, name = docname.rpartition("/")
    for mark, make in {
        "<!-- table of methods -->": lambda: methods_table("{page}.md"),
        "<!-- table of data sets -->": datasets_table,
        "<!-- table of verbs -->": verbs_table,
    }.items():
        if mark in source[0]:
            source[0] = source[0].replace(mark, make())
    for file, page in PAGES_OF_FILES.items():
        if docname == page:
            app.env.note_dependency(HERE.parent / file)
            source[0] = file_of_the_repository(file)
    source[0] = (
        source[0].replace("](../benchmarks/", "](/measurements/").replace("](../../benchmarks/", "](/measurements/")
    )
    if folder == "methods" and any(card["page"] == name for card in CARDS.values()):
        title, _, rest = source[0].partition("\n")
        source[0] = f"{title}\n\n{method_card(name)}\n{rest}{method_reference(name)}"


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers what is done when the site is built."""
    app.connect("builder-inited", generate)
    app.connect("source-read", fill)
    return {"parallel_read_safe": True, "version": "1"}
