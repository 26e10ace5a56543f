"""The core against published towers: AdaCLIP's deep prompts and AnomalyCLIP's second branch and learned words."""

import pytest
import torch
from tests_support import DATA, golden

from vlad.clip import AttentionBranch, Backbone, Numerics, append_prompts, overwrite_prompts
from vlad.encoders.positions import resize_positions


@pytest.fixture(scope="module")
def adaclip(tmp_path_factory):
    return golden(DATA / "adaclip" / "c", tmp_path_factory.mktemp("adaclip"))


@pytest.fixture(scope="module")
def anomalyclip(tmp_path_factory):
    return golden(DATA / "anomalyclip", tmp_path_factory.mktemp("anomalyclip"))


@torch.no_grad()
def test_appended_visual_prompts_equal_adaclip(adaclip):
    backbone = Backbone.load(adaclip.backbone)
    prompts = {n + 1: adaclip.method[f"clip_model.visual_prompter.static_prompts.{n}"] for n in range(2)}
    x = backbone.image.embed(adaclip.out["in/images"])
    count = x.shape[1]
    tokens = backbone.image.run(x, layers=[1, 2, 3, 4], before=append_prompts(prompts, count))
    for n in range(4):
        adaclip.check(f"nohalf/batch/tokens_{n}", tokens.hidden_states[n + 1][:, :count], rtol=1e-5)
    adaclip.check("nohalf/batch/pooled", backbone.image.project(tokens.last[:, 0]), rtol=1e-5)


@torch.no_grad()
def test_overwritten_text_prompts_equal_adaclip(adaclip):
    tower = Backbone.load(adaclip.backbone).text
    prompts = {2: adaclip.method["clip_model.text_prompter.static_prompts.1"]}  # ahead of block 1 nothing changes
    for state in (0, 1):
        ids = adaclip.out[f"img0/sentence_tokens_{state}"].long()
        features = tower.run(tower.embed(ids), tower.ends(ids), before=overwrite_prompts(prompts))
        adaclip.check(f"nohalf/img0/sentence_features_{state}", features, rtol=1e-5)


def test_positions_resized_as_adaclip_does(adaclip):
    stored = Backbone.load(adaclip.backbone).image.visual.positional_embedding
    native = adaclip.out["in/positions"]
    published = resize_positions(native, (5, 5), mode="bicubic", antialias=False)
    torch.testing.assert_close(published, stored, rtol=0, atol=1e-6)
    assert (resize_positions(native, (5, 5), mode="bicubic", antialias=True) - stored).abs().max() > 1e-3


@torch.no_grad()
def test_second_branch_equals_anomalyclip(anomalyclip):
    numerics = Numerics(position_resize="bilinear", position_antialias=False)
    tower = Backbone.load(anomalyclip.backbone, numerics=numerics).image
    depth, dpam = tower.depth, anomalyclip.meta["config"]["dpam"]
    first = depth - dpam + 2
    tokens = tower.run(
        tower.embed(anomalyclip.out["img0.image"]),
        layers=range(1, depth + 1),
        branch=AttentionBranch(first=first),
        branch_layers=range(first, depth + 1),
    )
    for number in range(1, depth + 1):
        if number < first:
            anomalyclip.check(f"img0.block{number}.single", tokens.hidden_states[number], rtol=1e-5)
        else:
            anomalyclip.check(f"img0.block{number}.ori", tokens.hidden_states[number], rtol=1e-5)
            anomalyclip.check(f"img0.block{number}.vv", tokens.branch[number], rtol=1e-5)
    anomalyclip.check("img0.cls_feature_raw", tower.project(tokens.last[:, 0], norm=False), rtol=1e-5)
    for layer in anomalyclip.meta["config"]["features"]:
        patches = tokens.branch[layer] if layer >= first else tokens.hidden_states[layer]
        anomalyclip.check(f"img0.patch_feature_raw.layer{layer}", tower.project(patches), rtol=1e-5)


@torch.no_grad()
def test_learned_words_equal_anomalyclip(anomalyclip):
    tower = Backbone.load(anomalyclip.backbone).text
    ids, words = anomalyclip.out["text.tokens"].long(), anomalyclip.out["text.prompts"]
    deep = {n + 2: anomalyclip.method[f"compound_prompts_text.{n}"].half().float() for n in range(8)}
    features = tower.run(words, tower.ends(ids), before=overwrite_prompts(deep))
    anomalyclip.check("text.features_raw", features, rtol=1e-5)
