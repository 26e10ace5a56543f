"""``vlad fit|validate|test|predict``: LightningCLI with short names, flat configs and short errors."""

from __future__ import annotations

import gc
import logging
import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from vlad.callbacks.evaluator import Evaluator
from vlad.callbacks.heatmaps import HeatMaps
from vlad.callbacks.record import RunRecord
from vlad.callbacks.references import References
from vlad.callbacks.results import Results
from vlad.checkpoint import hyperparameters, read_checkpoint
from vlad.cli.names import LOADER, expand_arguments, expand_tree, short_error
from vlad.datamodules import AnomalyDataModule, Source
from vlad.errors import VladError
from vlad.methods.arguments import init_parameters
from vlad.methods.base import Method
from vlad.published import find_checkpoint
from vlad.registry import get_method, list_methods, resolve

__all__ = ["VladCLI", "run"]


def _known_options(parsers: Iterable[LightningArgumentParser]) -> set[str]:
    """Returns every option there is, dotted: the parsers' own, the methods' and the data sources'."""
    options = {key for parser in parsers for key in parser.get_defaults(skip_validation=True).keys()}  # noqa: SIM118
    options |= {f"data.test.{field}" for field in Source.__dataclass_fields__}
    pending: list[type] = [Method]
    while pending:
        cls = pending.pop()
        pending += cls.__subclasses__()
        options |= {f"model.{name}" for name in init_parameters(cls)}
    return options


class VladParser(LightningArgumentParser):
    """A parser that says what is wrong in one line, and what was probably meant."""

    family: ClassVar[list[LightningArgumentParser]] = []

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Ends the program with status 2 and one line that names the key and the fix."""
        if os.environ.get("VLAD_DEBUG") and ex is not None:
            raise ex
        print(f"vlad: {short_error(message, _known_options(self.family))}", file=sys.stderr)
        raise SystemExit(2)


class VladCLI(LightningCLI):
    """LightningCLI for vlad: registered names, one data module, run folders, checkpoints as defaults."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the options of metrics, references and heat maps, and passes the seed on to the data."""
        parser.add_lightning_class_args(Evaluator, "metrics")
        parser.add_lightning_class_args(References, "references")
        parser.add_lightning_class_args(HeatMaps, "heatmaps")
        parser.add_argument(
            "--allow_untrained",
            type=bool,
            default=False,
            help="Score with a method that was not trained, for experiments.",
        )
        parser.link_arguments("seed_everything", "data.seed", compute_fn=lambda seed: seed if type(seed) is int else 0)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Expands short names, then parses; a checkpoint's method and settings become defaults."""
        VladParser.family = list(self._subcommand_parsers.values())
        ours = {
            "fit": {},
            "test": {"verbose": False},
            "validate": {"verbose": False},
            "predict": {"return_predictions": False},
        }
        for verb, values in ours.items():
            self._subcommand_parsers[verb].set_defaults({"weights_only": True, **values})
        if isinstance(args, dict | Namespace):
            self.config = parser.parse_object(expand_tree(dict(args)))
            return
        arguments = expand_arguments(sys.argv[1:] if args is None else list(args))
        verb = arguments[0] if arguments else ""
        if verb in self._subcommand_parsers:
            checkpoint = _option(arguments, "--ckpt_path")
            if checkpoint and checkpoint not in {"best", "last", "hpc", "registry"}:
                self._subcommand_parsers[verb].set_defaults({"model": _model_of(checkpoint)})
        self.config = parser.parse_args(arguments)

    def _parse_ckpt_path(self) -> None:
        """Does nothing: Lightning would let the checkpoint override the command line; here it is a default."""

    def instantiate_classes(self) -> None:
        """Builds method, data and trainer; an error of ours is raised bare, not in jsonargparse's wrapping."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, VladError):
                cause = cause.__cause__
            raise cause or error from None
        self.model.allow_untrained = bool(self.config[self.subcommand].allow_untrained)
        if self.subcommand == "fit":
            self.model.refuse_training_free()
        self.datamodule.require(self.model.requirements)

    def before_instantiate_classes(self) -> None:
        """Chooses the run folder, the config's file name and the published number of epochs."""
        verb = self.subcommand
        config = self.config[verb]
        self.save_config_kwargs = {"config_filename": f"{verb}.yaml", "overwrite": True}
        method = get_method(config.model.class_path)
        if config.trainer.logger in (None, True):
            root = config.trainer.default_root_dir or "runs"
            names = [name for name in list_methods() if resolve(name).class_path == config.model.class_path]
            name = names[0] if names else method.__name__
            config.trainer.logger = Namespace(
                class_path="lightning.pytorch.loggers.CSVLogger",
                init_args=Namespace(
                    save_dir=str(root), name=name, version=None, prefix="", flush_logs_every_n_steps=100
                ),
            )
        if verb == "fit" and method.epochs and config.trainer.max_epochs is None and config.trainer.max_steps == -1:
            config.trainer.max_epochs = method.epochs
        if config.get("ckpt_path") and Path(config.ckpt_path).exists():
            config.ckpt_path = str(find_checkpoint(config.ckpt_path))


def _option(arguments: list[str], name: str) -> str | None:
    """Returns the value of ``--name value`` or ``--name=value``."""
    for position, argument in enumerate(arguments):
        if argument == name and position + 1 < len(arguments):
            return arguments[position + 1]
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2]
    return None


def _model_of(checkpoint: str) -> dict[str, Any]:
    """Returns the ``model`` section that a checkpoint's run had: its class and hyper-parameters."""
    content = read_checkpoint(checkpoint)
    get_method(content["vlad"]["class_path"])  # here a missing plug-in is told in full
    return {"class_path": content["vlad"]["class_path"], "init_args": hyperparameters(content)}


def _quiet() -> None:
    """Silences what Lightning says of itself and of choices that are ours."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r".*does not have many workers.*",
        r".*Total length of `list` across ranks is zero.*",  # no validation data is the default
        r".*module\(s\) in eval mode at the start of training.*",  # the frozen CLIP
        r".*The dirpath has changed from.*",  # each run has its own folder
        r".*log_every_n_steps.*",
        r".*`seed_everything`.*",
        r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
        r".*using `DistributedSampler` with the dataloaders.*",  # padding is left out of the metrics
        r".*You defined a `validation_step` but have no `val_dataloader`.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def _leave_processes() -> None:
    """Ends the talk between processes before Python does; Lightning does so for NCCL alone.

    A thread of Gloo's may otherwise free a tensor while the interpreter shuts down, which aborts a process whose work
    is done (one run in thirty).
    """
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()  # a trainer's cycles hold the group
        torch.distributed.destroy_process_group()


def run(arguments: list[str] | None = None) -> int:
    """Runs a verb of LightningCLI.

    Args:
        arguments: The verb and its options.
    """
    if not os.environ.get("VLAD_DEBUG"):
        _quiet()
    VladCLI(
        Method,
        AnomalyDataModule,
        subclass_mode_model=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        parser_class=VladParser,
        parser_kwargs={"parser_mode": LOADER},
        trainer_defaults={"callbacks": [Results(), RunRecord(["vlad", *(arguments or sys.argv[1:])])]},
        args=arguments,
    )
    _leave_processes()
    return 0
