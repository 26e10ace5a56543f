import dataclasses
import math

import pytest
import torch
from sklearn.metrics import roc_auc_score

from vlad.errors import DataError
from vlad.metrics import Evaluation
from vlad.testing import random_batch
from vlad.types import Prediction


def prediction(batch, seed=0, terms=False):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(batch["image"].shape[0], 64, 64, generator=generator)
    score = maps.amax((1, 2))
    return Prediction(maps, maps, score, torch.stack([score, -score], 1) if terms else None)


def batch_of(category, size=4, first=0):
    batch = random_batch(size)
    batch["category"] = [category] * size
    batch["index"] = torch.arange(first, first + size)
    return batch


def test_table_per_category_and_mean():
    evaluation, a, b = Evaluation(), batch_of("a"), batch_of("b", first=4)
    pa, pb = prediction(a, 1), prediction(b, 2)
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
        evaluation.update(batch, prediction(batch))
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


def test_scores_that_are_not_finite_name_the_image():
    evaluation, batch = Evaluation(), batch_of("a")
    bad = prediction(batch)
    bad.anomaly_map[2, 0, 0] = float("nan")
    with pytest.raises(DataError, match="the scores of 2.png are not finite"):
        evaluation.update(batch, bad)


@pytest.mark.parametrize(("count", "world"), [(7, 2), (8, 2), (7, 3), (1, 3), (2, 5)])
def test_padding_of_a_distributed_sampler_is_counted_once(count, world):
    from torch.utils.data import DistributedSampler

    seen = []
    for rank in range(world):
        evaluation = Evaluation()
        rows = list(DistributedSampler(range(count), world, rank, shuffle=False))
        batch = random_batch(len(rows))
        batch["index"] = torch.tensor(rows)
        evaluation.update(batch, prediction(batch), rank=rank, world_size=world)
        seen += [row["index"] for row in evaluation._images]
    assert sorted(seen) == list(range(count))


def test_terms_are_fused_per_category():
    evaluation = Evaluation()
    for batch in (batch_of("a"), batch_of("b", first=4)):
        evaluation.update(batch, prediction(batch, terms=True))
    seen = []

    def fuse(terms):
        seen.append(tuple(terms.shape))
        return torch.arange(len(terms)).float()

    result = evaluation.compute(fuse)
    assert seen == [(4, 2), (4, 2)]
    assert result.images["image_score"].tolist() == [0, 1, 2, 3] * 2
    assert result.categories["image_auroc"].tolist() == [roc_auc_score([0, 1, 0, 1], range(4))] * 2


def test_reset_forgets():
    evaluation, batch = Evaluation(), batch_of("a")
    evaluation.update(batch, prediction(batch))
    evaluation.compute()
    evaluation.reset()
    assert evaluation.result is None
    assert evaluation.compute().categories.empty


def test_what_was_said_before_a_refinement_is_evaluated_beside_it():
    evaluation, alone, batch = Evaluation(), Evaluation(), batch_of("a")
    before, after = prediction(batch, 1), prediction(batch, 2)
    evaluation.update(batch, dataclasses.replace(after, unrefined=before))
    alone.update(batch, before)
    result, expected = evaluation.compute(), alone.compute()
    assert result.unrefined.mean == expected.mean
    assert result.mean != expected.mean
    assert result.unrefined.images["image_score"].tolist() == expected.images["image_score"].tolist()
    evaluation.reset()
    evaluation.update(batch, after)
    assert evaluation.compute().unrefined is None
    halved = dataclasses.replace(after, unrefined=prediction(batch, 1)).detached()
    assert halved.unrefined.anomaly_map.dtype == torch.float32
