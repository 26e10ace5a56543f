"""An epoch of training from cached features against one that runs the frozen tower, on random weights.

    python benchmarks/features.py [--methods sdp_plus april_gan anomalyclip] [--images 8] [--half] [--out TABLE.md]

Both runs go through the data module and Lightning's trainer, as ``vlad fit`` does, in one thread: reading, resizing
and losses count on both sides. Times are CPU seconds of an epoch. The cached run is two epochs, one that fills the
cache and one that reads it; the other one runs the tower in both. What was learned is compared at the end, and so are
the gradients of the last step.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from PIL import Image

from vlad.callbacks import CachedFeatures
from vlad.datamodules import AnomalyDataModule
from vlad.features.store import used_bytes
from vlad.files import write_text
from vlad.methods.base import Method
from vlad.registry import get_method


def write_images(root: Path, count: int) -> None:
    """Writes noise of 900 x 900 pixels in MVTec AD's layout, half of it with a defect."""
    random = np.random.default_rng(0)
    for number in range(count):
        kind = "scratch" if number % 2 else "good"
        path = root / "mvtec_ad" / "bottle" / "test" / kind / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (900, 900, 3), dtype=np.uint8)).save(path)
        if number % 2:
            mask = np.zeros((900, 900), dtype=np.uint8)
            mask[200:350, 100:400] = 255
            path = root / "mvtec_ad" / "bottle" / "ground_truth" / kind / f"{number:03d}_mask.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)


class Clock(Callback):
    """CPU seconds of each epoch, and the gradients of the last step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.gradients: dict[str, torch.Tensor] = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Method) -> None:  # type: ignore[override]
        self._start = time.process_time()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Method) -> None:  # type: ignore[override]
        self.seconds.append(time.process_time() - self._start)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Method, optimizer: object) -> None:  # type: ignore[override]
        self.gradients = {k: p.grad.clone() for k, p in pl_module.named_parameters() if p.grad is not None}


def train(method: Method, root: Path, batch: int, cached: CachedFeatures) -> tuple[Clock, dict[str, torch.Tensor]]:
    """Trains two epochs; returns the clock and what was learned."""
    data = AnomalyDataModule(str(root), train="mvtec_ad", batch_size=batch, num_workers=0, shuffle=False)
    clock = Clock()
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock, cached],
    )
    trainer.fit(method, data.require(method.requirements))
    return clock, {name: p.detach().clone() for name, p in method.named_parameters() if p.requires_grad}


def deviation(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Returns the largest difference, relative to the largest magnitude of its tensor."""
    return max(float((one[k] - other[k]).abs().max() / other[k].abs().max().clamp(min=1e-12)) for k in other)


def measure(name: str, root: Path, arguments: argparse.Namespace) -> str:
    """Returns the row of a method."""
    seed_everything(0, verbose=False)
    method = get_method(name)(backbone=arguments.backbone, pretrained="random", image_size=arguments.image_size)
    start = {key: value.clone() for key, value in method.state_dict().items() if not key.startswith("backbone.")}
    live, learned = train(method, root, arguments.batch_size, CachedFeatures())
    method.load_state_dict(start, strict=False)
    cached, again = train(method, root, arguments.batch_size, CachedFeatures(cache=True, half=arguments.half))
    size = used_bytes(Path(os.environ["VLAD_CACHE"]) / "features") / arguments.images / 1e6
    before, after = sum(live.seconds) / 2 / arguments.images, cached.seconds[1] / arguments.images
    return (
        f"| {name} | {before:.2f} | {after:.3f} | {before / after:.0f} | {size:.1f} "
        f"| {deviation(cached.gradients, live.gradients):.1e} | {deviation(again, learned):.1e} |"
    )


def main() -> None:
    """Prints a row per method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["sdp_plus", "april_gan", "anomalyclip"])
    parser.add_argument("--backbone", default="ViT-L-14-336")
    parser.add_argument("--image-size", type=int, default=518)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--half", action="store_true", help="keep features in half precision")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "| method | s an image, live | cached | ratio | MB an image | gradients | weights |",
        "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    for name in arguments.methods:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["VLAD_CACHE"] = folder
            write_images(Path(folder) / "data", arguments.images)
            lines.append(measure(name, Path(folder) / "data", arguments))
            print(lines[-1], flush=True)
    if arguments.out:
        write_text(arguments.out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
