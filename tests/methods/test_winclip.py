"""WinCLIP against tensors of both public reimplementations, its windows, and what it refuses."""

import pytest
import torch
from tests_support import DATA, golden

from vlad.clip import Backbone
from vlad.clip.windows import encode_windows, mean_over_windows, onednn_products, window_patches
from vlad.errors import MethodError
from vlad.memory import nearest_distance
from vlad.methods.winclip import WinCLIP
from vlad.methods.winclip_caoyunkang import CaoyunkangWinCLIP
from vlad.testing import CHECKS, iter_checks, random_batch

NAMES = ["metal_nut"] * 3  # the class of the golden's images


@pytest.fixture(scope="module")
def winclip(tmp_path_factory):
    return golden(DATA / "winclip" / "w1", tmp_path_factory.mktemp("winclip"))


@pytest.fixture(scope="module")
def method(winclip):
    return WinCLIP(winclip.backbone, None, winclip.meta["image_size"], prompts="anomalib").eval()


@pytest.fixture(scope="module")
def other(winclip):
    return CaoyunkangWinCLIP(backbone=winclip.backbone, pretrained=None, image_size=winclip.meta["image_size"]).eval()


def fit(method, winclip, count):
    names = {"class_name": NAMES[:count], "dataset": ["mvtec"] * count, "category": ["metal_nut"] * count}
    method.fit_references([{"image": winclip.out["references"][:count], **names}])
    return method.memory.levels_of("mvtec/metal_nut")


def thinned(maps):
    """Takes the pixels of a map that the golden keeps."""
    return maps[..., ::3, ::3]


# -- anomalib ----------------------------------------------------------------------------------------------


def test_sentences_of_both_references(winclip, method, other):
    sentences, paper = winclip.meta["sentences"], WinCLIP(winclip.backbone, None, 96).prompts
    for state, group in zip(("normal", "anomalous"), method.prompts.sentences("metal_nut"), strict=True):
        assert sorted(group) == sorted(sentences["anomalib"][state])  # the duplicate included; a mean has no order
    for state, group in zip(("normal", "anomalous"), paper.sentences("metal_nut"), strict=True):
        assert sorted(one.removesuffix(".") for one in group) == sorted(sentences["caoyunkang"][state])
    assert other.prompts == paper
    assert [len(group) for group in paper.sentences("nut")] == [154, 88]
    assert len(set(paper.templates)) == 22


@torch.no_grad()
def test_text_equals_anomalib(winclip, method):
    for state in ("normal", "anomalous"):
        sentences = winclip.meta["sentences"]["anomalib"][state]
        winclip.check(f"anomalib/text.{state}_each", method.text_tower.encode(sentences))
    unit = torch.nn.functional.normalize(winclip.out["anomalib/text.embeddings"], dim=-1)
    winclip.out["anomalib/text.embeddings/unit"] = unit  # only the direction of a prototype is read
    winclip.check("anomalib/text.embeddings/unit", method.texts(["metal_nut"])[0])


@torch.no_grad()
def test_zero_shot_equals_anomalib(winclip, method):
    method.memory.clear()
    images, text = winclip.out["images"], method.texts(NAMES)
    features = method.encode(images)
    assert len(features.levels) == 2  # no patch tokens, since nothing reads them
    winclip.check("anomalib/image_embeddings", features.image)
    for side, windows in zip(method.scales, features.levels, strict=True):
        winclip.check(f"anomalib/window_embeddings.scale{side}", windows)
        scores = method.probabilities(windows, text)[..., 1]
        winclip.check(f"anomalib/zero.window_scores.scale{side}", scores)
        winclip.check(f"anomalib/zero.harmonic_map.scale{side}", 1 / mean_over_windows(1 / scores, side))
    scores = method.compare(features, text)
    winclip.check("anomalib/zero.image_score", scores.image)
    winclip.check("anomalib/zero.multi_scale_map", scores.patches)
    prediction = method.score(images, NAMES)
    winclip.check("anomalib/zero.anomaly_map", thinned(prediction.anomaly_map))
    winclip.check("anomalib/zero.pred_score", prediction.image_score)


@pytest.mark.parametrize("count", [1, 3])
@torch.no_grad()
def test_few_shot_equals_anomalib(winclip, method, count):
    few, images = f"anomalib/few{count}", winclip.out["images"]
    references = fit(method, winclip, count)
    names = [*(f"{few}.reference_window_embeddings.scale{side}" for side in method.scales)]
    for name, bank in zip([*names, f"{few}.reference_patch_tokens"], references, strict=True):
        winclip.out[f"{name}/unit"] = torch.nn.functional.normalize(winclip.out[name].flatten(0, -2), dim=-1)
        winclip.check(f"{name}/unit", bank)
    features = method.encode(images)
    winclip.check("anomalib/patch_tokens", features.levels[-1])
    winclip.check("anomalib/image_embeddings", features.image)
    *windows, patches = method.distances(features, references)
    winclip.check(f"{few}.association.patch", patches)
    for side, distance in zip(method.scales, windows, strict=True):
        winclip.check(f"{few}.association_scores.scale{side}", distance)
        winclip.check(f"{few}.association_map.scale{side}", 1 / mean_over_windows(1 / distance, side))
    winclip.check(f"{few}.few_shot_map", method.nearest(features, references))
    prediction = method.score(images, NAMES)
    winclip.check(f"{few}.anomaly_map", thinned(prediction.anomaly_map))
    winclip.check(f"{few}.pred_score", prediction.image_score)


