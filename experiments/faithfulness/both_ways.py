"""What the published settings and our defaults make of the same 16 images.

    python experiments/faithfulness/both_ways.py DATA/mvtec_ad/bottle

Eight good and eight defective images of a category in MVTec AD's layout, split into two categories of eight, are tested
with SDP, SDP+ and AdaCLIP, by default and with ``as_published``. The CLIPs are small ones with random weights, those of
the tests: the figures compare settings and say nothing of how well a method does. ``--save FOLDER`` keeps maps and
scores; ``--against FOLDER`` compares with such files, made by running the authors' own scripts on the same images.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch import Callback, Trainer

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from tests_support import DATA, Golden, golden

from vlad.callbacks import Evaluator
from vlad.datamodules import AnomalyDataModule
from vlad.methods.adaclip import AdaCLIP
from vlad.methods.base import Method
from vlad.methods.sdp import SDP
from vlad.methods.sdp_plus import SDPPlus

METHODS = {"sdp": (SDP, "clip_ad/v2"), "sdp_plus": (SDPPlus, "clip_ad/v2"), "adaclip": (AdaCLIP, "adaclip/a")}
CATEGORIES = ("bottle", "metal_nut")  # names that the small CLIPs have words for
COLUMNS = ("image_auroc", "image_f1_max", "image_ap", "pixel_auroc", "pixel_f1_max", "pixel_ap")


class Keep(Callback):
    """Keeps the maps of a test, in order."""

    def __init__(self) -> None:
        self.maps: list[torch.Tensor] = []

    def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *rest: Any) -> None:
        """Adds a batch."""
        self.maps.append(outputs.anomaly_map)


def choose(category: Path) -> pd.DataFrame:
    """Chooses 8 good and 8 defective images, the first ones of each defect type, and deals them to two categories."""
    kinds = sorted(folder.name for folder in (category / "test").iterdir() if folder.name != "good")
    files = {kind: sorted((category / "test" / kind).glob("*.png")) for kind in [*kinds, "good"]}
    counts = {kind: len(range(n, 8, len(kinds))) for n, kind in enumerate(kinds)} | {"good": 8}
    rows: list[dict[str, Any]] = []
    for kind, count in counts.items():
        for number, image in enumerate(files[kind][:count]):
            mask = "" if kind == "good" else str(category / "ground_truth" / kind / f"{image.stem}_mask.png")
            row = {"image_path": str(image), "mask_path": mask, "label": int(kind != "good")}
            first = number < (count + (kind == kinds[0])) // 2  # 2 + 1 + 1 of three defect types
            rows.append({**row, "category": CATEGORIES[not first]})
    return pd.DataFrame(rows).sort_values("category", kind="stable")


def build(name: str, run: Golden, folder: Path, **options: Any) -> Method:
    """Builds a method on a golden's CLIP with the golden's trained parameters."""
    cls, meta = METHODS[name][0], run.meta
    options |= {"backbone": run.backbone, "pretrained": None, "image_size": meta["image_size"]}
    if cls is not SDP:
        file = {"linear_layers": run.method} if cls is SDPPlus else run.method
        torch.save(file, folder / f"{name}.pth")
        options["weights"] = str(folder / f"{name}.pth")
    if cls is not AdaCLIP:
        options |= {"layers": meta["features"], "sigma": meta["smoothing"], "representative": meta["rep_vec"]}
    return cls(**options)


def test(method: Method, table: Path, batch_size: int) -> dict[str, Any]:
    """Runs the test loop; returns maps, image scores and the means of the metrics."""
    evaluator, keep = Evaluator(mode="exact"), Keep()
    data = AnomalyDataModule(test=str(table), batch_size=batch_size, num_workers=0).require(method.requirements)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(accelerator="cpu", devices=1, callbacks=[evaluator, keep], **quiet).test(method, data, verbose=False)
    assert evaluator.result is not None
    scores = np.array(evaluator.result.images["image_score"])
    return {"maps": torch.cat(keep.maps).numpy(), "image_score": scores, "mean": dict(evaluator.result.mean)}


def deviation(one: dict[str, Any], other: dict[str, Any]) -> str:
    """Says how far two runs are apart: maps relative to their range, and image scores."""
    maps = np.abs(one["maps"] - other["maps"]).max() / np.ptp(other["maps"])
    return f"maps {maps:.1e} of their range, image scores {np.abs(one['image_score'] - other['image_score']).max():.1e}"


def main() -> None:
    """Runs everything and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("category", type=Path, help="folder of a category in MVTec AD's layout")
    parser.add_argument("--save", type=Path, help="folder for maps and scores, METHOD.npz")
    parser.add_argument("--against", type=Path, help="folder with METHOD.npz: maps (N, S, S), image_score (N,)")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print("| method | setting |", " | ".join(COLUMNS), "|\n|---|---|" + "---|" * len(COLUMNS))
    notes = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        choose(given.category.resolve()).to_csv(folder / "images.csv", index=False)
        for method, (_, where) in METHODS.items():
            run = golden(DATA / where, folder / method)
            found = {}
            for setting in ("default", "as_published"):
                built = build(method, run, folder, as_published=setting == "as_published")
                found[setting] = one = test(built, folder / "images.csv", 4)
                figures = " | ".join(f"{100 * one['mean'][column]:.4f}" for column in COLUMNS)
                print(f"| {method} | {setting} | {figures} |", flush=True)
            single = test(build(method, run, folder, as_published=True), folder / "images.csv", 1)
            notes.append(f"{method}: default against as_published: {deviation(*found.values())}")
            notes.append(f"{method}: as_published, batch 1 against 4: {deviation(single, found['as_published'])}")
            if given.against:
                theirs = dict(np.load(given.against / f"{method}.npz"))
                notes.append(f"{method}: as_published against {given.against}: {deviation(single, theirs)}")
            if given.save:
                given.save.mkdir(parents=True, exist_ok=True)
                np.savez(given.save / f"{method}.npz", maps=single["maps"], image_score=single["image_score"])
    print("\n" + "\n".join(notes))


if __name__ == "__main__":
    main()
