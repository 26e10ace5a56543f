"""SDP and SDP+ against tensors from CLIP-AD's published code."""

import pytest
import torch

from vlad.methods.losses import dice_loss, focal_loss
from vlad.methods.representative import representative_vector
from vlad.methods.sdp import SDP
from vlad.methods.sdp_plus import SDPPlus
from vlad.testing import random_batch
from vlad.types import take_rows


def arguments(golden, **more):
    meta = golden.meta
    return {
        "backbone": golden.backbone,
        "pretrained": None,
        "image_size": meta["image_size"],
        "layers": meta["features"],
        "sigma": meta["smoothing"],
        "representative": meta["rep_vec"],
    } | more


@pytest.fixture(scope="module")
def sdp(clip_ad):
    return SDP(**arguments(clip_ad)).eval()


@pytest.fixture(scope="module")
def sdp_plus(clip_ad):
    method = SDPPlus(**arguments(clip_ad)).eval()
    method.load_state_dict({**method.state_dict(), **method.published_state({"linear_layers": clip_ad.method})})
    method.origin = "golden"
    return method


def loss(method, batch):
    return method.loss(method.encode_for_loss(batch["image"]), batch)


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("mean", "mean", {}),
        ("dbscan_mvtec", "dbscan", {}),
        ("dbscan_visa", "dbscan", {"eps": 1.5, "min_samples": 25}),
        ("mean_shift", "mean_shift", {}),
        ("kde", "kde", {}),
        ("pca", "pca", {}),
    ],
)
def test_text_vectors(clip_ad, sdp, name, kind, options):
    for category in clip_ad.meta["classes"]:
        groups = sdp.prompts.sentences(category)
        vectors = []
        for group in groups:
            rows = torch.nn.functional.normalize(sdp.text_tower.encode(group), dim=-1)
            vectors.append(representative_vector(rows, kind, **options))
        text = torch.nn.functional.normalize(torch.stack(vectors), dim=-1)
        clip_ad.check(f"text/{name}/{category}", text.T)


def test_tokens(clip_ad, sdp):
    rows = slice(None, None, 4)  # the golden holds two images
    features = sdp.encode(clip_ad.out["in/image"])
    assert features.levels[0].shape[1:3] == features.branch[0].shape[1:3] == sdp.backbone.grid(*[sdp.image_size] * 2)
    for level, layer in enumerate(sdp.layers):
        plain, second = (joined(features.classes[level], some[level]) for some in (features.levels, features.branch))
        clip_ad.check(f"tok/ori_{layer}", plain[rows])
        staged = sdp.backbone.image.project(second)[rows]
        golden = clip_ad.out[f"tok/surgery_{layer}"]
        clip_ad.out[f"tok/surgery_{layer}/patches"] = golden[:, 1:]  # the branch's class token is read by nothing
        clip_ad.check(f"tok/surgery_{layer}/patches", staged[:, 1:])


def joined(token, patches):
    """Puts a class token (B, W) before patch tokens (B, h, w, W)."""
    return torch.cat([token[:, None], patches.flatten(1, 2)], dim=1)


def test_sdp_maps_and_scores(clip_ad, sdp):
    out = clip_ad.out
    prediction = sdp.score(out["in/image"], clip_ad.meta["class_per_image"])
    assert prediction.stages is None
    clip_ad.check("map/sdp_before_smoothing", prediction.unsmoothed_map)
    clip_ad.check("out/sdp/map", prediction.anomaly_map)
    clip_ad.check("out/sdp/score_text", prediction.score_components[:, 0])
    clip_ad.check("out/sdp/score_max", prediction.score_components[:, 1])


@pytest.mark.parametrize("name", ["sdp", "sdp_plus"])
def test_fused_score_of_each_category(clip_ad, name, request):
    method = request.getfixturevalue(name)
    prediction = method.score(clip_ad.out["in/image"], clip_ad.meta["class_per_image"])
    names, size = clip_ad.meta["class_per_image"], prediction.anomaly_map.shape[-2:]
    fused = torch.empty(len(names))
    for category in dict.fromkeys(names):
        rows = torch.tensor([n == category for n in names])
        fused[rows] = method.score_set(None, take_rows(prediction, rows), size).image_score
    clip_ad.check(f"out/{name}/score_fused", fused)
    torch.testing.assert_close(prediction.image_score, prediction.score_components.sum(1))


