"""DINOv2 through timm: tokens of the official tower at any grid, its tensor names, and its weights whole or refused."""

import json
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from tests_support import DATA
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vlad.encoders import Encoder, load_encoder
from vlad.encoders.dino import PositionResize, VisionTower, timm_names
from vlad.encoders.weights import load_all
from vlad.errors import BackboneError

SMALL = {"patch_size": 14, "embed_dim": 32, "depth": 3, "num_heads": 2, "init_values": 1.0, "num_classes": 0}
NORM = partial(nn.LayerNorm, eps=1e-6)


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def small(size=56, **options):
    torch.manual_seed(0)
    model = VisionTransformer(img_size=size, norm_layer=NORM, **{**SMALL, **options})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def published(folder):
    config = json.loads((folder / "meta.json").read_text())["dino"]
    model = VisionTransformer(
        norm_layer=NORM,
        num_classes=0,
        **{key: config[key] for key in ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "init_values")},
    )
    load_all(model, timm_names(load_file(folder / "dino.safetensors")), folder, "golden")
    return model


@torch.no_grad()
@pytest.mark.parametrize("variant", ["v1_rotation", "v2_mask"])
def test_tokens_equal_the_published_run(variant):
    """AnomalyDINO's tokens, of rectangular images too; timm's own position resize is percents away."""
    folder = DATA / "anomalydino" / variant
    model, tensors = published(folder), load_file(folder / "tensors.safetensors")
    ours, timms = VisionTower(model, name="dinov2"), VisionTower(model, positions=PositionResize())
    for name in [key.removesuffix(".image") for key in tensors if key.endswith(".image")]:
        image, expected = tensors[f"{name}.image"][None], tensors[f"{name}.tokens"]
        tokens = ours.encode(image, [ours.depth]).levels[0]
        assert tokens.shape[1:3] == (image.shape[2] // 14, image.shape[3] // 14)
        assert relative(tokens.flatten(0, 2), expected) <= 1e-5
        assert relative(timms.encode(image, [ours.depth]).levels[0].flatten(0, 2), expected) > 0.03


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [{}, {"reg_tokens": 4, "no_embed_class": True}, {"reg_tokens": 2}, {"pre_norm": True, "patch_size": 28}],
)
def test_tokens_equal_timms_own_forward_at_the_native_grid(options):
    model = small(**options)
    tower, images = VisionTower(model, name="dinov2"), torch.randn(2, 3, 56, 56)
    prefix = model.num_prefix_tokens
    theirs = model.forward_features(images)
    features = tower.encode(images, [3, 1])
    assert relative(features.levels[0].flatten(1, 2), theirs[:, prefix:]) <= 1e-5
    assert relative(features.image, theirs[:, 0]) <= 1e-5
    assert torch.equal(features.classes[0], features.image)
    earlier = model.forward_intermediates(images, indices=[0], intermediates_only=True, output_fmt="NLC")[0]
    assert relative(features.levels[1].flatten(1, 2), earlier) <= 1e-5


@torch.no_grad()
def test_registers_resize_as_timm_does():
    """The official tower with registers and timm resize alike: antialiased, to the size, without an offset."""
    model = small(reg_tokens=4, no_embed_class=True)
    dynamic = small(reg_tokens=4, no_embed_class=True, dynamic_img_size=True)
    dynamic.load_state_dict(model.state_dict())
    images = torch.randn(1, 3, 70, 42)
    tokens = VisionTower(model, name="timm:vit_small_patch14_reg4_dinov2").encode(images, [3]).levels[0]
    assert tokens.shape == (1, 5, 3, 32)
    assert relative(tokens.flatten(1, 2), dynamic.forward_features(images)[:, 5:]) <= 1e-5


