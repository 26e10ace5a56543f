"""Videos as rows of frames, decoded in order with OpenCV."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vlad.errors import DataError

__all__ = ["VIDEO_SUFFIXES", "count_frames", "read_frame"]

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"})


class _Reader:
    """Reads frames; going forward is cheap, going back starts anew."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._open()

    def _open(self) -> None:
        import cv2

        self.capture: Any = cv2.VideoCapture(self.path)
        self.next = 0
        if not self.capture.isOpened():
            raise OSError("no known video format")

    def read(self, frame: int) -> np.ndarray:
        if frame < self.next:
            self.capture.release()
            self._open()
        while self.next < frame and self.capture.grab():
            self.next += 1
        found, pixels = self.capture.read()
        if not found or self.next != frame:
            raise OSError(f"frame {frame} cannot be decoded")
        self.next += 1
        return np.ascontiguousarray(pixels[..., ::-1])


@lru_cache(maxsize=2)
def _reader(path: str) -> _Reader:
    return _Reader(path)


def read_frame(path: str, frame: int) -> np.ndarray:
    """Returns a frame of a video as RGB (H, W, 3), uint8.

    Raises:
        OSError: The file is no video, or the frame cannot be decoded.
    """
    return _reader(path).read(frame)


def count_frames(path: Path) -> int:
    """Returns how many frames of a video can be decoded.

    Headers lie: frames are counted by going through them, without decoding pixels where the format allows.

    Raises:
        DataError: The file is no video.
    """
    import cv2

    capture = cv2.VideoCapture(str(path))
    count = 0
    while capture.isOpened() and capture.grab():
        count += 1
    capture.release()
    if not count:
        raise DataError(f"cannot read video {path}; replace it or remove it")
    return count
