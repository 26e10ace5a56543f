"""Images per second of the data module against the plain PIL pipeline of the published code, on the same files.

    python benchmarks/data.py [--root DATA] [--out benchmarks/data.md]
    python benchmarks/data.py --decoders DATA

The files are MVTec AD's bottle (PNG, 900 px) where ``--root`` has it, and always smooth noise as JPEG (3000 x 2000)
and PNG (900 x 900) made here. Both sides give normalised tensors of 518 x 518 and masks, in batches, with as many
reading processes as there are cores; each is timed over whole passes, the pipelines in turn. ``--decoders`` compares,
file by file, what vlad decodes to with what OpenCV does, and the CPU time of both.
"""

import argparse
import io
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from vlad.datamodules import AnomalyDataModule
from vlad.datamodules.decode import load_image
from vlad.datamodules.image_files import IMAGE_SUFFIXES
from vlad.types import Preprocess, Requirements

SIDE, BATCH, PASSES = 518, 8, 3
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Plain(Dataset):
    """Opens, converts, resizes, normalises and pads with PIL and torchvision, as AdaCLIP's code does."""

    def __init__(self, frame):
        self.rows = frame.to_dict("records")
        self.image = transforms.Compose(
            [
                transforms.Resize((SIDE, SIDE), interpolation=transforms.InterpolationMode.BICUBIC),
                transforms.CenterCrop((SIDE, SIDE)),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )
        self.mask = transforms.Compose(
            [transforms.Resize((SIDE, SIDE)), transforms.CenterCrop((SIDE, SIDE)), transforms.ToTensor()]
        )

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        image = Image.open(row["image_path"]).convert("RGB")
        if row["mask_path"]:
            mask = np.array(Image.open(row["mask_path"]).convert("L")) > 0
            mask = Image.fromarray(mask.astype(np.uint8) * 255, mode="L")
        else:
            mask = Image.fromarray(np.zeros((image.size[1], image.size[0]), np.uint8), mode="L")
        return {"img": self.image(image), "img_mask": self.mask(mask)}


def make(folder: Path, kind: str, count: int = 32) -> Path:
    """Writes smooth images, half with masks, as a folder that vlad reads."""
    rng = np.random.default_rng(0)
    width, height = (3000, 2000) if kind == "jpg" else (900, 900)
    for i in range(count):
        place = "bad" if i % 2 else "good"
        (folder / place).mkdir(parents=True, exist_ok=True)
        (folder / "masks").mkdir(exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 255, (height // 20, width // 20, 3), np.uint8))
        pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
        pixels = np.clip(pixels + rng.integers(-6, 7, pixels.shape), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / place / f"{i:03}.{kind}", quality=95)
        if i % 2:
            mask = np.zeros((height, width), np.uint8)
            mask[300:420, 300:500] = 255
            Image.fromarray(mask).save(folder / "masks" / f"{i:03}.png")
    return folder


def loaders(data: AnomalyDataModule, workers: int) -> dict[str, DataLoader]:
    def fast() -> DataLoader:
        data.fast_jpeg = True
        return data.test_dataloader()

    data.fast_jpeg = False
    return {
        "plain PIL, as published": DataLoader(Plain(data.frames["test"]), batch_size=BATCH, num_workers=workers),
        "vlad": data.test_dataloader(),
        "vlad, fast_jpeg": fast(),
    }


def decoders(folder: Path) -> list[str]:
    """Returns a table of the images below a folder: how many OpenCV decodes to the same bits, and how fast."""
    import cv2

    cv2.setNumThreads(1)
    found: dict[tuple[str, str], list[tuple[bool, int, float, float, float]]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES):
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as opened:
            kind = (opened.format or "", opened.mode)
        marks = [time.process_time()]
        ours = np.asarray(load_image(str(path), content=content))
        marks.append(time.process_time())
        Image.open(io.BytesIO(content)).convert("RGB")
        marks.append(time.process_time())
        theirs = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        marks.append(time.process_time())
        equal = theirs is not None and np.array_equal(theirs[..., ::-1], ours)
        seconds = np.diff(marks).tolist()
        found.setdefault(kind, []).append((equal, ours.shape[0] * ours.shape[1], *seconds))
    lines = [
        "| format | files | equal bits | pixels | vlad, ms | Pillow, ms | OpenCV, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for (name, mode), rows in sorted(found.items()):
        equal, pixels, *seconds = (sum(column) for column in zip(*rows, strict=True))
        times = " | ".join(f"{1000 * each / len(rows):.1f}" for each in seconds)
        lines.append(f"| {name} {mode} | {len(rows)} | {equal} | {pixels / len(rows) / 1e6:.2f} M | {times} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder that holds mvtec_ad")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path)
    parser.add_argument("--decoders", type=Path, help="compare decoders on the images below this folder, nothing else")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.decoders:
        print("\n".join(decoders(options.decoders)))
        return
    lines = ["| files | pipeline | images/s | ratio |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        sets = {f"{kind} of noise": str(make(Path(folder) / kind, kind)) for kind in ("jpg", "png")}
        if options.root:
            sets["MVTec AD bottle"] = "mvtec_ad"
        for title, source in sets.items():
            data = AnomalyDataModule(root=options.root, test=source, batch_size=BATCH, num_workers=options.workers)
            data.require(Requirements(Preprocess(SIDE, MEAN, STD)))
            data.setup("test")
            count = len(data.frames["test"])
            times: dict[str, list[float]] = {}
            for _ in range(PASSES):
                for name, loader in loaders(data, options.workers).items():
                    begin = time.perf_counter()
                    assert sum(len(batch.get("img", batch.get("image"))) for batch in loader) == count
                    times.setdefault(name, []).append(time.perf_counter() - begin)
            base = statistics.median(times["plain PIL, as published"])
            for name, seconds in times.items():
                middle = statistics.median(seconds)
                lines.append(f"| {title} | {name} | {count / middle:.1f} | {base / middle:.2f}x |")
                print(lines[-1], flush=True)
    text = (
        f"# Reading images at {SIDE} px\n\n`python benchmarks/data.py`, {options.workers} processes\n\n"
        + "\n".join(lines)
        + "\n"
    )
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
