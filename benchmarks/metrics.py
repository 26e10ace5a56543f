"""Time and memory of pixel metrics on the same synthetic maps: what the field uses, and ours.

    python benchmarks/metrics.py [--sizes 256 518] [--count 100] [--only adeval vlad] [--out benchmarks/metrics.md]

Every row runs in two processes of its own. Time is CPU and wall seconds of feeding all maps and computing; memory is
the peak of a run over what the process held before it, the maps included, while malloc gives back at once what is freed
(it would else count what earlier work has left, 4 to 10 MB more or less by chance). Anchors that are not installed are
left out.
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measure import forget_peak, status


def make(size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Smooth probability maps, as a detector's upsampled patch scores are; half the images have defects."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(count, size, size, dtype=torch.bool)
    for i in range(count // 2):
        for _ in range(int(torch.randint(1, 5, (), generator=generator))):
            y, x, h, w = (
                (torch.rand(4, generator=generator) * torch.tensor([0.8, 0.8, 0.15, 0.15]) * size).int().tolist()
            )
            masks[i, y : y + h + 2, x : x + w + 2] = True
    grid = 2 * torch.randn(count, 1, 37, 37, generator=generator)
    logits = torch.nn.functional.interpolate(grid, size=(size, size), mode="bilinear", align_corners=True)[:, 0]
    logits += 2.5 * masks + 0.05 * torch.randn(count, size, size, generator=generator)
    return torch.sigmoid(logits - 2).numpy(), masks.numpy()


def adaclip_style(maps: np.ndarray, masks: np.ndarray) -> None:
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    roc_auc_score(masks.ravel(), maps.ravel())
    precision, recall, _ = precision_recall_curve(masks.ravel(), maps.ravel())
    np.nanmax(2 * precision * recall / (precision + recall))
    average_precision_score(masks.ravel(), maps.ravel())


def sorted_aupro(maps: np.ndarray, masks: np.ndarray) -> None:
    """AUPRO from one full argsort with a change per pixel, the way MVTec's evaluation is organised."""
    from scipy import ndimage

    fp = np.zeros(maps.shape, np.uint32)
    pro = np.zeros(maps.shape)
    regions = 0
    for i, mask in enumerate(masks):
        labels, number = ndimage.label(mask, np.ones((3, 3)))
        fp[i] = labels == 0
        for region in range(1, number + 1):
            inside = labels == region
            pro[i][inside] = 1 / inside.sum()
        regions += number
    order = np.argsort(maps.ravel())[::-1]
    x = np.cumsum(fp.ravel()[order], dtype=np.uint32) / fp.sum()
    y = np.cumsum(pro.ravel()[order]) / regions
    keep = np.append(np.diff(maps.ravel()[order]) != 0, True)
    x, y = x[keep], y[keep]
    np.trapezoid(y[x <= 0.3], x[x <= 0.3])


def published_aupro(maps: np.ndarray, masks: np.ndarray) -> None:
    adaclip_style(maps, masks)
    sorted_aupro(maps, masks)


def torchmetrics_exact(maps: np.ndarray, masks: np.ndarray) -> None:
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision

    scores, labels = torch.from_numpy(maps).flatten(), torch.from_numpy(masks).flatten().long()
    binary_auroc(scores, labels)
    binary_average_precision(scores, labels)


def anomalib_aupro(maps: np.ndarray, masks: np.ndarray) -> None:
    from anomalib.metrics.aupro import _AUPRO

    metric = _AUPRO()
    metric.update(torch.from_numpy(maps), torch.from_numpy(masks).long())
    metric.compute()


def adeval_streaming(maps: np.ndarray, masks: np.ndarray) -> None:
    if not hasattr(np, "trapz"):
        setattr(np, "trapz", np.trapezoid)  # noqa: B010 - adeval 1.1 was written for NumPy 1
    from adeval import EvalAccumulator

    accumulator = EvalAccumulator(0.0, 1.0, 0.0, 1.0, skip_pixel_aupro=False, nstrips=200)
    for score, mask in zip(maps, masks, strict=True):
        accumulator.add_anomap(score, mask.astype(np.uint8))
    accumulator.add_image(np.array([0.0, 1.0]), np.array([0, 1]))  # it has no summary without image scores
    accumulator.summary()


