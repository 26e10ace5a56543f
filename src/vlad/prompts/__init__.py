"""Sentences as data: the states and templates of each published method, one TOML file each."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from vlad.errors import VladError, nearest

__all__ = ["PromptSet", "load_prompts"]


@dataclass(frozen=True)
class PromptSet:
    """The sentences a method compares images with; ``{}`` stands for the class, then for the state.

    Attributes:
        normal: Phrases for normal objects.
        abnormal: Phrases for anomalous objects.
        templates: Sentences around a phrase.
    """

    normal: tuple[str, ...]
    abnormal: tuple[str, ...]
    templates: tuple[str, ...]

    def sentences(self, class_name: str) -> tuple[list[str], list[str]]:
        """Returns the normal and the abnormal sentences of a class, states outermost.

        Args:
            class_name: What is in the image. Published checkpoints saw the data sets' folder names,
                underscores included.
        """
        normal, abnormal = (
            [template.format(state.format(class_name)) for state in states for template in self.templates]
            for states in (self.normal, self.abnormal)
        )
        return normal, abnormal


@cache
def load_prompts(name: str) -> PromptSet:
    """Returns a method's published prompt set.

    Examples:
        >>> normal, abnormal = load_prompts("clip_ad").sentences("bottle")
        >>> len(normal), len(abnormal), normal[0]
        (198, 220, 'a cropped photo of the flawless bottle.')
    """
    folder = resources.files(__package__)
    known = sorted(file.name[:-5] for file in folder.iterdir() if file.name.endswith(".toml"))
    if name not in known:
        raise VladError(f"no prompt set is named '{name}'; {nearest(name, known)}")
    data = tomllib.loads((folder / f"{name}.toml").read_text())
    return PromptSet(*(tuple(data[key]) for key in ("normal", "abnormal", "templates")))
