"""The Evaluator with a real trainer and small modules that return predictions; no method and no CLIP takes part."""

import itertools
import json
import os
import socket

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from metrics.samples import batch_of, prediction_for
from PIL import Image
from tests_support import write_picture
from trees import small_data

from vlad.callbacks.evaluator import Evaluator
from vlad.callbacks.results import Results
from vlad.errors import DataError, MethodError, OptionError, VladError
from vlad.metrics import Evaluation, PixelMetrics
from vlad.types import Features, Prediction, Tags


class Images(torch.utils.data.Dataset):
    """Images of two categories, 5 and 4 of them; an image holds its own map, so that a module can return it."""

    def __init__(self, side=32):
        self.samples = []
        for category, size, first in (("a", 5, 0), ("b", 4, 5)):
            batch = batch_of(category, size=size, first=first, side=side)
            maps = prediction_for(batch, first).anomaly_map
            batch["image"] = maps[:, None].expand(-1, 3, -1, -1)
            self.samples += [{name: values[i] for name, values in batch.items()} for i in range(size)]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def loader(batch_size=2, order=None):
    images = Images()
    images.samples = [images.samples[i] for i in order or range(len(images))]
    return torch.utils.data.DataLoader(images, batch_size)


class Module(LightningModule):
    """Says what is in the image; each epoch of training adds the same noise to all maps."""

    def __init__(self, stages=False):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.stages = stages
        self.register_buffer("noise", torch.zeros(()))

    def predict(self, maps):
        maps = maps + self.noise * torch.randn(maps.shape[1:], generator=torch.Generator().manual_seed(0))
        return Prediction(maps, maps.amax((1, 2)), maps, torch.stack([maps.amax((1, 2)), maps.mean((1, 2))], 1))

    def test_step(self, batch, batch_idx):
        said = self.predict(batch["image"][:, 0])
        return said._replace(stages={"initial": self.predict(-batch["image"][:, 0])}) if self.stages else said

    validation_step = test_step

    def training_step(self, batch, batch_idx):
        return self.layer(batch["label"].float()[:, None]).sum()

    def on_train_epoch_end(self):
        self.noise += 1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(*callbacks, **options):
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, **options}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(callbacks=list(callbacks), **quiet, **options)


def expected(stages=False):
    evaluation, module = Evaluation(), Module(stages)
    for batch in loader():
        evaluation.update(batch, module.test_step(batch, 0))
    return evaluation.compute()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("verb", ["test", "validate"])
def test_the_result_is_that_of_the_evaluation_and_its_means_are_logged(verb):
    evaluator = Evaluator()
    assert evaluator.result is None
    (logged,) = getattr(trainer(evaluator), verb)(Module(stages=True), loader(), verbose=False)
    result, right = evaluator.result, expected(stages=True)
    assert result.categories.equals(right.categories)
    assert result.stages["initial"].mean == right.stages["initial"].mean
    stage = {"test": "test", "validate": "val"}[verb]
    values = {f"{stage}/{name}": value for name, value in right.mean.items() if value == value}
    values |= {f"{stage}/initial/{name}": value for name, value in right.stages["initial"].mean.items()}
    assert logged == pytest.approx({name: value for name, value in values.items() if value == value}, abs=1e-6)
    assert "pixel_auroc" in result.mean
    assert result.transductive == ""


@pytest.mark.filterwarnings("ignore")
def test_options_choose_metrics_and_limits():
    evaluator = Evaluator(["pixel"], mode="exact", pro_limits=[0.05], evaluation_protocol="april_gan")
    trainer(evaluator).test(Module(), loader(), verbose=False)
    names = ("auroc", "ap", "f1_max", "aupro_0.05", "iou_max", "aupimo", "fpr_at_0.95")
    assert list(evaluator.result.mean) == [f"pixel_{name}" for name in names]
    with pytest.raises(VladError, match="set the mode to exact"):
        Evaluator(mode="streaming", evaluation_protocol="april_gan")


@pytest.mark.filterwarnings("ignore")
def test_checkpoints_and_early_stopping_monitor_what_is_logged(tmp_path):
    best = ModelCheckpoint(tmp_path, monitor="val/pixel_auroc", mode="max", filename="{epoch}")
    stop = EarlyStopping("val/initial/pixel_auroc", mode="min", patience=0, check_on_train_epoch_end=False)
    evaluator = Evaluator()
    fitting = trainer(evaluator, best, enable_checkpointing=True, max_epochs=3)
    fitting.fit(Module(), loader(), loader())
    assert best.best_model_path.endswith("epoch=0.ckpt")
    assert float(best.best_model_score) == pytest.approx(expected().mean["pixel_auroc"], abs=1e-6)
    assert evaluator.result.mean["pixel_auroc"] < expected().mean["pixel_auroc"]
    stopping = trainer(Evaluator(), stop, max_epochs=5)
    stopping.fit(Module(stages=True), loader(), loader())
    assert stopping.current_epoch < 5
    assert stop.stopped_epoch > 0