def ours(mode: str) -> Callable[[np.ndarray, np.ndarray], None]:
    def run(maps: np.ndarray, masks: np.ndarray) -> None:
        from vlad.metrics import PixelMetrics

        metric = PixelMetrics(mode)
        scores, truth = torch.from_numpy(maps), torch.from_numpy(masks)
        for i in range(len(maps)):
            metric.update(scores[i], truth[i])
        metric.compute()

    return run


def one_pass(maps: np.ndarray, masks: np.ndarray) -> None:
    torch.from_numpy(maps).aminmax()


ROWS = {
    "scikit-learn AUROC + F1 + AP (AdaCLIP's way) + sorted AUPRO": published_aupro,
    "  of which scikit-learn AUROC + F1 + AP": adaclip_style,
    "  of which sorted AUPRO": sorted_aupro,
    "torchmetrics exact AUROC + AP": torchmetrics_exact,
    "anomalib AUPRO": anomalib_aupro,
    "adeval AUROC + AP + AUPRO": adeval_streaming,
    "vlad exact: AUROC, AP, F1, IoU, AUPRO, AUPIMO": ours("exact"),
    "vlad streaming: the same": ours("streaming"),
    "one pass over the scores (min and max)": one_pass,
}


SLOW = ("scikit", "  of", "torchmetrics", "anomalib")  # run once, the others three times: the median counts


def child(name: str, maps: np.ndarray, masks: np.ndarray, warm: tuple[np.ndarray, np.ndarray], pipe: object) -> None:
    try:
        ROWS[name](*warm)  # imports and first calls are not measured
        memory = forget_peak()
        times = []
        measuring_memory = "MALLOC_MMAP_THRESHOLD_" in os.environ
        for _ in range(1 if measuring_memory or name.startswith(SLOW) else 3):
            cpu, wall = time.process_time(), time.perf_counter()
            ROWS[name](maps, masks)
            times.append((time.process_time() - cpu, time.perf_counter() - wall))
        pipe.send(status("VmHWM") - memory if measuring_memory else sorted(times)[len(times) // 2])
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}".splitlines()[0][:60])


def run(name: str, size: int, count: int, threads: int) -> list:
    """Returns CPU and wall seconds, and the peak of memory; or twice why there are none."""
    context = multiprocessing.get_context("spawn")
    results = []
    for setting in ({}, {"MALLOC_MMAP_THRESHOLD_": "65536"}):
        os.environ.pop("MALLOC_MMAP_THRESHOLD_", None)
        os.environ.update(setting)  # malloc reads it when the process starts
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=load_and_run, args=(name, size, count, threads, send))
        process.start()
        results.append(receive.recv())
        process.join()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 518])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose names begin so; ratios are to the first")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    lines = []
    for size in options.sizes:
        lines += [f"\n{options.count} maps of {size} x {size}, {options.threads} threads\n"]
        lines += ["| what | CPU s | wall s | ratio (CPU) | ratio (wall) | extra MB |", "|---|---|---|---|---|---|"]
        base = None
        for name in (name for name in ROWS if name.startswith(tuple(options.only))):
            result, memory = run(name, size, options.count, options.threads)
            if isinstance(result, str):
                lines.append(f"| {name} | not run: {result} | | | | |")
            else:
                base = base or result
                cpu, wall = result
                ratios = f"{base[0] / cpu:.0f}x | {base[1] / wall:.0f}x"
                lines.append(f"| {name} | {cpu:.2f} | {wall:.2f} | {ratios} | {memory:.0f} |")
            print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        options.out.write_text("# Pixel metrics: time and memory\n\n`python benchmarks/metrics.py`\n" + text)


def load_and_run(name: str, size: int, count: int, threads: int, pipe: object) -> None:
    torch.set_num_threads(threads)
    maps, masks = make(size, count)
    child(name, maps, masks, make(256, 12), pipe)  # enough for a histogram


if __name__ == "__main__":
    main()
