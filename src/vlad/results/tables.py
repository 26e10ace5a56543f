"""Tables of results for a terminal, Markdown, LaTeX, HTML and CSV."""

from __future__ import annotations

import csv
import html
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from vlad.errors import OptionError, nearest

__all__ = ["FORMATS", "Cell", "Table", "heading", "number", "percent", "render"]

_HEADINGS = {
    "image_auroc": "I-AUROC",
    "image_ap": "I-AP",
    "image_f1_max": "I-F1max",
    "pixel_auroc": "P-AUROC",
    "pixel_ap": "P-AP",
    "pixel_f1_max": "P-F1max",
    "pixel_aupro": "P-PRO",
    "pixel_iou_max": "P-IoUmax",
    "pixel_aupimo": "P-AUPIMO",
}
_LIMITS = {"pixel_aupro_": "P-PRO", "image_fpr_at_": "I-FPR", "pixel_fpr_at_": "P-FPR"}


def heading(column: str) -> str:
    """Returns what stands over a column: short for ours, the column's name for a plug-in's.

    Examples:
        >>> heading("image_auroc"), heading("pixel_aupro_0.05")
        ('I-AUROC', 'P-PRO@0.05')
    """
    for start, shown in _LIMITS.items():
        if column.startswith(start):
            return f"{shown}@{column.removeprefix(start)}"
    return _HEADINGS.get(column, column)


class Cell(NamedTuple):
    """A cell.

    Attributes:
        text: What is shown.
        value: The number that rows are ranked by; NaN for none.
    """

    text: str
    value: float = math.nan


def number(value: float | None, std: float | None = None, *, digits: int = 1) -> Cell:
    """Returns a cell of a number in per cent, with its standard deviation where there is one.

    Examples:
        >>> number(92.84, 0.15).text, number(None).text
        ('92.8 ± 0.1', '-')
    """
    if value is None or math.isnan(value):
        return Cell("-")
    spread = "" if std is None or math.isnan(std) else f" ± {std:.{digits}f}"
    return Cell(f"{value:.{digits}f}{spread}", value)


def percent(value: float | None) -> str:
    """Returns a share in per cent with one digit; a dash for NaN.

    Examples:
        >>> percent(0.5), percent(float("nan"))
        ('50.0', '-')
    """
    return number(None if value is None else 100 * value).text


@dataclass
class Table:
    """A table.

    Attributes:
        columns: What stands over the columns.
        rows: Cells, as many as columns; a plain text is a cell without a number.
        numeric: Columns that are set flush right.
        ranked: Columns whose best and second value are marked, where a higher one is better.
        title: What stands above, or "".
        notes: Sentences below.
        rules: Before which rows there is a rule.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    numeric: frozenset[int] = frozenset()
    ranked: frozenset[int] = frozenset()
    title: str = ""
    notes: Sequence[str] = ()
    rules: frozenset[int] = frozenset()
    marks: dict[tuple[int, int], int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Finds the best value of each ranked column, and the second: 1 and 2 in ``marks`` by row and column."""
        for column in self.ranked:
            cells = [(row[column], i) for i, row in enumerate(self.rows)]
            values = [
                (round(cell.value, 6), i) for cell, i in cells if isinstance(cell, Cell) and cell.value == cell.value
            ]
            best = sorted({value for value, _ in values}, reverse=True)[:2] if len(values) > 1 else []
            self.marks |= {(i, column): best.index(value) + 1 for value, i in values if value in best}

    def texts(self) -> list[list[str]]:
        """Returns the texts of all cells."""
        return [[cell.text if isinstance(cell, Cell) else cell for cell in row] for row in self.rows]


