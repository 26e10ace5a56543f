"""Videos as rows of frames, decoded in order with OpenCV."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from vlad.datamodules.image_files import printable, refuse_special
from vlad.errors import DataError

__all__ = ["VIDEO_SUFFIXES", "count_frames", "read_frame", "video_size"]

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"})


def _open(path: str) -> Any:
    """Opens a video; regular files alone, as a FIFO would be waited for.

    Raises:
        OSError: It is no video.
        DataError: It is no regular file.
    """
    import cv2

    refuse_special(path, os.stat(path).st_mode, "video")
    capture = cv2.VideoCapture(path)
    if not capture.isOpened():
        raise OSError("no known video format")
    return capture


class _Reader:
    """Reads frames; going forward is cheap, going back starts anew."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.capture, self.next = _open(path), 0

    def read(self, frame: int) -> np.ndarray:
        if frame < self.next:
            self.capture.release()
            self.capture, self.next = _open(self.path), 0
        while self.next < frame and self.capture.grab():
            self.next += 1
        found, pixels = self.capture.read()
        if not found or self.next != frame:
            raise OSError(f"frame {frame} cannot be decoded")
        self.next += 1
        return np.ascontiguousarray(pixels[..., ::-1])


class _Readers(threading.local):
    """The videos that a thread reads: two threads would push one video to and fro."""

    def __init__(self) -> None:
        self.open: dict[tuple[object, ...], _Reader] = {}


_readers = _Readers()


def read_frame(path: str, frame: int) -> np.ndarray:
    """Returns a frame of a video as RGB (H, W, 3), uint8.

    Raises:
        OSError: The file is no video, or the frame cannot be decoded.
        DataError: It is no regular file.
    """
    status = os.stat(path)
    key = (path, status.st_mtime_ns, status.st_size, os.getpid())
    reader = _readers.open.pop(key, None) or _Reader(path)
    while len(_readers.open) > 1:
        _readers.open.pop(next(iter(_readers.open)))
    _readers.open[key] = reader
    return reader.read(frame)


def video_size(path: str) -> tuple[int, int]:
    """Returns the width and height of a video's frames.

    Raises:
        OSError: The file is no video.
        DataError: It is no regular file.
    """
    import cv2

    capture = _open(path)
    width, height = (int(capture.get(what)) for what in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    capture.release()
    return width, height


def count_frames(path: Path) -> int:
    """Returns how many frames of a video can be decoded.

    Headers lie: frames are counted by going through them, without decoding pixels where the format allows.

    Raises:
        DataError: The file is no video.
    """
    count = 0
    try:
        capture = _open(str(path))
        while capture.grab():
            count += 1
        capture.release()
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read video {printable(path)}; replace it or remove it") from error
    if not count:
        raise DataError(f"cannot read video {printable(path)}; replace it or remove it")
    return count
