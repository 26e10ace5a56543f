"""Few-shot references: k normal images per category, from a train split, held out of a test split, or given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlad.datamodules.columns import with_own_names
from vlad.datamodules.custom import index_images, label_of
from vlad.datamodules.image_files import printable
from vlad.datamodules.notes import say_ignored
from vlad.datamodules.overlap import shared_rows
from vlad.datamodules.selection import draw
from vlad.datamodules.tables import is_table, read_table
from vlad.errors import DataError
from vlad.files import read_plain

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "HELD_OUT",
    "check_shots",
    "draw_references",
    "given_references",
    "hold_out",
    "train_references",
    "with_rotations",
]

HELD_OUT = 8
"""Normal images per category that are held out where a data set has no train split, whatever k is asked for."""


def check_shots(shots: int | None) -> None:
    """Refuses a number of shots that makes no sense.

    Raises:
        DataError: Negative, or no whole number.
    """
    if shots is not None and (isinstance(shots, bool) or not isinstance(shots, int) or shots < 0):
        raise DataError(f"data.shots is a number of reference images per category, 0 or more, not {shots}")


def train_references(train: pd.DataFrame, shots: int, seed: int) -> pd.DataFrame:
    """Draws references from the normal images of a train split; fewer shots are a part of more.

    Raises:
        DataError: A category has fewer.
    """
    return draw(train, shots, seed, "normal training images", "data.shots") if shots else train.iloc[:0]


def hold_out(test: pd.DataFrame, shots: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Holds normal images out of a test split.

    Args:
        test: Index of the test split, of categories without normal training images.
        shots: References per category k; every k leaves the same rest.
        seed: Seed of the draw.

    Returns:
        References, and the rest that is tested: what is held out is no part of it, nor are its copies.

    Raises:
        DataError: More shots than are held out, or a category with too few normal images.
    """
    if shots > HELD_OUT:
        raise DataError(
            f"{test['dataset'].iloc[0]} has no normal training images: {HELD_OUT} normal test images per category are "
            f"held out, data.shots asks for {shots}; give --references FOLDER for more"
        )
    normal = test[test["label"] == 0]
    for (dataset, category), group in test.groupby(["dataset", "category"], sort=False):
        count = int((group["label"] == 0).sum())
        if count < HELD_OUT:
            raise DataError(
                f"{dataset}/{category} has no normal training images and {count} normal test images, of which "
                f"data.shots holds {HELD_OUT} out; give --references FOLDER, or leave data.shots out"
            )
    held = draw(normal, HELD_OUT, seed, "normal test images", "data.shots")
    rest = test.drop(index=test.index[[row for _, row in shared_rows(held, test)]])
    return (draw(held, shots, seed + 1, "held-out images", "data.shots") if shots else held.iloc[:0]), rest


