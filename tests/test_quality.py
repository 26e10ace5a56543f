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

pytestmark = pytest.mark.slow

SETTINGS = {
    "sdp": {"sigma": 3.0},
    "sdp_plus": {"sigma": 3.0, "lr": 1e-3},
    "adaclip": {"sigma": 3.0, "lr": 2e-3, "depth": 2},
    "aa_clip": {"layers": [3, 6, 9, 12], "text_epochs": 1},
    "patch_memory": {"sigma": 3.0, "layers": [3, 6]},
    "af_clip": {"sigma": 3.0, "layers": [3, 6, 9, 12], "lr": 1e-3},
    "anomalyclip": {"sigma": 3.0},
    "anomalydino": {"sigma": 3.0},
    "april_gan": {"sigma": 3.0, "layers": [3, 6, 9, 12]},
    "crane": {"sigma": 3.0},
    "crane_plus": {"sigma": 3.0, "dino": "vlad-tiny"},
    "faprompt": {"sigma": 3.0},
    "mrad": {"sigma": 3.0, "variant": "ft"},
    "musc": {"sigma": 3.0},
    "bayes_pfl": {"sigma": 3.0, "layers": [3, 6, 9, 12], "samples": 3, "prompt_epochs": 1, "lr": 2e-3},
    "clip_ada": {"sigma": 3.0, "full_size": 128, "synthesis": Synthesizer("mixed")},
}
EPOCHS = {"aa_clip": 2, "bayes_pfl": 2}  # one for each stage; others have one
FLOORS = {  # image AUROC, pixel AUROC
    "sdp": (0.870, 0.940),
    "sdp_plus": (0.877, 0.940),
    "aa_clip": (0.840, 0.904),
    "adaclip": (0.829, 0.861),
    "af_clip": (0.821, 0.857),
    "anomalyclip": (0.863, 0.885),
    "anomalydino": (0.853, 0.876),
    "april_gan": (0.882, 0.930),
    "bayes_pfl": (0.874, 0.917),
    "clip_ada": (0.894, 0.937),
    "faprompt": (0.878, 0.927),
    "crane": (0.855, 0.887),
    "crane_plus": (0.865, 0.926),
    "mrad": (0.885, 0.942),
    "musc": (0.848, 0.880),
    "patch_memory": (0.820, 0.880),
}
# Minutes each, for windows of every image and for gradients through the whole tower; their pages in docs/methods tell
# what is known of them.
SLOW = {"visualad", "winclip"}
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
        max_epochs=EPOCHS.get(name, 1),
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
