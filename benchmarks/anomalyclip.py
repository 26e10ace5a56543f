"""CPU seconds an image of AnomalyCLIP against the published two-path tower, on random weights.

    python benchmarks/anomalyclip.py [--backbone ViT-L-14-336] [--image-size 518] [--pairs 2] [--step]

The published way is restated on open_clip's modules: from the sixth block of 24 on, two attention matrices per block
written out (product, scale, softmax, product), two output projections, all tokens through the last block; cosines by
a product that holds every pair of token and text vector; SciPy's Gaussian. The text vectors are a constant of the
checkpoint on both sides. Both run in turns, in one thread, on one model; times are CPU seconds of the process, which
other processes on the machine disturb least. The floor is the products that remain when nothing is computed twice, at
the best rate that this machine showed on products of the tower's shapes during the run.

``--step`` adds a training step of eight images whose features are known: text with gradients, losses, Adam.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vlad.clip.image import ImageTower
from vlad.clip.numerics import Numerics
from vlad.methods.anomalyclip import AnomalyCLIP
from vlad.types import Features


class PublishedTower:
    """AnomalyCLIP as its published code computes it."""

    def __init__(self, method: AnomalyCLIP) -> None:
        self.tower: ImageTower = method.backbone.image
        self.first, self.text, self.sigma = method.local_from, method.texts([""])[0], method.sigma

    def paths(self, attention: torch.nn.MultiheadAttention, x: Tensor) -> tuple[Tensor, Tensor]:
        batch, count, width = x.shape
        heads = attention.num_heads
        scale = (width // heads) ** -0.5
        qkv = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
        q, k, v = qkv.reshape(batch, count, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        found = []
        for one, other in ((q, k), (v, v)):
            weights = (one @ other.transpose(-2, -1)) * scale
            merged = (weights.softmax(dim=-1) @ v).transpose(1, 2).reshape(batch, count, width)
            found.append(attention.out_proj(merged))
        return found[0], found[1]

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor]:
        from scipy.ndimage import gaussian_filter

        tower, local = self.tower, None
        x = tower.embed(image)
        for number, block in enumerate(tower.visual.transformer.resblocks, 1):
            if number < self.first:
                x = block(x)
                continue
            original, values = self.paths(block.attn, block.ln_1(x))
            local = (x if local is None else local) + values
            x = x + original
            x = x + block.mlp(block.ln_2(x))
        whole = F.normalize(x[:, 0] @ tower.visual.proj, dim=-1)
        patches = F.normalize(tower.visual.ln_post(local) @ tower.visual.proj, dim=-1)
        score = (whole @ self.text.T / 0.07).softmax(-1)[:, 1]
        cosine = (patches[:, :, None] * self.text[None, None]).sum(-1)
        side = round((cosine.shape[1] - 1) ** 0.5)
        grid = (cosine / 0.07).softmax(-1)[:, 1:].reshape(1, side, side, 2).permute(0, 3, 1, 2)
        both = F.interpolate(grid, image.shape[-2:], mode="bilinear")
        found = (both[:, 1] + 1 - both[:, 0]) / 2
        return torch.from_numpy(gaussian_filter(found[0].numpy(), sigma=self.sigma))[None], score


def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def least_flops(method: AnomalyCLIP) -> tuple[float, float]:
    """Counts the multiplications and additions that cannot be shared or left out: of all products, of attention.

    The last block's query, output projection and MLP are those of the class token alone; the local path needs its
    attention and an output projection per block, and no row of the class token.
    """
    tower, size = method.backbone.image, method.image_size
    width, depth, embed = tower.width, tower.depth, tower.embed_dim
    patches = (size // tower.patch_size) ** 2
    tokens, local = 1 + patches, depth - method.local_from + 1
    rows = 12 * tokens * (depth - 1) + 2 * tokens + 10 + patches * local  # in units of one product (W, W) with a token
    attention = 4 * width * tokens * (tokens * (depth - 1) + 1 + patches * local)
    linear = 2 * width * (width * rows + patches * 3 * tower.patch_size**2 + (1 + patches) * embed)
    return linear + attention, attention


def best_rate(width: int, tokens: int = 1370) -> float:
    """Returns the GFLOP per CPU second of the MLP's two products, the best of some runs."""
    x, up, down = torch.randn(tokens, width), torch.randn(4 * width, width), torch.randn(width, 4 * width)
    work = 16 * tokens * width**2
    return work / min(cpu_seconds(lambda: F.linear(F.linear(x, up), down)) for _ in range(5)) / 1e9