@pytest.mark.filterwarnings("ignore")
def test_the_sanity_check_leaves_nothing():
    seen = []

    class Watch(Callback):
        def on_train_start(self, trainer, pl_module):
            seen.append(evaluator.result)

        def on_sanity_check_end(self, trainer, pl_module):
            seen.append(evaluator.result)

    evaluator = Evaluator()
    trainer(evaluator, Watch(), max_epochs=1, num_sanity_val_steps=1).fit(Module(), loader(), loader())
    assert seen == [None, None]
    assert len(evaluator.result.images) == 9


@pytest.mark.filterwarnings("ignore")
def test_a_single_batch_of_a_fast_run_is_enough():
    evaluator = Evaluator()
    trainer(evaluator, fast_dev_run=True).fit(Module(), loader(1), loader(1))
    assert len(evaluator.result.images) == 1
    (logged,) = trainer(evaluator, fast_dev_run=True).test(Module(), loader(1), verbose=False)
    assert logged == {}  # one normal image: all are undefined
    assert {note["level"] for note in evaluator.result.undefined} == {"image", "pixel"}


@pytest.mark.filterwarnings("ignore")
def test_a_step_that_returns_no_prediction_is_told():
    class Wrong(Module):
        def test_step(self, batch, batch_idx):
            return batch["image"]

    with pytest.raises(MethodError, match="steps of Wrong must return a vlad.types.Prediction, got Tensor"):
        trainer(Evaluator()).test(Wrong(), loader(), verbose=False)


class OfScores(Module):
    """Ranks the images of a category by a part of their scores."""

    tags = Tags(transductive="scores")

    def score_set(self, features, predictions, size):
        assert features is None
        assert size == (32, 32)
        assert predictions.anomaly_map.numel() == 0
        self.sizes = [*getattr(self, "sizes", []), len(predictions.image_score)]
        order = predictions.score_components[:, 1].argsort().argsort()
        return predictions._replace(image_score=order / len(order))


@pytest.mark.filterwarnings("ignore")
def test_scores_of_a_category_are_combined():
    evaluator, module = Evaluator(), OfScores()
    trainer(evaluator).test(module, loader(), verbose=False)
    assert module.sizes == [5, 4]
    assert evaluator.result.transductive == "scores"
    assert sorted(evaluator.result.images["image_score"][:5]) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    means = torch.stack([sample["image"][0].mean() for sample in Images().samples[:5]])
    assert evaluator.result.images["image_score"][:5].tolist() == pytest.approx(
        (means.argsort().argsort() / 5).tolist()
    )


class OfFeatures(Module):
    """Subtracts a category's mean map from each of its maps."""

    tags = Tags(transductive="features")

    def test_step(self, batch, batch_idx):
        return Features((batch["image"][:, 0, :, :, None],))

    validation_step = test_step

    def score_set(self, features, predictions, size):
        assert predictions is None
        assert size == (32, 32)
        maps = features.levels[0][..., 0]
        maps = maps - maps.mean(0)
        return Prediction(maps, maps.amax((1, 2)), maps)


class Listener(Callback):
    def __init__(self):
        self.heard = []

    def on_set_scored(self, trainer, pl_module, batch, prediction):
        self.heard.append((batch, prediction))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("verb", ["test", "validate"])
@pytest.mark.parametrize("size", [2, 3, 9])
def test_images_of_a_category_are_scored_together(verb, size):
    evaluator, listener = Evaluator(), Listener()
    getattr(trainer(evaluator, listener), verb)(OfFeatures(), loader(size), verbose=False)
    images, alone = Images().samples, Evaluation()
    for rows in (range(5), range(5, 9)):
        maps = torch.stack([images[i]["image"][0] for i in rows])
        maps = maps - maps.mean(0)
        batch = torch.utils.data.default_collate([images[i] for i in rows])
        alone.update(batch, Prediction(maps, maps.amax((1, 2)), maps))
    right = alone.compute(transductive="features")
    result = evaluator.result
    assert result.transductive == "features"
    assert result.images["image_score"].tolist() == pytest.approx(right.images["image_score"].tolist())
    assert result.mean == pytest.approx(right.mean, nan_ok=True, abs=1e-6)
    (first, said), (second, _) = listener.heard
    assert first["image_id"] == ["0", "1", "2", "3", "4"]
    assert second["index"].tolist() == [5, 6, 7, 8]
    assert "image" not in first
    assert first["mask"].shape == said.anomaly_map.shape == (5, 32, 32)


@pytest.mark.filterwarnings("ignore")
def test_categories_that_come_back_are_refused():
    order = [0, 5, 1, 6, 2, 7, 3, 8, 4]
    with pytest.raises(DataError, match="the images of noise/a do not come one after another"):
        trainer(Evaluator()).test(OfFeatures(), loader(order=order), verbose=False)