def draw_references(
    whole: pd.DataFrame, scored: pd.DataFrame, shots: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Draws references of a data set: from its train split, and of categories that have none, from what is scored.

    Args:
        whole: Index of the data set, all splits.
        scored: Its rows that are scored.
        shots: References per category.
        seed: Seed of the draw.

    Returns:
        References, the rows that are still scored, and one line on what was held out, or "".

    Raises:
        DataError: A category has fewer normal images.
    """
    import pandas as pd

    normal = whole[(whole["split"] == "train") & (whole["label"] == 0) & _names(whole).isin(_names(scored))]
    has_normal = _names(scored).isin(_names(normal))
    references, rest = train_references(normal.reset_index(drop=True), shots, seed), scored[has_normal]
    if has_normal.all():
        return references, rest, ""
    without = scored[~has_normal].reset_index(drop=True)
    held, left = hold_out(without, shots, seed)
    names, count = ", ".join(dict.fromkeys(without["dataset"])), len(without) - len(left)
    told = (
        f"{names}: no normal training images; {count} test images are held out as references, "
        "whatever the number of shots"
    )
    joined = [pd.concat(parts, ignore_index=True) for parts in ([references, held], [rest, left])]
    return joined[0], joined[1], told


def _names(frame: pd.DataFrame) -> pd.Series:
    """Returns the data set and category of each row: a table may hold several data sets."""
    return frame["dataset"] + "/" + frame["category"]


def given_references(given: Sequence[str] | str, shots: int | None, seed: int, wanted: pd.DataFrame) -> pd.DataFrame:
    """Indexes reference images that were given.

    Args:
        given: A folder, whose sub-folders may be named like the categories; image files; or a list: a text file with
            a path per line, or a table with ``image_path`` and ``category``.
        shots: So many per category are drawn; None takes all.
        seed: Seed of the draw.
        wanted: Index of what is scored; its categories need references.

    Raises:
        DataError: Nothing is there, or a category has none.
    """
    import pandas as pd

    categories = list(dict.fromkeys(zip(wanted["dataset"], wanted["category"], strict=True)))
    parts: list[pd.DataFrame] = []
    for one in [given] if isinstance(given, str | Path) else given:
        path = Path(one).expanduser()
        folders = {category: path / category for _, category in categories if (path / category).is_dir()}
        if not path.is_dir() and (path.suffix.lower() == ".txt" or is_table(path)):
            parts.append(_listed(path))
        elif folders:
            parts += [_in_folder(folder).assign(category=name) for name, folder in folders.items()]
        else:
            parts.append((_in_folder(path) if path.is_dir() else index_images(one).frame).assign(category=""))
    frame = pd.concat(parts, ignore_index=True).drop_duplicates(["image_path", "frame", "category"], ignore_index=True)
    how = (
        "put each category's into a folder of its name, or name them in a CSV with the columns image_path and category"
    )
    loose = frame["image_path"][frame["category"] == ""]
    if len(loose) and len(categories) > 1:
        raise DataError(
            f"data.references does not name the category of {loose.iloc[0]}, and {len(categories)} categories are "
            f"scored: {how}"
        )
    found = []
    for dataset, category in categories:
        own = frame[frame["category"].isin(["", category])]
        if own.empty:
            raise DataError(f"data.references has no images of {dataset}/{category}: {how}")
        rows = wanted[(wanted["dataset"] == dataset) & (wanted["category"] == category)]
        found.append(own.assign(dataset=dataset, category=category, class_name=rows["class_name"].iloc[0], label=0))
    references = pd.concat(found, ignore_index=True)
    return references if shots is None else draw(references, shots, seed, "given references", "data.shots")


def _in_folder(folder: Path) -> pd.DataFrame:
    """Indexes a folder of normal images.

    Raises:
        DataError: Some lie in folders that are named after anomalies.
    """
    frame, ignored = index_images(folder)
    say_ignored(ignored, f"data.references {printable(folder)}")
    anomalous = [label_of(name.split("/")[:-1]) == 1 for name in frame["image_id"]]
    if any(anomalous):
        normal = next((str(one) for one in (folder / "good", folder / "train" / "good") if one.is_dir()), "")
        raise DataError(
            f"references are normal images, and {sum(anomalous)} of data.references are in folders of anomalies "
            f"(first: {frame['image_path'][anomalous].iloc[0]}); give the folder of normal images alone"
            f"{normal and ': '}{normal}"
        )
    return frame


def _listed(path: Path) -> pd.DataFrame:
    """Indexes a text file with a path per line, or a table with image_path and perhaps category."""
    import pandas as pd

    if not path.is_file():
        raise DataError(f"list of references {printable(path)} does not exist")
    if is_table(path):
        table, _ = with_own_names(read_table(path), path)
        if "image_path" not in table:
            has = [printable(name) for name in table.columns]
            raise DataError(f"list of references {printable(path)} has no column image_path; it has {has}")
        names = table["category"].tolist() if "category" in table else [""] * len(table)
        files = table["image_path"].tolist()
    else:
        try:
            text = read_plain(path).decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"list of references {printable(path)} cannot be read: {error}") from error
        files = [line.strip() for line in text.splitlines() if line.strip()]
        names = [""] * len(files)
    if not files:
        raise DataError(f"list of references {printable(path)} names no images")
    parts = [
        index_images(path.parent / file).frame.assign(category=name) for file, name in zip(files, names, strict=True)
    ]
    return pd.concat(parts, ignore_index=True)


def with_rotations(references: pd.DataFrame, count: int) -> pd.DataFrame:
    """Repeats every reference ``count`` times, turned by equal angles: the column ``rotation``, in degrees."""
    if count == 1:
        return references
    angles = [360 * number / count for number in range(count)] * len(references)
    return references.loc[references.index.repeat(count)].assign(rotation=angles).reset_index(drop=True)
