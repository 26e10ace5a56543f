"""Every registered method passes the checks that plug-in authors run, and every check can fail."""

from pathlib import Path

import pytest
import torch
from tests_support import SMALL
from torch import nn

import vlad
from vlad.clip.similarity import normalize
from vlad.encoders import load_encoder
from vlad.methods.base import Method
from vlad.methods.losses import focal_loss, two_classes
from vlad.testing import CHECKS, check_method, iter_checks
from vlad.types import Scores, Tags

NAMES = [name for name in vlad.list_methods() if vlad.registry.resolve(name).distribution == "vlad"]


@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
@pytest.mark.parametrize("name", NAMES)
def test_method(name, check, tiny):
    cls = vlad.get_method(name)
    dict(iter_checks(cls, backbone=tiny, image_size=64, **SMALL[name]))[check]()


def test_what_cannot_be_exported_says_why(tiny):
    reasons = {}
    for name in NAMES:
        method = vlad.get_method(name)(backbone=tiny, image_size=64, **SMALL[name])
        reasons |= {name: method.tags.no_export} if method.tags.no_export else {}
    assert list(reasons) == ["clip_ada", "musc"]
    assert "a set is scored" in reasons["musc"]
    assert "connected components" in reasons["clip_ada"]


def test_a_ready_encoder_will_do(tiny):
    check_method(Sound, backbone=load_encoder(tiny))


class Sound(Method):
    """A learned method without a fault; those below have one each.

    Paper: none, a test.
    """

    def __init__(self, backbone: str = "vlad-tiny", image_size: int = 64, extra: object = 1) -> None:
        super().__init__(backbone=backbone, image_size=image_size, layers=[2, 4], sigma=2.0)
        self.head = nn.Linear(self.backbone.width, 32)

    def class_text(self, class_name):
        return normalize(self.text_tower.encode([f"a flawless {class_name}", f"a damaged {class_name}"]))

    def compare(self, features, text, references=None):
        patches = normalize(self.head(torch.stack(features.levels, 1)))
        margin = 10 * (patches @ (text[:, 1] - text[:, 0])[:, None, None, :, None])[..., 0]
        return Scores(margin, memory=self.nearest(features, references))

    def loss(self, features, batch):
        scores = self.compare(features, self.texts(batch["class_name"]))
        return {"focal": focal_loss(two_classes(self.map_of(scores, batch["mask"].shape[1:])), batch["mask"])}


def test_the_sound_method_passes(tiny):
    check_method(Sound, backbone=tiny)


class HalfMaps(Sound):
    def map_of(self, scores, size):
        return super().map_of(scores, size).double()

    def smooth(self, maps):
        return maps


class NotFinite(Sound):
    def components_of(self, scores, anomaly_map):
        return super().components_of(scores, anomaly_map) / 0


class BatchLast(Sound):
    def encode(self, images):
        features = super().encode(images)
        return features._replace(images=features.image.T)

    def compare(self, features, text, references=None):
        return super().compare(features._replace(images=None), text, references)


class WhitensFeatures(Sound):
    def encode(self, images):
        features = super().encode(images)
        return features._replace(levels=tuple(level - level.mean(0) for level in features.levels))


class MixesTheBatch(Sound):
    def smooth(self, maps):
        return super().smooth(maps) - maps.mean()


class Draws(Sound):
    def smooth(self, maps):
        torch.rand(1)
        return super().smooth(maps)


class Differs(Sound):
    count = 0

    def smooth(self, maps):
        self.count += 1
        return super().smooth(maps) + self.count


class TakesAPath(Sound):
    def __init__(self, backbone: str = "vlad-tiny", image_size: int = 64, extra: object = Path("a")) -> None:
        super().__init__(backbone, image_size)


class ForgetsArguments(Sound):
    def __init__(self, backbone: str = "vlad-tiny", image_size: int = 64, extra: object = 1) -> None:
        super().__init__(backbone, image_size)
        self.hparams["extra"] = self.hparams["extra"] + 1


class ThawsTheEncoder(Sound):
    def __init__(self, backbone: str = "vlad-tiny") -> None:
        super().__init__(backbone)
        self.backbone.requires_grad_(True)


class NeverTrained(Sound):
    def __init__(self, backbone: str = "vlad-tiny") -> None:
        super().__init__(backbone)
        self.idle = nn.Parameter(torch.zeros(1))


