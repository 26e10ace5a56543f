"""What AdaCLIP costs an image, against the way its published code goes and against the arithmetic alone.

    python benchmarks/adaclip.py [--batches 1 4] [--threads 2] [--device cpu] [--precision 32] [--out FILE.md]

Random weights. "The published way" is re-enacted on open_clip's own modules: two full visual passes and a text pass
of 48 sentences x 77 tokens, attention with its weights materialised and averaged, four two-channel upsamplings,
scikit-learn's k-means, SciPy's Gaussian, batch 1. It gives the same maps as ours, which is checked.

The floor is the FLOP of a pass over the rate of a large matrix product on the same machine: 2.15 TFLOP at 518 px on
ViT-L-14-336, with text cut at its longest sentence, and nothing but products counted.
"""

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measure import Cost, cost, matmul_rate
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vlad.clip.blocks import TokenEdit, causal_mask
from vlad.clip.prompt_tokens import append_prompts, overwrite_prompts
from vlad.methods.adaclip import AdaCLIP

NAMES = ["bottle", "metal_nut", "cable", "screw", "hazelnut", "carpet", "leather", "wood"]
FLOOR = 2150.0  # GFLOP
PUBLISHED = 2679.0  # counted by hand: PyTorch's counter does not see into the attention that it runs


def published_blocks(blocks: list, x: Tensor, layers: tuple, before: TokenEdit, mask: Tensor | None = None) -> list:
    """Runs blocks as the published code does; the hidden states asked for, then the last ones."""
    found = []
    for number, block in enumerate(blocks, 1):
        x = before(number, x)
        y = block.ln_1(x)
        x = x + block.attn(y, y, y, need_weights=True, attn_mask=mask)[0]
        x = x + block.mlp(block.ln_2(x))
        if number in layers:
            found.append(x)
    return [*found, x]


