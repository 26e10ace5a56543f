"""Pre-trains vlad-tiny, the small CLIP that vlad ships, on images rendered here; no download, no GPU.

    python experiments/vlad_tiny/pretrain.py --out OUT_FOLDER

It sees auxiliary pairs of shape and texture, auxiliary tissues and auxiliary defects alone. The loss is CLIP's,
with every caption that is true of an image as a positive; and, for the image and for every patch, whether the
normal or the abnormal sentence of a pair is nearer. Patches are compared at the end of the tower and on the
value-value paths that detectors read. Time and expected figures: src/vlad/clip/vlad_tiny/README.md.
"""

import argparse
import json
import multiprocessing
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from captions import Sample, caption, states
from open_clip import SimpleTokenizer
from torch import Tensor

from vlad.clip import AttentionBranch, Backbone
from vlad.clip.backbone import random_clip, save_local
from vlad.rendered import Look, render
from vlad.rendered.benchmark import AUXILIARY, UNSEEN_DEFECT, auxiliary_looks
from vlad.rendered.defects import DEFECTS, LESIONS
from vlad.rendered.parts import COLORS
from vlad.rendered.tissue import TISSUES

SIZE = 96
CONFIG = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": SIZE, "layers": 12, "width": 96, "head_width": 48, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
STAGES, ENDS = (1, 4, 7, 10), (3, 6, 9, 12)


def samples(count: int, seed: int) -> list[Sample]:
    """Draws what the images show."""
    draw = random.Random(seed)
    looks = auxiliary_looks()
    tissues = [look for look in AUXILIARY.values() if look.shape in TISSUES]
    parts = [defect for defect in DEFECTS if defect != UNSEEN_DEFECT]
    drawn = []
    for _ in range(count):
        tissue = draw.random() < 0.15
        look = draw.choice(tissues) if tissue else draw.choice(looks)._replace(color=draw.choice(list(COLORS)))
        defect = draw.choice(list(LESIONS) if tissue else parts) if draw.random() < 0.6 else ""
        drawn.append(Sample(look, defect))
    return drawn


def draw_one(job: tuple[Look, str, int, int]) -> tuple[np.ndarray, np.ndarray]:
    look, defect, seed, number = job
    return tuple(render(look, defect, seed=(seed, number), size=SIZE))


def rendered_images(drawn: list[Sample], seed: int) -> tuple[Tensor, Tensor]:
    """Renders images (n, 3, S, S) and masks (n, S, S), uint8."""
    images = torch.empty(len(drawn), 3, SIZE, SIZE, dtype=torch.uint8)
    masks = torch.empty(len(drawn), SIZE, SIZE, dtype=torch.uint8)
    jobs = [(*sample, seed, number) for number, sample in enumerate(drawn)]
    with multiprocessing.Pool() as pool:
        for number, (image, mask) in enumerate(pool.imap(draw_one, jobs, chunksize=64)):
            images[number] = torch.from_numpy(image).permute(2, 0, 1)
            masks[number] = torch.from_numpy(mask)
    return images, masks