def official(model):
    """A timm tower's weights under DINOv2's own names."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    state["mask_token"] = torch.zeros(1, 32)
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
        row = torch.randn(1, 1, 32)
        state["cls_token"] -= row
        state["pos_embed"] = torch.cat([row, state["pos_embed"]], 1)
    return state


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 4, "no_embed_class": True}])
def test_official_names_are_converted(options):
    model, other = small(**options), small(**options)
    nn.init.zeros_(other.cls_token)
    load_all(other, timm_names(official(model)), "file", "tower")
    for key, value in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value)


def test_half_precision_class_token_with_registers_is_added_in_float32():
    state = {"cls_token": torch.ones(1, 1, 4).half(), "register_tokens": torch.zeros(1, 2, 4).half()}
    state["pos_embed"] = torch.full((1, 5, 4), 2**-12).half()
    assert timm_names(state)["cls_token"].flatten().tolist() == [1 + 2**-12] * 4


def test_swiglu_names_are_converted():
    names = timm_names(
        {"mask_token": torch.ones(1), "blocks.3.mlp.w12.bias": torch.ones(2), "blocks.3.mlp.w3.weight": torch.ones(2)}
    )
    assert list(names) == ["blocks.3.mlp.fc1.bias", "blocks.3.mlp.fc2.weight"]


@pytest.fixture
def folder(tmp_path):
    """A small DINOv2 as timm saves towers for the hub."""
    arguments = {"img_size": 56, "embed_dim": 32, "depth": 3, "num_heads": 2}
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch14_dinov2", pretrained=False, **arguments)
    config = {"architecture": "vit_small_patch14_dinov2", "num_classes": 0, "model_args": arguments}
    (tmp_path / "config.json").write_text(json.dumps(config | {"pretrained_cfg": {"mean": [0.1, 0.2, 0.3]}}))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    return tmp_path


@torch.no_grad()
def test_a_folder_of_timm_loads(folder):
    encoder = load_encoder(f"local-dir:{folder}", text=False)
    assert isinstance(encoder, Encoder)
    assert encoder.mean == (0.1, 0.2, 0.3)
    assert (encoder.depth, encoder.width, encoder.patch_size, encoder.native_size) == (3, 32, 14, 56)
    assert encoder.source.file == folder / "model.safetensors"
    assert torch.equal(encoder.model.pos_embed, load_file(folder / "model.safetensors")["pos_embed"])
    assert not encoder.train().training
    assert not any(p.requires_grad for p in encoder.parameters())
    image = torch.randn(1, 3, 70, 84)
    offset = VisionTower(encoder.model, name="dinov2").encode(image, [3]).levels[0]
    assert torch.equal(encoder.encode(image, [3]).levels[0], offset)  # known as DINOv2 by its architecture


def test_unfit_weights_are_refused(folder):
    name, file = f"local-dir:{folder}", folder / "model.safetensors"
    state = load_file(file)
    changes = {
        "lacks blocks.2.norm1": {key: value for key, value in state.items() if not key.startswith("blocks.2")},
        "has unknown blocks.9": state | {"blocks.9.norm1.weight": torch.ones(32)},
        "other shapes of pos_embed": state | {"pos_embed": torch.ones(1, 10, 32)},
        "NaN or infinite values in cls_token": state | {"cls_token": torch.full((1, 1, 32), torch.nan)},
    }
    for message, tensors in changes.items():
        file.unlink()
        save_file(tensors, file)
        with pytest.raises(BackboneError, match=message):
            load_encoder(name, text=False)
    file.unlink()
    with pytest.raises(BackboneError, match="holds no weights file"):
        load_encoder(name, text=False)
    assert load_encoder(name, "random", text=False).pretrained == "random"


def test_a_file_for_a_timm_name(tmp_path):
    torch.manual_seed(0)
    first = load_encoder("timm:vit_tiny_patch16_224", "random", text=False)
    file = tmp_path / "weights.pth"
    torch.save(first.model.state_dict() | {"head.weight": torch.ones(10, 192)}, file)
    again = load_encoder("timm:vit_tiny_patch16_224", str(file), text=False)
    assert again.fingerprint() == first.fingerprint()
    assert again.source.label == "weights.pth"
    other = load_encoder("timm:vit_tiny_patch16_224", "random", text=False)
    assert other.fingerprint() != first.fingerprint()
    with pytest.raises(
        BackboneError, match="does not fit 'timm:vit_small_patch32_224': it has other shapes of cls_token"
    ):
        VisionTower.load("timm:vit_small_patch32_224", str(file))


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("timm:vit_small_patch14_dino2", None, "did you mean vit_small_patch14_dinov2"),
        ("timm:vit_small_patch14_dinov2.nothing", None, "timm has no tower"),
        ("timm:vit_tiny_patch16_224", "openai", "openai is no file; .* random for random weights"),
        ("timm:resnet18", "random", "has the type ResNet"),
        ("timm:vit_wee_patch16_reg1_gap_256", "random", "has no class token"),
    ],
)
def test_unusable_towers(name, pretrained, message):
    with pytest.raises(BackboneError, match=message):
        load_encoder(name, pretrained, text=False)


def test_a_failed_download_says_what_to_do(monkeypatch):
    import huggingface_hub

    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(BackboneError, match=r"cannot download the weights .*no network. Download model.safetensors"):
        load_encoder("timm:vit_tiny_patch16_224", text=False)


def test_layers_out_of_range_and_sizes_that_do_not_fit():
    tower = VisionTower(small(), name="dinov2")
    with pytest.raises(BackboneError, match=r"has layers 1 to 3, not \[0\]"):
        tower.encode(torch.zeros(1, 3, 56, 56), [0])
    with pytest.raises(BackboneError, match="56x60 is no multiple of the patch size 14"):
        tower.encode(torch.zeros(1, 3, 56, 60), [1])


def test_a_tower_can_be_exported_and_scores_afterwards():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.tower = VisionTower(small(), name="dinov2")

        def forward(self, images):
            return self.tower.encode(images, [2, 3]).levels

    module, images = Last(), torch.randn(2, 3, 70, 56)
    program = torch.export.export(module, (images,))  # first, before any position was resized
    with torch.no_grad():
        for found, expected in zip(program.module()(images), module(images), strict=True):
            torch.testing.assert_close(found, expected)


def test_golden_files_are_small():
    assert sum(file.stat().st_size for file in Path(DATA / "anomalydino").rglob("*")) < 2_000_000
