import math

import numpy as np
import pytest
import torch
from metrics.samples import ImageAUROC, MeanGap, batch_of, prediction_for
from sklearn.metrics import roc_auc_score
from torchmetrics.classification import BinaryAUROC

from vlad.errors import VladError
from vlad.metrics import Evaluation
from vlad.metrics.regions import find_regions
from vlad.types import take_rows


def test_table_per_category_and_mean():
    evaluation, a, b = Evaluation(), batch_of("a"), batch_of("b", first=4)
    pa, pb = prediction_for(a, 1), prediction_for(b, 2)
    evaluation.update(a, pa)
    evaluation.update(b, pb)
    result = evaluation.compute()
    assert list(result.categories["category"]) == ["a", "b"]
    expected = [roc_auc_score(x["mask"].flatten(), p.anomaly_map.flatten()) for x, p in ((a, pa), (b, pb))]
    assert result.categories["pixel_auroc"].tolist() == pytest.approx(expected, abs=1e-5)  # streaming
    assert result.mean["pixel_auroc"] == pytest.approx(sum(expected) / 2, abs=1e-5)
    image = [roc_auc_score(x["label"], p.image_score) for x, p in ((a, pa), (b, pb))]
    assert result.mean["image_auroc"] == pytest.approx(sum(image) / 2)
    assert result.undefined == []
    assert len(result.images) == 8


def test_undefined_metrics_are_nan_with_reasons_and_left_out_of_means():
    evaluation = Evaluation()
    normal, unmasked = batch_of("normal"), batch_of("unmasked", first=4)
    normal["label"] = torch.zeros(4, dtype=torch.long)
    normal["mask"] = torch.zeros_like(normal["mask"])
    unmasked["has_mask"] = torch.zeros(4, dtype=torch.bool)
    for batch in (normal, unmasked):
        evaluation.update(batch, prediction_for(batch))
    result = evaluation.compute()
    rows = result.categories.set_index("category")
    assert math.isnan(rows.loc["normal", "image_auroc"])
    assert math.isnan(rows.loc["unmasked", "pixel_ap"])
    reasons = {(note["category"], note["level"]): note["reason"] for note in result.undefined}
    assert reasons == {
        ("normal", "image"): "no anomalous images",
        ("normal", "pixel"): "no anomalous pixels",
        ("unmasked", "pixel"): "no masks",
    }
    assert result.mean["image_auroc"] == rows.loc["unmasked", "image_auroc"]
    assert math.isnan(result.mean["pixel_auroc"])


def test_scores_that_are_not_finite_count_in_no_metric_and_their_rows_say_so():
    evaluation, without, batch = Evaluation(), Evaluation(), batch_of("a")
    bad = prediction_for(batch)
    bad.anomaly_map[2, 0, 0] = float("nan")
    bad.image_score[3] = float("inf")
    evaluation.update(batch, bad)
    kept = [i for i in range(len(batch["path"])) if i not in (2, 3)]
    rest = {
        name: value[kept] if isinstance(value, torch.Tensor) else [value[i] for i in kept]
        for name, value in batch.items()
    }
    without.update(rest, take_rows(bad, torch.tensor(kept)))
    result, expected = evaluation.compute(), without.compute()
    assert result.mean == pytest.approx(expected.mean, nan_ok=True)
    assert result.pooled == pytest.approx(expected.pooled, nan_ok=True)
    assert list(result.failed["path"]) == ["2.png", "3.png"]
    assert result.failed["image_score"].isna().all()
    assert all("not finite" in error for error in result.failed["error"])
    assert set(result.images["error"][kept]) == {""}


def test_nothing_finite_is_undefined():
    evaluation, batch = Evaluation(), batch_of("a")
    bad = prediction_for(batch)
    bad.image_score[:] = float("nan")
    evaluation.update(batch, bad)
    result = evaluation.compute()
    assert all(math.isnan(value) for value in result.mean.values())
    assert {note["reason"] for note in result.undefined} == {"no finite scores"}
    assert len(result.failed) == len(result.images)


@pytest.mark.parametrize(("count", "world"), [(7, 2), (8, 2), (7, 3), (1, 3), (2, 5)])
def test_padding_of_a_distributed_sampler_is_counted_once(count, world):
    from torch.utils.data import DistributedSampler

    seen = []
    for rank in range(world):
        evaluation = Evaluation()
        rows = list(DistributedSampler(range(count), world, rank, shuffle=False))
        batch = batch_of(size=len(rows))
        batch["index"] = torch.tensor(rows)
        evaluation.update(batch, prediction_for(batch), rank=rank, world_size=world)
        seen += [row["index"] for row in evaluation._rows]
    assert sorted(seen) == list(range(count))


