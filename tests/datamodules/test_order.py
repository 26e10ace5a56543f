"""The order of training images is a function of seed and epoch, in one process and in several."""

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from tests_support import write_picture
from trees import MEAN, STD, small_data

from vlad.datamodules.dataset import AnomalyDataset
from vlad.datamodules.order import Drawn, Place, TrainingBatches
from vlad.types import Preprocess

SIZES = [(8, 8)] * 7 + [(8, 9)] * 4


def numbers(batches):
    return [[one.number for one in batch] for batch in batches]


@pytest.mark.parametrize("sizes", [None, SIZES])
def test_an_epoch_has_every_image_and_another_order(sizes):
    batches = TrainingBatches(11, 3, seed=0, sizes=sizes)
    first, second = list(batches), list(batches)
    assert {one.epoch for batch in first for one in batch} == {0}
    assert {one.epoch for batch in second for one in batch} == {1}
    for epoch in (first, second):
        assert sorted(one.number for batch in epoch for one in batch) == list(range(11))
        assert len(epoch) == len(batches)
    assert numbers(first) != numbers(second)
    assert list(TrainingBatches(11, 3, seed=0, sizes=sizes)) == first
    assert numbers(TrainingBatches(11, 3, seed=1, sizes=sizes)) != numbers(first)


@pytest.mark.parametrize("sizes", [None, SIZES])
def test_unshuffled_epochs_keep_the_order_of_the_index(sizes):
    batches = TrainingBatches(11, 3, seed=0, shuffle=False, sizes=sizes)
    assert [numbers(batches) for _ in range(2)] == 2 * [[[*rows] for rows in _in_order(sizes)]]
    assert len(batches) == len(_in_order(sizes))


def _in_order(sizes):
    return (
        [range(0, 3), range(3, 6), [6], [7, 8, 9], [10]] if sizes else [range(i, min(i + 3, 11)) for i in (0, 3, 6, 9)]
    )


@pytest.mark.parametrize("sizes", [None, SIZES])
def test_a_place_within_an_epoch_is_gone_on_from(sizes):
    whole = TrainingBatches(11, 3, seed=0, sizes=sizes).batches_of(4)
    rest = TrainingBatches(11, 3, seed=0, sizes=sizes, place=lambda length: Place(4, 2))
    assert numbers(rest) == whole[2:]
    assert len(rest) == len(whole)


@pytest.mark.parametrize("sizes", [None, SIZES])
def test_processes_share_an_epoch(sizes):
    parts = [TrainingBatches(11, 2, seed=0, sizes=sizes, rank=rank, world_size=3) for rank in range(3)]
    found = [numbers(part) for part in parts]
    assert {len(part) for part in parts} == {len(part) for part in found} == {2}
    assert {row for part in found for batch in part for row in batch} == set(range(11))


def test_what_is_drawn_for_an_image_depends_on_seed_epoch_and_index(tmp_path):
    import pandas as pd

    for number in range(4):
        write_picture(tmp_path / f"own/good/{number}.png", (24, 24), seed=number)
    data = small_data(None, "auxiliary", train=str(tmp_path / "own"))
    data.setup("fit")
    frame: pd.DataFrame = data.frames["train"].assign(mosaic=1.0)

    def drawn(index, epoch, seed=0):
        np.random.seed(index)  # noqa: NPY002 - global states do not matter
        torch.manual_seed(epoch)
        return AnomalyDataset(frame, Preprocess(32, MEAN, STD), seed=seed)[Drawn(index, epoch)]["image"]

    assert torch.equal(drawn(1, 2), drawn(1, 2))
    others = [drawn(1, 3), drawn(1, 2, seed=1), drawn(2, 2)]
    assert not any(torch.equal(drawn(1, 2), other) for other in others)


class Recorder(LightningModule):
    """Keeps which images it was trained on, and what a step drew."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch["index"].tolist())
        return self.weight * 1.0

    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches > 1  # for which Lightning asks for the images already
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("saving", "limits"),
    [
        ({"every_n_epochs": 1}, {"max_epochs": 3}),
        ({"every_n_train_steps": 2}, {"max_epochs": 3}),
        ({"every_n_epochs": 1}, {"max_steps": 11}),
        ({"every_n_train_steps": 2}, {"max_steps": 11, "limit_train_batches": 3}),
    ],
)
def test_a_continued_training_sees_the_images_that_the_uninterrupted_one_sees(tmp_path, workers, saving, limits):
    """From every checkpoint on, at ends of epochs and within them, whatever Lightning counts."""
    for number in range(7):
        write_picture(tmp_path / f"own/good/{number}.png", (16, 16), seed=number)

    def fit(**options):
        data = small_data(None, "auxiliary", train=str(tmp_path / "own"), batch_size=2, num_workers=workers)
        saver = ModelCheckpoint(dirpath=tmp_path / "saved", save_top_k=-1, filename="{step}", **saving)
        trainer = Trainer(accelerator="cpu", logger=False, callbacks=[saver], enable_progress_bar=False,
                          enable_model_summary=False, **limits)  # fmt: skip
        method = Recorder()
        trainer.fit(method, data, **options)
        return method.seen

    whole = fit()
    saved = sorted((tmp_path / "saved").glob("step=*.ckpt"))
    assert len(saved) >= 2
    for file in saved:
        step = int(file.stem.partition("=")[2])
        assert fit(ckpt_path=file, weights_only=True) == whole[step:], file.name
