"""Every method of vlad's must find defects on categories it has never seen: rendered images, vlad-tiny.

Methods that learn from normal images see those of the tested categories, and no defect; a memory has four of each.

The floors are the lowest of three seeds less three points (docs/rendered.md has the measured values). Random
weights, a flipped sign or a wrong layer fall through them.
"""

import warnings

import pytest
from lightning.pytorch import Trainer, seed_everything

from vlad.datamodules import AnomalyDataModule
from vlad.pseudo_anomalies import Synthesizer
from vlad.registry import discover, get_method

SETTINGS = {
    "sdp": {"sigma": 3.0},
    "sdp_plus": {"sigma": 3.0, "lr": 1e-3},
    "adaclip": {"sigma": 3.0, "lr": 2e-3, "depth": 2},
    "patch_memory": {"sigma": 3.0, "layers": [3, 6]},
    "anomalyclip": {"sigma": 3.0},
    "april_gan": {"sigma": 3.0, "layers": [3, 6, 9, 12]},
    "clip_ada": {"sigma": 3.0, "full_size": 128, "synthesis": Synthesizer("mixed")},
}
FLOORS = {  # image AUROC, pixel AUROC
    "sdp": (0.870, 0.940),
    "sdp_plus": (0.877, 0.940),
    "adaclip": (0.829, 0.861),
    "anomalyclip": (0.863, 0.885),
    "april_gan": (0.882, 0.930),
    "clip_ada": (0.894, 0.937),
    "patch_memory": (0.820, 0.880),
}
SLOW = {"winclip"}  # windows of every image: minutes; docs/methods/winclip.md has what it reaches
OURS = sorted(name for name, plugin in discover().items() if plugin.distribution == "vlad" and name not in SLOW)


def measure(name, tmp_path, seed=0):
    """Trains where there is something to train, tests on the test categories; image and pixel AUROC."""
    seed_everything(seed)
    method = get_method(name)(backbone="vlad-tiny", pretrained=None, image_size=96, **SETTINGS[name])
    train = "synthetic" if method.supervision == "one-class" else "synthetic_aux"
    data = AnomalyDataModule(train=train, test="synthetic", batch_size=16, num_workers=0, seed=seed)
    data.shots = 4 if method.tags.needs_references else None
    data.require(method.requirements)
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    if method.trains:
        trainer.fit(method, data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = trainer.test(method, data, verbose=False)[0]
    return result["test/image_auroc"], result["test/pixel_auroc"]


def test_every_method_has_a_floor():
    assert sorted(FLOORS) == sorted(SETTINGS) == OURS


@pytest.mark.parametrize("name", OURS)
def test_method_finds_defects(name, tmp_path):
    image, pixel = measure(name, tmp_path)
    print(f"{name}: image AUROC {image:.3f}, pixel AUROC {pixel:.3f}")
    assert image > FLOORS[name][0]
    assert pixel > FLOORS[name][1]