def test_sdp_plus_maps_and_scores(clip_ad, sdp_plus):
    out = clip_ad.out
    prediction = sdp_plus.score(out["in/image"], clip_ad.meta["class_per_image"])
    clip_ad.check("out/sdp_plus/map", prediction.anomaly_map)
    clip_ad.check("out/sdp_plus/score_text", prediction.score_components[:, 0])
    clip_ad.check("out/sdp_plus/score_max", prediction.score_components[:, 1])
    margins = sdp_plus.margins(sdp_plus.encode(out["in/image"]), sdp_plus.texts(clip_ad.meta["class_per_image"]))
    for layer, margin in zip(sdp_plus.layers, margins, strict=True):
        logits, margin = out[f"lin/logits_{layer}"], margin.flatten(1)
        torch.testing.assert_close(
            margin, logits[..., 1] - logits[..., 0], rtol=0, atol=1e-4 * float(logits.abs().max())
        )


def test_training_step(clip_ad):
    method = SDPPlus(**arguments(clip_ad))
    method.load_state_dict({**method.state_dict(), **method.published_state({"linear_layers": clip_ad.method})})
    rows = clip_ad.out["train/batch_index"]
    batch = {
        "image": clip_ad.out["in/image"][rows],
        "mask": clip_ad.out["in/mask"][rows] > 0,
        "class_name": [clip_ad.meta["class_per_image"][i] for i in rows],
    }
    optimizer = method.configure_optimizers()
    terms = loss(method, batch)
    clip_ad.out["train/focal_sum"] = clip_ad.out["train/focal"].sum()
    clip_ad.out["train/dice_sum"] = clip_ad.out["train/dice"].sum()
    clip_ad.check("train/focal_sum", terms["focal"])
    clip_ad.check("train/dice_sum", terms["dice"])
    total = terms["focal"] + terms["dice"]
    clip_ad.check("train/loss", total)
    total.backward()
    for name, parameter in method.heads.named_parameters():
        clip_ad.check(f"train/grad/fc.{name}", parameter.grad)
    optimizer.step()
    for name, parameter in method.heads.named_parameters():
        clip_ad.check(f"train/after/fc.{name}", parameter)


def test_loss_of_a_single_image_is_that_image(clip_ad):
    # The published code drops the batch axis of a last batch of one, so that Dice runs over image rows.
    probability = torch.rand(1, 6, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 6, 6, dtype=torch.bool)
    mask[:, 2:4] = True
    expected = 1 - (2 * probability[mask].sum() + 1) / (probability.sum() + mask.sum() + 1)
    torch.testing.assert_close(dice_loss(probability, mask), expected)
    both = torch.stack([1 - probability, probability], dim=1)
    assert focal_loss(both, mask) > focal_loss(torch.stack([~mask, mask], dim=1).float(), mask)


def test_stages_follow_the_published_division(tiny):
    method = SDP(backbone=tiny, pretrained=None, image_size=64, layers=[1, 2, 3, 4])
    assert method.stages == (1, 2, 3, 4)
    assert [method.stage_end(layer) for layer in (1, 2, 3, 4)] == [1, 2, 3, 4]


def test_an_image_without_a_mask_is_left_out_of_training(tiny):
    method = SDPPlus(backbone=tiny, pretrained=None, image_size=64, layers=[2, 4])
    batch = random_batch(3)
    batch["has_mask"][1] = False
    rest = {key: value[::2] for key, value in batch.items()}
    for name, term in loss(method, batch).items():
        torch.testing.assert_close(term, loss(method, rest)[name])
    batch["has_mask"][:] = False
    nothing = loss(method, batch)
    assert float(nothing["focal"]) == 0
    torch.stack(list(nothing.values())).sum().backward()
