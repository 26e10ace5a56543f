"""``vlad fit|validate|test|predict``: LightningCLI with short names, flat configs and short errors."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from vlad.callbacks.evaluator import Evaluator
from vlad.callbacks.predictions import Predictions
from vlad.callbacks.record import RunRecord
from vlad.callbacks.results import Results
from vlad.checkpoint import hyperparameters, read_checkpoint
from vlad.cli.checks import check_options, check_trainer, has_ddp, tell_limits, trainer_errors
from vlad.cli.messages import first_sentence
from vlad.cli.names import LOADER, PARSED_VERB, expand_arguments, expand_tree, given, import_given, split_arguments
from vlad.cli.parser import CALLBACKS, VerbCLI, VladParser
from vlad.cli.processes import failing_together, leave_processes, watch_others
from vlad.cli.signals import Terminated
from vlad.cli.stopping import SaveWhenStopped, own_signals
from vlad.cli.verbs import refuse_foreign
from vlad.datamodules import AnomalyDataModule
from vlad.encoders.facts import default_image_size
from vlad.errors import MethodError, OptionError, OutputError, VladError
from vlad.methods.base import Method
from vlad.published import find_checkpoint
from vlad.registry import get_method, list_methods, named_method, resolve
from vlad.runs import RunLogger, SaveConfig, data_name
from vlad.runs.checkpoints import SealedCheckpointIO, TwoCheckpoints
from vlad.runs.pointers import run_name, slug
from vlad.runs.resume import config_of, resume_point, run_meant
from vlad.tiling import Tiling, requirements_of

__all__ = ["VladCLI", "run"]

_DEFAULT = "sdp"  # the method of ``vlad predict`` where none is named: it needs no training and no references
_NAMED = {"best", "hpc", "registry"}  # checkpoints that Lightning finds by itself


class VladCLI(VerbCLI):
    """LightningCLI for vlad: registered names, one data module, run folders, checkpoints as defaults."""

    _folder: RunLogger
    _limited: str  # what is said where not all is evaluated
    _sized: bool  # whether the image size was given
    _chosen: list[str]  # what was chosen in place of the user, told once the options are found sound

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Expands short names, then parses; a checkpoint's method and settings become defaults."""
        VladParser.family = list(self._subcommand_parsers.values())
        self._sized, self._chosen = True, []
        if isinstance(args, dict | Namespace):
            self.config = parser.parse_object(expand_tree(dict(args)))
            return
        arguments = expand_arguments(sys.argv[1:] if args is None else list(args))
        verb = arguments[0] if arguments else ""
        if verb in self._subcommand_parsers:
            arguments = self._find_checkpoint(verb, arguments)
            self._set_defaults(verb, arguments[1:])
        with _verb(verb):
            self.config = parser.parse_args(arguments)

    def _find_checkpoint(self, verb: str, arguments: list[str]) -> list[str]:
        """Returns a command line with the run that ``last`` means; a training goes on with its own config."""
        options = dict(split_arguments(arguments[1:])[0])
        given = options.get("--ckpt_path")
        if not given or given in _NAMED:
            return arguments
        run = run_meant(given, options.get("--trainer.default_root_dir") or "runs")
        arguments = [word if word != f"--ckpt_path={given}" else f"--ckpt_path={run}" for word in arguments]
        if verb == "fit" and "--config" not in options and (config := config_of(run)):
            arguments.insert(1, f"--config={config}")  # with the run's own config, which names nothing but ours
        return arguments

    def _set_defaults(self, verb: str, arguments: list[str]) -> None:
        """Refuses options of other verbs; makes a checkpoint's method, or the usual one, the default."""
        options, _ = split_arguments(arguments)
        refuse_foreign(verb, [name.removeprefix("--") for name, _ in options])
        checkpoint = dict(options).get("--ckpt_path")
        model: dict[str, Any] = {}
        if checkpoint and checkpoint not in _NAMED:
            import_given(arguments)
            model = _model_of(str(resume_point(checkpoint)[0]) if verb == "fit" else checkpoint)
        elif verb == "predict" and not checkpoint and not given(arguments, "model", "ckpt_path"):
            model = {"class_path": resolve(_DEFAULT).class_path}
            self._chosen.append(f"method: {_DEFAULT} (default)")
        if model:
            self._subcommand_parsers[verb].set_defaults({"model": model})
        self._sized = "image_size" in model.get("init_args", {}) or given(arguments, "model.image_size")

    def _parse_ckpt_path(self) -> None:
        """Does nothing: Lightning would let the checkpoint override the command line; here it is a default."""

    def instantiate_classes(self) -> None:
        """Builds data, method and trainer, in this order: what is wrong with the data is told before weights load."""
        config = self.config[self.subcommand]
        with _bare_errors():
            for section in self._parser(self.subcommand).callback_keys:
                CALLBACKS[section](**config[section].as_dict())  # wrong settings are refused here
            data = AnomalyDataModule(**config.data.as_dict())
            data.look(str(self.subcommand))
            self._folder = self._run_logger(config)
            for line in self._chosen:
                _say(line)
            self.parser.add_instantiator(lambda *_, **__: data, AnomalyDataModule, subclasses=False)
            with _no_exit(config.model.class_path):
                super().instantiate_classes()
        self.model.allow_untrained = bool(config.get("allow_untrained"))
        if self.subcommand == "fit":
            self.model.refuse_training_free()
        tiling = Tiling.of(config.get("tile"), config.get("overlap"), config.data.batch_size)
        if tiling is not None:
            tiling.apply(self.model)
        self.datamodule.require(requirements_of(self.model))

    def _run_logger(self, config: Namespace) -> RunLogger:
        """Returns the logger that owns the run folder; a folder that cannot be is refused."""
        verb = str(self.subcommand)
        names = [name for name in list_methods() if resolve(name).class_path == config.model.class_path]
        data = data_name(config.data.get({"fit": "train", "validate": "val"}.get(verb, verb)))
        return RunLogger(
            root=config.trainer.default_root_dir or "runs",
            method=names[0] if names else get_method(config.model.class_path).__name__,
            name=run_name(verb, data or slug(config.data.get("split_protocol") or "")),
            output=config.get("output"),
            resumes=verb == "predict",
            log=config.trainer.logger is not False,
        )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Builds the trainer; the first of its loggers owns the run folder, whatever else logs there."""
        verb, config = str(self.subcommand), self.config[self.subcommand]
        chosen = self.config_init[verb].trainer.logger
        others = chosen if isinstance(chosen, list) else [chosen]
        kept = [one for one in others if one is not None and not isinstance(one, bool)]
        kwargs = {"logger": [self._folder, *kept], "plugins": self._plugins(verb), **kwargs}
        self._add_checkpoints(verb)
        if config.trainer.fast_dev_run:  # a trial keeps nothing
            callbacks = self.trainer_defaults["callbacks"]
            self.trainer_defaults["callbacks"] = [one for one in callbacks if not isinstance(one, Predictions)]
        elif verb == "predict":  # its own progress tells images a second
            predictions = next(one for one in self.trainer_defaults["callbacks"] if isinstance(one, Predictions))
            predictions.progress = config.trainer.enable_progress_bar is not False
            kwargs = {"enable_progress_bar": False, **kwargs}
        if verb == "fit" and get_method(config.model.class_path).staged and has_ddp(config.trainer.as_dict()):
            kwargs = {"strategy": "ddp_find_unused_parameters_true", **kwargs}
        with trainer_errors(config.trainer.as_dict()):
            trainer: Trainer = super().instantiate_trainer(**kwargs)
        own_signals(trainer)
        watch_others(trainer, verb)
        return trainer

    def _plugins(self, verb: str) -> list[Any]:
        """Returns the trainer's plugins: how checkpoints are written and read is ours, unless it was chosen."""
        chosen = self.config_init[verb].trainer.plugins
        given = chosen if isinstance(chosen, list) else [] if chosen is None else [chosen]
        return given if any(isinstance(one, CheckpointIO) for one in given) else [*given, SealedCheckpointIO()]

    def _add_checkpoints(self, verb: str) -> None:
        """Adds the checkpoints of a training, unless they were chosen."""
        settings = self.config_init[verb].trainer
        given = settings.callbacks or []
        given = given if isinstance(given, list) else [given]
        wanted = verb == "fit" and settings.enable_checkpointing is not False and not settings.fast_dev_run
        if wanted and not any(isinstance(one, Checkpoint) for one in given):
            self.trainer_defaults["callbacks"].append(TwoCheckpoints())

    def before_instantiate_classes(self) -> None:
        """Chooses the config's file name, the checkpoint and the published number of epochs."""
        verb = str(self.subcommand)
        config = self.config[verb]
        self.save_config_kwargs = {"config_filename": f"{verb}.yaml", "overwrite": True}
        method = get_method(config.model.class_path)
        self._choose_image_size(method, config)
        check_options(verb, config)
        check_trainer(config.trainer.as_dict())
        if verb == "fit" and method.epochs and config.trainer.max_epochs is None and config.trainer.max_steps == -1:
            config.trainer.max_epochs = method.epochs
        if config.get("ckpt_path") and config.ckpt_path not in _NAMED:
            run = run_meant(config.ckpt_path, config.trainer.default_root_dir or "runs")
            file, note = resume_point(run) if verb == "fit" else (find_checkpoint(run), "")
            config.ckpt_path = str(file)
            self._chosen += [note] if note else []
        self._limited = tell_limits(verb, config)
        self._chosen += [self._limited] if self._limited else []

    def _choose_image_size(self, method: type[Method], config: Namespace) -> None:
        """Takes the encoder's own image size where none was given and the method's does not suit the encoder."""
        settings = config.model.get("init_args") or Namespace()
        size = None if self._sized else default_image_size(method, settings.as_dict())
        if size is not None:
            settings.image_size = size
            self._chosen.append(f"image_size: {size} (of {settings.backbone})")

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs the verb; code of others that ends Python does not make that a success."""
        with _no_exit(self.config[subcommand].model.class_path):
            super()._run_subcommand(subcommand)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        ours = {"predict": {"return_predictions": False}, "test": {"verbose": False}, "validate": {"verbose": False}}
        return {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True, **ours.get(subcommand, {})}

    @property
    def status(self) -> int:
        """The exit status of the run: 0, or what the callback that knows the predictions says."""
        if not self.trainer.is_global_zero or "nothing is" in self._limited:
            return 0  # a process beside the first that ended otherwise would end all of them
        kind: Any = {"predict": Predictions, "test": Evaluator, "validate": Evaluator}.get(str(self.subcommand), ())
        fail = bool(self.config[self.subcommand].get("fail_on_anomaly"))
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        says = [callback.exit_status for callback in callbacks if isinstance(callback, kind)]
        return int(says[0](fail)) if says else 0


def _say(text: str) -> None:
    """Prints a line, once for all processes."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(text, flush=True)


