"""What a benchmark runs: a plan as a file, and the cells that it is made of."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlad.errors import OptionError, nearest
from vlad.names import safe_name

__all__ = ["SECTIONS", "Cell", "Plan", "read_plan"]

SECTIONS = ("model", "data", "trainer", "metrics", "features", "heatmaps", "report", "references")
"""Sections of a vlad config that a plan may hold; what a verb does not have is left out of its run."""

_PLAN = {"title", "methods", "datasets", "shots", "seeds", "metrics_shown", "published", "common", "stages"}
_METHOD = {
    "name",
    "method",
    "train",
    "checkpoint",
    "shots",
    "seeds",
    "datasets",
    "by_dataset",
    "fit",
    "allow_untrained",
    *SECTIONS,
}
_TRAINING = ("model", "data", "trainer", "features")
_MACHINE = {"data": {"root", "num_workers"}, "trainer": {"accelerator", "devices", "num_nodes", "strategy"}}
"""Where and how fast a cell runs, which is no part of what it is."""

Config = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One method on one data set with one number of references and one seed.

    Attributes:
        name: What the method is called in tables.
        method: Registered name of the method.
        dataset: Name of the data set.
        shots: Normal reference images per category; 0 for none.
        seed: Seed of the run.
        config: The config of its test, but for its folder.
        fit_config: That of its training; empty for none.
        checkpoint: A run or checkpoint that it is tested with, or "".
    """

    name: str
    method: str
    dataset: str
    shots: int
    seed: int
    config: Config = field(hash=False)
    fit_config: Config = field(hash=False, default_factory=dict)
    checkpoint: str = ""

    @property
    def key(self) -> str:
        """The name of its files: readable, and another one as soon as anything else than the machine is another."""
        words = f"{self.name}-{self.dataset}-{self.shots}shot-seed{self.seed}"
        return (
            f"{safe_name(words.replace(' ', '_'))}-{_digest([self._what(self.config), self.fit_key, self.checkpoint])}"
        )

    @property
    def fits(self) -> bool:
        """Whether it trains before it tests."""
        return bool(self.fit_config) and not self.checkpoint

    @property
    def fit_key(self) -> str:
        """The name of the training that it needs, which other cells may share; "" for none."""
        if not self.fits:
            return ""
        return f"{safe_name(self.name.replace(' ', '_'))}-seed{self.seed}-{_digest(self._what(self.fit_config))}"

    @staticmethod
    def _what(config: Config) -> Config:
        """Returns what of a config decides its numbers."""
        cleaned = {
            name: {key: value for key, value in part.items() if key not in _MACHINE.get(name, ())}
            if isinstance(part, dict)
            else part
            for name, part in config.items()
        }
        return {name: part for name, part in cleaned.items() if part not in ({}, None)}

    def describe(self) -> dict[str, Any]:
        """Returns what tells it from others, as plain values."""
        return {
            "name": self.name,
            "method": self.method,
            "dataset": self.dataset,
            "shots": self.shots,
            "seed": self.seed,
        }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Plan:
    """A plan.

    Attributes:
        title: What stands above its tables.
        cells: All cells, in the order of the plan.
        metrics: Columns of its tables.
        published: Whether published numbers stand below ours.
        stages: Whether earlier maps of methods that refine them have rows of their own.
    """

    title: str
    cells: Sequence[Cell]
    metrics: Sequence[str]
    published: bool = False
    stages: bool = False

    def share(self, index: int, count: int) -> list[Cell]:
        """Returns the cells of one of ``count`` processes, counted from 1; those that share a training stay together.

        Examples:
            >>> cells = [Cell("sdp", "sdp", "visa", 0, seed, {"data": {}}) for seed in range(5)]
            >>> [[cell.seed for cell in Plan("", cells, ()).share(i, 2)] for i in (1, 2)]
            [[0, 2, 4], [1, 3]]
        """
        groups: dict[str, list[Cell]] = {}
        for cell in self.cells:
            groups.setdefault(cell.fit_key or cell.key, []).append(cell)
        return [cell for group in list(groups.values())[index - 1 :: count] for cell in group]