# -- caoyunkang --------------------------------------------------------------------------------------------


@torch.no_grad()
def test_zero_shot_equals_caoyunkang(winclip, other):
    other.memory.clear()
    images, text = winclip.out["images"], other.texts(NAMES)
    winclip.check("caoyunkang/text.features", text[0])
    groups = [[one.removesuffix(".") for one in group] for group in other.prompts.sentences("metal_nut")]
    for name, group in zip(("avr_normal", "avr_abnormal"), groups, strict=True):
        winclip.check(f"caoyunkang/text.{name}", other.text_tower.encode(group).mean(0))
    features = other.encode(images)
    for side, windows in zip(other.scales, features.levels, strict=True):
        unit = torch.nn.functional.normalize(windows, dim=-1)
        winclip.check(f"caoyunkang/window_features_normalised.scale{side}", unit)
    winclip.check("caoyunkang/zero.textual_map", other.compare(features, text).patches)
    prediction = other.score(images, NAMES)
    winclip.check("caoyunkang/zero.anomaly_map", thinned(prediction.anomaly_map))
    winclip.check("caoyunkang/zero.image_score_max_of_map", prediction.image_score)


@pytest.mark.parametrize("count", [1, 3])
@torch.no_grad()
def test_few_shot_equals_caoyunkang_but_for_its_slip(winclip, other, count):
    few, images = f"caoyunkang/few{count}", winclip.out["images"]
    references = fit(other, winclip, count)
    gallery = {}  # theirs holds window after window, ours image after image
    for side, bank in zip(other.scales, references, strict=True):
        gallery[side] = bank.unflatten(0, (count, -1)).transpose(0, 1).flatten(0, 1)
        winclip.check(f"{few}.gallery.scale{side}", gallery[side])
    features = other.encode(images)
    scores = other.compare(features, other.texts(NAMES), references)
    winclip.check(f"{few}.visual_map_slip_corrected", scores.memory)
    # As published, the first window of the second scale is compared with the references of the first one.
    two, three = other.distances(features, references)
    three[:, 0, 0] = nearest_distance(features.levels[1][:, :1, :1], gallery[2])[:, 0, 0] / 2
    slipped = torch.stack([mean_over_windows(two, 2), mean_over_windows(three, 3)]).mean(0)
    winclip.check(f"{few}.visual_map", slipped)
    prediction = other.finish(scores._replace(memory=slipped), (96, 96))
    winclip.check(f"{few}.anomaly_map", thinned(prediction.anomaly_map))
    winclip.check(f"{few}.image_score_max_of_map", prediction.image_score)


# -- windows -----------------------------------------------------------------------------------------------


def test_windows_go_row_by_row():
    assert len(window_patches((15, 15), 2)) + len(window_patches((15, 15), 3)) == 365
    windows = window_patches((3, 4), 2)
    assert windows.shape == (6, 4)
    assert windows[0].tolist() == [0, 1, 4, 5]
    assert windows[-1].tolist() == [6, 7, 10, 11]


@torch.no_grad()
def test_a_window_is_an_image_of_those_tokens_alone(tiny):
    tower = Backbone.load(tiny).image
    x = tower.embed(torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(0)))
    found = encode_windows(tower, x, (3, 4), 2)
    assert found.shape == (2, 2, 3, tower.embed_dim)
    for number, patches in enumerate(window_patches((3, 4), 2)):
        alone = tower.encode_tokens(torch.cat([x[:, :1], x[:, 1 + patches]], 1))
        torch.testing.assert_close(found.flatten(1, 2)[:, number], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encode_windows(tower, x, (3, 4), 2, tokens=1), found, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_nothing_outside_a_window_reaches_it(tiny):
    method = WinCLIP(tiny, None, 64).eval()
    images = random_batch(2)["image"]
    before = method.encode(images).levels
    images[:, :, 48:] += 3  # the last row of patches
    for side, one, other in zip(method.scales, before, method.encode(images).levels, strict=True):
        clear = 4 - side
        torch.testing.assert_close(one[:, :clear], other[:, :clear], rtol=1e-5, atol=1e-5)
        assert (one[:, clear:] - other[:, clear:]).abs().max() > 1e-2


def test_a_harmonic_mean_of_zero_is_zero():
    scores = torch.tensor([[[0.0, 0.5], [0.5, 0.5]]])
    found = 1 / mean_over_windows(1 / scores, 2)
    torch.testing.assert_close(found[0], torch.tensor([[0, 0, 0.5], [0, 0, 0.5], [0.5, 0.5, 0.5]]))


@torch.no_grad()
def test_products_of_both_libraries_are_equal(tiny):
    tower = Backbone.load(tiny).image
    x = torch.randn(3, 70, tower.width, generator=torch.Generator().manual_seed(0))
    plain = tower.run(x).last
    with onednn_products(x):
        torch.testing.assert_close(tower.run(x).last, plain, rtol=1e-4, atol=1e-5)
        half = x.bfloat16()
        torch.testing.assert_close(
            torch.nn.functional.linear(half, half[0]), half @ half[0].T
        )  # other precisions are left alone
    with torch.enable_grad(), onednn_products(x):
        weight, bias = torch.randn(5, tower.width, requires_grad=True), torch.zeros(5)
        torch.nn.functional.linear(x, weight, bias).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum((0, 1)).expand(5, -1))