@contextmanager
def _verb(verb: str) -> Iterator[None]:
    """Tells the loader of configs which verb reads them."""
    token = PARSED_VERB.set(verb)
    try:
        yield
    finally:
        PARSED_VERB.reset(token)


@contextmanager
def _no_exit(method: str) -> Iterator[None]:
    """Turns ``sys.exit`` in a method, or in what else a config names, into an error."""
    try:
        yield
    except SIGTERMException:
        raise
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning's, after Ctrl+C
            raise
        raise MethodError(f"{method}, or what else runs with it, ends Python (SystemExit {error.code})") from error


@contextmanager
def _bare_errors() -> Iterator[None]:
    """Raises an error of ours bare, not in jsonargparse's wrapping."""
    try:
        yield
    except ValueError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, VladError):
            cause = cause.__cause__
        raise cause or error from None


def _model_of(checkpoint: str) -> dict[str, Any]:
    """Returns the ``model`` section that a checkpoint's run had: its class and hyper-parameters."""
    content = read_checkpoint(checkpoint)
    named_method(content["vlad"]["class_path"], checkpoint)  # here a missing plug-in is told in full
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
        r".*your dataloader is not resumable.*",  # it is, by its place
        r".*predict returned None.*",  # no image of a batch could be read
        r".*Total length of `DataLoader` across ranks is zero.*",  # all is scored already
        r".*You defined a `validation_step` but have no `val_dataloader`.*",
    ):
        warnings.filterwarnings("ignore", message=message)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Turns errors of Lightning and torch that the user can fix into one line."""
    try:
        yield
    except MisconfigurationException as error:
        raise OptionError(first_sentence(error)) from error
    except ValueError as error:
        if "numpy accepts from" in str(error):
            raise OptionError(f"seed_everything {error}") from error
        raise
    except RuntimeError as error:
        text = first_sentence(error)
        if "out of memory" in text.lower() or "can't allocate memory" in text:
            raise OptionError(f"out of memory: give a smaller --data.batch_size ({text})") from error
        if "DataLoader worker" in text and "killed" in text:
            raise OptionError(
                f"a process that reads images was ended from outside, as for want of memory: give a smaller "
                f"--data.num_workers or --data.batch_size ({text})"
            ) from error
        if "PytorchStreamWriter" in text or "No space left" in text:
            raise OutputError(f"a checkpoint cannot be written: {text}; free some space, or give --output") from error
        raise


def run(arguments: list[str] | None = None) -> int:
    """Runs a verb of LightningCLI.

    Args:
        arguments: The verb and its options.

    Returns:
        Exit status: 0 all is well, 1 nothing usable, 3 with error rows, 4 anomalous with ``--fail-on-anomaly``, 130 and
        143 stopped.
    """
    if not os.environ.get("VLAD_DEBUG"):
        _quiet()
    command = sys.argv[1:] if arguments is None else arguments
    verb = command[0] if command else ""
    callbacks = [Results(), Predictions(), RunRecord(["vlad", *command]), SaveWhenStopped()]
    try:
        with failing_together(verb), _plain_errors():
            cli = VladCLI(
                Method,
                AnomalyDataModule,
                verb=verb,
                subclass_mode_model=True,
                auto_configure_optimizers=False,
                seed_everything_default=0,
                parser_class=VladParser,
                save_config_callback=SaveConfig,
                parser_kwargs={"parser_mode": LOADER},
                trainer_defaults={"callbacks": callbacks},
                args=arguments,
            )
    except SIGTERMException:  # Lightning's own, at the end of a batch
        raise Terminated from None
    except SystemExit as stop:  # Lightning's, after Ctrl+C
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    leave_processes()
    return cli.status
