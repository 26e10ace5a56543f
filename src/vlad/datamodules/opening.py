"""Opening image files: by content, regular files alone, not above a number of pixels, failures naming their file."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import IO, Any

from PIL import Image, ImageFile, UnidentifiedImageError

from vlad.datamodules.image_files import looks_like, printable, refuse_special
from vlad.errors import DataError, OptionError

__all__ = ["PLAIN", "Reading", "identify", "naming", "read_bytes", "source"]

# What Pillow says of damaged metadata names neither file nor fix. Appended, so that a program's own filters count.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.", append=True)

BROKEN = (
    UnidentifiedImageError,
    OSError,
    SyntaxError,
    LookupError,
    TypeError,
    ValueError,
    EOFError,
    MemoryError,
    OverflowError,
    AssertionError,
    Warning,
    struct.error,
    Image.DecompressionBombError,
)
"""Everything that Pillow raises at files that are damaged; warnings too, where a program makes errors of them."""


@dataclass(frozen=True)
class Reading:
    """How the images of a run are read: one rule for all of them.

    Attributes:
        intensity_range: Values that become black and white in images of more than 8 bits per channel: 16 bit, 32 bit,
            float. None: by the kind of image, see ``docs/data.md``.
        max_pixels: Images with more pixels are refused before they are decoded.
    """

    intensity_range: tuple[float, float] | None = None
    max_pixels: int = 89_478_485  # where Pillow warns: decoded and normalised that takes 0.7 GiB

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            OptionError: A range that is none, or a number of pixels below 1.
        """
        if self.intensity_range is not None:
            low, high = self.intensity_range
            if not (abs(low) < float("inf") and abs(high) < float("inf") and low < high):
                raise OptionError(
                    f"data.intensity_range [{low}, {high}] is no range: give the values that are black and white, "
                    "the lower one first"
                )
        if self.max_pixels < 1:
            raise OptionError(f"data.max_pixels is {self.max_pixels}; give the largest number of pixels of an image")


PLAIN = Reading()
"""How images are read where nothing is said."""


@contextmanager
def naming(kind: str, path: str) -> Iterator[None]:
    """Turns whatever goes wrong in decoding into one error that names the file.

    Raises:
        DataError: In place of anything that Pillow raises.
    """
    try:
        yield
    except FileNotFoundError as error:
        target = os.readlink(path) if os.path.islink(path) else ""
        if target:
            text = f"is a link to {printable(target)}, which does not exist; mount its disk, fetch it or remove it"
            raise DataError(f"{kind} {printable(path)} {text}") from error
        raise DataError(f"{kind} {printable(path)} does not exist (any more)") from error
    except BROKEN as error:
        text = f"cannot read {kind} {printable(path)} ({cause_of(error)}); replace it or remove it"
        raise DataError(text) from error


def cause_of(error: BaseException) -> str:
    """Returns what an error of decoding says, in a few printable words."""
    if isinstance(error, UnidentifiedImageError):
        return str(error) if str(error).startswith("no ") else "no known image format"
    if isinstance(error, Image.DecompressionBombError):
        return "more pixels than Pillow decodes of this format; convert it to PNG or TIFF"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).splitlines()
    return printable(lines[0])[:200] if lines and lines[0] else type(error).__name__


def _open(path: str, kind: str) -> IO[bytes]:
    """Opens a regular file, and nothing else: to open a FIFO already would wait."""
    refuse_special(path, os.stat(path).st_mode, kind)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags), "rb")
    try:
        status = os.fstat(file.fileno())  # it may have changed since
        refuse_special(path, status.st_mode, kind)
        if not status.st_size:
            raise OSError("the file is empty")
    except BaseException:
        file.close()
        raise
    return file


@contextmanager
def source(path: str, content: bytes | None = None, *, kind: str = "image") -> Iterator[IO[bytes]]:
    """Opens a file to read it, or the bytes that were read of it already.

    Raises:
        OSError: The file cannot be opened, or is empty.
        DataError: It is no regular file.
    """
    if content is not None and not content:
        raise OSError("the file is empty")
    with io.BytesIO(content) if content is not None else _open(path, kind) as file:
        yield file


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Returns the bytes of a file.

    Raises:
        DataError: There is none, it is empty, cannot be read, or is a folder, FIFO, socket or device; these are not
            opened.
    """
    with naming("image", str(path)), source(str(path)) as file:
        size = os.fstat(file.fileno()).st_size
        if size > _MOST_BYTES:
            raise OSError(f"the file has {size:,} bytes, more than {_MOST_BYTES:,}")
        return file.read()


_MOST_BYTES = 2 << 30  # of a file that is read as a whole; the pixels that are allowed have less

_BY_CONTENT = {
    "PNG": "Png",
    "JPEG": "Jpeg",
    "TIFF": "Tiff",
    "BMP": "Bmp",
    "WEBP": "WebP",
    "GIF": "Gif",
    "PPM": "Ppm",
    "JPEG2000": "Jpeg2K",
    "AVIF": "Avif",
    "QOI": "Qoi",
    "PSD": "Psd",
    "DDS": "Dds",
    "FITS": "Fits",
    "SUN": "Sun",
}
"""Formats that begin with a mark of their own, and Pillow's modules for them. Others are tried by the suffix."""

