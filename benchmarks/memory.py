"""CPU seconds of the patch memory against scikit-learn's cosine similarity, on random tokens.

    python benchmarks/memory.py [--shots 4] [--grid 37] [--width 1024] [--levels 4] [--repeats 7] [--threads 2]

The defaults are four references of ViT-L/14 at 518 px. Both ways run in turn in one process; every row is the median
of the process's CPU time for one image. The arithmetic does not depend on the values.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from sklearn.metrics.pairwise import cosine_similarity
from torch import Tensor

from vlad.memory import PatchMemory, memory_scores


def cpu_seconds(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):  # the first turn warms up
        for name, run in ways.items():
            start = time.process_time()
            run()
            if turn:
                times[name].append(time.process_time() - start)
    return times


def sklearn_scores(queries: tuple[Tensor, ...], banks: tuple[Tensor, ...]) -> Tensor:
    """The usual way of published few-shot code."""
    maps = []
    for tokens, bank in zip(queries, banks, strict=True):
        similarity = cosine_similarity(bank.numpy(), tokens.flatten(0, 2).numpy())
        maps.append(np.min(1 - similarity, axis=0))
    return torch.from_numpy(np.mean(maps, axis=0)).view(queries[0].shape[:3])


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--grid", type=int, default=37)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--levels", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows = options.shots * options.grid**2
    banks = tuple(torch.randn(rows, options.width) for _ in range(options.levels))
    queries = tuple(torch.randn(1, options.grid, options.grid, options.width) for _ in range(options.levels))
    full, fifth = PatchMemory(), PatchMemory()
    full.fit({"all": banks})
    start = time.process_time()
    fifth.limit = rows // 5
    fifth.fit({"all": banks})
    fitted = time.process_time() - start
    all_banks, few_banks = full.levels_of("all"), fifth.levels_of("all")
    ways = {
        "scikit-learn cosine_similarity": lambda: sklearn_scores(queries, banks),
        "vlad memory_scores": lambda: memory_scores(queries, all_banks),
        "one matrix product per level (the floor)": lambda: [
            q.flatten(0, 2) @ b.T for q, b in zip(queries, all_banks, strict=True)
        ],
        "vlad memory_scores, coreset of a fifth": lambda: memory_scores(queries, few_banks),
    }
    deviation = float((memory_scores(queries, all_banks) - sklearn_scores(queries, banks)).abs().max())
    times = cpu_seconds(ways, options.repeats)
    flops = 2 * options.levels * options.grid**2 * rows * options.width
    print(f"{options.levels} levels, {options.grid**2} patches x {rows} references x {options.width}, float32")
    print(f"{flops / 1e9:.0f} GFLOP, {options.threads} threads; largest deviation from scikit-learn {deviation:.1e}\n")
    print(f"{'what':<44}{'CPU s':>8}{'min':>8}{'max':>8}  ratio")
    base = statistics.median(times["scikit-learn cosine_similarity"])
    for name, found in times.items():
        middle = statistics.median(found)
        print(f"{name:<44}{middle:>8.3f}{min(found):>8.3f}{max(found):>8.3f}  {middle / base:.2f}")
    print(f"\nchoosing the coresets, once per category: {fitted:.1f} CPU s")


if __name__ == "__main__":
    main()