def test_scores_are_combined_per_category_and_the_result_says_so():
    evaluation = Evaluation()
    for batch in (batch_of("a"), batch_of("b", first=4)):
        evaluation.update(batch, prediction_for(batch, components=True))
    seen = []

    def combine(said, size):
        seen.append((tuple(said.score_components.shape), tuple(said.image_score.shape), said.anomaly_map.numel(), size))
        return said._replace(image_score=torch.arange(len(said.image_score)).float())

    result = evaluation.compute(combine)
    assert seen == [((4, 2), (4,), 0, (64, 64))] * 2
    assert result.images["image_score"].tolist() == [0, 1, 2, 3] * 2
    assert result.categories["image_auroc"].tolist() == [roc_auc_score([0, 1, 0, 1], range(4))] * 2
    assert result.transductive == "scores"
    assert evaluation.compute().transductive == ""
    assert evaluation.compute(transductive="features").transductive == "features"


def test_reset_forgets():
    evaluation, batch = Evaluation(), batch_of("a")
    evaluation.update(batch, prediction_for(batch))
    evaluation.compute()
    evaluation.reset()
    assert evaluation.result is None
    assert evaluation.compute().categories.empty


def test_stages_are_evaluated_beside_the_result_by_name():
    evaluation, alone, batch = Evaluation(), Evaluation(), batch_of("a")
    first, second, last = (prediction_for(batch, seed) for seed in (1, 2, 3))
    evaluation.update(batch, last._replace(stages={"initial": first, "second": second}))
    alone.update(batch, first)
    result, expected = evaluation.compute(), alone.compute()
    assert list(result.stages) == ["initial", "second"]
    assert result.stages["initial"].mean == expected.mean
    assert result.mean != expected.mean != result.stages["second"].mean
    assert result.stages["initial"].images["image_score"].tolist() == expected.images["image_score"].tolist()
    evaluation.reset()
    evaluation.update(batch, last)
    assert evaluation.compute().stages == {}


def test_several_pro_limits_are_columns():
    batch = batch_of("a")
    alone = {}
    for limit in (0.3, 0.05):
        one = Evaluation(pro_limits=[limit])
        one.update(batch, prediction_for(batch))
        alone |= {name: value for name, value in one.compute().mean.items() if "aupro" in name}
    assert set(alone) == {"pixel_aupro", "pixel_aupro_0.05"}
    both = Evaluation(pro_limits=[0.3, 0.05])
    both.update(batch, prediction_for(batch))
    result = both.compute()
    assert {name: result.mean[name] for name in alone} == alone
    assert alone["pixel_aupro"] > alone["pixel_aupro_0.05"] > 0
    assert list(result.categories)[:12] == [
        *("dataset", "category", "normal", "anomalous", "image_auroc", "image_ap", "image_f1_max", "image_fpr_at_0.95"),
        *("pixel_auroc", "pixel_ap", "pixel_f1_max", "pixel_aupro"),
    ]
    assert result.pooled.keys() == result.mean.keys()


def test_regions_are_found_once_per_mask(monkeypatch):
    found = []
    monkeypatch.setattr("vlad.metrics.regions.find_regions", lambda mask: found.append(1) or find_regions(mask))
    evaluation, batch = Evaluation(), batch_of("a")
    other = {**batch, "index": batch["index"] + 4, "path": [f"train/{path}" for path in batch["path"]]}  # another split
    other["mask"] = batch["mask"].roll(5, 1) & batch["mask"]
    for _ in range(2):
        evaluation.update(batch, prediction_for(batch, stages={"initial": prediction_for(batch, 1)}))
        result = evaluation.compute()
        evaluation.reset()
    assert len(found) == 2 + 4 * 2  # anomalous masks once; normal ones, which take no time, at every look
    evaluation.update(other, prediction_for(batch))
    fresh = Evaluation()
    fresh.update(other, prediction_for(batch))
    assert evaluation.compute().mean == fresh.compute().mean != result.mean


