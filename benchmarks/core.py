"""CPU seconds of the CLIP core against open_clip's own forward, on random weights.

    python benchmarks/core.py [--backbone ViT-B-16-plus-240] [--repeats 5]

Prints a table; every row is the median over the repeats of the process's CPU time, one thread.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import open_clip
import torch

from vlad.clip import Backbone
from vlad.methods.sdp import SDP
from vlad.methods.sdp_plus import SDPPlus
from vlad.prompts import load_prompts


def cpu_seconds(run: Callable[[], object], repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return statistics.median(times)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="ViT-B-16-plus-240")
    parser.add_argument("--image-size", type=int, default=240)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = open_clip.create_model(options.backbone, force_custom_text=True).eval()
    backbone = Backbone(model, open_clip.get_tokenizer(options.backbone))
    methods = [
        cls(backbone=backbone, image_size=options.image_size, representative="mean").eval() for cls in (SDP, SDPPlus)
    ]
    methods[1].allow_untrained = True
    image = torch.randn(1, 3, options.image_size, options.image_size)
    normal, abnormal = load_prompts("clip_ad").sentences("bottle")
    sentences = [*normal, *abnormal]
    ids = backbone.text.tokenize(sentences)
    rows = [
        ("open_clip encode_image, one image", lambda: model.encode_image(image), options.repeats),
        ("vlad ImageTower.encode", lambda: backbone.image.encode(image), options.repeats),
        ("vlad Backbone.encode, four layers", lambda: backbone.encode(image, [3, 6, 9, 12]), options.repeats),
        ("vlad SDP, image to smoothed map", lambda: methods[0].score(image, ["bottle"]), options.repeats),
        ("vlad SDP+, image to smoothed map", lambda: methods[1].score(image, ["bottle"]), options.repeats),
        ("vlad Backbone.fingerprint, once per checkpoint", backbone.fingerprint, options.repeats),
        (f"open_clip encode_text, {len(ids)} sentences", lambda: [model.encode_text(c) for c in ids.split(128)], 1),
        ("vlad TextTower.encode, cut at the last word", lambda: backbone.text.encode(sentences), 1),
    ]
    base = 0.0
    print(f"{options.backbone}, {options.image_size} px, 1 thread, float32\n")
    print(f"{'what':<48}{'CPU s':>8}  ratio")
    for name, run, repeats in rows:
        seconds = cpu_seconds(run, repeats)
        base = seconds if name.startswith("open_clip") else base
        print(f"{name:<48}{seconds:>8.3f}  {seconds / base:.2f}", flush=True)


if __name__ == "__main__":
    main()
