"""Agreement of bfloat16 with float32, and images a second, of three methods on a GPU.

    python benchmarks/gpu.py [--methods sdp adaclip anomalyclip] [--batches 1 2 4 8 16 32] [--out benchmarks/gpu.md]
    python benchmarks/gpu.py --device cpu --backbone vlad-tiny --image-size 96 --batches 1 2     # that it runs

Weights are random, of ViT-L-14-336 (SDP: ViT-B-16-plus-240), images are noise: neither changes the cost. Agreement is
the largest difference of the map from that in float32, of the map's range. The floor is the time that the matrix
products of the forward pass take at the best rate this device showed on a large product of the same type.
"""

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from measure import cost, matmul_rate
from torch.utils.flop_counter import FlopCounterMode

import vlad
from vlad.types import Prediction

METHODS: dict[str, dict[str, Any]] = {
    "sdp": {"backbone": "ViT-B-16-plus-240", "image_size": 240},
    "adaclip": {"backbone": "ViT-L-14-336", "image_size": 518},
    "anomalyclip": {"backbone": "ViT-L-14-336", "image_size": 518},
}
PRECISIONS = {"fp32": None, "tf32": None, "bf16": torch.bfloat16}


def rows(name: str, options: argparse.Namespace) -> list[str]:
    """Returns the lines of a method: one for each precision and batch size."""
    settings = {**METHODS[name], "pretrained": "random"}
    if options.backbone:
        settings |= {"backbone": options.backbone, "pretrained": None if options.backbone == "vlad-tiny" else "random"}
        settings |= {"depth": 2} if name == "adaclip" else {}  # small towers have few blocks
    settings |= {"image_size": options.image_size} if options.image_size else {}
    torch.manual_seed(0)
    method = vlad.load(name, **settings, allow_untrained=True).method.to(options.device).eval()
    size = method.requirements.preprocess.size
    images = torch.randn(max(options.batches), 3, size, size, device=options.device)
    reference, found = None, []
    for precision, dtype in PRECISIONS.items():
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        if options.device == "cpu" and precision == "tf32":
            continue
        rate = matmul_rate(options.device, dtype or torch.float32)
        for batch in options.batches:
            part = images[:batch]

            def run(part: torch.Tensor = part, dtype: torch.dtype | None = dtype) -> Prediction:
                with torch.inference_mode(), autocast(options.device, dtype):
                    return method.score(part, ["object"] * len(part))

            if batch == options.batches[0]:
                maps = run().anomaly_map.float()
                reference = maps if reference is None else reference
                spread = float(reference.max() - reference.min())
                deviation = float((maps - reference).abs().max()) / spread
            with FlopCounterMode(display=False) as counter:
                run()
            used = cost(run, options.repeats, options.device)
            floor = counter.get_total_flops() / 1e9 / rate
            found.append(
                f"| {name} | {precision} | {batch} | {batch / used.wall:.1f} | {1000 * used.wall / batch:.2f} | "
                f"{used.wall / floor:.2f} | {used.memory:.0f} | {100 * deviation:.2f} % |"
            )
            print(found[-1], flush=True)
    return found


def autocast(device: str, dtype: torch.dtype | None) -> Any:
    """Returns the context of a precision."""
    return nullcontext() if dtype is None else torch.autocast(torch.device(device).type, dtype)


def main() -> int:
    """Runs the benchmark; returns 0, or 1 where there is no such device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backbone")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("no GPU here: nothing was measured; --device cpu runs the same on the CPU")
        return 1
    what = torch.cuda.get_device_name() if options.device.startswith("cuda") else "CPU"
    head = "| method | precision | batch | images/s | ms an image | x floor | MB | off float32 |"
    print(f"{what}, torch {torch.__version__}\n\n{head}\n" + "|---" * 8 + "|")
    lines = [line for name in options.methods for line in rows(name, options)]
    if options.out:
        table = "\n".join([head, "|---" * 8 + "|", *lines])
        options.out.write_text(f"# {what}\n\n`python benchmarks/gpu.py`, torch {torch.__version__}\n\n{table}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
