"""Which options each verb has: one that would have no effect is rejected."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vlad.errors import OptionError

__all__ = ["OPTIONS", "VERBS", "drop_foreign", "foreign", "refuse_foreign"]

VERBS = ("fit", "validate", "test", "predict")

_TRAINING = (
    *("max_epochs", "min_epochs", "max_steps", "min_steps", "max_time", "limit_train_batches", "overfit_batches"),
    *("val_check_interval", "check_val_every_n_epoch", "num_sanity_val_steps", "log_every_n_steps"),
    *("enable_checkpointing", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm"),
    *("detect_anomaly", "reload_dataloaders_every_n_epochs", "sync_batchnorm"),
)

# option, or section of options -> the verbs that have it; what is not named here every verb has
OPTIONS: dict[str, tuple[str, ...]] = {
    **{f"trainer.{name}": ("fit",) for name in _TRAINING},
    "trainer.limit_val_batches": ("fit", "validate"),
    "trainer.limit_test_batches": ("test",),
    "trainer.limit_predict_batches": ("predict",),
    "data.val": ("fit", "validate"),
    "data.test": ("test",),
    "data.predict": ("predict",),
    "data.categories": ("fit", "validate", "test"),
    "data.split_protocol": ("fit", "test"),
    "data.class_name_style": ("fit", "validate", "test"),
    "data.shuffle": ("fit",),
    "data.augment": ("fit",),
    "data.textures": ("fit",),
    "data.images_per_category": ("fit",),
    "data.shots": ("validate", "test", "predict"),
    "data.references": ("validate", "test", "predict"),
    "data.roi": ("test", "predict"),
    "data.ignore": ("test", "predict"),
    "engine": ("test", "predict"),
    "metrics": ("fit", "validate", "test"),
    "references": ("validate", "test", "predict"),
    "heatmaps": ("test", "predict"),
    "decisions": ("test", "predict"),
    "maps": ("test", "predict"),
    "report": ("test", "predict"),
    "allow_untrained": ("validate", "test", "predict"),
    "tile": ("test", "predict"),
    "overlap": ("test", "predict"),
    "fail_on_anomaly": ("predict",),
    "trainer.barebones": (),  # leaves no trace of a run, and is for measuring Lightning itself
    "return_predictions": (),  # results are written as they come; vlad never keeps those of a whole run
    "weights_only": (),  # checkpoints are never read in a way that runs code
    "verbose": (),
}


def foreign(verb: str) -> list[str]:
    """Returns the options and sections that a verb does not have."""
    return [option for option, verbs in OPTIONS.items() if verb not in verbs]


def refuse_foreign(verb: str, given: Iterable[str]) -> None:
    """Refuses options of the command line that the verb does not have and another has.

    Args:
        verb: The verb.
        given: Dotted options.

    Raises:
        OptionError: One of them; the message says where it belongs.
    """
    for option in given:
        for name in foreign(verb):
            if option == name or option.startswith((f"{name}.", f"{name}+")):
                *others, last = OPTIONS[name] or [""]
                verbs = f"{', '.join(others)} and {last}" if others else last
                fix = f"it is an option of vlad {verbs}" if last else "leave it out"
                raise OptionError(f"{option} does nothing in vlad {verb}; {fix}")


def drop_foreign(verb: str, tree: Any) -> Any:
    """Returns a loaded config without what belongs to other verbs, so that one config serves them all."""
    if not isinstance(tree, dict):
        return tree
    kept = dict(tree)
    for option in foreign(verb):
        section, _, name = option.partition(".")
        if not name:
            kept.pop(section, None)
        elif isinstance(kept.get(section), dict):
            kept[section] = {key: value for key, value in kept[section].items() if key.rstrip("+") != name}
    return kept