@torch.no_grad()
def published(method: AdaCLIP, image: Tensor, name: str) -> np.ndarray:
    """Scores one image the published way; returns its smoothed map."""
    from scipy.ndimage import gaussian_filter
    from sklearn.cluster import KMeans

    tower, text = method.backbone.image, method.text_tower
    blocks, layers = list(tower.visual.transformer.resblocks), method.layers
    nothing: TokenEdit = lambda number, x: x  # noqa: E731
    x = tower.embed(image)
    feature = tower.project(published_blocks(blocks, x, layers, nothing)[-1][:, 0])
    edit = append_prompts(method.branch_prompts("visual", feature), x.shape[1])
    *hidden, last = published_blocks(blocks, tower.embed(image), layers, edit)
    pooled = tower.project(last[:, 0])

    ids = text.tokenize([*method.prompts.sentences(name)[0], *method.prompts.sentences(name)[1]])
    prompts = {
        block: prompt.expand(len(ids), -1, -1) for block, prompt in method.branch_prompts("text", feature).items()
    }
    x = text.embed(ids) + text.text.positional_embedding
    mask = causal_mask(x.shape[1], x)
    x = published_blocks(list(text.text.transformer.resblocks), x, (), overwrite_prompts(prompts), mask)[-1]
    sentences = F.normalize(text.finish(x, text.ends(ids)), dim=-1)
    groups = torch.stack([sentences[:28].mean(0), sentences[28:].mean(0)], dim=1)
    vectors = F.normalize(groups, dim=0)

    patches, maps, grids = [], [], []
    for head, tokens in zip(method.patch_heads, hidden, strict=True):
        patch = F.normalize(head(tokens[:, 1 : 1 + (image.shape[-1] // tower.patch_size) ** 2]), dim=-1)
        logits = 100 * patch @ vectors
        side = round(logits.shape[1] ** 0.5)
        grid = logits.permute(0, 2, 1).view(1, 2, side, side)
        maps.append(F.interpolate(grid, image.shape[-2:], mode="bilinear", align_corners=True))
        patches.append(patch)
        grids.append(logits)
    abnormal = torch.stack(grids).mean(0).softmax(-1)[0, :, 1]
    chosen = abnormal.topk(min(len(abnormal), 5 * method.clusters)).indices
    points = torch.cat([patch[0, chosen] for patch in patches], dim=1)
    labels = KMeans(method.clusters, n_init="auto").fit_predict(points.float().cpu().numpy())
    means = [torch.cat([p[0, chosen[labels == k]] for p in patches]).mean(0) for k in range(method.clusters)]
    whole = 0.2 * F.normalize(torch.stack(means).mean(0), dim=0) + 0.8 * F.normalize(
        method.class_head(pooled)[0], dim=0
    )
    (100 * F.normalize(whole, dim=0) @ vectors).softmax(-1)
    return gaussian_filter(torch.stack(maps).mean(0).softmax(1)[0, 1].float().cpu().numpy(), sigma=4)


def row(what: str, batch: int, found: Cost, gflop: float, rate: float) -> str:
    wall, floor = found.wall / batch, FLOOR / rate
    return (
        f"| {what} | {batch} | {wall:.2f} | {found.cpu / batch:.2f} | {found.memory:.0f} | {gflop / batch:.0f} "
        f"| {gflop / found.wall:.0f} | {wall / floor:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="ViT-L-14-336")
    parser.add_argument("--image-size", type=int, default=518)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["32", "bf16"], default="32")
    parser.add_argument("--no-training", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, repeats = options.device, options.repeats
    half = options.precision == "bf16"
    cast = (lambda: torch.autocast(device.split(":")[0], torch.bfloat16)) if half else nullcontext
    method = AdaCLIP(options.backbone, "random", options.image_size).to(device).eval()
    rate = matmul_rate(device, torch.bfloat16 if half else torch.float32)
    lines = [
        f"{options.backbone}, {options.image_size} px, {options.precision}, {device}, {options.threads} threads; "
        f"a large matrix product: {rate:.0f} GFLOP/s; floor {FLOOR / rate:.2f} s an image\n",
        "| what | batch | s an image | CPU s an image | extra MB | GFLOP an image | GFLOP/s | of the floor |",
        "|---|---|---|---|---|---|---|---|",
    ]

    def measure(what: str, batch: int, run: Callable[[], object], gflop: float = 0.0) -> None:
        with FlopCounterMode(display=False) as counter:
            run()
        gflop = gflop or counter.get_total_flops() / 1e9
        lines.append(row(what, batch, cost(run, repeats, device), gflop, rate))
        print(lines[-1], flush=True)

    images = torch.randn(max(options.batches), 3, options.image_size, options.image_size, device=device)
    method.allow_untrained = True
    print("\n".join(lines), flush=True)
    one = published(method, images[:1], "bottle")
    with torch.no_grad():
        ours = method.score(images[:1], ["bottle"]).anomaly_map[0].cpu().numpy()
    print(f"(largest difference of the maps: {np.abs(ours - one).max():.1e})", flush=True)
    with cast():
        measure("the published way", 1, lambda: published(method, images[:1], "bottle"), PUBLISHED)
        for batch in options.batches:
            names = (NAMES * batch)[:batch]
            with torch.inference_mode():
                measure("`adaclip`, score", batch, lambda b=batch, n=names: method.score(images[:b], n))
        if not options.no_training:
            method.train()
            for batch in options.batches:
                mask = torch.zeros(batch, *images.shape[-2:], dtype=torch.bool, device=device)
                mask[:, 100:200, 100:200] = True
                data = {"image": images[:batch], "class_name": (NAMES * batch)[:batch], "mask": mask}
                data["label"] = torch.ones(batch, dtype=torch.long, device=device)
                data["has_mask"] = torch.ones(batch, dtype=torch.bool, device=device)

                def step(forget: bool, data: dict = data) -> None:
                    if forget:
                        method._plain._known.clear()
                    features = method.encode_for_loss(data["image"])
                    torch.stack(list(method.loss(features, data).values())).sum().backward()

                measure("`adaclip`, training step, first epoch", batch, lambda s=step: s(True))
                measure("`adaclip`, training step, later epochs", batch, lambda s=step: s(False))
    if options.out:
        how = f"`python benchmarks/adaclip.py`; random weights; seconds are medians of {repeats}"
        options.out.write_text(f"# What AdaCLIP costs\n\n{how}\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
