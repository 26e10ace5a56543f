"""Checkpoints of method interface 1 are read; later ones are refused."""

import pytest
import torch
from tests_support import SMALL

import vlad
from vlad.errors import WeightsError
from vlad.methods.refinement import Head, NoRefinement, Zoom
from vlad.migrate import migrate_checkpoint
from vlad.testing import random_batch, tiny_clip

FLAT = {  # CLIP-ADA's arguments as interface 1 saved them
    "image_size": 64, "layers": [2, 4], "sigma": 2.0, "full_size": 96, "linear": True, "length": 12,
    "words": "anomaly", "normal_prompt": False, "scale": 1 / 0.07, "bias": -2.0, "recipe": "mixed",
    "textures": "procedural", "probability": 1.0, "keep_to_part": False, "pixel_loss": "focal", "region_view": 1.0,
    "refinement": "zoom", "regions": 2, "threshold": 0.5, "margin": 1.25, "min_side": None, "merge": "mean",
    "steps": 1, "top": 0.001, "lr": 0.001, "pretrained": None,
}  # fmt: skip


def write_old(method, folder, arguments, **record):
    """Writes a checkpoint the way interface 1 did."""
    state = {key: value for key, value in method.state_dict().items() if not key.startswith(("backbone.", "memory."))}
    about = {
        "version": "0.1.0",
        "api": 1,
        "class_path": f"{type(method).__module__}.{type(method).__qualname__}",
        "backbone": method.backbone.name,
        "pretrained": None,
        "fingerprint": method.backbone.legacy_fingerprint(),
    }
    file = folder / "old.ckpt"
    torch.save({"state_dict": state, "hyper_parameters": arguments, "vlad": about | record}, file)
    return file


def same(a, b, side):
    batch = random_batch(2, side)
    with torch.no_grad():
        one, other = (m.eval().score(batch["image"], batch["class_name"]) for m in (a, b))
    return torch.equal(one.anomaly_map, other.anomaly_map) and torch.equal(one.image_score, other.image_score)


@pytest.mark.parametrize("name", ["sdp", "sdp_plus", "adaclip"])
def test_a_checkpoint_of_interface_1_comes_back(name, tiny, tmp_path):
    method = vlad.get_method(name)(backbone=tiny, image_size=64, **SMALL[name])
    method.allow_untrained = True
    arguments = {key: value for key, value in method.hparams.items() if key != "as_published"}
    restored = vlad.load(write_old(method, tmp_path, arguments)).method
    assert restored.origin == "checkpoint"
    assert same(method, restored, 64)


@pytest.mark.parametrize(
    ("changes", "how"),
    [
        ({}, Zoom(count=2, box_scale=1.25, min_side=64 / 96)),
        ({"min_side": 0.5, "merge": "fine"}, Zoom(count=2, box_scale=1.25, min_side=0.5, merge="fine")),
        ({"refinement": "head"}, Head()),
        ({"refinement": "none"}, NoRefinement()),
    ],
)
def test_clip_adas_flat_arguments_are_grouped(tiny, tmp_path, changes, how):
    method = vlad.get_method("clip_ada")(
        backbone=tiny, image_size=64, words="anomaly", refinement=how, **SMALL["clip_ada"]
    )
    method.allow_untrained = True
    restored = vlad.load(write_old(method, tmp_path, {**FLAT, "backbone": tiny, **changes})).method
    assert restored.how == how
    assert (restored.synthesis.recipe, restored.losses.pixel, restored.words) == ("mixed", "focal", "anomaly")
    assert same(method, restored, 96)


def test_textures_of_a_folder_are_told_and_left_out(tiny, tmp_path):
    method = vlad.get_method("clip_ada")(backbone=tiny, image_size=64, words="anomaly", **SMALL["clip_ada"])
    old = write_old(method, tmp_path, {**FLAT, "backbone": tiny, "textures": "photos/dtd"})
    with pytest.warns(UserWarning, match=r"textures photos/dtd .*give data\.textures"):
        restored = vlad.load(old).method
    assert restored.synthesis.textures == "procedural"


def test_the_encoder_of_an_old_checkpoint_is_still_known(tiny, tmp_path):
    method = vlad.get_method("sdp_plus")(backbone=tiny, image_size=64, **SMALL["sdp_plus"])
    old, other = write_old(method, tmp_path, dict(method.hparams)), tiny_clip(tmp_path / "other", seed=9)
    with pytest.raises(WeightsError, match="was trained on encoder"):
        vlad.load(old, backbone=other)
    with pytest.raises(WeightsError, match="was trained on encoder"):
        type(method)(backbone=other, image_size=64, **SMALL["sdp_plus"], weights=str(old))
    loaded = type(method)(backbone=tiny, image_size=64, **SMALL["sdp_plus"], weights=str(old))
    assert torch.equal(loaded.heads[0].weight, method.heads[0].weight)


def test_a_later_interface_is_refused(tiny, tmp_path):
    method = vlad.get_method("sdp_plus")(backbone=tiny, image_size=64, **SMALL["sdp_plus"])
    later = write_old(method, tmp_path, dict(method.hparams), api=3)
    with pytest.raises(WeightsError, match="written for method interface 3, this vlad has 2: install a newer vlad"):
        vlad.load(later)


def test_the_present_interface_is_left_as_it_is():
    content = {"vlad": {"api": 2, "class_path": "x.Y"}, "hyper_parameters": {"margin": 1}}
    assert migrate_checkpoint(content) is content
    assert migrate_checkpoint({"state_dict": {}}) == {"state_dict": {}}
