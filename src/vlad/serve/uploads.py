"""From an upload to an image: in memory, bounded, and decoded as ``vlad predict`` decodes files."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vlad.datamodules.decode import Reading, load_image, page_count
from vlad.datamodules.image_files import printable
from vlad.errors import DataError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.requests import Request

__all__ = ["Refused", "Upload", "decode", "read_upload"]

_FORM = 64 << 10  # bytes that a multipart body may have beside the image: boundaries, headers, the class name
_LONGEST = 200  # letters of a class name


class Refused(Exception):
    """A request that gets no score.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Upload(NamedTuple):
    """What a request holds.

    Attributes:
        content: The bytes of the image file.
        name: Its name, of which only the ending counts; ``upload`` where none was given.
        class_name: What is in the image; None where that was not said.
    """

    content: bytes
    name: str
    class_name: str | None


async def read_upload(request: Request, most: int) -> Upload:
    """Reads an image from a request: its body, or the only file of a form.

    Args:
        request: The request; the class name is a parameter of its address, or a field of the form, ``class_name``.
        most: Bytes that an image file may have.

    Raises:
        Refused: Too large (413), or not what is expected (400).
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    form = kind == "multipart/form-data"
    body = await _body(request, most + _FORM * form, most)
    class_name = request.query_params.get("class_name")
    name = "upload"
    if form:
        body, name, said = await _from_form(request, body)
        class_name = said if class_name is None else class_name
    if len(body) > most:
        raise _too_large(most)
    if not body:
        raise Refused(400, "there is no image: send its bytes as the body, or a form with one file")
    if class_name is not None and not 0 < len(class_name.strip()) <= _LONGEST:
        raise Refused(400, f"class_name has 1 to {_LONGEST} letters: name what is in the image, or leave it out")
    return Upload(body, name, class_name)


def _too_large(most: int) -> Refused:
    return Refused(413, f"the image has more than {most:,} bytes, the limit of this service (--max-upload)")


async def _body(request: Request, most: int, told: int) -> bytes:
    """Returns the body; one that says it is too large, or is, is not read to its end."""
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most:
        raise _too_large(told)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise _too_large(told)
        parts.append(part)
    return b"".join(parts)


async def _from_form(request: Request, body: bytes) -> tuple[bytes, str, str | None]:
    """Returns the file of a form, its name, and the class name."""
    from starlette.datastructures import UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser

    class InMemory(MultiPartParser):
        spool_max_size = len(body) + 1  # never to a temporary file: it is in memory already

    async def once() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await InMemory(request.headers, once(), max_files=1, max_fields=4).parse()
    except MultiPartException as error:
        raise Refused(400, f"the form cannot be read: {printable(error.message)[:200]}") from error
    except (KeyError, ValueError) as error:
        raise Refused(400, "the form cannot be read: it has no boundary, or one of strange letters") from error
    files = [value for value in form.values() if isinstance(value, UploadFile)]
    if not files:
        raise Refused(400, "the form has no file: send the image as a file of any field")
    said = form.get("class_name")
    content = await files[0].read()
    await form.close()
    return (
        content,
        printable((files[0].filename or "upload").replace("\\", "/").rpartition("/")[2])[:100],
        (said if isinstance(said, str) else None),
    )


def decode(upload: Upload, reading: Reading) -> np.ndarray:
    """Decodes an upload as ``vlad predict`` decodes files.

    Returns:
        RGB (H, W, 3), uint8, upright: an array, since a PIL image would keep the EXIF that says it has to be turned.

    Raises:
        DataError: It is no image that can be read, has too many pixels, or several pages.
    """
    try:
        image = load_image(upload.name, reading=reading, content=upload.content)
    except DataError as error:
        raise DataError(str(error).replace("--data.max_pixels", "--max-pixels")) from error
    pages = 1
    with suppress(DataError):  # formats that vlad reads and Pillow does not know have one page
        pages = page_count(upload.name, upload.content)
    if pages > 1:
        raise DataError(f"image {upload.name} has {pages} pages: send one at a time")
    return np.asarray(image)
