"""Runs a grid of variants over seeds and writes one table: mean and spread of the metrics per variant.

    python experiments/grid.py experiments/clip_ada/ablation.toml [--seeds 0 1 2] [--out TABLE.md]

A grid is a TOML file: ``metrics``, ``seeds``, a section ``common`` and any number of ``variant``s, each with a
``name`` and, in sections ``model``, ``data`` and ``trainer``, what a vlad config holds; a variant's entries
take precedence over the common ones. Where a method refines its maps, a variant gives two rows: before and after.

What has been run is kept beside the table (``TABLE.json``): an interrupted grid goes on where it stopped, and only
variants that were changed run again. After a change of vlad itself, remove that file.
"""

import argparse
import hashlib
import json
import statistics
import tempfile
import time
import tomllib
from pathlib import Path

import yaml

from vlad.cli import main as vlad
from vlad.files import write_json, write_text

HEADINGS = {
    "image_auroc": "image AUROC",
    "image_f1_max": "image F1",
    "pixel_ap": "pixel AP",
    "pixel_auroc": "pixel AUROC",
    "pixel_aupro": "PRO",
}


def merged(common: dict, own: dict) -> dict:
    """Returns the common settings with a variant's own over them, section by section."""
    both = {key: value for key, value in {**common, **own}.items() if key != "name"}
    for section in both:
        if isinstance(both[section], dict) and isinstance(common.get(section), dict):
            same = common[section].get("class_path") == both[section].get(
                "class_path", common[section].get("class_path")
            )
            both[section] = {**(common[section] if same else {}), **own.get(section, {})}
    return both


def run(config: dict, seed: int) -> dict:
    """Trains where there is something to train, tests, and returns the mean of every metric."""
    config = {**config, "seed_everything": seed}
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        here = ["--config", str(file), "--trainer.default_root_dir", folder, *quiet]
        trains = bool(config["data"].get("train"))
        if trains and vlad(["fit", *here]):
            raise SystemExit("fit failed")
        trained = [str(path.parent.parent) for path in Path(folder).glob("*/*/checkpoints/*.ckpt")]
        checkpoint = ["--ckpt_path", trained[0]] if trained else []
        if vlad(["test", *here, *checkpoint, "--heatmaps.enabled", "false"]):
            raise SystemExit("test failed")
        (found,) = Path(folder).glob("*/*/test_metrics.json")
        content = json.loads(found.read_text())
    result = {"after": content["mean"]}
    stages = content.get("stages") or {}
    return result | ({"before": stages["initial"]["mean"]} if "initial" in stages else {})


def cell(values: list[float]) -> str:
    """Returns mean and standard deviation in per cent."""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{spread}"


def table(grid: dict, results: dict[str, list[dict]]) -> str:
    """Returns the grid's table as Markdown."""
    metrics = grid["metrics"]
    lines = ["| | " + " | ".join(HEADINGS[name] for name in metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    for name, runs in results.items():
        for part in ("before", "after") if "before" in runs[0] else ("after",):
            what = name + (f", {part} refinement" if "before" in runs[0] else "")
            lines.append(f"| {what} | " + " | ".join(cell([run[part][m] for run in runs]) for m in metrics) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--out", type=Path, help="table to write; by default in runs/")
    options = parser.parse_args()
    grid = tomllib.loads(options.grid.read_text())
    out = options.out or Path("runs") / f"{options.grid.parent.name}_{options.grid.stem}.md"
    store = out.with_suffix(".json")
    known = json.loads(store.read_text()) if store.exists() else {}
    results: dict[str, list[dict]] = {}
    for variant in grid["variant"]:
        config = merged(grid["common"], variant)
        for seed in options.seeds or grid["seeds"]:
            key = hashlib.sha256(json.dumps([config, seed], sort_keys=True).encode()).hexdigest()[:16]
            if key not in known:
                begin = time.monotonic()
                known[key] = run(config, seed) | {"name": variant["name"], "seed": seed}
                known[key]["seconds"] = round(time.monotonic() - begin, 1)
                write_json(store, known)
            results.setdefault(variant["name"], []).append(known[key])
            print(f"== {variant['name']}, seed {seed}: {known[key]['after']}", flush=True)
        write_text(out, table(grid, results))
    print(f"\n{table(grid, results)}\ntable: {out}")


if __name__ == "__main__":
    main()
