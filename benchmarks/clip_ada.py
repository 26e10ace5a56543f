"""What CLIP-ADA costs an image: with the first look alone, with each refinement, and in training.

    python benchmarks/clip_ada.py [--backbone ViT-L-14-336] [--batches 1 4] [--device cpu] [--out FILE.md]

Random weights, images at the default size (336 of 1008 px on ViT-L-14-336). An image's map is made to stand out in
three places, so that zoom looks at as many regions as it ever does; "one by one" is the same zoom with one forward per
region. A training step sees the whole image and a region, forward through the tower without gradients.
"""

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from measure import cost, matmul_rate
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vlad.methods.clip_ada import CLIPADA
from vlad.methods.refinement import Head, NoRefinement, Zoom


class Spots(Zoom):
    """Zoom that is shown three spots, whatever the map says."""

    def refine(self, logits: Tensor, levels: Tensor, images: Tensor, look: Callable, module: object) -> Tensor:
        spots = torch.full_like(levels, -9.0)
        side = spots.shape[-1]
        for row, column in ((1, 1), (side // 2, side - 2), (side - 2, 2)):
            spots[..., row, column] = 9.0
        return super().refine(logits, spots, images, look, None)


class OneByOne(Spots):
    """The same with one forward per region."""

    def refine(self, logits: Tensor, levels: Tensor, images: Tensor, look: Callable, module: object) -> Tensor:
        def each(views: Tensor, boxes: Tensor) -> Tensor:
            return torch.cat([look(views[i : i + 1], boxes[i : i + 1]) for i in range(len(boxes))])

        return super().refine(logits, levels, images, each, module)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="ViT-L-14-336")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["32", "bf16"], default="32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = options.device
    low = options.precision == "bf16"
    rate = matmul_rate(device, torch.bfloat16 if low else torch.float32)
    lines = [
        f"{options.backbone}, {options.precision}, {device}, {options.threads} threads; a large matrix product:"
        f" {rate:.0f} GFLOP/s\n",
        "| what | batch | s an image | of the first look | extra MB | GFLOP an image | GFLOP/s |",
        "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    size = int(options.backbone.rsplit("-", 1)[1]) if options.backbone.count("-") > 2 else 224
    settings = {"image_size": size, "full_size": 3 * size}
    method = CLIPADA(options.backbone, "random", **settings, refinement=NoRefinement()).to(device)
    method.allow_untrained = True
    method.refinement = Head().build(len(method.layers)).to(device)

    def report(what: str, batch: int, run: Callable[[], object], first: float | None) -> float:
        with torch.autocast(device.split(":")[0], torch.bfloat16) if low else nullcontext():
            with FlopCounterMode(display=False) as counter:
                run()
            found = cost(run, options.repeats, device)
        wall, gflop = found.wall / batch, counter.get_total_flops() / batch / 1e9
        lines.append(
            f"| {what} | {batch} | {wall:.2f} | {wall / (first or wall):.2f} | {found.memory:.0f} | {gflop:.0f} |"
            f" {gflop / wall:.0f} |"
        )
        print(lines[-1], flush=True)
        return wall

    for batch in options.batches:
        images = torch.randn(batch, 3, method.full_size, method.full_size, device=device)
        names = ["part"] * batch
        method.eval()
        with torch.no_grad():
            first = None
            for what, refinement in (
                ("first look alone", NoRefinement()),
                ("zoom, three regions", Spots(min_side=method.min_side)),
                ("zoom, three regions, one by one", OneByOne(min_side=method.min_side)),
                ("head", Head()),
            ):
                method.how = refinement
                wall = report(what, batch, lambda i=images, n=names: method.score(i, n), first)
                first = first or wall
        method.how = NoRefinement()
        method.train()
        data = {"image": images, "class_name": names}

        def step(data: dict = data) -> None:
            batch = method.prepare(data)
            terms = method.loss(method.encode_for_loss(batch["image"]), batch)
            torch.stack(list(terms.values())).sum().backward()

        report("training step", batch, step, first)
    if options.out:
        title = "# What CLIP-ADA costs\n\n`python benchmarks/clip_ada.py`; random weights\n\n"
        options.out.write_text(title + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
