"""Images that keep their aspect ratio, in batches of one size."""

import sys

import pytest
from lightning.pytorch import LightningModule, Trainer
from tests_support import write_mask, write_picture
from torch.utils.data import DistributedSampler
from trees import MEAN, STD, small_data

from vlad.datamodules.sampling import PredictionBatches, SizeBatches, _prepare_worker
from vlad.types import Preprocess

WIDE, TALL = (98, 126), (126, 98)
KEEP = Preprocess(98, MEAN, STD, aspect="keep", multiple=14)


@pytest.fixture
def mixed(tmp_path):
    """Images of two sizes; those of 128 x 96 become 98 rows of 126."""
    sizes = {"good/0": (128, 96), "good/1": (128, 96), "good/2": (96, 128), "good/3": (128, 96), "bad/4": (128, 96)}
    for number, (name, size) in enumerate(sizes.items()):
        write_picture(tmp_path / f"own/{name}.png", size, seed=number)
    write_mask(tmp_path / "own/masks/4.png", (128, 96))
    return str(tmp_path / "own")


def shapes(loader):
    found = []
    for batch in loader:
        assert batch["mask"].shape == batch["image"][:, 0].shape
        found.append((len(batch["image"]), tuple(batch["image"].shape[-2:])))
    return found


def test_batches_in_order_have_one_size_each(mixed):
    data = small_data(preprocess=KEEP, test=mixed, batch_size=2)
    data.setup("test")
    loader = data.test_dataloader()
    assert shapes(loader) == [(2, WIDE), (1, WIDE), (1, TALL), (1, WIDE)]
    assert [row for batch in loader for row in batch["index"].tolist()] == [0, 1, 2, 3, 4]
    assert len(loader) == 4


def test_a_single_batch_of_a_prediction_is_read_by_the_process_itself(mixed):
    workers = []
    for batch_size in (5, 3):
        data = small_data(predict=mixed, batch_size=batch_size, num_workers=2)
        data.setup("predict")
        workers.append(data.predict_dataloader().num_workers)
    assert workers == [0, 2]


def test_image_and_mask_are_cut_alike(mixed):
    """Resized to 98 x 130, of which the right four columns are left over."""
    data = small_data(preprocess=KEEP, test=mixed)
    data.setup("test")
    (row,) = (n for n, one in enumerate(data.dataset("test").rows) if one["label"] == 1)
    mask = data.dataset("test")[row]["mask"]
    rows, columns = mask.nonzero(as_tuple=True)
    assert mask.shape == WIDE
    scale = 98 / 96
    for found, first, last in ((rows, 8, 20), (columns, 10, 26)):
        assert abs(int(found.min()) - first * scale) <= 1
        assert abs(int(found.max()) + 1 - last * scale) <= 1


def test_shuffled_batches_have_one_size_each_and_all_images(mixed):
    data = small_data(None, "auxiliary", preprocess=KEEP, train=mixed, batch_size=2)
    data.setup("fit")
    loader = data.train_dataloader()
    orders = set()
    for _ in range(8):
        batches = [(batch["index"].tolist(), tuple(batch["image"].shape[-2:])) for batch in loader]
        assert sorted(row for rows, _ in batches for row in rows) == [0, 1, 2, 3, 4]
        assert sorted((len(rows), shape) for rows, shape in batches) == [(1, TALL), (2, WIDE), (2, WIDE)]
        assert len(loader) == 3
        orders.add(str(batches))
    assert len(orders) > 3


def test_processes_share_the_images():
    sizes = [WIDE, WIDE, WIDE, TALL, TALL, WIDE]
    seen = []
    for rank in range(2):
        part = DistributedSampler(sizes, num_replicas=2, rank=rank, shuffle=False)
        sampler = SizeBatches(part, 2, sizes=sizes)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert all(len({sizes[row] for row in batch}) == 1 for batch in batches)
        seen += [row for batch in batches for row in batch]
    assert sorted(seen) == list(range(6))


class Sizes(LightningModule):
    """Returns the size of every image."""

    def predict_step(self, batch):
        return [tuple(image.shape[-2:]) for image in batch["image"]]


@pytest.mark.filterwarnings("error:You are using a custom batch sampler")
def test_lightning_predicts_every_image(mixed):
    data = small_data(preprocess=KEEP, predict=mixed, batch_size=2)
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    found = [size for batch in trainer.predict(Sizes(), data) for size in batch]
    assert sorted(found) == sorted([WIDE] * 4 + [TALL])


def _blocks(**options):
    return list(PredictionBatches(range(0), 3, total=10, **options))


def test_processes_share_the_same_batches_and_none_is_scored_twice():
    alone = _blocks()
    assert alone == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    shared = [_blocks(rank=rank, world_size=3) for rank in range(3)]
    assert sorted(batch for one in shared for batch in one) == alone
    assert [len(one) for one in shared] == [2, 1, 1]
    assert _blocks(rank=5, world_size=6) == []  # fewer batches than processes


def test_a_continued_run_has_the_rest_of_the_same_batches():
    assert _blocks(leave_out={0, 1, 2, 4, 9}) == [[3, 5], [6, 7, 8]]
    batches = PredictionBatches(range(0), 3, total=10, leave_out={0, 1, 2, 4, 9})
    assert len(batches) == 2


def test_batches_of_a_prediction_hold_images_of_one_size():
    sizes = [(2, 3)] * 4 + [(3, 2)] * 2 + [(2, 3)] * 4
    assert _blocks(sizes=sizes) == [[0, 1, 2], [3], [4, 5], [6, 7, 8], [9]]


def test_a_worker_whose_command_has_ended_says_nothing(monkeypatch):
    told = []
    monkeypatch.setattr("sys.excepthook", lambda *error: told.append(error))
    _prepare_worker(0)
    for error in (ConnectionResetError(), EOFError(), ValueError("of ours")):
        sys.excepthook(type(error), error, None)
    assert [str(error) for _, error, _ in told] == ["of ours"]