class ChangesTheEncoder(Sound):
    def loss(self, features, batch):
        self.backbone.image.visual.conv1.weight.data.add_(1)
        return super().loss(features, batch)


class ReadsLabels(Sound):
    def predict_step(self, batch, batch_idx):
        return super().predict_step(batch, batch_idx)._replace(image_score=batch["label"].float())


class ScoresByLabels(Sound):
    def test_step(self, batch, batch_idx):
        prediction = super().test_step(batch, batch_idx)
        return prediction._replace(image_score=prediction.image_score + batch["label"])


class SavesTheEncoder(Sound):
    def on_save_checkpoint(self, checkpoint):
        pass


class HidesItsState(Sound):
    def __init__(self, backbone: str = "vlad-tiny") -> None:
        super().__init__(backbone)
        self.secret = torch.rand(())

    def map_of(self, scores, size):
        return super().map_of(scores, size) * self.secret


class IgnoresReferences(Sound):
    def nearest(self, features, references):
        return None


class ForgetsReferences(Sound):
    def on_save_checkpoint(self, checkpoint):
        super().on_save_checkpoint(checkpoint)
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {key: value for key, value in state.items() if not key.startswith("memory.")}


class ScoresUntrained(Sound):
    def refuse_unfit(self):
        pass


class AsksTheData(Sound):
    def map_of(self, scores, size):
        found = super().map_of(scores, size)
        return found if found.max().item() > 0 else -found


@pytest.mark.parametrize(
    ("cls", "check", "message"),
    [
        (HalfMaps, "check_contract", r"unsmoothed_map is torch\.float64, expected float32"),
        (NotFinite, "check_contract", "image_score is not finite"),
        (BatchLast, "check_features", r"a feature has shape \(32, 3\), expected the batch first"),
        (WhitensFeatures, "check_features", "features alone and in a batch: relative deviation"),
        (MixesTheBatch, "check_batch_independence", "anomaly_map alone and in a batch"),
        (Draws, "check_deterministic", "scoring draws random numbers"),
        (Differs, "check_deterministic", "two runs differ"),
        (TakesAPath, "check_plain_hyperparameters", "extra is no plain JSON value"),
        (ForgetsArguments, "check_plain_hyperparameters", "hyper-parameters change"),
        (ThawsTheEncoder, "check_frozen_backbone", "the backbone is not frozen"),
        (NeverTrained, "check_frozen_backbone", r"no gradient reaches \['idle'\]"),
        (ChangesTheEncoder, "check_frozen_backbone", "a step changed the backbone"),
        (ReadsLabels, "check_no_label_leak", "prediction reads 'label' of the batch"),
        (ScoresByLabels, "check_no_label_leak", "image_score of predict and test"),
        (SavesTheEncoder, "check_small_checkpoint", "the checkpoint holds the backbone"),
        (HidesItsState, "check_small_checkpoint", "after a round trip"),
        (IgnoresReferences, "check_references", "references change nothing"),
        (ForgetsReferences, "check_references", "the checkpoint lost the references"),
        (ScoresUntrained, "check_refuses_untrained", "neither trained nor fitted"),
        (AsksTheData, "check_export", r"torch\.export fails \(.*say why in the tag no_export"),
    ],
)
def test_every_check_can_fail(cls, check, message, tiny):
    with pytest.raises(AssertionError, match=message):
        dict(iter_checks(cls, backbone=tiny))[check]()


def test_every_check_is_shown_to_fail():
    (parameters,) = [mark for mark in test_every_check_can_fail.pytestmark if mark.name == "parametrize"]
    assert {check for _, check, _ in parameters.args[1]} == {check.__name__ for check in CHECKS}


def test_the_suite_names_method_and_check(tiny):
    with pytest.raises(AssertionError, match="MixesTheBatch: check_batch_independence: anomaly_map alone"):
        check_method(MixesTheBatch, backbone=tiny)


def test_what_does_not_apply_is_passed_over(tiny):
    class Alone(AsksTheData):
        """Takes no references and does not export, and says so."""

        @property
        def tags(self):
            return Tags(takes_references=False, no_export="the sign depends on the map's maximum")

    check_method(Alone, backbone=tiny)