@pytest.mark.filterwarnings("ignore")
def test_features_of_a_set_are_refused_to_several_processes(monkeypatch):
    one = trainer(Evaluator())
    monkeypatch.setattr(type(one), "world_size", 2)  # what the refusal asks; starting two takes long
    with pytest.raises(MethodError, match=r"OfFeatures scores all .* run it with one \(--trainer.devices 1"):
        one.callbacks[0].on_test_epoch_start(one, OfFeatures())


def fit_and_test(rank, port, folder, queue):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ |= {"NODE_RANK": str(rank), "LOCAL_RANK": "0"}
    torch.set_num_threads(1)
    best = ModelCheckpoint(folder, monitor="val/pixel_auroc", mode="max", filename="{epoch}")
    stop = EarlyStopping("val/pixel_auroc", mode="max", patience=0)
    evaluator = Evaluator()
    options = {"strategy": DDPStrategy(process_group_backend="gloo"), "devices": 1, "num_nodes": 2}
    both = trainer(evaluator, best, stop, enable_checkpointing=True, max_epochs=3, **options)
    module = OfScores()
    both.fit(module, loader(), loader())
    both.test(module, loader(), verbose=False)
    table = evaluator.result.categories.drop(columns=["dataset", "category"]).to_numpy().ravel().tolist()
    scores = evaluator.result.images["image_score"].tolist()
    logged = {name: float(value) for name, value in both.callback_metrics.items()}
    queue.put((rank, table, scores, logged, os.path.basename(best.best_model_path), both.current_epoch))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    queue = context.Queue()
    started = [context.Process(target=fit_and_test, args=(rank, port, tmp_path, queue)) for rank in range(2)]
    for one in started:
        one.start()
    results = sorted((queue.get(timeout=300) for _ in started), key=lambda result: result[0])
    for one in started:
        one.join(timeout=60)
        assert one.exitcode == 0
    for (_, *first), (_, *second) in itertools.pairwise(results):
        assert first == second
    _, table, scores, logged, checkpoint, epoch = results[0]
    evaluator, module = Evaluator(), OfScores()
    alone = trainer(evaluator, max_epochs=2)
    alone.fit(module, loader(), loader())
    alone.test(module, loader(), verbose=False)
    right = evaluator.result
    assert table == pytest.approx(right.categories.drop(columns=["dataset", "category"]).to_numpy().ravel().tolist())
    assert scores == pytest.approx(right.images["image_score"].tolist())  # nine: the tenth is the sampler's repetition
    assert logged["test/pixel_auroc"] == pytest.approx(right.mean["pixel_auroc"], abs=1e-6)
    assert (checkpoint, epoch) == ("epoch=0.ckpt", 2)


def test_pixels_are_compared_at_the_images_own_resolution_where_that_is_asked_for(tmp_path, capsys):
    """A defect of two pixels is lost at the method's size, and found where the image is looked at as it is."""
    for name in ("good/0", "good/1", "bad/0", "bad/1"):
        write_picture(tmp_path / f"own/{name}.png", size=(120, 80))
        mask = np.zeros((80, 120), np.uint8)
        mask[10:12, 20:22] = 255
        if name.startswith("bad"):
            (tmp_path / "own/masks").mkdir(exist_ok=True)
            Image.fromarray(mask).save(tmp_path / f"own/masks/{name[-1]}.png")

    class Marks(LightningModule):
        def test_step(self, batch):
            maps = torch.zeros(len(batch["image"]), 32, 32)
            maps[batch["label"] == 1, 4, 5] = 1
            return Prediction(maps, maps.amax((1, 2)), maps)

    found = {}
    for resolution in ("method", "own"):
        data = small_data(tmp_path, test=str(tmp_path / "own"))
        module = Marks()
        trainer(Evaluator(resolution=resolution), Results(), default_root_dir=tmp_path / resolution).test(
            module, data, verbose=False
        )
        found[resolution] = json.loads((tmp_path / resolution / "test_metrics.json").read_text())
        assert found[resolution]["resolution"] == resolution
    assert "pixel metrics at each image's own resolution" in capsys.readouterr().out
    assert found["method"]["mean"].get("pixel_auroc") is None  # no pixel of the small mask is left
    upsampled = torch.nn.functional.interpolate(
        torch.eye(1024)[4 * 32 + 5].view(1, 1, 32, 32), (80, 120), mode="bilinear"
    )
    truth = torch.zeros(2, 80, 120, dtype=torch.bool)
    truth[1, 10:12, 20:22] = True
    metric = PixelMetrics()
    metric.update(torch.cat([torch.zeros(1, 80, 120), upsampled[0]]), truth)
    assert found["own"]["mean"]["pixel_auroc"] == pytest.approx(float(metric.compute()["auroc"]))
    with pytest.raises(OptionError, match="method or own"):
        Evaluator(resolution="full")
    with pytest.raises(MethodError, match="data module"):
        trainer(Evaluator(resolution="own")).test(Module(), loader(), verbose=False)
