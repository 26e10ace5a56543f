"""A decision made with the scores of an exported graph, and which images must not serve two purposes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vlad.errors import OptionError

if TYPE_CHECKING:
    import pandas as pd

    from vlad.detector import Detector
    from vlad.export.check import CheckSet, Scorer

__all__ = ["calibrate", "refuse_known"]


def calibrate(
    detector: Detector,
    score: Scorer,
    good: str,
    class_name: str,
    rate: float,
    run: str | None,
    digests: Mapping[str, str],
) -> tuple[dict[str, Any] | None, str]:
    """Makes a decision from normal images, as ``vlad calibrate`` does, with the scores of a graph.

    Args:
        detector: The method.
        score: The graph.
        good: Normal images; "" for no decision.
        class_name: What is in them.
        rate: Share of normal images that may be called anomalous.
        run: The run folder or checkpoint that the method comes from.
        digests: SHA-256 of the graph's files, which the decision is bound to.

    Returns:
        The decision as its file holds it, or None; and a line about it.

    Raises:
        DecisionError: Too few images for the rate.
    """
    from vlad.decision import find_decision
    from vlad.decision.make import Wish, make_decision
    from vlad.decision.records import run_folder
    from vlad.decision.scoring import Scored
    from vlad.detector.calibration import choose, find_normal
    from vlad.detector.images import GivenImages

    method = detector.method
    if not good:
        own = find_decision(run)
        left = f"decision: {own} is left out, it was made with vlad's scores and not with this graph's" if own else ""
        return None, f"{left or 'decision: none'}; --calibrate GOOD_FOLDER makes one on the graph"
    wish = Wish(rate=rate)
    wish.check()
    chosen, found = choose(find_normal(good, class_name), method, detector.references, run)
    wish.check_counts(chosen.frame)
    count = len(chosen.frame)
    scores, maxima, levels = (np.full(count, np.nan, np.float32) for _ in range(3))
    errors: dict[int, str] = {}
    for batch in GivenImages(found, detector.preprocess, detector.reading).batches(4):
        errors |= dict(batch["failed"])
        if "index" not in batch:
            continue
        maps, values = score(batch["image"].numpy())
        rows = batch["index"].numpy()
        scores[rows], maxima[rows] = values, maps.max((1, 2))
        levels[rows] = torch.from_numpy(maps).flatten(1).median(1).values.numpy()
    scored = Scored(scores, maxima, levels, errors, {}, "32-true")
    data = detector.data_options()
    decision = make_decision(method, chosen.frame, chosen.keys, scored, wish, data=data, run=run_folder(run))
    engine = f"exported {' '.join(digest[:16] for digest in digests.values())}"
    decision = dataclasses.replace(decision, identity={**decision.identity, "engine": engine})
    plain: dict[str, Any] = json.loads(decision.to_json())
    (rule,) = decision.rules.values()
    return plain, f"decision: anomalous from a score of {rule.threshold:.6g} on ({count} normal images, rate {rate:g})"


def refuse_known(frame: pd.DataFrame, sets: Iterable[CheckSet], good: str, class_name: str, run: str | None) -> None:
    """Refuses quantisation images that a decision is made with or that the loss is measured on.

    Args:
        frame: Index of the quantisation images.
        sets: Images of the check.
        good: Images that a decision is made with, or "".
        class_name: What is in them.
        run: The run folder or checkpoint of the method, which may hold a decision.

    Raises:
        OptionError: Some are; the message names the first.
    """
    import pandas as pd

    from vlad.decision import Decision, find_decision
    from vlad.decision.records import content_keys
    from vlad.detector.calibration import find_normal

    used: dict[str, str] = {}
    own = find_decision(run)
    if own is not None:
        rules = Decision.load(own).rules.values()
        used |= {digest: f"the run's decision was made with ({own})" for rule in rules for digest in rule.digests}
    if good:
        used |= dict.fromkeys(content_keys(find_normal(good, class_name).frame), "--calibrate takes too")
    files = [file for one in sets if one.labelled for file in one.files]
    checked = pd.DataFrame({"image_path": files, "row_crop": "", "frame": -1})
    used |= dict.fromkeys(content_keys(checked), "--check measures the loss on")
    for path, key in zip(frame["image_path"], content_keys(frame), strict=True):
        if key and key in used:
            raise OptionError(f"--quantise-images holds images that {used[key]} (first: {path}); give others")
