"""0, 1, 2 and 4 reference images per category for every method: one table, mean and standard deviation over draws.

    python experiments/few_shot.py [--test synthetic] [--root DATA] [--shots 0 1 2 4] [--draws 3] [--out TABLE.md]

Methods that train do so once, on the rendered benchmark with vlad-tiny; then every number of shots is tested with
every draw. 0 shots is zero-shot on the same test images. What was trained (few_shot/ beside the table) and what was
measured (TABLE.json) is kept and used again.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from vlad.cli import main as vlad
from vlad.files import write_json, write_text

METRICS = {"image_auroc": "image AUROC", "pixel_ap": "pixel AP", "pixel_auroc": "pixel AUROC", "pixel_aupro": "PRO"}
TINY = ["--model.backbone", "vlad-tiny", "--model.image_size", "96"]
METHODS: dict[str, dict[str, list[str]]] = {
    "sdp": {"model": ["--model.sigma", "3"]},
    "sdp_plus": {
        "model": ["--model.sigma", "3", "--model.lr", "1e-3"],
        "fit": ["--data.train", "synthetic_aux", "--trainer.max_epochs", "1"],
    },
    "adaclip": {
        "model": ["--model.sigma", "3", "--model.lr", "2e-3", "--model.depth", "2"],
        "fit": ["--data.train", "synthetic_aux", "--trainer.max_epochs", "1"],
    },
    "clip_ada": {
        "model": ["--model.sigma", "3", "--model.full_size", "128", "--model.synthesis.recipe", "mixed"],
        "fit": ["--data.train", "synthetic", "--trainer.max_epochs", "1"],
    },
    "april_gan": {
        "model": ["--model.sigma", "3", "--model.layers", "[3,6,9,12]"],
        "fit": ["--data.train", "synthetic_aux", "--trainer.max_epochs", "1"],
    },
    "anomalyclip": {
        "model": ["--model.sigma", "3"],
        "fit": ["--data.train", "synthetic_aux", "--trainer.max_epochs", "1"],
    },
    "winclip": {"model": ["--model.scales", "[4,6]"]},
    "patch_memory": {"model": ["--model.sigma", "3", "--model.layers", "[3,6]"]},
}
QUIET = [
    *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false", "--data.num_workers", "0"),
    *("--features.cache", "true"),  # each method encodes an image once, whatever the number of draws
]


def fit(name: str, folder: Path) -> list[str]:
    """Returns the arguments that give a method: trained where it trains."""
    method = METHODS[name]
    model = ["--model", name, *TINY, *method["model"]]
    if "fit" not in method:
        return model
    here = ["--trainer.default_root_dir", str(folder / name)]
    known = any(folder.glob(f"{name}/*/*/checkpoints/*.ckpt"))
    if not known and vlad(["fit", *model, *method["fit"], "--data.batch_size", "16", *here, *QUIET]):
        raise SystemExit("fit failed")
    (checkpoint,) = folder.glob(f"{name}/*/*/checkpoints/*.ckpt")
    return ["--ckpt_path", str(checkpoint.parent.parent)]


def measure(method: list[str], data: list[str], shots: int, draw: int) -> dict[str, float]:
    """Returns the means of the metrics over the categories."""
    with tempfile.TemporaryDirectory() as folder:
        few = ["--shots", str(shots), "--seed_everything", str(draw)]
        here = ["--trainer.default_root_dir", folder, "--heatmaps.enabled", "false", "--data.batch_size", "32"]
        if vlad(["test", *method, *data, *few, *here, *QUIET]):
            raise SystemExit("test failed")
        (found,) = Path(folder).glob("*/*/test_metrics.json")
        return json.loads(found.read_text())["mean"]


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
                lines.append(f"| {name} | {k} | " + " | ".join(cell([run[m] for run in runs]) for m in METRICS) + " |")
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
    data = ["--data.test", options.test, *(["--data.root", options.root] if options.root else [])]
    store = options.out.with_suffix(".json")
    results = json.loads(store.read_text()) if store.exists() else {}
    for name in options.methods:
        wanted = [(k, draw) for k in options.shots for draw in range(options.draws if k else 1)]
        wanted = [(k, draw) for k, draw in wanted if k or name != "patch_memory"]
        missing = [(k, draw) for k, draw in wanted if f"{name} {k} {draw}" not in results]
        if missing:
            method = fit(name, options.out.parent / "few_shot")
            for k, draw in missing:
                results[f"{name} {k} {draw}"] = measure(method, data, k, draw)
                write_json(store, results)
        write_text(options.out, table(results, options.methods, options.shots, options.draws))
    print(f"\n{table(results, options.methods, options.shots, options.draws)}\ntable: {options.out}")


if __name__ == "__main__":
    main()
