"""Makes the figures of README and documentation, offline: ``python docs/figures.py`` (two minutes on a CPU).

All images in them are rendered by vlad; the report is photographed by chromium, where there is one.
"""

import csv
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.sax.saxutils import escape

from PIL import Image

from vlad.rendered.benchmark import render_dataset

HERE = Path(__file__).parent / "figures"
KINDS = ["grained_bar", "ribbed_bracket", "marbled_crescent", "woven_surface"]
SETTINGS = [
    "--model.backbone",
    "vlad-tiny",
    "--model.image_size",
    "96",
    "--model.sigma",
    "3",
    "--data.batch_size",
    "32",
]
CHROME = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def vlad(*arguments: str | Path) -> None:
    """Runs a command of vlad."""
    subprocess.run([sys.executable, "-m", "vlad", *map(str, arguments)], check=True)


def table(file: Path, split: str) -> Path:
    """Writes a table of the rendered images of some kinds of parts."""
    root = render_dataset("synthetic")
    with file.open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["image_path", "image_id", "category", "class_name", "dataset", "label", "mask_path"])
        for kind in KINDS:
            for image in sorted((root / kind / split).glob("*/*.png")):
                defect = image.parent.name
                mask = root / kind / "ground_truth" / defect / f"{image.stem}_mask.png"
                good = defect == "good"
                name = f"{defect}/{image.stem}"
                rows.writerow([image, name, kind, kind.replace("_", " "), "parts", int(not good), "" if good else mask])
    return file


def photograph(page: Path, target: Path, size: str = "1280,860") -> None:
    """Makes an image of a page as a browser shows it."""
    if CHROME is None:
        raise SystemExit("no chromium on this machine: the figure of the report is left as it is")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=5000"]
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        subprocess.run([CHROME, *options, f"--window-size={size}", f"--screenshot={shot}", page.as_uri()], check=True)
        Image.open(shot).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(target, optimize=True)


def results() -> None:
    """Zero-shot detection on rendered parts: the heat maps and the report of ``vlad test``."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        good, parts = table(work / "good.csv", "train"), table(work / "parts.csv", "test")
        vlad("calibrate", "sdp", good, *SETTINGS, "-o", work / "decision.json")
        vlad("test", "--model", "sdp", *SETTINGS, "--data.test", parts, "--decision", work / "decision.json",
             "--output", work / "zero-shot")  # fmt: skip
        sheet = Image.open(work / "zero-shot/heatmaps/contact_sheet.jpg")
        sheet.save(HERE / "heatmaps.jpg", quality=82, optimize=True)
        photograph(work / "zero-shot/report.html", HERE / "report.png")


# -- the drawing: an image's way ---------------------------------------------------------------------------

INK, SOFT, MAIN = "#222", "#666", "#7a1f5c"
STEPS = [  # joint, what goes on, what leaves it
    ("encode", ["frozen CLIP or DINOv2", "cached, if wished"], "Features"),
    ("compare", ["with text,", "with references"], "Scores"),
    ("finish", ["upsample, smooth,", "image score"], "Prediction"),
    ("decide", ["threshold of a promised", "false-alarm rate"], "Decision"),
]


def text(x: float, y: float, words: str, size: int = 13, colour: str = INK, weight: str = "normal") -> str:
    """Returns centred text."""
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}" font-weight="{weight}" '
        f'text-anchor="middle">{escape(words)}</text>'
    )


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """Returns an arrow."""
    return f'<path d="M{x1},{y1} L{x2},{y2}" stroke="{SOFT}" stroke-width="1.6" marker-end="url(#head)"/>'


def road() -> str:
    """Returns the drawing of encode, compare, finish, decide as SVG."""
    width, box, gap, top, left = 930, 162, 58, 96, 92
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} 250" role="img" '
        'font-family="system-ui, sans-serif">',
        "<title>An image's way: encode, compare, finish, decide</title>",
        f'<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0,0 L8,4 L0,8 z" fill="{SOFT}"/></marker></defs>',
        text(40, top + 34, "images"),
        text(40, top + 52, "(B, 3, H, W)", 10, SOFT),
        arrow(72, top + 38, left - 3, top + 38),
    ]
    for number, (joint, lines, result) in enumerate(STEPS):
        x = left + number * (box + gap)
        last = number == len(STEPS) - 1
        parts += [
            f'<rect x="{x}" y="{top}" width="{box}" height="78" rx="8" fill="#faf4f8" stroke="{MAIN}" '
            f'stroke-width="1.6"{" stroke-dasharray=" + chr(34) + "6 4" + chr(34) if last else ""}/>',
            text(x + box / 2, top + 24, joint, 16, MAIN, "600"),
            *(text(x + box / 2, top + 44 + 17 * i, line, 12) for i, line in enumerate(lines)),
        ]
        if last:
            parts += [arrow(x + box / 2, top + 80, x + box / 2, top + 108)]
            parts += [
                text(x + box / 2, top + 126, "normal or anomalous,", 12),
                text(x + box / 2, top + 142, "regions", 12),
            ]
        else:
            parts += [arrow(x + box + 3, top + 38, x + box + gap - 3, top + 38)]
            parts += [text(x + box + gap / 2, top + 28, result, 10, SOFT)]
    x = left + box + gap  # compare
    parts += [
        text(x + 26, 30, "class names", 12), text(x + 26, 46, "→ text vectors", 12, SOFT),
        arrow(x + 40, 54, x + 50, top - 3),
        text(x + 140, 30, "normal images", 12), text(x + 140, 46, "→ patch memory", 12, SOFT),
        arrow(x + 124, 54, x + 110, top - 3),
    ]  # fmt: skip
    x = left + 2 * (box + gap) + box / 2  # finish
    parts += [
        arrow(x, top + 80, x, top + 108),
        text(x, top + 126, "heat maps, metrics,", 12),
        text(x, top + 142, "report", 12),
    ]
    x = left + 3 * (box + gap) + box / 2
    parts += [text(x, 30, "normal images", 12), text(x, 46, "→ vlad calibrate", 12, SOFT), arrow(x, 54, x, top - 3)]
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    (HERE / "road.svg").write_text(road(), encoding="utf-8")
    if "--drawing" not in sys.argv:
        results()
