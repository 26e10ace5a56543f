"""Nearest patch: the distance itself, on any encoder and any shape of image."""

import torch

from vlad.methods.patch_memory import NearestPatch
from vlad.testing import random_batch


@torch.no_grad()
def test_nearest_patch_is_the_distance_to_the_nearest_patch(tiny):
    method = NearestPatch(tiny, image_size=64, layers=[2, 4], sigma=0.0, top=0.25).eval()
    normal, other = random_batch(2, seed=1), random_batch(3)
    method.fit_references([normal])
    features, known = method.encode(other["image"]), method.encode(normal["image"])
    distance = torch.zeros(3, 4, 4)
    for level, bank in zip(features.levels, known.levels, strict=True):
        cosine = torch.nn.functional.cosine_similarity(level.flatten(0, 2)[:, None], bank.flatten(0, 2)[None], dim=-1)
        distance += (1 - cosine.amax(1)).unflatten(0, (3, 4, 4)) / 2
    prediction = method.score(other["image"], other["class_name"])
    torch.testing.assert_close(method.memory_distance(other["image"]), distance, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        prediction.image_score, distance.flatten(1).topk(4, 1).values.mean(1), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        prediction.unsmoothed_map,
        torch.nn.functional.interpolate(distance[:, None], (64, 64), mode="bilinear")[:, 0],
        rtol=1e-4,
        atol=1e-5,
    )


@torch.no_grad()
def test_nearest_patch_reads_the_last_layer_and_any_shape_of_image(tiny):
    method = NearestPatch(tiny, image_size=64, aspect="keep").eval()
    assert method.layers == (4,)
    method.fit_references([{**random_batch(1), "image": torch.randn(1, 3, 64, 96)}])
    assert method.score(torch.randn(1, 3, 96, 64), ["a"]).anomaly_map.shape == (1, 96, 64)


def test_nearest_patch_runs_on_a_vision_tower_without_text():
    method = NearestPatch("timm:vit_tiny_patch16_224", "random", image_size=64, layers=[6, 12]).eval()
    batch = random_batch(2)
    with torch.no_grad():
        method.fit_references([batch])
        assert float(method.score(batch["image"], batch["class_name"]).anomaly_map.abs().max()) < 1e-3
    assert not method.tags.class_names
