"""Fixtures shared by the suite: goldens on disk as CLIP folders, a tiny random CLIP, little data sets."""

import os
import signal
from pathlib import Path

import pytest
import torch
from tests_support import DATA, GOLDENS, Golden, golden, write_mvtec

from vlad.clip.backbone import random_clip
from vlad.testing import TINY_CLIP, tiny_clip

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background jobs: tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """What vlad caches goes to a folder of this run, for the commands it starts too."""
    os.environ["VLAD_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def no_seed(monkeypatch):
    """No seed of an earlier test: ``seed_everything`` leaves it in the environment."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)


def pytest_terminal_summary(terminalreporter):
    """Prints how far each published run was from ours, at most."""
    for one in GOLDENS:
        if one.deviations:
            name, worst = max(one.deviations.items(), key=lambda item: item[1])
            count = len(one.deviations)
            terminalreporter.write_line(
                f"golden {one.name}: {count} tensors, largest relative deviation {worst:.1e} ({name})"
            )


@pytest.fixture(scope="session", params=["v1", "v2"])
def clip_ad(request, tmp_path_factory) -> Golden:
    """CLIP-AD's published runs: v1 with mean vectors, v2 with resized positions and DBSCAN vectors."""
    return golden(DATA / "clip_ad" / request.param, tmp_path_factory.mktemp(f"clip_ad_{request.param}"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> str:
    """A tiny CLIP with random weights, as a backbone name."""
    return tiny_clip(tmp_path_factory.mktemp("tiny_clip"))


@pytest.fixture(scope="session")
def tiny_model() -> torch.nn.Module:
    """The same CLIP as an open_clip model."""
    return random_clip(TINY_CLIP).eval()


@pytest.fixture
def mvtec(tmp_path) -> Path:
    """A small data root with a tree in MVTec AD's layout."""
    write_mvtec(tmp_path / "mvtec_ad")
    return tmp_path
