"""References of a run: fitted on, recorded, saved, and never scored."""

import hashlib
from pathlib import Path

import pandas as pd
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from tests_support import write_mvtec, write_picture

import vlad
from vlad.callbacks.references import References
from vlad.datamodules import AnomalyDataModule
from vlad.errors import DataError, MethodError
from vlad.methods.patch_memory import NearestPatch
from vlad.methods.sdp import SDP
from vlad.methods.sdp_plus import SDPPlus

VALIDATED = {"name": "mvtec_ad", "split": "test"}
pytestmark = pytest.mark.filterwarnings("ignore")


def trainer(folder, *callbacks, **options):
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=list(callbacks), **options
    )  # fmt: skip


def data_of(method, root, **options):
    return AnomalyDataModule(root=str(root), num_workers=0, batch_size=3, **options).require(method.requirements)


@pytest.fixture
def sdp(tiny):
    return SDP(tiny, None, 64, [2, 4])


def test_a_test_run_fits_and_records_them(sdp, mvtec, tmp_path, capsys):
    data = data_of(sdp, mvtec, test="mvtec_ad", shots=2)
    trainer(tmp_path / "run").test(sdp, data, verbose=False)
    assert sdp.memory.categories == ("mvtec_ad/bottle", "mvtec_ad/metal_nut")
    assert [len(level) for level in sdp.memory.levels_of("mvtec_ad/bottle")] == [2 * 16, 2 * 16]
    records = pd.read_csv(tmp_path / "run/references.csv")
    assert list(records) == ["dataset", "category", "image_id", "path", "sha256"]
    assert records["category"].tolist() == ["bottle"] * 2 + ["metal_nut"] * 2
    for path, digest in zip(records["path"], records["sha256"], strict=True):
        assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == digest
    assert "references: 4 normal images of 2 categories" in capsys.readouterr().out
    assert not (tmp_path / "run/checkpoints").exists()


def test_scores_are_those_of_references_fitted_by_hand(sdp, mvtec, tmp_path, tiny):
    data = data_of(sdp, mvtec, test="mvtec_ad", shots=1)
    trainer(tmp_path / "run").test(sdp, data, verbose=False)
    other = SDP(tiny, None, 64, [2, 4]).eval()
    other.fit_references(data.reference_dataloader())
    batch = next(iter(data.test_dataloader()))
    with torch.no_grad():
        a, b = (m.test_step(batch, 0) for m in (sdp.eval(), other))
    assert torch.equal(a.anomaly_map, b.anomaly_map)


def test_without_references_nothing_is_fitted_or_written(sdp, mvtec, tmp_path):
    trainer(tmp_path / "run").test(sdp, data_of(sdp, mvtec, test="mvtec_ad"), verbose=False)
    assert sdp.memory.categories == ()
    assert not (tmp_path / "run/references.csv").exists()


def test_validation_fits_them_and_training_does_not(tiny, mvtec, tmp_path):
    method = SDPPlus(backbone=tiny, pretrained=None, image_size=64, layers=[2, 4])
    data = data_of(method, mvtec, train="mvtec_ad", val=VALIDATED, shots=1, allow_overlap=True)
    trainer(tmp_path / "fit", max_steps=1).fit(method, data)
    assert method.memory.categories == ()
    trainer(tmp_path / "val").validate(method, data, verbose=False)
    assert method.memory.categories == ("mvtec_ad/bottle", "mvtec_ad/metal_nut")


def test_prediction_of_ones_own_images(tiny, tmp_path):
    for name, count in (("normal", 2), ("new", 3)):
        for i in range(count):
            write_picture(tmp_path / name / f"{i}.png", seed=10 * count + i)
    method = NearestPatch(tiny, None, 64, [2])
    data = data_of(method, tmp_path, predict=str(tmp_path / "new"), references=str(tmp_path / "normal"))
    found = trainer(tmp_path / "run").predict(method, data)
    assert sum(len(prediction.image_score) for prediction in found) == 3
    assert len(method.memory.categories) == 1
    assert len(pd.read_csv(tmp_path / "run/references.csv")) == 2


