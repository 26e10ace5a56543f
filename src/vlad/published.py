"""Weights that methods' authors have published: by name, fetched from the Hugging Face hub or a repository, checked."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vlad.errors import WeightsError, nearest
from vlad.files import cache_folder, write_atomic
from vlad.offline import fetched
from vlad.runs.pointers import LATEST, checkpoint_of, newest_first, resolve_run

__all__ = ["InRepository", "Published", "find_checkpoint", "locate"]


@dataclass(frozen=True)
class Published:
    """A weights file that a method's authors have put on the Hugging Face hub.

    Attributes:
        repo: Owner and name.
        file: Path in it.
        sha256: The file's checksum.
        kind: What the repository is: ``model``, ``space`` or ``dataset``.
    """

    repo: str
    file: str
    sha256: str
    kind: str = "model"

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        folder = "" if self.kind == "model" else f"{self.kind}s/"
        return f"https://huggingface.co/{folder}{self.repo}/resolve/main/{self.file}"

    @property
    def key(self) -> str:
        """What the file is called in a folder of weights (:mod:`vlad.offline`)."""
        return f"{self.kind}:{self.repo}/{self.file}"

    def fetch(self) -> Path:
        """Returns the file, from the hub's own cache where it is, else downloaded; its checksum is right.

        Raises:
            WeightsError: It cannot be had, or is another file than published.
        """
        return fetched(self.key, self._download)

    def _download(self) -> Path:
        from huggingface_hub import hf_hub_download

        try:
            found = hf_hub_download(
                self.repo, self.file, repo_type=self.kind, endpoint=os.environ.get("HF_ENDPOINT") or None
            )
        except Exception as error:  # the hub's client raises dozens of kinds, and its network library more
            cause = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise WeightsError(
                f"cannot download {self.url}: {cause}. Download it by hand and give the file: weights: "
                f"{Path(self.file).name}"
            ) from error
        digest = hashlib.sha256(Path(found).read_bytes()).hexdigest()
        if digest != self.sha256:
            raise WeightsError(
                f"{found} (from {self.url}) has the checksum {digest}, not the published {self.sha256}: it was damaged "
                "on the way or has been replaced; remove it and try again"
            )
        return Path(found)


@dataclass(frozen=True)
class InRepository(Published):
    """A weights file that a method's authors have committed to a public GitHub repository.

    Attributes:
        sha256: Not known of such a file, "": ``blob`` takes its place.
        commit: The commit that is read, in full.
        blob: Git's own name of the file's content at that commit: the SHA-1 of its size and content.
    """

    kind: str = "github"
    commit: str = ""
    blob: str = ""

    @property
    def url(self) -> str:
        """Where the file itself is."""
        host = os.environ.get("VLAD_GITHUB_RAW") or "https://raw.githubusercontent.com"
        return f"{host}/{self.repo}/{self.commit}/{self.file}"

    def _download(self) -> Path:
        """Returns the file, from vlad's cache where it is, else downloaded; its content is the one committed."""
        target = cache_folder() / "weights" / self.repo / self.commit[:12] / self.file
        if target.is_file() and self._is_committed(target.read_bytes()):
            return target
        try:
            with urllib.request.urlopen(self.url, timeout=60) as response:
                content = response.read()
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise WeightsError(
                f"cannot download {self.url}: {getattr(error, 'reason', None) or error}. Download it by hand and give "
                f"the file: weights: {Path(self.file).name}"
            ) from error
        if not self._is_committed(content):
            raise WeightsError(
                f"what {self.url} sends is not the file that was committed there (git blob {self.blob}): it was "
                "damaged on the way; try again, or download it by hand"
            )

        def write(partial: Path) -> None:
            partial.write_bytes(content)

        return write_atomic(target, write)

    def _is_committed(self, content: bytes) -> bool:
        named = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
        return named.hexdigest() == self.blob


def locate(name: str | Path, published: Mapping[str, Published]) -> Path:
    """Returns the file of some weights: a path, or the name of published ones, which are then fetched.

    Args:
        name: File, run folder, or name.
        published: A method's published weights by name.

    Raises:
        WeightsError: Neither a file nor a known name; or it cannot be fetched.
    """
    if not Path(name).exists():
        if str(name) in published:
            return published[str(name)].fetch()
        if published and Path(name).name == str(name) and not Path(name).suffix:
            raise WeightsError(f"weights '{name}' are neither a file nor published; {nearest(str(name), published)}")
    return find_checkpoint(name)


def find_checkpoint(path: str | Path) -> Path:
    """Returns the checkpoint file that a path names: itself, a run folder's newest, or the one that run was given.

    Args:
        path: A file, a run folder, or a ``latest`` file that names one.

    Raises:
        WeightsError: Nothing is there, or the run neither has made a checkpoint nor was given one.
    """
    path = resolve_run(path)
    if path.is_dir():
        given = next(iter(newest_first(path)), None) or checkpoint_of(path)
        if given is None:
            raise WeightsError(f"run folder {path} holds no checkpoints/*.ckpt; run vlad fit first")
        return given
    if not path.is_file():
        hint = ": no run has been made there yet" if path.name == LATEST else ""
        raise WeightsError(f"weights file {path} does not exist{hint}")
    return path