def turn(images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Flips and turns a batch."""
    flip, quarter = (int(torch.randint(n, (), generator=generator)) for n in (2, 4))
    if flip:
        images, masks = images.flip(-1), masks.flip(-1)
    return images.rot90(quarter, (-2, -1)), masks.rot90(quarter, (-2, -1))


def contrastive(image: Tensor, text: Tensor, true: Tensor) -> Tensor:
    """Returns CLIP's loss of similarities (B, B) where a caption may be true of several images."""
    logits = image @ text.T

    def one_way(logits: Tensor, true: Tensor) -> Tensor:
        return -((logits.log_softmax(1) * true).sum(1) / true.sum(1)).mean()

    return (one_way(logits, true) + one_way(logits.T, true.T)) / 2


def patch_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Returns the balanced binary cross-entropy of patches (B, n) against the defect's share of each."""
    patch = CONFIG["vision_cfg"]["patch_size"]
    share = F.avg_pool2d(masks.float()[:, None], patch).flatten(1)
    target = (share * 4).clamp(max=1)  # a quarter of a patch is enough to call it a defect
    return F.binary_cross_entropy_with_logits(logits, target, weight=1 + 4 * target)


def train(arguments: argparse.Namespace) -> None:
    torch.manual_seed(arguments.seed)
    begin = time.time()
    drawn = samples(arguments.images, arguments.seed)
    images, masks = rendered_images(drawn, arguments.seed)
    print(f"{len(drawn)} images rendered in {time.time() - begin:.0f} s", flush=True)

    model = random_clip(CONFIG, arguments.seed)
    clip = Backbone(model, SimpleTokenizer(context_length=77), name="vlad-tiny")
    clip.requires_grad_(True)
    scale = torch.nn.Parameter(torch.tensor(1 / 0.07).log())
    decay = [p for name, p in clip.named_parameters() if p.ndim > 1 and "embedding" not in name]
    others = [p for name, p in clip.named_parameters() if p.ndim < 2 or "embedding" in name]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": [*others, scale], "weight_decay": 0.0}], betas=(0.9, 0.98)
    )
    generator = torch.Generator().manual_seed(arguments.seed)
    words = random.Random(arguments.seed)
    mean, std = (torch.tensor(value)[:, None, None] for value in (clip.mean, clip.std))
    order: list[int] = []
    seen: set[int] = set()
    begin = time.time()
    for step in range(arguments.steps):
        rate = arguments.lr * min(1, (step + 1) / 100) * (0.5 + 0.5 * np.cos(np.pi * step / arguments.steps) + 0.01)
        for group in optimizer.param_groups:
            group["lr"] = rate
        if len(order) < arguments.batch:
            order = torch.randperm(len(drawn), generator=generator).tolist()
        rows, order = order[: arguments.batch], order[arguments.batch :]
        shown = [drawn[row] for row in rows]
        image, mask = turn(images[rows], masks[rows], generator)
        captions = [caption(sample, words) for sample in shown]
        pairs = [states(sample, words) for sample in shown]
        true = torch.tensor([[float(text.true_of(sample)) for text in captions] for sample in shown])
        bad = torch.tensor([float(bool(sample.defect)) for sample in shown])

        sentences = [text.text for text in captions] + [text for pair in zip(*pairs, strict=True) for text in pair]
        seen.update(clip.text.tokenize(sentences).unique().tolist())
        text = F.normalize(clip.text.encode(sentences, chunk=1000), dim=-1)
        text, normal, abnormal = text.split(len(shown))
        contrast = (abnormal - normal) * scale.exp()

        tower = clip.image
        local = AttentionBranch(first=1, restarts=STAGES) if step % 2 else None  # the dearer half of a step
        tokens = tower.run(
            tower.embed((image.float() / 255 - mean) / std), branch=local, branch_layers=ENDS if local else ()
        )
        last = F.normalize(tower.project(tokens.last), dim=-1)
        paths = [F.normalize(tower.project(t[:, 1:]), dim=-1) for t in tokens.branch.values()]
        whole = last[:, 0]
        terms = {
            "clip": contrastive(whole * scale.exp(), text, true),
            "state": F.binary_cross_entropy_with_logits((whole * contrast).sum(1), bad),
            "patch": patch_loss((last[:, 1:] @ contrast[..., None])[..., 0], mask),
        }
        if local:
            terms["local"] = torch.stack([patch_loss((p @ contrast[..., None])[..., 0], mask) for p in paths]).mean()
        loss = terms["clip"] + 2 * terms["state"] + 2 * terms["patch"] + 4 * terms.get("local", 0)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            scale.clamp_(max=float(np.log(100)))
        if step % 50 == 49 or step + 1 == arguments.steps:
            spent = time.time() - begin
            left = spent / (step + 1) * (arguments.steps - step - 1)
            overlaps = "  ".join(f"{name} {term.item():.3f}" for name, term in terms.items())
            print(f"{step + 1:5}/{arguments.steps}  {overlaps}  scale {scale.exp().item():.0f}  "
                  f"{spent / 60:.0f} min, {left / 60:.0f} left", flush=True)  # fmt: skip

    finish(clip, model, seen, float(scale.detach()), arguments)


def finish(clip: Backbone, model: torch.nn.Module, seen: set[int], scale: float, arguments: argparse.Namespace) -> None:
    """Writes the model in half precision; words never seen become the mean of those seen."""
    with torch.no_grad():
        table = clip.text.text.token_embedding.weight
        known = torch.tensor(sorted(seen))
        fill = table[known].mean(0)
        kept = table[known].clone()
        table[:] = fill
        table[known] = kept
        model.logit_scale.fill_(scale)
    print(f"{len(seen)} words seen; written to {save_local(model.half(), CONFIG, arguments.out)}")
    (Path(arguments.out) / "training.json").write_text(json.dumps(vars(arguments), indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder for the weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=40000)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    train(parser.parse_args())
