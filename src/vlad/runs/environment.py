"""What a run was made with: packages, threads, device, and the state of the source it ran from."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

__all__ = ["count_data", "device_name", "git_state", "versions"]

_PACKAGES = (
    *("torch", "torchvision", "lightning", "open_clip_torch", "timm", "torchmetrics", "numpy", "pandas", "pillow"),
    *("opencv-python-headless", "scikit-learn", "safetensors"),
)


def versions() -> dict[str, str]:
    """Returns the versions of the packages that numbers depend on; those that are not installed are left out."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def device_name(device: torch.device) -> str:
    """Returns what a device is called: the card's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def git_state() -> dict[str, Any] | None:
    """Returns the commit that vlad's source is at, and whether files differ from it; None where it is no checkout."""
    source = Path(__file__).resolve().parents[1]
    if not any((folder / ".git").exists() for folder in source.parents):
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(source), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.SubprocessError):  # no git, or another user's checkout
        return None


def count_data(datamodule: Any) -> dict[str, list[dict[str, Any]]]:
    """Returns how many images each part of the data holds: per data set, normal, anomalous and unlabelled.

    Args:
        datamodule: A data module with ``frames``, such as :class:`vlad.AnomalyDataModule`; nothing of another.
    """
    frames = getattr(datamodule, "frames", None)
    if not isinstance(frames, Mapping):
        return {}
    return {
        part: [
            {
                "dataset": str(name),
                "categories": int(rows["category"].nunique()),
                "images": len(rows),
                "normal": int((rows["label"] == 0).sum()),
                "anomalous": int((rows["label"] == 1).sum()),
                "unlabelled": int(((rows["label"] != 0) & (rows["label"] != 1)).sum()),
            }
            for name, rows in frame.groupby("dataset", sort=False)
        ]
        for part, frame in frames.items()
    }


def placement(trainer: Trainer) -> dict[str, Any]:
    """Returns where and how a trainer computes."""
    return {
        "device": device_name(trainer.strategy.root_device),
        "processes": trainer.world_size,
        "precision": str(trainer.precision),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }
