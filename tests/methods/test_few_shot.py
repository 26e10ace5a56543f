"""Few-shot references, the same way for every method: fitted by category, compared by category, joined by a sum."""

import pytest
import torch
from tests_support import SMALL

import vlad
from vlad.clip.similarity import upsample
from vlad.errors import MethodError
from vlad.memory import nearest_distance
from vlad.methods.patch_memory import NearestPatch
from vlad.methods.sdp import SDP
from vlad.testing import random_batch

METHODS = sorted({*SMALL} - {"musc"})  # which takes no references
CATEGORIES = ("a/bottle", "b/bottle", "b/nut")  # two data sets may have a category of one name


def build(name, tiny, **options):
    torch.manual_seed(0)
    method = vlad.get_method(name)(backbone=tiny, pretrained=None, image_size=64, **{**SMALL[name], **options}).eval()
    method.allow_untrained = True
    return method


def batch(method, size, seed, categories=CATEGORIES):
    """Noise of several categories, in turns."""
    made = random_batch(size, method.requirements.preprocess.size, seed)
    keys = [categories[row % len(categories)] for row in range(size)]
    return {**made, "dataset": [key.split("/")[0] for key in keys], "category": [key.split("/")[1] for key in keys]}


def keys_of(batch):
    return [f"{one}/{other}" for one, other in zip(batch["dataset"], batch["category"], strict=True)]


def score(method, batch):
    with torch.no_grad():
        return method.score(batch["image"], batch["class_name"], keys_of(batch))


@pytest.fixture
def sdp(tiny):
    return build("sdp", tiny)


@pytest.mark.parametrize("name", METHODS)
def test_mixed_batches_equal_single_images(name, tiny):
    method = build(name, tiny)
    method.fit_references([batch(method, 6, seed=1)])
    assert method.memory.categories == CATEGORIES
    tested = batch(method, 5, seed=2)
    together = score(method, tested)
    for row in range(5):
        alone = score(method, {key: value[row : row + 1] for key, value in tested.items()})
        torch.testing.assert_close(alone.anomaly_map[0], together.anomaly_map[row], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.image_score[0], together.image_score[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_an_image_is_compared_with_its_own_category_alone(name, tiny):
    method = build(name, tiny)
    method.fit_references([batch(method, 6, seed=1)])
    tested = batch(method, 3, seed=2)
    together = score(method, tested)
    for row, key in enumerate(CATEGORIES):
        references = batch(method, 6, seed=1)
        mine = [place for place, other in enumerate(keys_of(references)) if other == key]
        method.fit_references([{name: [value[i] for i in mine] for name, value in references.items()} | {
            "image": references["image"][mine]
        }])  # fmt: skip
        assert method.memory.categories == (key,)
        alone = score(method, {name: value[row : row + 1] for name, value in tested.items()})
        torch.testing.assert_close(alone.anomaly_map[0], together.anomaly_map[row], rtol=1e-4, atol=1e-5)


def test_the_map_is_the_sum_and_the_image_score_takes_the_largest_distance(sdp):
    tested = batch(sdp, 3, seed=2, categories=["noise/noise"])
    zero_shot = score(sdp, tested)
    sdp.fit_references([batch(sdp, 4, seed=1, categories=["noise/noise"])])
    with torch.no_grad():
        features = sdp.encode(tested["image"])
        banks = sdp.memory.levels_of("noise/noise")
        near = [nearest_distance(level, bank) for level, bank in zip(features.levels, banks, strict=True)]
        distance = upsample(torch.stack(near).mean(0), 64, align_corners=False)
    few_shot, far = score(sdp, tested), sdp.smooth(distance)
    torch.testing.assert_close(few_shot.unsmoothed_map, zero_shot.unsmoothed_map + distance)
    torch.testing.assert_close(few_shot.anomaly_map, sdp.smooth(zero_shot.unsmoothed_map + distance))
    torch.testing.assert_close(few_shot.anomaly_map, zero_shot.anomaly_map + far)
    torch.testing.assert_close(few_shot.image_score, zero_shot.image_score + far.amax((1, 2)))
    assert few_shot.score_components.shape == (3, 3)


def test_the_earlier_stage_of_a_refining_method_is_joined_too(tiny):
    method = build("clip_ada", tiny)
    tested = batch(method, 2, seed=2, categories=["noise/noise"])
    before = score(method, tested)
    method.fit_references([batch(method, 2, seed=1, categories=["noise/noise"])])
    after = score(method, tested)
    added = after.unsmoothed_map - before.unsmoothed_map
    assert float(added.amin()) > 0
    torch.testing.assert_close(
        after.stages["initial"].unsmoothed_map - before.stages["initial"].unsmoothed_map, added, atol=1e-6, rtol=0
    )


def test_the_size_of_batches_of_references_does_not_matter(sdp):
    references = batch(sdp, 6, seed=1)
    sdp.fit_references([references])
    whole = {key: sdp.memory.levels_of(key) for key in CATEGORIES}
    sdp.fit_references([{key: value[i : i + 1] for key, value in references.items()} for i in range(6)])
    assert sdp.memory.categories == CATEGORIES
    for key in CATEGORIES:
        torch.testing.assert_close(sdp.memory.levels_of(key), whole[key], rtol=1e-4, atol=1e-5)


def test_fitting_again_forgets(sdp):
    sdp.fit_references([batch(sdp, 3, seed=1)])
    sdp.fit_references([batch(sdp, 1, seed=2, categories=["c/new"])])
    assert sdp.memory.categories == ("c/new",)


def test_what_is_wrong_is_told(sdp, tiny):
    with pytest.raises(MethodError, match="there are no reference images"):
        sdp.fit_references([])
    sdp.fit_references([batch(sdp, 3, seed=1)])
    tested = batch(sdp, 2, seed=2)
    with pytest.raises(MethodError, match="of which category is each image"):
        sdp.score(tested["image"], tested["class_name"])
    with pytest.raises(MethodError, match="no reference images of 'b/nutt'; did you mean b/nut"):
        sdp.score(tested["image"], tested["class_name"], ["b/nutt"] * 2)
    nearest = NearestPatch(tiny, None, 64, [2])
    with pytest.raises(MethodError, match="NearestPatch compares with reference images and has none: give --shots K"):
        nearest.score(tested["image"], tested["class_name"])


def test_one_category_needs_no_names(sdp):
    sdp.fit_references([batch(sdp, 2, seed=1, categories=["noise/noise"])])
    tested = batch(sdp, 2, seed=2, categories=["noise/noise"])
    with torch.no_grad():
        assert torch.equal(sdp.score(tested["image"], tested["class_name"]).anomaly_map, score(sdp, tested).anomaly_map)


def test_references_alone(tiny):
    """Without zero-shot scores the map is the distance, and the image score what the method says."""
    method = build("patch_memory", tiny, sigma=0.0, top=0.5)
    method.fit_references([batch(method, 2, seed=1, categories=["noise/noise"])])
    tested = batch(method, 2, seed=2, categories=["noise/noise"])
    prediction, distance = score(method, tested), method.memory_distance(tested["image"])
    torch.testing.assert_close(prediction.anomaly_map, upsample(distance, 64, align_corners=False))
    highest = distance.flatten(1).sort(descending=True).values[:, :8]  # half of 4 x 4 patches
    torch.testing.assert_close(prediction.image_score, highest.mean(1))


def test_a_third_party_may_join_otherwise(tiny):
    class Weighted(SDP):
        def finish(self, scores, size):
            if scores.memory is not None:
                scores = scores._replace(memory=0.5 * scores.memory)
            return super().finish(scores, size)

    plain, weighted = build("sdp", tiny), Weighted(backbone=tiny, pretrained=None, image_size=64, layers=[2, 4]).eval()
    tested = batch(plain, 2, seed=2, categories=["noise/noise"])
    zero_shot = score(plain, tested).unsmoothed_map
    for method in (plain, weighted):
        method.fit_references([batch(method, 2, seed=1, categories=["noise/noise"])])
    whole, half = (score(method, tested).unsmoothed_map - zero_shot for method in (plain, weighted))
    torch.testing.assert_close(half, 0.5 * whole, atol=1e-6, rtol=1e-4)
