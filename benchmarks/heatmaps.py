"""CPU time of one heat map: the image shrunk, its preview written and read, the panel drawn, encoded, and written.

    python benchmarks/heatmaps.py IMAGES [--height 256] [--count 80] [--out benchmarks/heatmaps.md]

Images are real, maps smooth noise of 37 x 37 of which 5 % lie above the scale's ``low``; every second panel has a
ground truth and all a contour. Pillow's PNG of the same panels stands beside. One thread; the first five panels, which
find the fonts, are not counted.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vlad.datamodules.dataset import preview_size
from vlad.drawing.panel import draw_panel
from vlad.drawing.png import encode_png
from vlad.drawing.previews import Preview, load_preview, save_preview
from vlad.drawing.scale import Scale
from vlad.files import write_atomic

FIRST = 5  # panels that are not counted


def previews(images: Path, height: int, count: int, times: dict[str, float]) -> Iterator[Preview]:
    """Yields what panels of images are drawn from; adds the time that shrinking takes."""
    rng = np.random.default_rng(0)
    files = sorted(path for path in images.rglob("*") if path.suffix.lower() in {".png", ".jpg", ".jpeg"})
    for number, path in enumerate(files[:: max(1, len(files) // count)][:count]):
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        box, size = (0, 0, *image.size), preview_size(*image.size, height)
        begin = time.process_time()
        image = image.resize(size, Image.Resampling.BICUBIC, box, reducing_gap=1.5)  # as the data set does
        times["shrink the image"] += time.process_time() - begin if number >= FIRST else 0
        noise = torch.from_numpy(rng.normal(size=(1, 1, 8, 8)))
        smooth = torch.nn.functional.interpolate(noise, size=(37, 37), mode="bicubic")[0, 0].numpy()
        values = ((smooth - np.quantile(smooth, 0.95)) / smooth.std()).astype(np.float32)
        mask = np.asarray(Image.fromarray(values > 0.2).resize(image.size, Image.Resampling.NEAREST))
        title, caption = f"{path.parent.name}/{path.stem}", f"score {values.max():.4g}, map max {values.max():.4g}"
        yield Preview(title, title, caption, np.asarray(image), {"": values}, mask if number % 2 else None)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--count", type=int, default=80)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    scale = Scale(low=0.0, high=1.0, floor=-1.0, contour=0.3)
    steps = ("write the preview", "read the preview", "draw", "encode as PNG", "write the file")
    times = dict.fromkeys(("shrink the image", *steps), 0.0)
    pillow, sizes, count = 0.0, [0, 0], -FIRST
    with tempfile.TemporaryDirectory() as folder:
        for number, preview in enumerate(previews(options.images, options.height, options.count, times)):
            count += 1
            marks = [time.process_time()]
            path = Path(folder) / f"{number}.safetensors"
            save_preview(path, preview)
            marks.append(time.process_time())
            again = load_preview(path)
            marks.append(time.process_time())
            panel = draw_panel(again.panel(), scale)
            marks.append(time.process_time())
            content = encode_png(np.asarray(panel))
            marks.append(time.process_time())
            write_atomic(path.with_suffix(".png"), lambda partial, content=content: partial.write_bytes(content))
            marks.append(time.process_time())
            buffer = io.BytesIO()
            panel.save(buffer, format="PNG", compress_level=1)
            if number >= FIRST:
                for what, begin, end in zip(steps, marks[:-1], marks[1:], strict=True):
                    times[what] += end - begin
                pillow += time.process_time() - marks[-1]
                sizes = [sizes[0] + len(content), sizes[1] + buffer.tell()]
    lines = [f"{count} panels, {options.height} px", "", "| what | CPU ms a panel |", "|---|---|"]
    lines += [f"| {what} | {1000 * seconds / count:.1f} |" for what, seconds in times.items()]
    lines += [f"| **together** | {1000 * sum(times.values()) / count:.1f} |"]
    lines += [f"| instead of encoding: Pillow, level 1 | {1000 * pillow / count:.1f} |"]
    lines += ["", f"Size of a file: {sizes[0] / count / 1000:.0f} kB; Pillow's {sizes[1] / count / 1000:.0f} kB."]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        options.out.write_text(f"# Cost of a heat map\n\n`python benchmarks/heatmaps.py IMAGES`: {text}")


if __name__ == "__main__":
    main()