# -- the method --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
def test_the_other_reading_passes_the_suite(check, tiny):
    """The registered one is among those of ``test_conformance``."""
    dict(iter_checks(CaoyunkangWinCLIP, backbone=tiny, pretrained=None, image_size=64))[check]()


@torch.no_grad()
def test_images_that_are_no_squares(tiny):
    method = WinCLIP(tiny, None, 64, aspect="keep").eval()
    wanted = method.requirements.preprocess
    assert (wanted.aspect, wanted.multiple, wanted.size) == ("keep", 16, 64)
    batch = random_batch(2, 96)
    wide = {**batch, "image": batch["image"][:, :, :64]}
    prediction = method.score(wide["image"], wide["class_name"])
    assert prediction.anomaly_map.shape == (2, 64, 96)
    method.fit_references([random_batch(2, 64, seed=1)])  # references of another shape
    assert method.score(wide["image"], wide["class_name"]).anomaly_map.shape == (2, 64, 96)


@torch.no_grad()
def test_a_region_of_interest_bounds_map_and_score(tiny):
    method = WinCLIP(tiny, None, 64).eval()
    method.fit_references([random_batch(2, seed=1)])
    batch = random_batch(2)
    roi = torch.zeros(2, 64, 64, dtype=torch.bool)
    roi[:, :32, 16:] = True
    features = method.encode(batch["image"])
    distance = method.nearest(features, method.memory.levels_of("noise/noise"))
    prediction = method.score_features(features, batch["class_name"], None, (64, 64), roi)
    inside = distance[:, :2, 1:].amax((1, 2)) / 2
    torch.testing.assert_close(prediction.score_components[:, 1], inside)
    assert (prediction.anomaly_map[:, 32:].amax((1, 2)) <= prediction.anomaly_map[:, :32].amin((1, 2))).all()


@torch.no_grad()
def test_settings_change_what_they_name(tiny):
    batch = random_batch(2)
    maps = [
        WinCLIP(tiny, None, 64, **options).eval().score(batch["image"], batch["class_name"]).anomaly_map
        for options in ({}, {"scales": [2]}, {"temperature": 0.01}, {"prompts": "anomalib"}, {"sigma": 4.0})
    ]
    for changed in maps[1:]:
        assert (changed - maps[0]).abs().max() > 1e-5


def test_text_is_encoded_once_per_class(tiny, monkeypatch):
    method = WinCLIP(tiny, None, 64).eval()
    seen, encode = [], method.text_tower.encode
    monkeypatch.setattr(method.text_tower, "encode", lambda sentences: seen.append(len(sentences)) or encode(sentences))
    for _ in range(2):
        method.score(random_batch(3)["image"], ["nut", "bolt", "nut"])
    assert seen == [242, 242]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": [2, 5]}, "windows of 5 patches do not fit on a grid of 4 x 4; give smaller scales or a larger"),
        ({"scales": [2, 2]}, r"scales must be different numbers of patches, at least 1, got \[2, 2\]"),
        ({"scales": []}, r"scales must be different numbers of patches, at least 1, got \[\]"),
        ({"temperature": 0}, "temperature must be above 0, got 0"),
        ({"prompts": "papers"}, "there are no prompts 'papers'; did you mean paper"),
    ],
)
def test_what_is_refused(options, message, tiny):
    with pytest.raises(MethodError, match=message):
        WinCLIP(tiny, None, 64, **options)


def test_references_must_be_fitted_ahead(tiny):
    method, batch = WinCLIP(tiny, None, 64).eval(), random_batch(2)
    features, text = method.encode(batch["image"]), method.texts(batch["class_name"])
    method.fit_references([random_batch(2, seed=1)])
    with pytest.raises(MethodError, match="the references have 3 levels and the image 2; fit the references"):
        method.compare(features, text, method.memory.levels_of("noise/noise"))
