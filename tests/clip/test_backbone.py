"""Which CLIP: all of its weights or an error, random ones by name, a fingerprint, the encoder's interface."""

import copy
import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from vlad.clip import Backbone, Numerics
from vlad.clip.backbone import random_clip, save_local
from vlad.errors import BackboneError

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
FILE = "open_clip_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    save_local(random_clip(CONFIG), CONFIG, folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "clip"))


def rewrite(folder, change, name=FILE):
    tensors = load_file(folder / FILE)
    tensors = change(tensors) or tensors
    (folder / FILE).unlink()
    if name.endswith(".safetensors"):
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name)
    else:
        torch.save(tensors, folder / name)


def drop_text(tensors):
    return {key: value for key, value in tensors.items() if not key.startswith("text.")}


def set_value(key, place, value):
    def change(tensors):
        tensors[key].view(-1)[place] = value

    return change


def replace(key, function):
    def change(tensors):
        tensors[key] = function(tensors[key])

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_text, r"does not fit 'local-dir:.*it lacks text.positional_embedding, .* more; give the weights"),
        (lambda tensors: {k: v for k, v in tensors.items() if k != "visual.proj"}, "it lacks visual.proj; give"),
        (lambda tensors: {**tensors, "extra.weight": torch.ones(2)}, "it has unknown extra.weight; give"),
        (
            replace("visual.positional_embedding", lambda x: x[:4]),  # open_clip would interpolate it in silence
            r"it has other shapes of visual.positional_embedding \(4, 32\) instead of \(5, 32\)",
        ),
        (replace("text.positional_embedding", lambda x: x[:8]), r"text.positional_embedding \(8, 16\) instead of"),
        (set_value("visual.proj", 3, float("nan")), "damaged: NaN or infinite values in visual.proj"),
        (set_value("text.token_embedding.weight", -1, float("-inf")), "damaged: .* text.token_embedding.weight"),
        (replace("visual.proj", lambda x: x.int()), r"no real numbers in visual.proj \(torch.int32\)"),
    ],
)
@pytest.mark.parametrize("name", [FILE, "open_clip_pytorch_model.bin"])
def test_unfit_weights_are_refused(folder, change, message, name):
    rewrite(folder, change, name)
    with pytest.raises(BackboneError, match=message) as error:
        Backbone.load(f"local-dir:{folder}")
    assert name in str(error.value)


def test_a_folder_without_weights_is_refused_unless_random_is_said(folder):
    (folder / FILE).unlink()
    with pytest.raises(BackboneError, match=f"holds no weights file \\({FILE}\\).*pretrained: random"):
        Backbone.load(f"local-dir:{folder}")
    torch.manual_seed(5)
    first = Backbone.load(f"local-dir:{folder}", "random")
    torch.manual_seed(5)
    again = Backbone.load(f"local-dir:{folder}", "random")
    other = Backbone.load(f"local-dir:{folder}", "random")
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert (first.pretrained, first.source.label, first.source.sha256) == ("random", "random", "")


def test_a_folder_with_two_files_is_not_guessed_at(folder):
    for name in ("a.safetensors", "b.safetensors"):
        shutil.copyfile(folder / FILE, folder / name)
    assert Backbone.load(f"local-dir:{folder}").source.file.name == FILE
    (folder / FILE).unlink()
    with pytest.raises(BackboneError, match="holds several weights files"):
        Backbone.load(f"local-dir:{folder}")


