"""What scores depend on, told apart."""

import pytest
import torch

from vlad.identity import differences, scoring_identity
from vlad.methods.patch_memory import NearestPatch


@pytest.fixture(scope="module")
def method():
    return NearestPatch(backbone="vlad-tiny", image_size=96)


def batch(seed=0):
    image = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(seed))
    return [{"image": image, "class_name": ["a"], "dataset": ["d"], "category": ["a"]}]


def test_the_same_method_has_the_same_identity(method):
    other = NearestPatch(backbone="vlad-tiny", image_size=96)
    assert scoring_identity(method) == scoring_identity(other)
    assert scoring_identity(method)["references"] == ""
    assert differences(scoring_identity(method), scoring_identity(other)) == []


def test_everything_that_changes_scores_is_told(method):
    before = scoring_identity(method, data={"fast_jpeg": False})
    other = NearestPatch(backbone="vlad-tiny", image_size=64)
    other.fit_references(batch())
    told = differences(before, scoring_identity(other, precision="bf16-mixed", data={"fast_jpeg": True}))
    assert len(told) == 4
    assert told[0] == "fast_jpeg (was False, is True)"
    assert told[1] == "image_size (was 96, is 64)"
    assert told[2] == "the precision (was 32-true, is bf16-mixed)"
    assert told[3].startswith("the reference images (was none, is ")


def test_other_references_are_others(method):
    found = set()
    for seed in (0, 0, 1):
        method.fit_references(batch(seed))
        found.add(scoring_identity(method)["references"])
    method.memory.clear()
    assert len(found) == 2
