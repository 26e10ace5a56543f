"""Where an interrupted training goes on: the newest whole checkpoint of its run, with the run's own config."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from vlad.errors import WeightsError
from vlad.registry import discover
from vlad.runs.pointers import LATEST, newest_first, resolve_run

__all__ = ["LAST", "config_of", "resume_point", "run_meant"]

_KNOWN = {"vlad", "lightning", "pytorch_lightning", "torch"}
LAST = {"last", LATEST}
"""What ``--ckpt_path`` calls the newest run."""


def run_meant(given: str, root: str | Path) -> str:
    """Returns what ``--ckpt_path`` names, ``last`` and ``latest`` being the pointer in the folder of all runs."""
    return str(Path(root) / LATEST) if given in LAST and not Path(given).exists() else given


def resume_point(given: str | Path) -> tuple[Path, str]:
    """Returns the checkpoint that a training goes on from.

    Args:
        given: A checkpoint, a run folder, or a ``latest`` file. Of a run folder it is the newest checkpoint that is
            whole; where a run was stopped before it had any, the one that it had gone on from itself.

    Returns:
        The file, and one line on what was passed over; "" for nothing.

    Raises:
        WeightsError: Nothing whole is there, or it holds no state of a training.
    """
    from vlad.published import find_checkpoint

    path = resolve_run(given)
    files = newest_first(path) if path.is_dir() else []
    earlier = _config(path).get("ckpt_path") if path.is_dir() and not files else None
    if earlier:
        return resume_point(earlier)
    damaged: list[WeightsError] = []
    for file in files or [find_checkpoint(path)]:
        try:
            _refuse_unfit(file)
        except WeightsError as error:
            damaged.append(error)
            continue
        return file, f"{damaged[0]}; going on from {file}" if damaged else ""
    raise damaged[0]


def _refuse_unfit(file: Path) -> None:
    from vlad.checkpoint import read_checkpoint

    if "optimizer_states" not in read_checkpoint(file):
        raise WeightsError(f"{file} holds weights and no state of a training: give it as --model.weights {file}")


def config_of(given: str | Path) -> str:
    """Returns the config of the run that a checkpoint is of, as YAML: without its folder and what it went on from.

    Args:
        given: A checkpoint, a run folder, or a ``latest`` file.

    Returns:
        "" where the run has left no config of a fit.

    Raises:
        WeightsError: The config names code of others. A config that is given is code; one that is found is not run.
    """
    path = resolve_run(given)
    folder = path if path.is_dir() else path.parent.parent
    tree = dict(_config(folder))
    known = _KNOWN | {plugin.module.partition(".")[0] for plugin in discover().values()}
    for name in _imports({key: tree.get(key) for key in ("model", "trainer")}):
        if name.partition(".")[0] not in known:
            raise WeightsError(
                f"the config of {folder} names {name}, which is no part of vlad: if you trust it, give it: --config "
                f"{folder / 'fit.yaml'}"
            )
    for key in ("output", "ckpt_path"):
        tree.pop(key, None)
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True) if tree else ""


def _imports(tree: Any) -> Iterator[str]:
    """Yields every text in a tree that has the form of an import path."""
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    if isinstance(tree, list):
        for one in tree:
            yield from _imports(one)
    elif isinstance(tree, str) and re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", tree):
        yield tree


def _config(folder: Path) -> Mapping[str, Any]:
    try:
        tree = yaml.safe_load((folder / "fit.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return tree if isinstance(tree, dict) else {}
