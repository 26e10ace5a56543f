import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from tests_support import SMALL
from trees import small_data

from vlad.callbacks import CachedFeatures
from vlad.errors import OptionError
from vlad.registry import get_method


def fit(name, tiny, data, tmp_path, callback, epochs=3):
    seed_everything(0)
    method = get_method(name)(backbone=tiny, pretrained=None, image_size=64, **SMALL[name])
    data.require(method.requirements)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
    )
    trainer.fit(method, data)
    return {key: p.detach().clone() for key, p in method.named_parameters() if p.requires_grad}


@pytest.fixture
def data(mvtec):
    return lambda **options: small_data(mvtec, train="mvtec_ad", batch_size=3, **options)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLAD_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ["sdp_plus", "april_gan", "anomalyclip", "adaclip", "clip_ada"])
def test_training_is_the_same_with_and_without(name, tiny, data, tmp_path, capsys):
    live = fit(name, tiny, data(), tmp_path, CachedFeatures())
    assert "features" not in capsys.readouterr().out
    assert not (tmp_path / "cache/features").exists()
    for _ in range(2):  # the second run reads what the first one wrote
        cached = fit(name, tiny, data(), tmp_path, CachedFeatures(cache=True))
        for key, value in live.items():
            assert torch.allclose(cached[key], value, rtol=1e-5, atol=1e-6), key
    said = capsys.readouterr().out.splitlines()
    images = 12  # of two categories
    if name == "clip_ada":  # its pseudo-anomalies are painted anew in every step
        assert all(line.startswith("features: those of 0 images read") for line in said)
    else:
        assert said[-1] == f"features: those of {3 * images} images read, of 0 computed"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"augment": [{"name": "HorizontalFlip", "p": 0.5}]}, "data.augment"),
        ({"train": {"name": "mvtec_ad", "mosaic": 0.5}}, "mosaic"),
    ],
)
def test_random_images_and_a_cache_exclude_each_other(options, named, tiny, mvtec, tmp_path):
    data = small_data(mvtec, **{"train": "mvtec_ad", **options})
    with pytest.raises(OptionError, match=rf"features\.cache and {named}"):
        fit("april_gan", tiny, data, tmp_path, CachedFeatures(cache=True))


def evaluate(name, tiny, mvtec, tmp_path, **options):
    method = get_method(name)(backbone=tiny, pretrained=None, image_size=64, **SMALL[name])
    method.allow_untrained = True
    data = small_data(mvtec, test="mvtec_ad", batch_size=3, **options).require(method.requirements)
    callback = CachedFeatures(cache=True)
    trainer = Trainer(
        accelerator="cpu", default_root_dir=tmp_path, logger=False, callbacks=[callback], enable_progress_bar=False
    )
    return trainer.test(method, data, verbose=False)[0]


def test_methods_that_read_the_same_are_evaluated_with_one_pass(tiny, mvtec, tmp_path, capsys):
    evaluate("april_gan", tiny, mvtec, tmp_path)
    first = evaluate("patch_memory", tiny, mvtec, tmp_path, shots=1)
    again = evaluate("patch_memory", tiny, mvtec, tmp_path, shots=1)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("features: those")]
    assert said == [
        "features: those of 0 images read, of 12 computed",
        "features: those of 12 images read, of 2 computed",  # the references
        "features: those of 14 images read, of 0 computed",
    ]
    assert first == again


def test_a_method_that_does_not_ask_is_told_of(tiny, mvtec, tmp_path):
    with pytest.warns(UserWarning, match="had no effect"):
        evaluate_uncached(tiny, mvtec, tmp_path)


def evaluate_uncached(tiny, mvtec, tmp_path):
    from vlad.methods.patch_memory import NearestPatch

    class Own(NearestPatch):
        def encode(self, images):
            return self.backbone.encode(images, self.layers)

    method = Own(backbone=tiny, pretrained=None, image_size=64)
    data = small_data(mvtec, test="mvtec_ad", shots=1).require(method.requirements)
    callbacks = [CachedFeatures(cache=True)]
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, logger=False, callbacks=callbacks)
    trainer.test(method, data, verbose=False)
