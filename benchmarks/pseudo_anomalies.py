"""Pseudo-anomalies a second, and what they cost a training step.

    python benchmarks/pseudo_anomalies.py [--device cpu] [--sizes 128 336 672 1008] [--out FILE.md]

Images are rendered parts. "One by one" is the Perlin recipe as it is published: NumPy on one image at a time, at a
size that its lattice divides, a texture read from memory, changed and blended. The training step is `clip_ada` on a
ViT-B-16 with random weights, whole image and region; the share is what the synthesis takes of it.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from measure import Cost, cost
from torch import Tensor

from vlad.methods.clip_ada import CLIPADA
from vlad.pseudo_anomalies import RECIPES, Random, Synthesizer
from vlad.rendered import Look, render


def rendered_images(count: int, size: int) -> Tensor:
    looks = [Look("gear", "brushed", "teal"), Look("plate", "dotted", "green"), Look("surface", "woven", "brown")]
    rendered = [render(looks[i % 3], seed=(0, i), size=size).image for i in range(count)]
    return torch.from_numpy(np.stack(rendered)).permute(0, 3, 1, 2) / 255


def one_by_one(images: np.ndarray, texture: np.ndarray, random: np.random.Generator) -> None:
    """DRAEM's recipe on NumPy, image after image: noise by repeated lattice cells, rotation, blending."""
    import cv2

    size = images.shape[1]
    for image in images:
        while True:
            cells = [2 ** int(random.integers(0, 6)) for _ in range(2)]
            delta, repeat = [c / size for c in cells], [size // c for c in cells]
            grid = np.mgrid[0 : cells[0] : delta[0], 0 : cells[1] : delta[1]].transpose(1, 2, 0) % 1
            angles = 2 * math.pi * random.random((cells[0] + 1, cells[1] + 1))
            slopes = np.stack([np.cos(angles), np.sin(angles)], axis=-1)

            def corner(y: int, x: int, grid: np.ndarray = grid, slopes: np.ndarray = slopes, repeat: list = repeat):
                part = slopes[y : slopes.shape[0] - 1 + y, x : slopes.shape[1] - 1 + x]
                part = part.repeat(repeat[0], 0).repeat(repeat[1], 1)
                return ((grid - [y, x]) * part).sum(-1)

            fade = grid**3 * (grid * (grid * 6 - 15) + 10)
            top = corner(0, 0) + fade[..., 0] * (corner(1, 0) - corner(0, 0))
            bottom = corner(0, 1) + fade[..., 0] * (corner(1, 1) - corner(0, 1))
            noise = math.sqrt(2) * (top + fade[..., 1] * (bottom - top))
            turn = cv2.getRotationMatrix2D((size / 2, size / 2), random.uniform(-90, 90), 1)
            mask = (cv2.warpAffine(noise, turn, (size, size)) > 0.5)[..., None]
            if mask.any():
                break
        changed = np.clip(1.3 * (texture - 0.5) + 0.5 + random.uniform(-0.1, 0.1), 0, 1)
        share = random.uniform(0, 0.8)
        image * (1 - mask) + (1 - share) * changed * mask + share * image * mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 352, 672, 1008])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, batch = options.device, options.batch
    lines = [
        f"batches of {batch}, {device}, {options.threads} threads; images a second\n",
        "| px | " + " | ".join([*RECIPES, "mixed"]) + " | one by one | training step | share |",
        "|---" * (len(RECIPES) + 5) + "|",
    ]
    print("\n".join(lines))
    steps = iter(range(10**6))
    for size in options.sizes:
        images = rendered_images(batch, size).to(device)
        cells = []
        for recipe in [*RECIPES, "mixed"]:
            make = Synthesizer(recipe)
            found: Cost = cost(lambda m=make, x=images: m(x, Random(next(steps), device=device)), 7, device)
            cells.append(f"{batch / found.wall:.0f}")
        if size % 32 == 0:
            arrays, random = images.permute(0, 2, 3, 1).cpu().numpy(), np.random.default_rng(0)
            texture = random.random((size, size, 3), dtype=np.float32)
            found = cost(lambda a=arrays, t=texture, r=random: one_by_one(a, t, r), 3)
            cells.append(f"{batch / found.wall:.0f}")
        else:
            cells.append("size does not fit")
        view = 224
        method = CLIPADA("ViT-B-16", "random", view, full_size=max(view, size)).to(device).train()
        given = torch.nn.functional.interpolate(images, (method.full_size,) * 2)
        data = {"image": given, "class_name": ["part"] * batch}

        def train(m: CLIPADA = method, d: dict = data) -> None:
            batch = m.prepare(d)
            torch.stack(list(m.loss(m.encode_for_loss(batch["image"]), batch).values())).sum().backward()

        step = cost(train, 3, device).wall
        paint = cost(lambda m=method, x=given: m.synthesize(x), 5, device).wall
        cells += [f"{batch / step:.1f}", f"{100 * paint / step:.0f} %"]
        lines.append(f"| {size} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    if options.out:
        title = "# Pseudo-anomalies\n\n`python benchmarks/pseudo_anomalies.py`; a ViT-B-16 that looks at 224 px\n\n"
        options.out.write_text(title + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