def test_a_clip_of_another_family_is_refused(folder):
    other = {**CONFIG, "vision_cfg": {**CONFIG["vision_cfg"], "width": 48, "layers": 4}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": other}))
    with pytest.raises(BackboneError, match=r"it lacks visual.transformer.resblocks.3.*instead of.*this very model"):
        Backbone.load(f"local-dir:{folder}")


def test_half_precision_files_are_cast_exactly(folder):
    rewrite(folder, lambda tensors: {key: value.half() for key, value in tensors.items()})
    backbone = Backbone.load(f"local-dir:{folder}")
    assert backbone.image.visual.proj.dtype == torch.float32
    assert torch.equal(backbone.image.visual.proj, load_file(folder / FILE)["visual.proj"].float())


class Evil:
    def __reduce__(self):
        return (print, ("pwned",))


@pytest.mark.parametrize("content", [{"visual.proj": Evil()}, Evil()])
def test_pickled_code_is_refused(folder, content, capsys):
    (folder / FILE).unlink()
    torch.save(content, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(BackboneError, match="could run code"):
        Backbone.load(f"local-dir:{folder}")
    assert "pwned" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 broken"])
def test_damaged_files_are_refused(folder, content):
    (folder / FILE).write_bytes(content)
    with pytest.raises(BackboneError, match="cannot be read as weights"):
        Backbone.load(f"local-dir:{folder}")


def test_torchscript_archives_are_refused(folder):
    (folder / FILE).unlink()
    torch.jit.script(torch.nn.Linear(1, 1)).save(folder / "open_clip_pytorch_model.pt")
    with pytest.raises(BackboneError, match="refused"):
        Backbone.load(f"local-dir:{folder}")


def test_files_of_the_old_layout_and_of_training_runs_load(folder, saved):
    plain = {key.removeprefix("text."): value for key, value in load_file(folder / FILE).items()}
    plain["logit_scale"] = plain["logit_scale"].reshape(1)
    plain |= {"context_length": torch.tensor(12)}
    (folder / FILE).unlink()
    content = {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in plain.items()}}
    torch.save(content, folder / "weights.pt")
    found = Backbone.load(f"local-dir:{folder}")
    assert found.fingerprint() == Backbone.load(f"local-dir:{saved}").fingerprint()
    assert found.source.label == "weights.pt"


def test_a_saved_clip_loads_again_and_says_where_from(saved):
    import hashlib

    model = random_clip(CONFIG).eval()
    backbone = Backbone.load(f"local-dir:{saved}")
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(backbone.image.encode(image), model.encode_image(image))
    assert backbone.fingerprint() == Backbone(model, None).fingerprint()
    assert backbone.source.sha256 == hashlib.sha256((saved / FILE).read_bytes()).hexdigest()
    assert backbone.pretrained is None


def test_what_brings_its_own_weights_takes_no_file(saved):
    assert Backbone.load(f"local-dir:{saved}", "laion400m_e31").pretrained is None  # a tag of plain names
    with pytest.raises(BackboneError, match="brings its own weights"):
        Backbone.load(f"local-dir:{saved}", str(saved / FILE))


def test_vlad_tiny_is_whole():
    tiny = Backbone.load("vlad-tiny")
    assert (tiny.name, tiny.pretrained, str(tiny.source)) == ("vlad-tiny", None, "vlad-tiny")


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("ViT-B-16-plus-24", None, "did you mean ViT-B-16-plus-240"),
        (
            "ViT-B-16",
            "laion400m_e99",
            "has no weights 'laion400m_e99', and no file is there; did you mean laion400m_e3",
        ),
        ("ViT-B-16-plus-240", None, r"needs weights: give pretrained: laion400m_e31 \| .*or pretrained: random"),
        ("local-dir:/no/such/folder", None, "cannot load CLIP 'local-dir:/no/such/folder': Directory"),
        ("RN50", "random", "an image tower of type ModifiedResNet"),
    ],
)
def test_unusable_backbones(name, pretrained, message):
    with pytest.raises(BackboneError, match=message):
        Backbone.load(name, pretrained)


def test_a_file_for_a_plain_name(tmp_path, saved):
    with pytest.raises(BackboneError, match=r"does not fit 'ViT-S-32'.*other shapes"):
        Backbone.load("ViT-S-32", str(saved / FILE))


def test_quick_gelu_follows_the_weights_tag(monkeypatch):
    seen = {}

    def create_model(name, **options):
        seen.update(options)
        raise RuntimeError("no download in tests")

    monkeypatch.setattr(open_clip, "create_model", create_model)
    for numerics, expected in ((None, True), (Numerics(activation="gelu"), False)):
        with pytest.raises(BackboneError, match="'ViT-L-14-336' with weights 'openai': no download"):
            Backbone.load("ViT-L-14-336", "openai", numerics=numerics)
        assert seen["quick_gelu"] is expected


def test_backbone_is_frozen_and_stays_in_eval_mode(saved):
    backbone = Backbone.load(f"local-dir:{saved}")
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not backbone.train().training


def test_fingerprint_covers_every_weight_and_the_old_one_stays():
    model = random_clip(CONFIG)
    backbone = Backbone(model, None)
    assert backbone.fingerprint() == Backbone(random_clip(CONFIG), None).fingerprint()
    assert backbone.fingerprint() != Backbone(random_clip(CONFIG, seed=1), None).fingerprint()
    for name, weight in backbone.named_parameters():
        other = copy.deepcopy(backbone)
        other.get_parameter(name).view(-1)[-1] += 0.5
        assert other.fingerprint() != backbone.fingerprint(), (name, weight.shape)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = backbone.fingerprint()
    torch.set_num_threads(threads)
    assert alone == backbone.fingerprint()
    assert Backbone.load("vlad-tiny").legacy_fingerprint() == "0a90a84fe31f6d94"


@torch.no_grad()
def test_encode_reads_layers_in_one_pass(saved):
    backbone = Backbone.load(f"local-dir:{saved}")
    assert (backbone.depth, backbone.width, backbone.patch_size, backbone.native_size) == (3, 32, 16, 32)
    images = torch.randn(2, 3, 32, 64)
    states = backbone.image.run(backbone.image.embed(images), layers=[1, 2, 3]).hidden_states
    for layers in ([1, 3], [2], []):
        features = backbone.encode(images, layers)
        assert [level.shape for level in features.levels] == [(2, 2, 4, 32)] * len(layers)
        for layer, level, classes in zip(layers, features.levels, features.classes, strict=True):
            torch.testing.assert_close(level.flatten(1, 2), states[layer][:, 1:])
            torch.testing.assert_close(classes, states[layer][:, 0])
        torch.testing.assert_close(features.image, backbone.image.encode(images))
    with pytest.raises(BackboneError, match=r"has layers 1 to 3, not \[4\]"):
        backbone.encode(images, [1, 4])


def test_a_fingerprint_is_computed_once_until_a_weight_changes(tiny, monkeypatch):
    backbone = Backbone.load(tiny)
    first, summed = backbone.fingerprint(), []
    monkeypatch.setattr("vlad.encoders.weights._bit_sum", lambda tensor: summed.append(tensor) or 0)
    assert backbone.fingerprint() == first
    assert not summed
    with torch.no_grad():
        next(backbone.parameters()).add_(1)
    assert backbone.fingerprint() != first