def read_plan(path: Path, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> Plan:
    """Reads a plan.

    Args:
        path: A YAML or TOML file; see docs/benchmark.md.
        overrides: Options by section that go before all of the plan's own.

    Raises:
        OptionError: It is no plan; the message names the key.
    """
    if not path.is_file():
        raise OptionError(f"plan {path} does not exist")
    text = path.read_text(encoding="utf-8")
    try:
        content = tomllib.loads(text) if path.suffix == ".toml" else _yaml(text)
    except Exception as error:  # tomllib and yaml raise their own kinds
        raise OptionError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(content, dict):
        raise OptionError(f"{path} must be a mapping with methods and datasets")
    _known(path, "plan", content, _PLAN)
    methods, datasets = content.get("methods"), content.get("datasets")
    if not isinstance(methods, list) or not methods or not isinstance(datasets, list) or not datasets:
        raise OptionError(f"{path}: methods and datasets must be lists that are not empty")
    common = content.get("common") or {}
    _known(path, "common", common, {*SECTIONS, "allow_untrained"})
    cells: list[Cell] = []
    for entry in methods:
        cells += _cells(path, {"method": entry} if isinstance(entry, str) else entry, content, common, overrides or {})
    names = [(cell.name, cell.dataset, cell.shots, cell.seed) for cell in cells]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise OptionError(f"{path}: {twice[0]} on {twice[1]} is there twice; give the methods other names (name: …)")
    shown = content.get("metrics_shown") or ["image_auroc", "image_ap", "pixel_auroc", "pixel_aupro"]
    flags = (bool(content.get(name)) for name in ("published", "stages"))
    return Plan(str(content.get("title") or path.stem), cells, shown, *flags)


def _yaml(text: str) -> Any:
    import yaml

    return yaml.safe_load(text)


def _known(path: Path, where: str, given: Any, known: set[str]) -> None:
    if not isinstance(given, dict):
        raise OptionError(f"{path}: {where} must be a mapping, not {given!r}")
    for name in given:
        if name not in known:
            raise OptionError(f"{path}: {where} has no '{name}'; {nearest(str(name), known)}")


def _cells(
    path: Path,
    entry: Any,
    content: Mapping[str, Any],
    common: Config,
    overrides: Mapping[str, Mapping[str, Any]],
) -> list[Cell]:
    _known(path, "a method", entry, _METHOD)
    own: Config = {name: entry[name] for name in (*SECTIONS, "allow_untrained") if name in entry}
    if entry.get("method"):
        own["model"] = {**own.get("model", {}), "class_path": entry["method"]}
    found = []
    for dataset in entry.get("datasets") or content["datasets"]:
        name = dataset if isinstance(dataset, str) else str((dataset or {}).get("name", ""))
        if not name:
            raise OptionError(f"{path}: a data set is a name, or a mapping with name, not {dataset!r}")
        special = (entry.get("by_dataset") or {}).get(name) or {}
        _known(path, f"by_dataset.{name}", special, {*SECTIONS, "fit"})
        given = {section: part for section, part in special.items() if section != "fit"}
        config = _layered(common, own, given, overrides)
        data, method = config.setdefault("data", {}), str(config.get("model", {}).get("class_path") or "")
        if not method:
            raise OptionError(f"{path}: a method has no name: give method: NAME")
        train = _for(entry.get("train", data.pop("train", None)), name)
        fit = _fit(path, (common, own, overrides), (entry.get("fit"), special.get("fit")), train) if train else {}
        data["test"] = dataset
        for shots in _list(path, "shots", entry.get("shots", content.get("shots", [0]))):
            for seed in _list(path, "seeds", entry.get("seeds", content.get("seeds", [0]))):
                whole = {**config, "data": {**data, **({"shots": shots} if shots else {})}, "seed_everything": seed}
                trains = {**fit, "seed_everything": seed} if fit else {}
                checkpoint = str(_for(entry.get("checkpoint"), name) or "")
                called = str(entry.get("name") or method)
                found.append(Cell(called, method, name, shots, seed, whole, trains, checkpoint))
    return found


def _fit(path: Path, layers: Sequence[Mapping[str, Any]], own: Sequence[Any], train: Any) -> Config:
    """Returns the config of a training: the plan's and the method's options, over them those of ``fit``."""
    for part in own:
        _known(path, "fit", part or {}, set(_TRAINING))
    common, method, overrides = layers
    config = _layered(common, method, *(part or {} for part in own), overrides)
    config = {section: config[section] for section in _TRAINING if section in config}
    return {**config, "data": {**config.get("data", {}), "train": train}}


def _layered(*parts: Mapping[str, Any]) -> Config:
    config: Config = {}
    for part in parts:
        config = _merged(config, part)
    return config


def _for(value: Any, dataset: str) -> Any:
    """Returns what is meant for a data set: of a mapping by data set its own entry, else that of ``*``."""
    return value.get(dataset, value.get("*")) if isinstance(value, dict) and "name" not in value else value


def _list(path: Path, name: str, value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    if not values or not all(type(one) is int and one >= 0 for one in values):
        raise OptionError(f"{path}: {name} must be whole numbers from 0 on, not {value!r}")
    return list(dict.fromkeys(values))


def _merged(base: Config, over: Mapping[str, Any]) -> Config:
    """Returns a config with another one over it, option by option; settings of another method are left out."""
    merged = {name: dict(part) if isinstance(part, dict) else part for name, part in base.items()}
    for name, part in over.items():
        before = merged.get(name)
        if isinstance(part, dict) and isinstance(before, dict):
            other = name == "model" and part.get("class_path", before.get("class_path")) != before.get("class_path")
            merged[name] = dict(part) if other and "class_path" in before else {**before, **part}
        else:
            merged[name] = dict(part) if isinstance(part, dict) else part
    return merged
