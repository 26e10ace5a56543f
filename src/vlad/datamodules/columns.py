"""The columns of a table by the names that people give them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlad.datamodules.image_files import printable
from vlad.datamodules.index import COLUMNS
from vlad.datamodules.words import label_of_word
from vlad.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["EMPTY", "Columns", "parse_label", "with_own_names"]

_ALIASES = {
    "image_path": """image images imagefile imagefilename imagename imagefilepath img imgpath imgfile imgname
        imgfilename file files filename filepath filepaths fname path paths picture photo relativepath relpath
        datei dateiname dateipfad bild bilddatei bildpfad pfad fichier chemin archivo ruta immagine percorso
        文件 文件名 图片 图像 路径 图像路径 ファイル ファイル名 画像""",
    "label": """labels isanomaly anomaly anomalous isanomalous anomalylabel isdefect isdefective defective isng ng
        classlabel labelname labelid imagelabel target y result verdict judgement judgment status quality isbad bad
        bewertung ergebnis etikett etiquette etichetta etiqueta resultado risultato 标签 结果 判定""",
    "mask_path": """mask masks maskpath maskfile maskfilename maskname maskfilepath gtpath gtmask groundtruthpath
        groundtruthmask segmentation segmentationpath segmentationmask maske maskenpfad masque mascara maschera 掩码""",
    "category": "categories product object objectname clsname kategorie produkt categorie produit categoria prodotto",
    "split": "subset phase fold partition splitname",
    "class_name": "classname prompt",
    "image_id": "imageid",
    "defect_type": "defectname defectclass anomalytype anomalyclass anomalykind speciename fehlerart fehlertyp",
    "good": "isgood isok ok isnormal normal pass passed ispass gut iio",
}
_OPEN = ("gt", "groundtruth", "truth", "class", "cls", "defect", "type", "kind", "mask")
"""Names whose meaning the values tell."""

EMPTY = frozenset({"", "nan", "none", "null", "na", "n/a", "#n/a", "-", "--"})
"""What programs write into a cell where nothing is."""

_TRUE = frozenset(
    ["true", "wahr", "vrai", "verdadero", "vero", "verdadeiro", "yes", "y", "ja", "oui", "si", "sì", "sim", "t", "x"]
)
_FALSE = frozenset(["false", "falsch", "faux", "falso", "no", "n", "nein", "non", "não", "f"])


class Columns:
    """Which column of a table is which.

    Attributes:
        names: Column of the table → our name.
        unknown: Columns that are not read.
        guessed: Column → our name, where the values told.
    """

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.unknown: list[str] = []
        self.guessed: dict[str, str] = {}


def _plain(name: str) -> str:
    text = unicodedata.normalize("NFKC", name).casefold()
    return re.sub(r"[\W_]+", "", text)


_KNOWN = {_plain(word): ours for ours, words in _ALIASES.items() for word in words.split()}
_OWN = {_plain(name): name for name in COLUMNS}


def parse_label(value: object) -> int | None:
    """Returns 0, 1, -1 (unknown) or None (not a label) for the value of a label.

    Examples:
        >>> [parse_label(value) for value in ("1,0", "Gut", "n.i.O.", "WAHR", "", "maybe")]
        [1, 0, 1, 1, -1, None]
    """
    text = str(value).strip().casefold()
    if text in EMPTY:
        return -1
    number = re.fullmatch(r"([+-]?[01])(?:[.,]0*)?", text)
    if number:
        label = int(number[1])
        return label if label in {0, 1, -1} else None
    if text in _TRUE | _FALSE:
        return int(text in _TRUE)
    label = label_of_word(text)
    return label if label >= 0 else None


def with_own_names(table: pd.DataFrame, file: Path) -> tuple[pd.DataFrame, Columns]:
    """Renames the columns that we know, whatever their spelling; other columns stay.

    Case, blanks and ``_`` do not matter. Where two columns could be one of ours, the one that bears our own name is
    it, else the first. ``good`` (is_good, ok, pass, …) is the opposite of ``label`` and becomes it.

    Raises:
        DataError: Two columns are spelled alike.
    """
    found = Columns()
    for column in table.columns:  # our own names first
        ours = _OWN.get(_plain(str(column)))
        if ours is None:
            continue
        if ours in found.names.values():
            first = next(name for name, one in found.names.items() if one == ours)
            raise DataError(
                f"table {printable(file)} has two columns {ours}: {first!r} and {str(column)!r}; rename one"
            )
        found.names[column] = ours
    for column in table.columns:
        if column in found.names:
            continue
        plain, values = _plain(str(column)), table[column].tolist()
        ours = _by_values(plain, values) if plain in _OPEN else _KNOWN.get(plain)
        if ours and ours not in found.names.values():
            found.names[column] = ours
            if plain in _OPEN:
                found.guessed[column] = ours
    _prefer_files(table, found, file.parent)
    if "label" in found.names.values():
        found.names = {name: ours for name, ours in found.names.items() if ours != "good"}
    found.unknown = [str(column) for column in table.columns if column not in found.names]
    table = table.rename(columns=found.names)
    if "good" in table.columns and "good" in found.names.values():
        opposite = {0: "1", 1: "0"}
        labels = [parse_label(_yes_is_good(value)) for value in table["good"]]
        table = table.rename(columns={"good": "label"})
        table["label"] = [
            opposite.get(label, "") if label is not None else value
            for label, value in zip(labels, table["label"], strict=True)
        ]
    return table, found


def _yes_is_good(value: object) -> str:
    """Turns a word for good into 1, where the column asks whether the part is good."""
    text = str(value)
    if text.strip().casefold() in _TRUE | _FALSE:
        return text
    label = label_of_word(text)
    return text if label < 0 else str(1 - label)


def _by_values(plain: str, values: Sequence[object]) -> str | None:
    """Returns what a column is whose name leaves it open."""
    filled = [text for text in (str(value).strip() for value in values) if text.casefold() not in EMPTY]
    if filled and all(parse_label(text) is not None for text in filled):
        return "label"
    others = {"class": "category", "cls": "category", "defect": "defect_type", "type": None, "kind": None}
    return others.get(plain, "mask_path")


def _prefer_files(table: pd.DataFrame, found: Columns, folder: Path) -> None:
    """Of two columns that may be the image, takes the one whose first value is a file: ``path`` before ``filename``."""
    given = next((name for name, ours in found.names.items() if ours == "image_path"), None)
    if given is None or _plain(str(given)) == "imagepath" or table.empty:
        return
    if (folder / str(table[given].iloc[0])).is_file():
        return
    for column in table.columns:
        known = _KNOWN.get(_plain(str(column))) == "image_path"
        if column not in found.names and known and (folder / str(table[column].iloc[0])).is_file():
            del found.names[given]
            found.names[column] = found.guessed[column] = "image_path"
            return
