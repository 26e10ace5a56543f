"""Names of the files that hold an image's outputs: below their folder, one for each image, whatever names data have."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache

__all__ = ["output_names", "safe_name"]

_LENGTH = 200  # bytes of one part; file systems allow 255, and a suffix follows
_WHOLE = 1000  # bytes of a whole name; paths may have 4096, and the run folder's comes before
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)  # of Windows
_LOOKS_MADE = re.compile(r".*~[0-9a-f]{8,16}", re.DOTALL)
_FILE = re.compile(r".*\.(png|jpe?g|npy|jsonl?|csv|html?)", re.IGNORECASE | re.DOTALL)  # outputs may be called so
_PLAIN = re.compile(r"[\w\-. ()+,=@#%&!;{}\[\]^$~]+")  # most names: looked at as a whole
_REPLACED = set('/\\<>:"|?*')
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


@lru_cache(maxsize=4096)  # folders come again
def safe_name(text: str, *, folder: bool = False) -> str:
    """Returns a text as the name of one file or folder, on any system: no separators, no ``..``, nothing unprintable.

    Texts that need no change keep their name; others get a digest, so that two texts do not share a name.

    Args:
        text: A category, a data set, a part of an image id: anything.
        folder: Whether it is to be a folder, which must not be called as the file of another image may be.

    Examples:
        >>> safe_name("metal_nut")
        'metal_nut'
        >>> safe_name("../../etc")
        '____etc~74ccf3c5'
    """
    plain = _PLAIN.fullmatch(text)
    name = text if plain else "".join("_" if _is_replaced(letter) else letter for letter in text)
    odd = (
        name != text
        or name in {"", ".", ".."}
        or len(name.encode()) > _LENGTH
        or name[-1] in ". "
        or name[0] == " "
        or _RESERVED.fullmatch(name)
        or _LOOKS_MADE.fullmatch(name)
        or (folder and _FILE.fullmatch(name))
    )
    return _with_digest(name.replace("..", "_"), text, 8) if odd else name


def _is_replaced(letter: str) -> bool:
    return letter in _REPLACED or (not letter.isalnum() and unicodedata.category(letter) in _HIDDEN)


def _with_digest(name: str, text: str, digits: int, limit: int = _LENGTH) -> str:
    digest = "~" + hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:digits]
    return name.encode()[: limit - len(digest)].decode(errors="ignore") + digest


def output_names(images: Iterable[tuple[str, str, str]]) -> list[str]:
    """Returns where the outputs of each image go: a relative path without suffix, below a folder of outputs.

    It is ``dataset/category/image_id`` (``category/image_id`` where both are one), each part a :func:`safe_name`. Names
    are contained, bounded in length, and unique also where a file system takes capitals for small letters: names that
    differ in nothing else all get a digest. They depend on nothing but the set of images.

    Args:
        images: Data set, category and id of all images of a run; equal ones have one name.

    Examples:
        >>> output_names([("mvtec_ad", "bottle", "test/good/000"), ("photos", "photos", "a")])
        ['mvtec_ad/bottle/test/good/000', 'photos/a']
        >>> output_names([("a", "a", "X"), ("a", "a", "x")])
        ['a/X~32d33d700262697b', 'a/x~795c8383f3533414']
    """
    images = list(images)
    names = [_name(*image) for image in images]
    alike: dict[str, set[tuple[str, str, str]]] = defaultdict(set)
    folded = [_folded(name) for name in names]
    for image, key in zip(images, folded, strict=True):
        alike[key].add(image)
    return [
        name if len(alike[key]) == 1 else _told_apart(name, image)
        for image, name, key in zip(images, names, folded, strict=True)
    ]


def _name(dataset: str, category: str, image_id: str) -> str:
    *folders, file = [*dict.fromkeys((dataset, category)), *image_id.split("/")]
    name = "/".join([*(safe_name(part, folder=True) for part in folders), safe_name(file)])
    if len(name.encode()) <= _WHOLE:
        return name
    return _with_digest(name.replace("/", "_"), "\0".join((dataset, category, image_id)), 16)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())


def _told_apart(name: str, image: Sequence[str]) -> str:
    above, slash, last = name.rpartition("/")
    return above + slash + _with_digest(last, "\0".join(image), 16)
