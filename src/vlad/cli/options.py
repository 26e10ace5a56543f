"""The options that a command line may give, read off the source: a typo is told before anything heavy is imported."""

from __future__ import annotations

import ast
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from vlad.cli.verbs import OPTIONS, foreign
from vlad.errors import OptionError, nearest
from vlad.migrate import RENAMED

__all__ = ["FLAGS", "SECTIONS", "arguments_of", "known_options", "refuse_unknown"]

# section of options -> the callback that has them
SECTIONS = {
    "engine": "vlad.callbacks.engine.EncoderEngine",
    "metrics": "vlad.callbacks.evaluator.Evaluator",
    "references": "vlad.callbacks.references.References",
    "features": "vlad.callbacks.features.CachedFeatures",
    "decisions": "vlad.callbacks.decide.Decide",
    "heatmaps": "vlad.callbacks.heatmaps.HeatMaps",
    "maps": "vlad.callbacks.maps.RawMaps",
    "report": "vlad.callbacks.report.Report",
}
# the command's own options -> help
FLAGS = {
    "allow_untrained": "Score with a method that was not trained, for experiments.",
    "fail_on_anomaly": "End with status 4 where an image is decided to be anomalous.",
}
_CORE = {
    "trainer": "lightning.pytorch.trainer.trainer.Trainer",
    "data": "vlad.datamodules.datamodule.AnomalyDataModule",
}
_OWN = {"config", "help", "print_config", "seed_everything", "ckpt_path", "output", "model", "tile", "overlap", *FLAGS}
_OF_MODEL = {"class_path", "init_args", "help", "dict_kwargs"}


@lru_cache
def arguments_of(class_path: str) -> frozenset[str] | None:
    """Returns the names of a class's arguments, with those that it passes on to its bases; nothing is imported.

    Args:
        class_path: Full path of a class, of the module that defines it.

    Returns:
        The names; None where the source does not tell.
    """
    module, _, name = class_path.rpartition(".")
    tree = _source(module)
    found = next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), None)
    if found is None:
        return None
    init = next((node for node in found.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"), None)
    names: frozenset[str] = frozenset()
    if init is not None:
        names = frozenset(one.arg for one in [*init.args.posonlyargs, *init.args.args, *init.args.kwonlyargs][1:])
        if init.args.kwarg is None:
            return names
    for base in found.bases:
        inherited = arguments_of(where) if (where := _defined(tree, module, base)) else None
        if inherited is None:
            return None
        names |= inherited
    return names


@lru_cache
def _source(module: str) -> ast.Module:
    package, *rest = module.split(".")
    try:
        spec = find_spec(package)  # of a top-level package alone: its modules are found without running it
        folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
        places = [folder.joinpath(*rest) for folder in folders] if rest else []
        files = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
        return next(ast.parse(file.read_bytes()) for file in files if file.is_file())
    except (StopIteration, OSError, SyntaxError, ValueError, ImportError):
        return ast.Module(body=[], type_ignores=[])


def _defined(tree: ast.Module, module: str, base: ast.expr) -> str | None:
    """Returns the class path of a base, as the imports of a module tell it."""
    if not isinstance(base, ast.Name):
        return None
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == base.id:
            return f"{module}.{base.id}"
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for one in node.names:
                if (one.asname or one.name) == base.id:
                    return f"{node.module}.{one.name}"
    return None


def known_options(verb: str, model: str | None = None) -> dict[str, frozenset[str] | None]:
    """Returns the sections of a verb's options, each with the options below it; None where these are not known.

    Args:
        verb: ``fit``, ``validate``, ``test`` or ``predict``.
        model: Class path of the method, if it is known.
    """
    others = set(foreign(verb))
    sections = {name: path for name, path in {**_CORE, **SECTIONS}.items() if name not in others}
    found = {name: arguments_of(path) for name, path in sections.items()}
    found["model"] = arguments_of(model) if model else None
    return found


def refuse_unknown(verb: str, given: list[str], model: str | None) -> None:
    """Refuses options that there are not; only the first two parts of their names are looked at.

    Args:
        verb: ``fit``, ``validate``, ``test`` or ``predict``.
        given: Dotted options, as :data:`vlad.cli.names.SHORT` spells them.
        model: Class path of the method, if the command line names one.

    Raises:
        OptionError: One is unknown; the message tells the nearest.
    """
    known = known_options(verb, model)
    top = {*known, *_OWN} - set(foreign(verb))
    for option in given:
        section, _, rest = option.partition(".")
        name = rest.split(".")[0].rstrip("+")
        if option in RENAMED or section in {"fit", "validate", "test", "predict"}:
            continue
        if section.rstrip("+") not in top:
            raise OptionError(f"no option --{option}; {nearest(section, top)}")
        names = known.get(section)
        if not name or names is None or name in names or (section == "model" and name in _OF_MODEL):
            continue
        dotted = {f"{section}.{one}" for one in names} | {one for one in OPTIONS if one.startswith(f"{section}.")}
        if f"{section}.{name}" not in dotted:
            raise OptionError(f"no option --{section}.{name}; {nearest(f'{section}.{name}', dotted)}")