_NEVER = {"EPS", "WMF", "MPEG", "PDF", "BUFR", "GRIB", "HDF5", "IPTC"}
"""No pixels: drawings, which other programs draw, and files that Pillow names without reading them."""

Opener = tuple[Callable[..., ImageFile.ImageFile], Callable[[bytes], Any] | None]


@cache
def _openers() -> dict[str, Opener]:
    for module in _BY_CONTENT.values():
        with contextlib.suppress(ImportError):  # AVIF came late
            import_module(f"PIL.{module}ImagePlugin")
    return {name: Image.OPEN[name] for name in _BY_CONTENT if name in Image.OPEN}


@cache
def _opener_of(suffix: str) -> tuple[str, Opener] | None:
    """Returns what Pillow opens files of a suffix with."""
    Image.init()
    name = Image.EXTENSION.get(suffix, "")
    return None if name in _NEVER or name not in Image.OPEN else (name, Image.OPEN[name])


def identify(file: IO[bytes], path: str) -> ImageFile.ImageFile:
    """Opens an image by its content, as ``PIL.Image.open`` does, but for its limit of pixels.

    Pillow's limit belongs to the whole program, so it is neither asked nor changed; see :func:`check_pixels`.

    Args:
        file: The open file; it has to stay open until the pixels are loaded.
        path: Its name, of which only the suffix counts: for formats that do not begin with a mark.

    Raises:
        UnidentifiedImageError: It is no image.
        OSError: It is one, and damaged.
    """
    head = file.read(16)
    fault: BaseException | None = None
    openers = _openers()
    tried = dict(openers)
    if not any(accept and accept(head) for _, accept in openers.values()):
        by_suffix = _opener_of(os.path.splitext(path)[1].lower())
        tried = dict([by_suffix]) if by_suffix else {}
    for factory, accept in tried.values():
        accepted = accept(head) if accept else True
        if isinstance(accepted, str):  # the format is known, and this Pillow was built without it
            fault = UnidentifiedImageError(f"no way to read it: {accepted}")
        elif accepted:
            file.seek(0)
            try:
                return factory(file, "")
            except (SyntaxError, LookupError, TypeError, struct.error) as error:
                fault = error
    if isinstance(fault, UnidentifiedImageError):
        raise fault
    if looks_like(head) == "HEIC":
        raise UnidentifiedImageError("no format that is read: HEIC; convert it to JPEG or PNG")
    if fault is not None:
        raise UnidentifiedImageError(f"no image that can be read: {cause_of(fault)}") from fault
    raise UnidentifiedImageError("no known image format")


def check_pixels(image: Image.Image, path: str, reading: Reading, kind: str = "image") -> None:
    """Refuses images of too many pixels by their header.

    Raises:
        DataError: More than ``reading.max_pixels``.
    """
    check_size(image.width, image.height, path, reading, kind)


def check_size(width: int, height: int, path: str, reading: Reading, kind: str = "image") -> None:
    """Refuses too many pixels.

    Raises:
        DataError: More than ``reading.max_pixels``.
    """
    pixels = width * height
    if pixels > reading.max_pixels:
        raise DataError(
            f"cannot read {kind} {printable(path)} ({width}x{height} are {pixels:,} pixels, above the limit of "
            f"{reading.max_pixels:,}); if you trust it, give --data.max_pixels {pixels}"
        )


def load(image: ImageFile.ImageFile) -> None:
    """Decodes the pixels, however many: their number has been checked.

    Raises:
        OSError: The file is damaged, or of a format that Pillow decodes up to its own limit only.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit and image.format == "TIFF" and image.width * image.height > 2 * limit:
        # Pillow checks again where it makes room for the pixels, so the room is made here.
        image.im = Image.new(image.mode, getattr(image, "_tile_size", image.size)).im
    image.load()
