"""The parsers of ``vlad fit|validate|test|predict``: which options there are, and what is said of wrong ones."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from importlib import import_module
from typing import Any, ClassVar

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from vlad.cli.messages import short_error
from vlad.cli.names import PARSED_VERB
from vlad.cli.options import FLAGS, SECTIONS
from vlad.cli.values import protect
from vlad.cli.verbs import OPTIONS, VERBS, foreign
from vlad.datamodules import AnomalyDataModule, Source
from vlad.methods.arguments import init_parameters, parameter_types
from vlad.methods.base import Method

__all__ = ["CALLBACKS", "VerbCLI", "VladParser"]


def _class(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


# section of options -> the callback that has them
CALLBACKS: dict[str, Any] = {section: _class(path) for section, path in SECTIONS.items()}


def _subclasses(cls: type) -> list[type]:
    children: list[type] = cls.__subclasses__()
    return [cls, *(one for child in children for one in _subclasses(child))]


def _known_options(parsers: Iterable[LightningArgumentParser]) -> set[str]:
    """Returns every option there is, dotted: the parsers' own, the methods' and the data sources'."""
    options = {key for parser in parsers for key in parser.get_defaults(skip_validation=True).keys()}  # noqa: SIM118
    options |= {f"data.test.{field}" for field in Source.__dataclass_fields__}
    options |= {option for option in OPTIONS if "." in option}  # those of other verbs, for the spelling
    return options | {f"model.{name}" for cls in _subclasses(Method) for name in init_parameters(cls)}


def _known_types(parsers: Iterable[LightningArgumentParser]) -> dict[str, Any]:
    """Returns the type of every option that has one."""
    found = {f"model.{name}": hint for cls in _subclasses(Method) for name, hint in parameter_types(cls).items()}
    for parser in parsers:
        found |= {action.dest: action._typehint for action in parser._actions if hasattr(action, "_typehint")}
    return found


class VladParser(LightningArgumentParser):
    """A parser that says what is wrong in one line, and what was probably meant."""

    family: ClassVar[list[LightningArgumentParser]] = []

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Ends the program with status 2 and one line that names the key and the fix."""
        if os.environ.get("VLAD_DEBUG") and ex is not None:
            raise ex
        inner = getattr(self, "_inner_parser", False)  # of the class below an option, which it does not know
        types = _known_types([*self.family, *([self] if inner else [])])
        line = short_error(message, _known_options(self.family), types, "model." if inner else "")
        print(f"vlad {PARSED_VERB.get()}".rstrip() + f": {line}", file=sys.stderr)
        raise SystemExit(2)


class VerbCLI(LightningCLI):
    """LightningCLI with the options that each verb really has, and no others."""

    def __init__(self, *args: Any, verb: str = "", **kwargs: Any) -> None:
        """Takes what LightningCLI takes.

        Args:
            *args: For LightningCLI.
            verb: The one verb that a parser is built for; all of them by default.
            **kwargs: For LightningCLI.
        """
        self._verbs = [name for name in VERBS if verb not in VERBS or name == verb]
        super().__init__(*args, **kwargs)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Returns the verbs, and which arguments of the trainer's methods are no options."""
        ours = {"verbose", "return_predictions", "weights_only"}
        return {verb: skipped | ours for verb, skipped in LightningCLI.subcommands().items() if verb in self._verbs}

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        self._building = subcommand
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        protect(parser)
        return parser

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the options of trainer, method and data that the verb has."""
        skipped = foreign(self._building)

        def of(section: str) -> set[str]:
            return {name.partition(".")[2] for name in skipped if name.startswith(f"{section}.")}

        options: dict[str, Any] = {"fail_untyped": False, "sub_configs": True}
        parser.add_class_arguments(Trainer, "trainer", instantiate=False, skip=of("trainer"), **options)
        parser.add_lightning_class_args(self._model_class, "model", subclass_mode=True)
        parser.add_class_arguments(AnomalyDataModule, "data", instantiate=True, skip=of("data"), **options)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the options of the callbacks and of the command itself, and passes the seed on to the data."""
        skipped = foreign(self._building)
        for section, callback in CALLBACKS.items():
            if section not in skipped:
                parser.add_lightning_class_args(callback, section)
        parser.add_argument("--output", type=str | None, default=None, help="The run folder; by default a new one.")
        if "tile" not in skipped:
            text = "Score images by tiles of so many pixels, at their own resolution (docs/tiling.md)."
            parser.add_argument("--tile", type=int | None, default=None, help=text)
            text = "Share of a tile that its neighbours cover too; 0.25 by default."
            parser.add_argument("--overlap", type=float | None, default=None, help=text)
        for name, text in FLAGS.items():
            if name not in skipped:
                parser.add_argument(f"--{name}", type=bool, default=False, help=text)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=lambda seed: seed if type(seed) is int else 0)
