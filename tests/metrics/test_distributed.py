"""The metrics of 1, 2 and 3 processes are equal, also where a process sees nothing."""

import os

import pytest
import torch
import torch.multiprocessing as mp

import vlad.metrics.pixel
from vlad.metrics import Evaluation, PixelMetrics
from vlad.testing import random_batch
from vlad.types import Prediction


def images(count=7):
    generator = torch.Generator().manual_seed(0)
    batch = random_batch(count)
    maps = torch.randn(count, 64, 64, generator=generator) + batch["mask"] * 1.0
    batch["category"] = ["a"] * 5 + ["b"] * (count - 5)
    return batch, maps


def rank_main(rank, world, mode, port, queue):
    if mode == "histogram":  # so few scores are kept as they are, at one rank but not at three
        vlad.metrics.pixel.KEPT = 12_000
        mode = "streaming"
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    metric, evaluation = PixelMetrics(mode), Evaluation(mode)
    batch, maps = images()
    rows = list(torch.utils.data.DistributedSampler(range(len(maps)), world, rank, shuffle=False))  # pads
    for row in rows:
        one = {k: v[row : row + 1] for k, v in batch.items()}
        scores = maps[row : row + 1]
        first = Prediction(-scores, -scores, scores.mean((1, 2)))
        said = Prediction(scores, scores, scores.amax((1, 2)), unrefined=first)
        evaluation.update(one, said, rank=rank, world_size=world)
        if row % world == rank:
            metric.update(scores, one["mask"])
    result = evaluation.compute()
    tables = [part.categories.drop(columns=["dataset", "category"]) for part in (result, result.unrefined)]
    table = [line for part in tables for line in part.to_numpy().tolist()]
    queue.put((rank, metric.compute()[:7], table, list(result.pooled.values())))
    torch.distributed.destroy_process_group()


def run(world, mode, port):
    context = mp.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=rank_main, args=(r, world, mode, port, queue)) for r in range(world)]
    for process in processes:
        process.start()
    results = sorted(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    return [result[1:] for result in results]


def flat(result):
    metric, table, pooled = result
    return [*metric, *(value for line in table for value in line), *pooled]


@pytest.mark.parametrize("mode", ["streaming", "histogram", "exact"])
def test_one_two_and_three_processes(mode, unused_port):
    one = flat(run(1, mode, unused_port())[0])
    for world in (2, 3):
        for result in run(world, mode, unused_port()):
            assert flat(result) == pytest.approx(one, abs=1e-12, nan_ok=True)


@pytest.fixture
def unused_port():
    import socket

    def port():
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            return s.getsockname()[1]

    return port
