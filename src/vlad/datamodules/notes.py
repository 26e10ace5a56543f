"""What was found on the way and is worth a line: said once, with a count and the first example."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vlad.datamodules.image_files import printable

__all__ = ["BYSTANDERS", "Note", "say", "say_ignored", "say_notes"]

BYSTANDERS = frozenset({"hidden", "not an image by the suffix"})
"""Reasons of :func:`vlad.datamodules.image_files.survey` for files that nobody takes for images."""

_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # as Lightning looks them up


@dataclass(frozen=True)
class Note:
    """Something that was guessed, left out or left open.

    Attributes:
        kind: What, in a few words that follow a count.
        paths: Where.
        serious: Whether results may be wrong.
        left_out: Whether something in the folder has no effect.
        named: Whether all are named, ten at most, instead of the first.
    """

    kind: str
    paths: Sequence[str]
    serious: bool = False
    left_out: bool = False
    named: bool = False

    def __str__(self) -> str:
        if self.named:
            return f"{self.kind}: {', '.join([*map(printable, self.paths[:10]), *['…'] * (len(self.paths) > 10)])}"
        return f"{len(self.paths)} {self.kind} (first: {printable(self.paths[0])})"


def say(text: str) -> None:
    """Warns with one line, in the first process only."""
    rank = next((os.environ[name] for name in _RANKS if name in os.environ), "0")
    if rank == "0":
        warnings.warn(text, stacklevel=3)


def say_notes(notes: Iterable[Note], place: str) -> None:
    """Says each note in a line."""
    for note in notes:
        if note.paths:
            say(f"{place}: {note}")


def say_ignored(ignored: Mapping[str, Sequence[str]], place: str) -> None:
    """Says in one line which files of a place were left out, and why; nothing where only bystanders were."""
    told = {reason: paths for reason, paths in ignored.items() if paths and reason not in BYSTANDERS}
    if told:
        parts = [f"{len(paths)} {reason} (first: {printable(paths[0])})" for reason, paths in told.items()]
        say(f"{place}: left out: {'; '.join(parts)}")
