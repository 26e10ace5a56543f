"""The joints of every method: what encode, compare and finish hand on."""

import pytest
import torch
from tests_support import SMALL

import vlad
from vlad.errors import MethodError
from vlad.methods.base import Method
from vlad.testing import random_batch
from vlad.types import Prediction, Scores, Tags, join_rows, map_tensors, take_rows


def build(name, tiny, **options):
    method = vlad.get_method(name)(backbone=tiny, image_size=64, **{**SMALL[name], **options}).eval()
    method.allow_untrained = True
    return method


def batch_of(method, size=3, seed=0):
    return random_batch(size, method.requirements.preprocess.size, seed)


@pytest.mark.parametrize(
    ("name", "levels", "branch", "classes", "image"),
    [
        ("sdp", 2, 2, 2, None),
        ("sdp_plus", 2, 2, 2, None),
        ("adaclip", 0, 1, 1, 32),  # the prompted tower starts from embedded tokens
        ("clip_ada", 2, 0, 0, None),
        ("patch_memory", 2, 0, 2, 32),
    ],
)
@torch.no_grad()
def test_features(name, levels, branch, classes, image, tiny):
    method = build(name, tiny)
    features = method.encode(batch_of(method)["image"])
    assert [level.shape for level in features.levels] == levels * [(3, 4, 4, 48)]
    assert [level.shape for level in features.branch] == branch * [(3, 4, 4, 48)]
    assert [token.shape for token in features.classes] == classes * [(3, 48)]
    assert (None if features.image is None else features.image.shape[1]) == image
    assert (features.images is not None) == (name == "clip_ada")


@pytest.mark.parametrize(
    ("name", "levels", "image", "refined"),
    [("sdp", 1, 1, None), ("sdp_plus", 3, 1, None), ("adaclip", 4, 1, None), ("clip_ada", 2, None, (3, 96, 96))],
)
@torch.no_grad()
def test_scores(name, levels, image, refined, tiny):
    method = build(name, tiny)
    batch = batch_of(method)
    scores = method.compare(method.encode(batch["image"]), method.texts(batch["class_name"]))
    assert scores.patches.shape == (3, levels, 4, 4)
    assert (None if scores.image is None else scores.image.shape) == (None if image is None else (3, image))
    assert (None if scores.refined is None else scores.refined.shape) == refined
    assert scores.memory is None


@pytest.mark.parametrize("name", [name for name in SMALL if name != "musc"])  # which scores whole sets alone
@torch.no_grad()
def test_forward_is_the_three_joints_and_score_takes_names(name, tiny):
    method = build(name, tiny)
    batch = batch_of(method)
    references = None
    if method.tags.needs_references:
        method.fit_references([batch_of(method, seed=1)])
        references = method.memory.levels_of("noise/noise")
    text = method.texts(batch["class_name"])
    assert text is not None or not method.tags.class_names  # a text need not name the class (AnomalyCLIP's)
    size = batch["image"].shape[-2:]
    by_joints = method.finish(method.compare(method.encode(batch["image"]), text, references), size)
    forward, score = method(batch["image"], text, references), method.score(batch["image"], batch["class_name"])
    for prediction in (forward, score):
        assert torch.equal(prediction.anomaly_map, by_joints.anomaly_map)
        assert torch.equal(prediction.image_score, by_joints.image_score)
    assert score.anomaly_map.shape == (3, *size)
    torch.testing.assert_close(method.smooth(score.unsmoothed_map), score.anomaly_map)
    torch.testing.assert_close(score.score_components.sum(1), score.image_score)


@torch.no_grad()
def test_features_of_rows_are_rows_of_features(tiny):
    """They can be cached, cut and joined: what they score does not change."""
    method = build("sdp_plus", tiny)
    batch = batch_of(method)
    features = method.encode(batch["image"])
    again = join_rows([take_rows(features, slice(n, n + 1)) for n in range(3)])
    map_tensors(lambda a, b: torch.testing.assert_close(a, b) or a, features, again)
    one, other = (method.score_features(f, batch["class_name"], None, (64, 64)) for f in (features, again))
    assert torch.equal(one.anomaly_map, other.anomaly_map)


@torch.no_grad()
def test_clip_ada_keeps_its_initial_map(tiny):
    method = build("clip_ada", tiny)
    batch = batch_of(method)
    prediction = method.score(batch["image"], batch["class_name"])
    assert list(prediction.stages) == ["initial"]
    initial = prediction.stages["initial"]
    assert initial.anomaly_map.shape == prediction.anomaly_map.shape
    assert not torch.equal(initial.anomaly_map, prediction.anomaly_map)
    assert (
        build("clip_ada", tiny, refinement={"class_path": "NoRefinement"})
        .score(batch["image"], batch["class_name"])
        .stages
        is None
    )


def test_texts_are_encoded_once(tiny, monkeypatch):
    method, seen = build("sdp", tiny), []
    encode = method._texts._encode
    monkeypatch.setattr(method._texts, "_encode", lambda name: seen.append(name) or encode(name))
    first = method.texts(["nut", "bottle", "nut"])
    assert first.shape == (3, 2, 32)
    assert torch.equal(first[0], first[2])
    assert torch.equal(method.texts(["bottle", "bottle"])[1], first[1])
    assert seen == ["nut", "bottle"]


