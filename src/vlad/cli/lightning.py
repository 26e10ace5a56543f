"""``vlad fit|validate|test|predict``: LightningCLI with short names, flat configs and short errors."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger

from vlad.callbacks.heatmaps import HeatMaps
from vlad.callbacks.results import Results
from vlad.cli.names import LOADER, expand_arguments, expand_tree, short_error
from vlad.datamodules.datamodule import AnomalyDataModule
from vlad.methods.base import Method
from vlad.registry import get_method, list_methods
from vlad.weights import find_checkpoint, read_file

__all__ = ["VladCLI", "run"]


class VladParser(LightningArgumentParser):
    """A parser that says what is wrong in a line, and names the methods in its help."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Ends the program with status 2 and one line that names the key and the mend."""
        if os.environ.get("VLAD_DEBUG") and ex is not None:
            raise ex
        print(f"vlad: {short_error(message)}", file=sys.stderr)
        raise SystemExit(2)


class VladCLI(LightningCLI):
    """LightningCLI for vlad: registered names, one data module, run folders, checkpoints as defaults."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the heat maps' options and passes the seed on to the data."""
        parser.add_lightning_class_args(HeatMaps, "heatmaps")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=lambda seed: seed if type(seed) is int else 0)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Expands short names, then parses; a checkpoint's method and settings become defaults."""
        defaults = {
            "test": {"verbose": False},
            "validate": {"verbose": False},
            "predict": {"return_predictions": False},
        }
        for verb, values in defaults.items():
            self._subcommand_parsers[verb].set_defaults(values)
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

    def before_instantiate_classes(self) -> None:
        """Chooses the run folder, the config's file name and the published number of epochs."""
        verb = self.subcommand
        config = self.config[verb]
        self.save_config_kwargs = {"config_filename": f"{verb}.yaml", "overwrite": True}
        method = get_method(config.model.class_path)
        if config.trainer.logger in (None, True):
            root = config.trainer.default_root_dir or "runs"
            name = next((n for n in list_methods() if get_path(n) == config.model.class_path), method.__name__)
            config.trainer.logger = Namespace(
                class_path="lightning.pytorch.loggers.CSVLogger",
                init_args=Namespace(save_dir=str(root), name=name, version=None, prefix="", flush_logs_every_n_steps=100),
            )
        if verb == "fit" and method.epochs and config.trainer.max_epochs is None and config.trainer.max_steps == -1:
            config.trainer.max_epochs = method.epochs
        if config.get("ckpt_path") and Path(config.ckpt_path).exists():
            config.ckpt_path = str(find_checkpoint(config.ckpt_path))


def get_path(name: str) -> str:
    """Returns a registered method's class path."""
    from vlad.registry import resolve

    return resolve(name).class_path


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
    content = read_file(checkpoint)
    saved = {key: value for key, value in content.get("hyper_parameters", {}).items() if not key.startswith("_")}
    class_path = content.get("vlad", {}).get("class_path") or content.get("hyper_parameters", {}).get("_class_path")
    get_method(class_path)
    return {"class_path": class_path, "init_args": saved}


def _quiet() -> None:
    """Silences what Lightning says of itself and of choices that are ours."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r".*does not have many workers.*",
        r".*log_every_n_steps.*",
        r".*`seed_everything`.*",
        r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
        r".*The '.*_dataloader' does not have many workers.*",
        r".*using `DistributedSampler` with the dataloaders.*",  # padding is left out of the metrics
        r".*There is a wandb run already.*",
        r".*You defined a `validation_step` but have no `val_dataloader`.*",
        r".*ckpt_path.*weights_only.*",
    ):
        warnings.filterwarnings("ignore", message=message)


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
        trainer_defaults={"callbacks": [Results()]},
        args=arguments,
    )
    return 0