def training_step(method: AnomalyCLIP, images: int) -> float:
    """Returns the CPU seconds of a training step whose features are known, the least of three."""
    side = method.image_size // method.backbone.image.patch_size
    embed = method.backbone.image.embed_dim
    features = Features((torch.randn(images, side, side, embed),), torch.randn(images, embed))
    mask = torch.zeros(images, method.image_size, method.image_size, dtype=torch.bool)
    mask[::2, 100:200, 100:200] = True
    batch = {"image": mask, "mask": mask, "label": mask.flatten(1).any(1).long()}
    batch["has_mask"] = torch.ones(images, dtype=torch.bool)
    optimizer = method.train().configure_optimizers()

    def step() -> None:
        optimizer.zero_grad()
        torch.stack(list(method.loss(features, batch).values())).sum().backward()
        optimizer.step()

    return min(cpu_seconds(step) for _ in range(4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="ViT-L-14-336")
    parser.add_argument("--image-size", type=int, default=518)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--step", action="store_true", help="also time a training step from known features")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    class Quick(AnomalyCLIP):
        """OpenAI's activation, which random weights do not bring along.

        Paper: AnomalyCLIP, arXiv 2310.18961.
        """

        numerics = Numerics("quick_gelu", "bilinear", False)

    method = Quick(options.backbone, "random", options.image_size).eval()
    method.allow_untrained = True
    size = options.image_size
    image = torch.randn(1, 3, size, size)
    print(f"{options.backbone}, {size} px, one image, 1 thread, float32, torch {torch.__version__}", flush=True)
    with torch.inference_mode():
        text = cpu_seconds(lambda: method.texts([""]))
        published = PublishedTower(method)
        runs: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
            "published": lambda: published(image),
            "vlad": lambda: method.score(image, [""])[:2],
        }
        results: dict[str, tuple[Tensor, Tensor]] = {}
        times: dict[str, list[float]] = {name: [] for name in runs}
        rate = best_rate(method.backbone.width)
        for number in range(options.pairs):
            for name in list(runs) if number % 2 else list(runs)[::-1]:
                start = time.process_time()
                results[name] = runs[name]()
                times[name].append(time.process_time() - start)
                print(f"  {name} {times[name][-1]:.2f} CPU s", flush=True)
            rate = max(rate, best_rate(method.backbone.width))
        (expected, score), (found, own) = results["published"], results["vlad"]
    loop, mine = (statistics.median(times[name]) for name in ("published", "vlad"))
    ratios = " ".join(f"{b / a:.2f}" for a, b in zip(times["published"], times["vlad"], strict=True))
    work, attention = least_flops(method)
    floor = work / rate / 1e9
    deviation = float((found - expected).abs().max() / expected.abs().max())
    print(f"maps differ by {deviation:.1e} of their largest value, the score by {abs(float(score - own)):.1e}")
    print(f"  published tower   {loop:7.2f} CPU s")
    print(f"  vlad              {mine:7.2f} CPU s   {work / mine / 1e9:5.0f} GFLOP/s")
    print(f"  ratio             {mine / loop:7.2f}           pairs {ratios}")
    print(
        f"  floor             {floor:7.2f} CPU s   {rate:5.0f} GFLOP/s at best, "
        f"{work / 1e9:.0f} GFLOP of which attention {attention / 1e9:.0f}"
    )
    print(f"  vlad / floor      {mine / floor:7.2f}")
    print(f"the two sentences: {text:.2f} CPU s, once per checkpoint")
    if options.step:
        print(f"a training step of 8 images from known features: {training_step(method, 8):.2f} CPU s")


if __name__ == "__main__":
    main()
