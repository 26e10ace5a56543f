"""Checkpoints: read safely, refused by name where they do not fit, restored whole."""

import json
import pickle
import sys
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests_support import SMALL, save_run
from torch import nn

import vlad
from vlad.cli import main
from vlad.decision import Decision, find_decision
from vlad.errors import WeightsError
from vlad.memory import nearest_distance
from vlad.methods.base import Method
from vlad.methods.sdp import SDP
from vlad.methods.sdp_plus import SDPPlus
from vlad.testing import random_batch, tiny_clip
from vlad.types import Scores, Tags


@pytest.fixture
def method(tiny):
    torch.manual_seed(3)
    method = SDPPlus(backbone=tiny, image_size=64, layers=[2, 4]).eval()
    method.origin = "fit"
    return method


def published(method, folder, *, beside=None, **changes):
    layers = {
        name.replace("heads.", "fc."): p.detach().clone() for name, p in method.named_parameters() if "heads" in name
    }
    layers.update(changes)
    file = folder / "official.pth"
    torch.save({"linear_layers": {k: v for k, v in layers.items() if v is not None}, **(beside or {})}, file)
    return file


def build(tiny, weights, **options):
    return SDPPlus(**{"backbone": tiny, "image_size": 64, "layers": [2, 4], **options}, weights=str(weights))


# -- published files -------------------------------------------------------------------------------------------


