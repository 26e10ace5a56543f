"""The errors vlad raises for bad input: short, naming the culprit and the fix.

The command line prints their text alone; a traceback is shown only when ``VLAD_DEBUG=1`` is set.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class VladError(Exception):
    """Base of all errors caused by what the user gave, not by a defect of vlad."""


class DataError(VladError):
    """A data set, table, image or mask cannot be used as it is."""


class BackboneError(VladError):
    """A CLIP backbone cannot be found, loaded or driven."""


class WeightsError(VladError):
    """A checkpoint or weights file cannot be read or does not fit the method."""


class RegistryError(VladError):
    """A method name is unknown, or its plug-in cannot be imported."""


class OutputError(VladError):
    """Results cannot be written: the disk is full, the folder read-only, and the like."""


class OptionError(VladError):
    """The command line is wrong."""


class MethodError(VladError):
    """A method is asked for something it cannot do."""


class DecisionError(VladError):
    """A decision cannot be made, cannot be read, or was made for something else than what is scored."""


def nearest(name: str, known: Iterable[str], *, count: int = 3) -> str:
    """Returns a sentence that names the known words nearest to a wrong one.

    Args:
        name: The word that was not found.
        known: All words that would have been right.
        count: How many near words to name at most.

    Examples:
        >>> nearest("sdp_pluss", ["sdp", "sdp_plus"])
        'did you mean sdp_plus or sdp?'
        >>> nearest("xyz", ["sdp", "sdp_plus"])
        'known: sdp, sdp_plus'
    """
    spelled = {word.lower().replace("-", "_"): word for word in sorted(known)}
    close = get_close_matches(name.lower().replace("-", "_"), spelled, n=count, cutoff=0.5)
    close, known = [spelled[word] for word in close], sorted(spelled.values())[:40]
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known) or 'none'}"