def test_metrics_of_others_become_columns():
    metrics = {"area": ImageAUROC(), "mean": MeanGap()}
    evaluation, ours = Evaluation(metrics), Evaluation()
    scores, masks = [], []
    for category, first, seed in (("a", 0, 1), ("b", 4, 2)):
        batch = batch_of(category, first=first)
        said = prediction_for(batch, seed)
        for one in (evaluation, ours):
            one.update(batch, said)
        scores.append(said.anomaly_map.double().numpy())
        masks.append(batch["mask"].numpy())
    result = evaluation.compute()
    assert list(result.categories)[4:] == ["area", "mean_gap", "mean_normal"]
    gaps = [s[m].mean() - s[~m].mean() for s, m in zip(scores, masks, strict=True)]
    assert result.categories["mean_gap"].tolist() == pytest.approx(gaps, abs=1e-9)
    assert result.mean["mean_gap"] == pytest.approx(sum(gaps) / 2, abs=1e-9)
    s, m = np.concatenate(scores), np.concatenate(masks)
    assert result.pooled["mean_gap"] == pytest.approx(s[m].mean() - s[~m].mean(), abs=1e-9)
    assert result.categories["area"].tolist() == pytest.approx(ours.compute().categories["image_auroc"].tolist())


def test_metrics_of_others_are_not_asked_where_there_is_nothing():
    evaluation, batch = Evaluation({"mean": MeanGap(), "area": ImageAUROC()}), batch_of("a")
    second = batch_of("b", first=4)
    second["has_mask"], second["label"] = torch.zeros(4, dtype=torch.bool), torch.full((4,), -1)
    for one in (batch, second):
        evaluation.update(one, prediction_for(one))
    result = evaluation.compute()
    assert result.categories["mean_gap"].isna().tolist() == [False, True]
    assert result.mean["mean_gap"] == result.categories["mean_gap"][0]
    reasons = {(note["category"], note["metric"]): note["reason"] for note in result.undefined}
    assert reasons == {("b", "mean"): "no masks", ("b", "area"): "no labelled images"}


def test_what_a_metric_of_others_does_wrong_is_told_with_its_name():
    class Broken(MeanGap):
        def compute(self):
            raise IndexError("oh")

    evaluation, batch = Evaluation({"broken": Broken()}), batch_of("a")
    evaluation.update(batch, prediction_for(batch))
    with pytest.raises(VladError, match=r"metric 'broken' \(.*Broken\) failed in compute for noise/a: IndexError: oh"):
        evaluation.compute()
    with pytest.raises(VladError, match="level None: set the class attribute level"):
        Evaluation({"area": BinaryAUROC()})
    clash = Evaluation({"mean": MeanGap(), "mean_gap": ImageAUROC(), "normal": ImageAUROC()})
    clash.update(batch, prediction_for(batch))
    with pytest.warns(UserWarning, match="left out") as told:
        result = clash.compute()
    assert list(result.mean) == ["mean_gap", "mean_normal"]
    assert [str(one.message) for one in told if "left out" in str(one.message)] == [
        "the column 'mean_gap' of metric 'mean_gap' is left out: mean has one of that name",
        "the column 'normal' of metric 'normal' is left out: the table has one of that name",
    ]


def test_metrics_are_chosen_by_name():
    batch = batch_of("a")
    evaluation = Evaluation(["image"])
    evaluation.update(batch, prediction_for(batch))
    assert list(evaluation.compute().mean) == ["image_auroc", "image_ap", "image_f1_max", "image_fpr_at_0.95"]
    with pytest.raises(VladError, match="no metric is named 'pixle'; did you mean pixel"):
        Evaluation(["image", "pixle"])
    with pytest.raises(VladError, match="names 'image' twice"):
        Evaluation(["image", "image"])
    with pytest.raises(VladError, match="must be a list of names"):
        Evaluation("image")
    with pytest.raises(VladError, match="no evaluation protocol is named 'x'"):
        Evaluation(["image"], evaluation_protocol="x")


def test_adaclips_protocol_counts_undefined_as_zero():
    batch = batch_of("a")
    batch["label"] = torch.zeros(4, dtype=torch.long)
    evaluation = Evaluation(evaluation_protocol="adaclip")
    evaluation.update(batch, prediction_for(batch))
    result = evaluation.compute()
    assert result.mean["image_auroc"] == 0
    assert [note["reason"] for note in result.undefined if note["level"] == "image"] == ["no anomalous images"]
