"""0, 1, 2 and 4 reference images per category for every method: one table, mean and standard deviation over draws.

    python experiments/few_shot.py [--test synthetic] [--root DATA] [--shots 0 1 2 4] [--draws 3] [--out TABLE.md]

Methods that train do so once, on the rendered benchmark with vlad-tiny; then every number of shots is tested with
every draw. 0 shots is zero-shot on the same test images. What was trained (few_shot/ beside the table) and what was
measured (TABLE.json) is kept and used again.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

import vlad
from vlad.callbacks import CachedFeatures
from vlad.cli import main as command
from vlad.datamodules import AnomalyDataModule
from vlad.files import write_json, write_text
from vlad.methods.base import Method

METRICS = {"image_auroc": "image AUROC", "pixel_ap": "pixel AP", "pixel_auroc": "pixel AUROC", "pixel_aupro": "PRO"}
AUXILIARY = ["--data.train", "synthetic_aux", "--trainer.max_epochs", "1"]
TWO_STAGES = ["--data.train", "synthetic_aux", "--trainer.max_epochs", "2"]
ALL_LAYERS = {"layers": [3, 6, 9, 12]}
# name -> settings that fit vlad-tiny, and how it is trained
METHODS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "sdp": ({"sigma": 3}, []),
    "sdp_plus": ({"sigma": 3, "lr": 1e-3}, AUXILIARY),
    "adaclip": ({"sigma": 3, "lr": 2e-3, "depth": 2}, AUXILIARY),
    "clip_ada": (
        {"sigma": 3, "full_size": 128, "synthesis": {"recipe": "mixed"}},
        ["--data.train", "synthetic", "--trainer.max_epochs", "1"],
    ),
    "april_gan": ({"sigma": 3, **ALL_LAYERS}, AUXILIARY),
    "anomalyclip": ({"sigma": 3}, AUXILIARY),
    "winclip": ({"scales": [4, 6]}, []),
    "patch_memory": ({"sigma": 3, "layers": [3, 6]}, []),
    "af_clip": ({"sigma": 3, "lr": 1e-3, **ALL_LAYERS}, AUXILIARY),
    "faprompt": ({"sigma": 3}, AUXILIARY),
    "crane": ({"sigma": 3}, AUXILIARY),
    "crane_plus": ({"sigma": 3, "dino": "vlad-tiny"}, AUXILIARY),
    "aa_clip": ({"text_epochs": 1, **ALL_LAYERS}, TWO_STAGES),
    "anomalydino": ({"sigma": 3}, []),
    "musc": ({"sigma": 3}, []),
    "bayes_pfl": ({"sigma": 3, "samples": 3, "prompt_epochs": 1, "lr": 2e-3, **ALL_LAYERS}, TWO_STAGES),
    "mrad": ({"sigma": 3, "variant": "ft"}, AUXILIARY),
    "visualad": ({"sigma": 3, **ALL_LAYERS}, AUXILIARY),
}
TINY = {"backbone": "vlad-tiny", "pretrained": None, "image_size": 96}
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false", "--data.num_workers", "0"]


def build(name: str, folder: Path) -> Method:
    """Returns a method, trained where it trains; what was trained before is read."""
    settings, training = METHODS[name]
    if not training:
        return vlad.load(name, **TINY, **settings).method
    runs = folder / name
    if not any(runs.glob("*/*/checkpoints/*.ckpt")):
        given = {f"--model.{option}": value for option, value in {**TINY, **settings}.items() if value is not None}
        model = [text for option, value in given.items() for text in (option, json.dumps(value).strip('"'))]
        options = ["--data.batch_size", "16", "--trainer.default_root_dir", str(runs), *QUIET]
        if command(["fit", "--model", name, *model, *training, *options]):
            raise SystemExit("fit failed")
    checkpoint = max(runs.glob("*/*/checkpoints/*.ckpt"))
    return vlad.load(checkpoint.parent.parent).method


def measure(method: Method, data: dict[str, str], shots: int, draw: int) -> dict[str, float]:
    """Returns the means of the metrics over the categories."""
    images = AnomalyDataModule(**data, shots=shots, seed=draw, batch_size=32, num_workers=0)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[CachedFeatures(cache=True)],  # an image is encoded once, whatever the number of draws
    )
    result = trainer.test(method, images.require(method.requirements), verbose=False)[0]
    return {name: result[f"test/{name}"] for name in METRICS if f"test/{name}" in result}


def cell(values: list[float | None]) -> str:
    """Returns mean and standard deviation in per cent."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "-"
    return f"{statistics.fmean(known):.1f}" + (f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else "")


def table(results: dict[str, dict[str, float]], methods: list[str], shots: list[int], draws: int) -> str:
    """Returns the results as Markdown."""
    lines = ["| method | shots | " + " | ".join(METRICS.values()) + " |", "|---" * (len(METRICS) + 2) + "|"]
    for name in methods:
        for k in shots:
            runs = [results[key] for draw in range(draws) if (key := f"{name} {k} {draw}") in results]
            if runs:
                cells = " | ".join(cell([run.get(metric) for run in runs]) for metric in METRICS)
                lines.append(f"| {name} | {k} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test", default="synthetic")
    parser.add_argument("--root")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/few_shot.md"))
    options = parser.parse_args()
    data = {"test": options.test, **({"root": options.root} if options.root else {})}
    store = options.out.with_suffix(".json")
    results = json.loads(store.read_text()) if store.exists() else {}
    for name in options.methods:
        wanted = [(k, draw) for k in options.shots for draw in range(options.draws if k else 1)]
        missing = [(k, draw) for k, draw in wanted if f"{name} {k} {draw}" not in results]
        if missing:
            method = build(name, options.out.parent / "few_shot")
            tags = method.tags
            for k, draw in missing:
                if not (tags.takes_references if k else not tags.needs_references):
                    continue
                results[f"{name} {k} {draw}"] = measure(method, data, k, draw)
                write_json(store, results)
        write_text(options.out, table(results, options.methods, options.shots, options.draws))
    print(f"\n{table(results, options.methods, options.shots, options.draws)}\ntable: {options.out}")


if __name__ == "__main__":
    main()