def test_published_file_loads(method, tiny, tmp_path):
    file = published(method, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = build(tiny, file)
    assert torch.equal(loaded.heads[1].weight, method.heads[1].weight)
    assert loaded.origin == f"weights {file}"


def test_keys_beside_the_published_ones_are_told_once(method, tiny, tmp_path):
    file = published(method, tmp_path, beside={"epoch": 3, "optimizer": {"lr": 0.1}})
    with pytest.warns(UserWarning, match="holds more than SDPPlus reads; passed over: epoch, optimizer") as told:
        build(tiny, file)
    assert len([one for one in told if "passed over" in str(one.message)]) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fc.1.bias": None}, "missing heads.1.bias"),
        ({"fc.2.bias": torch.zeros(32)}, "unexpected heads.2.bias"),
        ({"fc.0.bias": torch.zeros(5)}, r"heads.0.bias has shape \(5,\), expected \(32,\)"),
        ({"fc.0.bias": torch.full((32,), torch.nan)}, r"official\.pth holds NaN or infinity in heads\.0\.bias"),
    ],
)
def test_what_does_not_fit_is_listed(method, tiny, tmp_path, changes, message):
    with pytest.raises(WeightsError, match=message):
        build(tiny, published(method, tmp_path, **changes))


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_pickle_with_code_is_refused(tiny, tmp_path, capsys):
    torch.save({"linear_layers": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="evil.pth is refused: it holds Python objects"):
        build(tiny, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(WeightsError, match=r"plain.pth"):
        build(tiny, tmp_path / "plain.pth")
    assert "code ran" not in capsys.readouterr().out


def test_unreadable_and_foreign_files(tiny, tmp_path):
    with pytest.raises(WeightsError, match="does not exist"):
        build(tiny, tmp_path / "none.pth")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        build(tiny, tmp_path / "cut.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="holds a list"):
        build(tiny, tmp_path / "list.pth")
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"neither a vlad checkpoint nor in the published format .*other\)"):
        build(tiny, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"is no vlad checkpoint; .*vlad\.load\(METHOD, weights="):
        vlad.load(tmp_path / "other.safetensors")


def test_a_training_free_method_has_no_weights_to_load(tiny, tmp_path):
    with pytest.raises(WeightsError, match="SDP is training-free and has no weights to load"):
        SDP(backbone=tiny, image_size=64, layers=[4]).load_weights(str(tmp_path / "x.pth"))


# -- our own -------------------------------------------------------------------------------------------------


def test_own_checkpoint_by_file_and_run_folder(method, tiny, tmp_path):
    run = save_run(method, tmp_path / "run")
    for source in (run, run / "checkpoints" / "epoch=0.ckpt"):
        loaded = vlad.load(source).method
        assert torch.equal(loaded.heads[0].weight, method.heads[0].weight)
        assert loaded.origin == "fit"
        assert torch.equal(build(tiny, source).heads[0].weight, method.heads[0].weight)
    assert vlad.load(run, sigma=1.0).method.sigma == 1.0


def test_what_a_checkpoint_says_of_itself(method, tiny, tmp_path):
    run = save_run(method, tmp_path / "run")
    content = torch.load(run / "checkpoints" / "epoch=0.ckpt", weights_only=True)
    record = content["vlad"]
    assert (record["api"], record["class_path"]) == (2, "vlad.methods.sdp_plus.SDPPlus")
    assert (record["origin"], record["backbone"]) == ("fit", tiny)
    assert record["fingerprint"] == method.backbone.fingerprint()
    assert set(content["state_dict"]) == {f"heads.{i}.{part}" for i in (0, 1) for part in ("weight", "bias")}
    assert content["hyper_parameters"] == json.loads(json.dumps(content["hyper_parameters"]))


def test_another_encoder_is_refused(method, tmp_path):
    run, other = save_run(method, tmp_path / "run"), tiny_clip(tmp_path / "other", seed=9)
    with pytest.raises(WeightsError, match="trained on encoder .* this one is .*give the same backbone"):
        vlad.load(run, backbone=other)
    with pytest.raises(WeightsError, match="run was trained on encoder .* this one is"):
        build(other, run)


def test_another_method_is_refused(method, tiny, tmp_path):
    run = save_run(method, tmp_path / "run")
    checkpoint = torch.load(run / "checkpoints" / "epoch=0.ckpt", weights_only=True)
    with pytest.raises(
        WeightsError, match=r"is of vlad\.methods\.sdp_plus\.SDPPlus, this method is vlad\.methods\.sdp"
    ):
        SDP(backbone=tiny, image_size=64, layers=[2, 4]).on_load_checkpoint(checkpoint)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_checkpoint_that_diverged_is_refused_by_the_tensor(method, tiny, tmp_path, value):
    with torch.no_grad():
        method.heads[1].bias[3] = value
    run = save_run(method, tmp_path / "run")
    for load in (vlad.load, lambda run: build(tiny, run)):
        with pytest.raises(WeightsError, match=r"holds NaN or infinity in heads\.1\.bias; it is damaged or"):
            load(run)


def test_exported_weights_hold_everything(method, tmp_path, capsys):
    run = save_run(method, tmp_path / "run")
    target = tmp_path / "out" / "trained.safetensors"
    assert main(["export-weights", str(run), "-o", str(target)]) == 0
    assert [path.name for path in target.parent.iterdir()] == ["trained.safetensors"]
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = method.score(images, ["bottle"]).anomaly_map
        for loaded in (vlad.load(target).method, type(method)(**{**method.hparams, "weights": str(target)}).eval()):
            assert torch.equal(loaded.score(images, ["bottle"]).anomaly_map, expected)
    assert main(["export-weights", str(run), "-o", str(tmp_path / "x.pth")]) == 1
    assert "ending in .safetensors" in capsys.readouterr().err


def test_exported_weights_keep_a_decision(method, tmp_path, capsys):
    run = save_run(method, tmp_path / "run")
    plain, target = tmp_path / "plain.safetensors", tmp_path / "decided.safetensors"
    assert main(["export-weights", str(run), "-o", str(plain)]) == 0
    assert find_decision(plain) is None
    Decision.number(0.25).save(tmp_path / "d.json")
    assert main(["export-weights", str(run), "-o", str(target), "--decision", str(tmp_path / "d.json")]) == 0
    assert "with the decision of" in capsys.readouterr().out
    assert Decision.load(find_decision(target)).default.threshold == 0.25
    assert vlad.load(target).decision.default.threshold == 0.25
    Decision.number(0.5).save(run / "decision.json")  # the run's own
    assert main(["export-weights", str(run), "-o", str(target)]) == 0
    assert vlad.load(target).decision.default.threshold == 0.5
    assert main(["export-weights", str(run), "-o", str(target), "--decision", str(run / "fit.yaml")]) == 1
    assert vlad.load(target).decision.default.threshold == 0.5  # what was there stays


# -- what was fitted -----------------------------------------------------------------------------------------


def references(*categories, side=64, seed=1):
    """Batches of one normal image per category."""
    batch = random_batch(len(categories), side, seed)
    return [{**batch, "category": list(categories), "dataset": ["noise"] * len(categories)}]


@pytest.mark.parametrize("name", ["sdp", "sdp_plus", "adaclip", "clip_ada", "patch_memory"])
def test_a_filled_memory_comes_back(name, tiny, tmp_path):
    options = {"backbone": tiny, "image_size": 64, **SMALL[name]}
    method = vlad.get_method(name)(**options).eval()
    method.origin = "fit"
    side = method.requirements.preprocess.size
    method.fit_references(references("bottle", "nut", side=side))
    run = save_run(method, tmp_path / "run")
    target = tmp_path / "fitted.safetensors"
    assert main(["export-weights", str(run), "-o", str(target)]) == 0
    assert any(key.startswith("memory.") for key in load_file(target))
    batch = random_batch(2, side)
    categories = ["noise/nut", "noise/bottle"]
    with torch.no_grad():
        expected = method.score(batch["image"], batch["class_name"], categories)
        for source in (run, target):
            restored = vlad.load(source).method
            assert restored.memory.categories == ("noise/bottle", "noise/nut")
            found = restored.score(batch["image"], batch["class_name"], categories)
            assert torch.equal(found.anomaly_map, expected.anomaly_map)
            assert torch.equal(found.image_score, expected.image_score)


def test_a_checkpoint_without_references_leaves_a_memory_alone(method, tmp_path):
    """Fine-tuned weights loaded into a fitted method do not empty its memory, and hold none themselves."""
    run = save_run(method, tmp_path / "run")
    content = torch.load(run / "checkpoints" / "epoch=0.ckpt", weights_only=True)
    assert not any(key.startswith("memory.") for key in content["state_dict"])
    method.fit_references(references("bottle"))
    method.load_weights(str(run))
    assert method.memory.categories == ("noise/bottle",)


class Bank(Method):
    """A third party's: distance to prototypes in the subspace of normal patches, buffers whose lengths are found.

    Paper: none, a test.
    """

    def __init__(self, backbone: str = "vlad-tiny", image_size: int = 64) -> None:
        super().__init__(backbone=backbone, image_size=image_size, layers=[4], text=False)
        self.register_buffer("axes", torch.empty(0))
        self.register_buffer("prototypes", torch.empty(0))

    def fit_references(self, batches):
        """Fits a PCA and keeps every third patch."""
        with torch.no_grad():
            patches = torch.cat([self.encode(batch["image"]).levels[0].flatten(0, 2) for batch in batches])
            self.axes = torch.linalg.svd(patches - patches.mean(0), full_matrices=False)[2][:5]
            self.prototypes = (patches @ self.axes.T)[::3].contiguous()

    def compare(self, features, text, references=None):
        """Returns distances to prototypes."""
        return Scores(nearest_distance(features.levels[0] @ self.axes.T, self.prototypes, metric="l2")[:, None])

    @property
    def tags(self):
        """No text."""
        return Tags(class_names=False)


def test_buffers_of_unknown_length_come_back(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, Bank.__module__, sys.modules[__name__])
    method = Bank(tiny).eval()
    method.fit_references(references("bottle", "nut"))
    assert method.axes.shape == (5, 48)
    run, target = save_run(method, tmp_path / "run"), tmp_path / "bank.safetensors"
    assert main(["export-weights", str(run), "-o", str(target)]) == 0
    images = torch.randn(2, 3, 64, 64)
    expected = method.score(images, ["a", "b"]).anomaly_map
    assert expected.std() > 0
    for source in (run, target):
        restored = vlad.load(source).method
        assert torch.equal(restored.prototypes, method.prototypes)
        torch.testing.assert_close(restored.score(images, ["a", "b"]).anomaly_map, expected)
    other = Bank(tiny).eval()  # fitted otherwise, then loaded over
    other.fit_references(references("bottle", "nut", "cable", seed=8))
    content = torch.load(run / "checkpoints" / "epoch=0.ckpt", weights_only=True)
    other.on_load_checkpoint(content)
    other.load_state_dict(content["state_dict"])
    torch.testing.assert_close(other.score(images, ["a", "b"]).anomaly_map, expected)


def test_a_fitted_buffer_beside_trained_parameters_is_loaded_as_weights(tiny, tmp_path):
    class Both(Bank):
        def __init__(self, backbone: str = "vlad-tiny", image_size: int = 64) -> None:
            super().__init__(backbone, image_size)
            self.scale = nn.Parameter(torch.ones(1))

    method = Both(tiny)
    method.origin = "by hand"
    method.fit_references(references("bottle"))
    run = save_run(method, tmp_path / "run")
    other = Both(tiny)
    other.load_weights(str(run))
    assert torch.equal(other.prototypes, method.prototypes)
