"""CPU seconds an image of WinCLIP against the published loop over windows, on random weights.

    python benchmarks/winclip.py [--backbone ViT-B-16-plus-240] [--image-size 240] [--pairs 3] [--shots 4] [--text]

The loop restates how anomalib computes WinCLIP, for open_clip 3: one gather per window, a scale's windows as one batch
through all tokens of all blocks, and a Python loop over patches that averages their windows. Both run in turns, in one
thread, on one model; times are CPU seconds of the process, which other processes on the machine disturb least. The
floor is the products that remain when nothing is computed twice, at the best rate that this machine showed on products
of the tower's shapes during the run.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vlad.clip import Backbone
from vlad.clip.windows import onednn_products, window_patches
from vlad.methods.winclip import WinCLIP
from vlad.types import Prediction


class PublishedLoop:
    """WinCLIP as anomalib computes it."""

    def __init__(self, model: torch.nn.Module, text: Tensor, scales: tuple[int, ...]) -> None:
        self.model, self.text, self.visual = model, text, model.visual
        self.visual.output_tokens = True
        self.visual.transformer.batch_first = False  # as open_clip was at the versions that anomalib allows
        for block in self.visual.transformer.resblocks:
            block.attn.batch_first = False
        self.grid = self.visual.grid_size
        self.masks = [window_patches(self.grid, side).T for side in scales]
        self.references: tuple[Tensor, list[Tensor]] | None = None
        self.seen: list[Tensor] = []
        self.visual.patch_dropout.register_forward_hook(lambda module, inputs, output: self.seen.append(inputs[0]))

    def encode(self, images: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        self.seen.clear()
        embeddings, patches = self.visual(images)
        tokens = self.seen[0]
        return embeddings, [self.windows(tokens, masks) for masks in self.masks], patches

    def windows(self, tokens: Tensor, masks: Tensor) -> Tensor:
        count = masks.shape[1]
        indices = torch.cat([torch.zeros(1, count, dtype=torch.long), masks + 1]).T
        some = torch.cat([torch.index_select(tokens, 1, index) for index in indices])
        visual = self.visual
        some = visual.ln_post(visual.transformer(visual.ln_pre(visual.patch_dropout(some))))
        return (some[:, 0] @ visual.proj).reshape(count, len(tokens), -1).permute(1, 0, 2)

    def probability(self, embeddings: Tensor) -> Tensor:
        return (F.normalize(embeddings, dim=-1) @ self.text.T / 0.07).softmax(-1)[..., 1]

    def harmonic(self, scores: Tensor, masks: Tensor) -> Tensor:
        found = []
        for patch in range(self.grid[0] * self.grid[1]):
            covers = torch.any(masks == patch, dim=0)
            found.append(sum(covers) / (1 / scores.T[covers]).sum(dim=0))
        return torch.stack(found).T.reshape(len(scores), *self.grid).nan_to_num(posinf=0.0)

    @staticmethod
    def distance(embeddings: Tensor, references: Tensor) -> Tensor:
        bank = F.normalize(references.reshape(-1, references.shape[-1]), dim=-1)
        return (1 - F.normalize(embeddings, dim=-1) @ bank.T).amin(-1) / 2

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        embeddings, windows, patches = self.encode(images)
        score = self.probability(embeddings)
        maps = [score.view(-1, 1, 1).repeat(1, *self.grid)]
        maps += [self.harmonic(self.probability(one), masks) for one, masks in zip(windows, self.masks, strict=True)]
        result = len(maps) / (1 / torch.stack(maps)).sum(0)
        if self.references is not None:
            bank, banks = self.references
            maps = [self.distance(patches, bank).reshape(-1, *self.grid)]
            for one, other, masks in zip(windows, banks, self.masks, strict=True):
                maps.append(self.harmonic(self.distance(one, other), masks))
            few = torch.stack(maps).mean(0)
            result, score = (result + few) / 2, (score + few.amax((-2, -1))) / 2
        return F.interpolate(result[:, None], images.shape[-2:], mode="bilinear")[:, 0], score


def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def linear_flops(x: torch.Size, weight: torch.Size, *rest: object, **options: object) -> int:
    return 2 * x.numel() * weight[0]


UNKNOWN = {torch.ops.mkldnn._linear_pointwise: linear_flops}  # to PyTorch's own counter


def flops(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False, custom_mapping=UNKNOWN) as counter:
        run()
    return counter.get_total_flops()


def least_flops(tower: torch.nn.Module, grid: tuple[int, int], scales: tuple[int, ...]) -> float:
    """Counts the multiplications and additions of the zero-shot way that cannot be shared or left out.

    Ahead of the first attention tokens do not know their window, and of the last block's queries, output projection
    and MLP only the class token is read. Attention itself is below a percent and not counted.
    """
    patches = grid[0] * grid[1]
    sequences = [(1, 1 + patches)]  # how many, and of how many tokens
    sequences += [((grid[0] - side + 1) * (grid[1] - side + 1), 1 + side * side) for side in scales]
    tokens = sum(count * length for count, length in sequences)
    middle = 12 * tokens * (tower.depth - 2)  # in units of one product (W, W) with one token
    first = 3 * (1 + patches) + 9 * tokens
    last = sum(count * (2 * length + 10) for count, length in sequences)
    pixels = 3 * tower.patch_size**2
    return 2 * tower.width * (tower.width * (middle + first + last) + patches * pixels)


def best_rate(width: int, tokens: int = 1024) -> float:
    """Returns the GFLOP per CPU second of the MLP's two products, the best of some runs of both kernels."""
    x, up, down = torch.randn(tokens, width), torch.randn(4 * width, width), torch.randn(width, 4 * width)
    high, low = torch.zeros(4 * width), torch.zeros(width)
    work, best = 16 * tokens * width**2, 0.0
    for kernel in (nullcontext(), onednn_products(x)):
        with kernel:
            times = [cpu_seconds(lambda: F.linear(F.linear(x, up, high), down, low)) for _ in range(5)]
        best = max(best, work / min(times) / 1e9)
    return best


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="ViT-B-16-plus-240")
    parser.add_argument("--image-size", type=int, default=240)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--shots", type=int, default=0, help="references; 0 for zero-shot alone")
    parser.add_argument("--text", action="store_true", help="also time the sentences of a class (half a minute)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = open_clip.create_model(options.backbone, force_custom_text=True, force_image_size=options.image_size).eval()
    backbone = Backbone(model, open_clip.get_tokenizer(options.backbone))
    method = WinCLIP(backbone, None, options.image_size, prompts="anomalib").eval()
    text_seconds = cpu_seconds(lambda: method.texts(["bottle"]))
    published = PublishedLoop(model, method.texts(["bottle"])[0], method.scales)
    size = (options.image_size, options.image_size)
    image = torch.randn(1, 3, *size)
    print(f"{options.backbone}, {options.image_size} px, one image, 1 thread, float32, torch {torch.__version__}\n")

    def ours() -> Prediction:
        return method.score(image, ["bottle"])

    def loop() -> tuple[Tensor, Tensor]:
        return published(image)

    def compare(what: str) -> None:
        (expected, score), got = published(image), ours()
        deviation = float((got.anomaly_map - expected).abs().max() / expected.abs().max())
        pairs, rate = [], best_rate(backbone.width)
        for number in range(options.pairs):
            first, second = (loop, ours) if number % 2 else (ours, loop)
            times = {first: cpu_seconds(first), second: cpu_seconds(second)}
            pairs.append((times[loop], times[ours]))
            rate = max(rate, best_rate(backbone.width))
        theirs, mine = (statistics.median(column) for column in zip(*pairs, strict=True))
        work, less = flops(loop) / 1e9, flops(ours) / 1e9
        least = least_flops(backbone.image, backbone.grid(*size), method.scales) / 1e9
        print(
            f"{what}: maps differ by {deviation:.1e} of their maximum, scores by {float(score - got.image_score):.1e}"
        )
        print(f"  published loop  {theirs:6.2f} CPU s  {work:5.0f} GFLOP  {work / theirs:4.0f} GFLOP/s")
        print(f"  vlad            {mine:6.2f} CPU s  {less:5.0f} GFLOP  {less / mine:4.0f} GFLOP/s")
        print(f"  ratio           {mine / theirs:6.2f}        pairs {' '.join(f'{b / a:.2f}' for a, b in pairs)}")
        print(f"  floor           {least / rate:6.2f} CPU s  {least:5.0f} GFLOP  {rate:4.0f} GFLOP/s at best")
        print(f"  vlad / floor    {mine * rate / least:6.2f}\n", flush=True)

    compare("zero-shot")
    if options.shots:
        references = torch.randn(options.shots, 3, *size)
        names = {"class_name": ["bottle"], "dataset": ["noise"], "category": ["bottle"]}
        batches = [{"image": one, **names} for one in references.split(1)]
        seconds = cpu_seconds(lambda: method.fit_references(batches))
        _, banks, bank = published.encode(references)
        published.references = (bank, banks)
        compare(f"{options.shots}-shot")
        print(f"fitting {options.shots} references: {seconds:.1f} CPU s")
    if options.text:
        normal, anomalous = method.prompts.sentences("bottle")
        ids = backbone.text.tokenize([*normal, *anomalous])
        loop = cpu_seconds(lambda: [model.encode_text(part) for part in ids.split(128)])
        print(f"{len(ids)} sentences of a class: open_clip {loop:.1f} CPU s, vlad {text_seconds:.1f}, once per class")


if __name__ == "__main__":
    main()
