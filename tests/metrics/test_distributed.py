"""The metrics of 1, 2 and 3 processes are equal, also where a process sees nothing."""

import os
import socket

import pytest
import torch
import torch.multiprocessing as mp
from metrics.samples import ImageAUROC, MeanGap, batch_of

import vlad.metrics.pixel
from vlad.metrics import Evaluation, PixelMetrics, RankingMetrics
from vlad.types import Prediction

pytestmark = pytest.mark.slow

KEPT = vlad.metrics.pixel.KEPT


class PixelAUROC(ImageAUROC):
    """Keeps integers on the ranks that saw something; others have an empty list."""

    level = "pixel"


def images(count=7):
    generator = torch.Generator().manual_seed(0)
    batch = batch_of(size=count)
    maps = torch.randn(count, 64, 64, generator=generator) + batch["mask"] * 1.0
    batch["category"] = ["a"] * 5 + ["b"] * (count - 5)
    return batch, maps


def evaluate(rank, world, mode):
    vlad.metrics.pixel.KEPT = 12_000 if mode == "histogram" else KEPT  # so few are kept at one rank but not at three
    mode = "streaming" if mode == "histogram" else mode
    metric = PixelMetrics(mode)
    evaluation = Evaluation(mode=mode, pro_limits=[0.3, 0.05])
    others = Evaluation({"area": ImageAUROC(), "mean": MeanGap(), "pixels": PixelAUROC()})
    batch, maps = images()
    rows = list(torch.utils.data.DistributedSampler(range(len(maps)), world, rank, shuffle=False))  # pads
    for row in rows:
        one = {k: v[row : row + 1] for k, v in batch.items()}
        scores = maps[row : row + 1]
        first = Prediction(-scores, scores.mean((1, 2)), -scores)
        said = Prediction(scores, scores.amax((1, 2)), scores, stages={"initial": first})
        for each in (evaluation, others):
            each.update(one, said, rank=rank, world_size=world)
        if row % world == rank:
            metric(scores, one["mask"])
    result, theirs = evaluation.compute(), others.compute()
    tables = [part.categories for part in (result, result.stages["initial"], theirs)]
    assert metric.compute() == metric.compute()
    values = [*metric.result()[:7], *result.pooled.values(), *theirs.pooled.values()]
    for table in tables:
        values += table.drop(columns=["dataset", "category"]).to_numpy().ravel().tolist()
    return values


def step(rank, world, mode):
    batch, maps = images(8)
    metric, ranks = PixelMetrics(mode, dist_sync_on_step=True), RankingMetrics(dist_sync_on_step=True)
    values = []
    for first in (0, 4):  # each rank's share of half of the images
        rows = [row for row in range(first, first + 4) if row % world == rank]
        values += metric(maps[rows], batch["mask"][rows]).values()
        values += ranks(maps[rows].amax((1, 2)), batch["label"][rows]).values()
    return [value.item() for value in [*values, *metric.compute().values(), *ranks.compute().values()]]


JOBS = [(evaluate, "streaming"), (evaluate, "histogram"), (evaluate, "exact"), (step, "streaming"), (step, "exact")]


def process(rank, world, port, queue):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    queue.put((rank, [target(rank, world, mode) for target, mode in JOBS]))
    torch.distributed.destroy_process_group()


def run(world):
    """Returns what each rank's jobs returned; all in the same processes, since starting one takes seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    queue = context.Queue()
    started = [context.Process(target=process, args=(rank, world, port, queue)) for rank in range(world)]
    for one in started:
        one.start()
    results = sorted(queue.get(timeout=300) for _ in started)
    for one in started:
        one.join(timeout=60)
        assert one.exitcode == 0
    return [result[1] for result in results]


@pytest.fixture(scope="module")
def found():
    """What each rank found, by number of processes."""
    alone = [[target(0, 1, mode) for target, mode in JOBS]]  # puts KEPT back
    return {1: alone, 2: run(2), 3: run(3)}


@pytest.mark.parametrize("job", range(3), ids=[mode for _, mode in JOBS[:3]])
def test_one_two_and_three_processes(found, job):
    one = found[1][0][job]
    assert len(one) > 60
    for world in (2, 3):
        for rank in found[world]:
            assert rank[job] == pytest.approx(one, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("job", range(3, 5), ids=[mode for _, mode in JOBS[3:]])
def test_forward_gathers_at_each_step_where_it_is_asked_to(found, job):
    for rank in found[2]:
        assert rank[job] == pytest.approx(found[1][0][job], abs=1e-12, nan_ok=True)