def test_class_names_must_fit_the_images(tiny):
    method = build("sdp", tiny)
    for wrong in ("bottle", ["bottle"]):
        with pytest.raises(MethodError, match="class_names must be a list of 2 strings"):
            method.score(torch.zeros(2, 3, 64, 64), wrong)


# -- the base --------------------------------------------------------------------------------------------------


class Fixed(Method):
    """Scores that are given; the base makes the rest of them.

    Paper: none, a test.
    """

    def __init__(self, align_corners: bool = False, sigma: float = 0.0) -> None:
        super().__init__(backbone=None, image_size=8, sigma=sigma)
        self.align_corners = align_corners

    def encode(self, images):
        raise AssertionError


@pytest.mark.parametrize("align_corners", [False, True])
def test_a_map_is_the_upsampled_mean_of_the_levels(align_corners):
    patches = torch.rand(2, 3, 2, 4)
    prediction = Fixed(align_corners).finish(Scores(patches), (8, 12))
    expected = torch.nn.functional.interpolate(
        patches.mean(1)[:, None], (8, 12), mode="bilinear", align_corners=align_corners
    )[:, 0]
    torch.testing.assert_close(prediction.unsmoothed_map, expected)
    torch.testing.assert_close(prediction.anomaly_map, expected)
    torch.testing.assert_close(prediction.image_score, expected.amax((1, 2)))


def test_references_add_their_smoothed_distance_and_its_maximum():
    patches, memory = torch.rand(2, 1, 4, 4), torch.rand(2, 4, 4)
    method = Fixed(sigma=1.0)
    zero, few = method.finish(Scores(patches), (8, 8)), method.finish(Scores(patches, memory=memory), (8, 8))
    far = method.finish(Scores(patches[:, :0], memory=memory), (8, 8))  # references alone
    torch.testing.assert_close(few.anomaly_map, zero.anomaly_map + far.anomaly_map)
    torch.testing.assert_close(few.unsmoothed_map, zero.unsmoothed_map + far.unsmoothed_map)
    torch.testing.assert_close(few.image_score, zero.image_score + far.anomaly_map.amax((1, 2)))
    assert few.score_components.shape == (2, 2)


def test_without_an_encoder_nothing_is_missing():
    method = Fixed()
    assert not method.trains
    assert not method.tags.class_names
    assert method.texts(["a"]) is None
    assert method.requirements.supervision is None
    assert method.requirements.preprocess.size == 8
    with pytest.raises(MethodError, match="Fixed needs a text tower, and its encoder has none"):
        _ = method.text_tower
    with pytest.raises(MethodError, match="Fixed is training-free; run vlad test"):
        method.setup("fit")


def test_requirements_follow_what_is_learned(tiny):
    assert build("sdp", tiny).requirements.supervision is None
    assert build("sdp_plus", tiny).requirements.supervision == "auxiliary"
    assert build("clip_ada", tiny).requirements.supervision == "one-class"
    keep = build("patch_memory", tiny, aspect="keep").requirements.preprocess
    assert (keep.aspect, keep.multiple, keep.size) == ("keep", 16, 64)
    assert build("patch_memory", tiny).requirements.preprocess.aspect == "squash"


def test_predictions_are_detached():
    prediction = Prediction(torch.ones(1, 2, 2, requires_grad=True), torch.ones(1).double(), torch.ones(1, 2, 2))
    plain = prediction._replace(stages={"initial": prediction}).detached()
    for one in (plain, plain.stages["initial"]):
        assert not one.anomaly_map.requires_grad
        assert one.image_score.dtype == torch.float32


def test_a_method_that_scores_a_set_is_not_asked_image_by_image(tiny):
    class Together(Fixed):
        @property
        def tags(self):
            return Tags(transductive="features", class_names=False)

    with pytest.raises(MethodError, match="Together as configured scores a whole test set at once"):
        Together().on_predict_start()
    build("sdp", tiny).on_predict_start()


def test_what_lies_outside_of_the_region_of_interest_does_not_count():
    patches = torch.zeros(2, 1, 4, 4)
    patches[:, 0, 0, 0], patches[:, 0, 3, 3] = 5.0, 2.0
    memory = patches[:, 0].clone()
    roi = torch.ones(2, 8, 8, dtype=torch.bool)
    roi[1, :4, :4] = False
    method = Fixed(align_corners=False)
    for scores in (Scores(patches, roi=roi), Scores(patches, memory=memory, roi=roi)):
        whole = method.finish(scores._replace(roi=None), (8, 8))
        part = method.finish(scores, (8, 8))
        assert torch.equal(part.anomaly_map[0], whole.anomaly_map[0])
        assert torch.equal(part.anomaly_map[1][roi[1]], whole.anomaly_map[1][roi[1]])
        assert (part.anomaly_map[1][~roi[1]] <= part.anomaly_map[1][roi[1]].min()).all()
        assert part.image_score[0] == whole.image_score[0]
        assert part.image_score[1] < whole.image_score[1]
