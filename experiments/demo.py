"""vlad at work, offline: a detector trained on some kinds of parts finds defects on kinds it has never seen.

    make demo

The images are rendered on the spot and the CLIP is vlad-tiny, which comes with vlad: nothing is downloaded.
What it shows is the road and that it leads somewhere; it says nothing of how well a method does on real images.
"""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path("demo")


def vlad(command: str) -> None:
    """Runs a vlad command as a user would, showing it first."""
    print(f"\n$ vlad {command}", flush=True)
    subprocess.run([sys.executable, "-m", "vlad", *shlex.split(command)], check=True)


def newest(method: str) -> Path:
    return max((ROOT / "runs" / method).iterdir(), key=lambda run: run.stat().st_mtime)


def main() -> None:
    begin = time.monotonic()
    config, runs = "experiments/vlad_tiny/sdp_plus.yaml", f"--trainer.default_root_dir {ROOT}/runs"
    vlad(f"fit --config {config} {runs}")
    vlad(f"test --ckpt_path {newest('sdp_plus')} {runs} --data.test synthetic --data.batch_size 32")
    tested = newest("sdp_plus")
    mean = json.loads((tested / "test_metrics.json").read_text())["mean"]
    image, pixel = (100 * mean[name] for name in ("image_auroc", "pixel_auroc"))
    print(
        f"""
Done in {(time.monotonic() - begin) / 60:.1f} minutes. SDP+ was trained on 20 auxiliary categories and tested on 12
others: shapes with textures, tissues and a kind of defect that neither it nor the CLIP had seen.
Image AUROC {image:.1f}, pixel AUROC {pixel:.1f} (chance is 50). The images are rendered and the CLIP is vlad-tiny:
these figures say nothing of real images.

  look first  {tested}/heatmaps/contact_sheet.jpg
  heat maps   {tested}/heatmaps/
  table       {tested}/test_metrics.csv

Next, with real CLIP weights (downloaded on first use), your own folder, or MVTec AD:
  .venv/bin/vlad predict YOUR_PHOTOS/ --model sdp --data.class_name "metal part"
  .venv/bin/vlad test --model sdp --data.root FOLDER_OF_DATASETS --data.test mvtec_ad"""
    )


if __name__ == "__main__":
    main()
