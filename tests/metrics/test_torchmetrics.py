"""Our metrics are metrics as torchmetrics tests its own: forward, epoch, reset, clone, pickle, collections, logging."""

import pickle
import warnings

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from metrics.samples import batch_of, prediction_for
from torchmetrics import MetricCollection

from vlad.metrics import PixelMetrics, RankingMetrics

NAMES = ["auroc", "ap", "f1_max", "aupro", "iou_max", "aupimo", "fpr_at_0.95"]


@pytest.fixture(params=["small", "large"], autouse=True)
def kept(request, monkeypatch):
    """All scores are kept as they are; or almost none, so that several batches and single ones go to histograms."""
    if request.param == "large":
        monkeypatch.setattr("vlad.metrics.pixel.KEPT", 2 * 32 * 32)


def pixel_batches():
    batches = [batch_of(first=4 * i, side=32) for i in range(4)]
    batches[2]["mask"] = batches[2]["mask"] & False  # a batch without an anomaly
    made = [(prediction_for(batch, seed).anomaly_map, batch["mask"]) for seed, batch in enumerate(batches)]
    return [*made, (made[0][0][:1], made[0][1][:1])]


def image_batches():
    return [(maps[:, 0, 0], masks.any(2).any(1).long()) for maps, masks in pixel_batches()]


CASES = {
    "streaming": (PixelMetrics, {"pro_limits": (0.3, 0.05)}, pixel_batches),
    "exact": (PixelMetrics, {"mode": "exact"}, pixel_batches),
    "adaclip": (PixelMetrics, {"evaluation_protocol": "adaclip"}, pixel_batches),
    "image": (RankingMetrics, {}, image_batches),
}


@pytest.fixture(params=CASES)
def case(request):
    cls, options, batches = CASES[request.param]
    return lambda **more: cls(**options, **more), batches()


def same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=1e-12, equal_nan=True)


def updated(metric, batches):
    for batch in batches:
        metric.update(*batch)
    return metric


def test_values_are_scalar_tensors_by_name(case):
    make, batches = case
    values = updated(make(), batches).compute()
    assert all(isinstance(value, torch.Tensor) and value.shape == () for value in values.values())
    assert set(values) - {"aupro_0.05"} <= set(NAMES)


def test_the_same_numbers_are_in_the_result(case):
    make, batches = case
    metric = updated(make(), batches)
    for name, value in metric.compute().items():
        result = metric.result()
        limits = {"aupro_0.05": ("aupros", 0.05), "fpr_at_0.95": ("fprs", 0.95)}
        expected = getattr(result, limits[name][0])[limits[name][1]] if name in limits else getattr(result, name)
        assert value.item() == pytest.approx(expected, abs=0, nan_ok=True)
    assert metric.details() == {"f1_threshold": metric.result().f1_threshold}
    assert metric.why_undefined() == metric.result().undefined


@pytest.mark.parametrize("full_update", [False, True])
def test_forward_gives_each_batch_and_compute_the_epoch(case, full_update):
    make, batches = case
    metric = make(dist_sync_on_step=full_update)  # torchmetrics has two ways of doing a forward
    for batch in batches:
        fresh = make()
        fresh.update(*batch)
        same(metric(*batch), fresh.compute())
    same(metric.compute(), updated(make(), batches).compute())
    assert metric.update_count == len(batches)


def test_forward_and_update_may_alternate_and_compute_may_come_between(case):
    make, batches = case
    metric = make()
    for number, batch in enumerate(batches):
        if number % 2:
            metric(*batch)
        else:
            metric.update(*batch)
        same(metric.compute(), updated(make(), batches[: number + 1]).compute())


def test_reset(case):
    make, batches = case
    metric = updated(make(), batches)
    metric.compute()
    metric.reset()
    assert metric.result().undefined == "no samples"
    metric.update(*batches[0])
    same(metric.compute(), updated(make(), batches[:1]).compute())


def test_clone_and_pickle_keep_the_state_and_are_independent(case):
    make, batches = case
    for copy in (lambda metric: metric.clone(), lambda metric: pickle.loads(pickle.dumps(metric))):
        metric = updated(make(), batches[:2])
        other = copy(metric)
        same(other.compute(), metric.compute())
        updated(other, batches[2:])
        same(other.compute(), updated(make(), batches).compute())
        same(metric.compute(), updated(make(), batches[:2]).compute())


def test_states_merge(case):
    make, batches = case
    metric, second = updated(make(), batches[:2]), updated(make(), batches[2:])
    metric.compute()
    metric.merge_state(second)
    same(metric.compute(), updated(make(), batches).compute())
    assert metric.update_count == len(batches)


def test_the_state_is_no_part_of_checkpoints(case):
    make, batches = case
    assert updated(make(), batches).state_dict() == {}


def test_in_a_collection():
    """Metrics with equal states are updated once for all of them; none may change what they share."""
    batches = pixel_batches()
    options = {"wide": {}, "narrow": {"pro_limits": [0.05]}, "zero": {"evaluation_protocol": "adaclip"}}
    collection = MetricCollection({name: PixelMetrics(**option) for name, option in options.items()}, prefix="test/")
    for number, batch in enumerate(batches):
        collection.update(*batch)
        if number == 1:
            collection.compute()
    assert len(collection.compute_groups) == 1
    for found, seen in ((collection.compute(), batches), (collection(*batches[0]), batches[:1])):
        for name, option in options.items():
            for key, value in updated(PixelMetrics(**option), seen).compute().items():
                column = f"test/{name}_{key}" if f"test/{name}_{key}" in found else f"test/{key}"
                assert found[column].item() == pytest.approx(value.item(), abs=1e-12, nan_ok=True), column
    collection.reset()
    same(collection.clone()(*batches[0]), collection(*batches[0]))


@pytest.mark.parametrize("batches", [pixel_batches, image_batches])
def test_logged_by_a_lightning_module(batches, tmp_path):
    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.metric = PixelMetrics() if batches is pixel_batches else RankingMetrics()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch, batch_idx):
            self.log_dict({f"step/{name}": value for name, value in self.metric(*batch).items()})
            return self.layer(torch.ones(1)).sum()

        def on_train_epoch_end(self):
            self.log_dict(self.metric.compute())
            self.metric.reset()

        def validation_step(self, batch, batch_idx):
            self.metric.update(*batch)  # under inference mode, and then trained on again

        def on_validation_epoch_end(self):
            self.metric.reset()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    data = torch.utils.data.DataLoader(batches(), batch_size=None)
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        val_check_interval=2,
    )
    module = Module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, data, data)
    after = updated(PixelMetrics() if batches is pixel_batches else RankingMetrics(), batches()[4:])  # val resets
    for name, value in after.compute().items():
        assert trainer.callback_metrics[name].item() == pytest.approx(value.item(), abs=1e-6, nan_ok=True)


def test_plot(case):
    make, batches = case
    metric = updated(make(), batches)
    values = [make()(*batch) for batch in batches]
    try:
        import matplotlib as mpl
    except ImportError:
        with pytest.raises(ModuleNotFoundError, match="matplotlib"):
            metric.plot()
        return
    mpl.use("Agg")
    for axis in (metric.plot()[1], metric.plot(values)[1]):
        assert len(axis.get_lines()) >= len(metric.compute())