def _text(table: Table) -> str:
    lines = [[str(name) for name in table.columns], *table.texts()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    set_ = [
        "  ".join(
            cell.rjust(width) if i in table.numeric else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    rule = "-" * max(len(line) for line in set_)
    body = [part for i, line in enumerate(set_[1:]) for part in ([rule, line] if i in table.rules else [line])]
    head = [table.title] if table.title else []
    return "\n".join([*head, set_[0], rule, *body, *(f"- {note}" for note in table.notes)])


def _marked(table: Table, escape: Callable[[str], str], best: str, second: str) -> list[list[str]]:
    form = {1: best, 2: second}
    return [
        [form.get(table.marks.get((i, j), 0), "{}").format(escape(cell)) for j, cell in enumerate(row)]
        for i, row in enumerate(table.texts())
    ]


def _markdown(table: Table) -> str:
    def escape(text: str) -> str:
        return html.escape(text, quote=False).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")

    rows = _marked(table, escape, "**{}**", "<u>{}</u>")
    rule = ["---:" if i in table.numeric else "---" for i in range(len(table.columns))]
    lines = [[escape(name) for name in table.columns], rule, *rows]
    head = [f"**{escape(table.title)}**", ""] if table.title else []
    notes = ["", *(f"- {escape(note)}" for note in table.notes)] if table.notes else []
    return "\n".join([*head, *(f"| {' | '.join(line)} |" for line in lines), *notes])


_LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "±": r"$\pm$"},
    **{"\u2013": "--", "\n": " "},
}


def _latex(table: Table) -> str:
    def escape(text: str) -> str:
        return "".join(_LATEX.get(letter, letter) for letter in text)

    rows = _marked(table, escape, r"\textbf{{{}}}", r"\underline{{{}}}")
    align = "".join("r" if i in table.numeric else "l" for i in range(len(table.columns)))
    body: list[str] = []
    for i, row in enumerate(rows):
        body += [r"\midrule"] if i in table.rules else []
        body.append(f"{' & '.join(row)} \\\\")
    notes = [f"% {note}" for note in table.notes]
    caption = [f"\\caption{{{escape(table.title)}}}"] if table.title else []
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            *notes,
            r"\begin{table}",
            r"\centering",
            *caption,
            f"\\begin{{tabular}}{{{align}}}",
            r"\toprule",
            f"{' & '.join(escape(name) for name in table.columns)} \\\\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _html(table: Table) -> str:
    rows = _marked(table, html.escape, "<b>{}</b>", "<u>{}</u>")

    def line(cells: Sequence[str], tag: str, form: str = "") -> str:
        kinds = [' class="n"' if i in table.numeric else "" for i in range(len(cells))]
        return (
            f"<tr{form}>{''.join(f'<{tag}{kind}>{one}</{tag}>' for kind, one in zip(kinds, cells, strict=True))}</tr>"
        )

    head = f"<caption>{html.escape(table.title)}</caption>" if table.title else ""
    body = "\n".join(line(row, "td", ' class="rule"' if i in table.rules else "") for i, row in enumerate(rows))
    notes = f"<ul>{''.join(f'<li>{html.escape(note)}</li>' for note in table.notes)}</ul>" if table.notes else ""
    columns = line([html.escape(name) for name in table.columns], "th")
    return f"<table>{head}<thead>{columns}</thead>\n<tbody>{body}</tbody></table>{notes}"


def _csv(table: Table) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([table.columns, *table.texts()])
    return out.getvalue().rstrip("\n")


def _json(table: Table) -> str:
    return json.dumps(
        [dict(zip(table.columns, row, strict=True)) for row in table.texts()], indent=2, ensure_ascii=False
    )


FORMATS = {"text": _text, "markdown": _markdown, "latex": _latex, "html": _html, "csv": _csv, "json": _json}


def render(table: Table, format: str = "text") -> str:
    """Returns a table as text.

    Args:
        table: The table.
        format: text, markdown, latex (booktabs), html, csv or json; all but text, csv and json mark the best number of
            a ranked column in bold and underline the second.

    Raises:
        OptionError: There is no such format.

    Examples:
        >>> print(render(Table(["method", "I-AUROC"], [["a_b", number(90.0)]], frozenset({1}))))
        method  I-AUROC
        ---------------
        a_b        90.0
    """
    if format not in FORMATS:
        raise OptionError(f"no table format is named {format!r}; {nearest(format, FORMATS)}")
    return FORMATS[format](table)