@pytest.fixture
def copied(tmp_path):
    """A data root whose first normal test image has the pixels of a training image, in another file format."""
    root = tmp_path / "data"
    write_mvtec(root / "mvtec_ad", ("bottle",), count=1)
    copy = root / "mvtec_ad/bottle/test/good/000.bmp"
    Image.open(root / "mvtec_ad/bottle/train/good/000.png").save(copy)
    return root, copy


@pytest.mark.parametrize("verb", ["test", "validate", "predict"])
def test_a_reference_that_is_scored_is_refused_by_its_pixels(sdp, copied, tmp_path, verb):
    root, copy = copied
    options = {"test": {"test": "mvtec_ad"}, "validate": {"val": VALIDATED}, "predict": {"predict": str(copy.parent)}}
    normal = root / "mvtec_ad/bottle/train/good"
    data = data_of(sdp, root, **options[verb], references=str(normal))
    message = rf"{copy} is scored and is the same image as the reference {normal}/000\.png: .* or give --allow-overlap"
    with pytest.raises(DataError, match=message):
        getattr(trainer(tmp_path / "run"), verb)(sdp, data)
    allowed = data_of(sdp, root, **options[verb], references=str(normal), allow_overlap=True)
    getattr(trainer(tmp_path / "run"), verb)(sdp, allowed)


@pytest.mark.parametrize("learned", [False, True])
def test_what_was_fitted_is_saved_and_restored_without_the_images(tiny, mvtec, tmp_path, learned):
    torch.manual_seed(1)
    cls = SDPPlus if learned else SDP
    method = cls(backbone=tiny, pretrained=None, image_size=64, layers=[2, 4])
    method.origin = "fit" if learned else ""
    data = data_of(method, mvtec, test="mvtec_ad", shots=2)
    trainer(tmp_path / "run", References(save=True)).test(method, data, verbose=False)
    batch = next(iter(data.test_dataloader()))
    restored = vlad.load(str(tmp_path / "run")).method
    assert type(restored) is cls
    assert restored.memory.categories == ("mvtec_ad/bottle", "mvtec_ad/metal_nut")
    with torch.no_grad():
        a, b = (m.test_step(batch, 0) for m in (method.eval(), restored))
    assert torch.equal(a.anomaly_map, b.anomaly_map)
    assert torch.equal(a.image_score, b.image_score)
    again = cls(backbone=tiny, pretrained=None, image_size=64, layers=[2, 4])  # and by Lightning, in a run of its own
    checkpoint = tmp_path / "run/checkpoints/references.ckpt"
    plain = data_of(again, mvtec, test="mvtec_ad")
    trainer(tmp_path / "later").test(again, plain, ckpt_path=str(checkpoint), verbose=False)
    assert again.memory.categories == restored.memory.categories
    with torch.no_grad():
        assert torch.equal(again.eval().test_step(batch, 0).anomaly_map, a.anomaly_map)


def test_a_method_that_takes_none_says_so(tiny, mvtec, tmp_path):
    class Without(SDP):
        @property
        def tags(self):
            return vlad.types.Tags(takes_references=False)

    method = Without(tiny, None, 64, [2, 4])
    with pytest.raises(MethodError, match="Without takes no reference images; leave out shots and references"):
        trainer(tmp_path).test(method, data_of(method, mvtec, test="mvtec_ad", shots=1))


def test_a_method_that_needs_them_says_so(tiny, mvtec, tmp_path):
    method = NearestPatch(tiny, None, 64, [2])
    with pytest.raises(MethodError, match="NearestPatch compares with reference images and has none"):
        trainer(tmp_path).test(method, data_of(method, mvtec, test="mvtec_ad"))


def test_a_trainer_without_a_place_leaves_nothing_in_the_working_folder(sdp, mvtec, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False).test(
        sdp, data_of(sdp, mvtec, test="mvtec_ad", shots=1), verbose=False
    )
    assert sdp.fitted
    assert list((tmp_path / "here").iterdir()) == []
