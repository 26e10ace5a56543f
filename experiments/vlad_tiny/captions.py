"""Captions of the pre-training images, and which images a caption is true of."""

import random
from typing import NamedTuple

from vlad.prompts import load_prompts
from vlad.rendered import Look

NORMAL = ["flawless {}", "perfect {}", "unblemished {}", "normal {}", "intact {}", "clean {}", "good {}", "healthy {}",
          "{}", "{} without flaw", "{} without defect", "{} without damage", "{} without scratch", "{} without crack",
          "{} without contamination", "{} without anomaly"]  # fmt: skip
ABNORMAL = ["damaged {}", "imperfect {}", "blemished {}", "broken {}", "abnormal {}", "defective {}", "anomalous {}",
            "{} with flaw", "{} with defect", "{} with damage", "{} with anomaly", "{} with a defect",
            "{} with scratch", "{} with crack", "{} with contamination"]  # fmt: skip
UNNAMED = ["object", "part", "thing", "item"]
TEMPLATES = [*load_prompts("clip_ad").templates, "{}", "a {}", "the {}", "a photo of my {}.", "there is a {}.",
             "a cropped photo of {}.", "a photo of one {}.", "a {} in the scene."]  # fmt: skip


class Sample(NamedTuple):
    """What an image shows; ``defect`` is "" for none."""

    look: Look
    defect: str


class Caption(NamedTuple):
    """A sentence, and what it says; "" or None where it says nothing of it."""

    text: str
    shape: str
    texture: str
    color: str
    abnormal: bool | None
    defect: str

    def true_of(self, sample: Sample) -> bool:
        look = sample.look
        said = ((self.shape, look.shape), (self.texture, look.texture), (self.color, look.color))
        return (
            all(word in ("", fact) for word, fact in said)
            and self.abnormal in (None, bool(sample.defect))
            and self.defect in ("", sample.defect)
        )


def name(sample: Sample, draw: random.Random) -> tuple[str, str, str, str]:
    """Returns words for the thing, and the shape, texture and colour they give away."""
    look = sample.look
    if draw.random() < 0.12:
        return draw.choice(UNNAMED), "", "", ""
    texture = look.texture if draw.random() < 0.75 else ""
    color = look.color if draw.random() < 0.4 else ""
    words = " ".join(word for word in (color, texture, look.shape) if word)
    if draw.random() < 0.5:  # as published code names classes
        words = words.replace(" ", "_")
    else:
        words = words.replace("_", " ")
    return words, look.shape, texture, color


def caption(sample: Sample, draw: random.Random) -> Caption:
    """Returns a true caption: of the thing alone, of its state, or of its very defect."""
    words, *facts = name(sample, draw)
    kind = draw.random()
    if kind < 0.25:
        return Caption(draw.choice(TEMPLATES).format(words), *facts, None, "")
    if sample.defect and kind < 0.6:
        defect = sample.defect.replace("_", " ")
        phrase = draw.choice(["{} with {}", "{} with a {}", "{} showing a {}"]).format(words, defect)
        return Caption(draw.choice(TEMPLATES).format(phrase), *facts, True, sample.defect)
    states = ABNORMAL if sample.defect else NORMAL
    return Caption(draw.choice(TEMPLATES).format(draw.choice(states).format(words)), *facts, bool(sample.defect), "")


def states(sample: Sample, draw: random.Random) -> tuple[str, str]:
    """Returns a normal and an abnormal sentence of the thing, true or not."""
    words, *_ = name(sample, draw)
    template = draw.choice(TEMPLATES)
    return tuple(template.format(draw.choice(states).format(words)) for states in (NORMAL, ABNORMAL))
