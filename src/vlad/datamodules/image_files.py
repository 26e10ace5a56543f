"""Which files are images, and all of them below a folder, with a word on every file that is none."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import Counter, deque
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from vlad.errors import DataError

__all__ = ["IMAGE_SUFFIXES", "Survey", "list_files", "looks_like", "printable", "refuse_special", "survey"]

_IMAGES = """
jpg jpeg jpe jfif jif mpo png apng bmp dib gif tif tiff webp avif avifs jp2 j2k j2c jpc jpf jpx pgm ppm pbm pnm pfm tga
icb vda vst pcx dcx sgi rgb rgba bw ras qoi dds psd fit fits ico icns cur im msp xbm xpm pcd fli flc pxr blp ftc ftu gbr
"""
_OTHERS = """
txt md rst csv tsv json jsonl xml yaml yml toml ini cfg log html htm css js py ipynb sh m pdf ps eps doc docx xls xlsx
ods odt ppt pptx parquet feather npy npz mat h5 hdf5 pkl pt pth ckpt onnx safetensors zip gz tar tgz bz2 xz 7z rar db
sqlite exe dll so mp4 avi mov mkv webm m4v mpg mpeg wmv mp3 wav svg lnk url aux idx part tmp bak lock
"""
IMAGE_SUFFIXES = frozenset("." + suffix for suffix in _IMAGES.split())
"""Suffixes of the still images that Pillow decodes by itself; what is in a file is told by its content all the same."""

_OTHER_SUFFIXES = frozenset("." + suffix for suffix in _OTHERS.split())
"""Suffixes of files that are not opened to see whether they are images."""

_FOREIGN = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIC images, which are not read: convert them to JPEG or PNG"),
    **dict.fromkeys((".dcm", ".dicom"), "DICOM images, which are not read: convert them to PNG"),
    **dict.fromkeys(
        (".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".srw", ".pef"),
        "raw images of cameras, which are not read: convert them to TIFF or PNG",
    ),
    **dict.fromkeys(
        (".exr", ".hdr", ".jxl", ".jxr", ".xcf", ".nii", ".mha", ".mhd", ".nrrd", ".svs", ".czi", ".nd2"),
        "images of kinds that are not read: convert them to TIFF or PNG",
    ),
}

_MOST_ROUTES = 16
"""How often a folder that several links lead to is listed; links among many folders make more routes than files."""


@dataclass(frozen=True)
class Survey:
    """All that is below a folder.

    Attributes:
        files: The images, as sorted POSIX paths relative to the folder. One that cannot be read is among them: its name
            says that somebody takes it for an image.
        ignored: Why → what was left out, as sorted paths; folders end in "/".
        repeated: Folders that were listed already by another route, through links; their files are listed again.
    """

    files: list[str]
    ignored: dict[str, list[str]] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)


def printable(text: object) -> str:
    r"""Returns a text, such as a path, that can be printed in one line whatever the file system allows in names.

    Examples:
        >>> print(printable("caf\udce9.png"), printable("two\nlines.png"), printable("Bär.png"))
        caf\xe9.png two\nlines.png Bär.png
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(_escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # a byte of a name that is not UTF-8
        return f"\\x{ord(letter) - 0xDC00:02x}"
    hidden = letter in _TURNING or unicodedata.category(letter) in _UNPRINTED
    return letter.encode("unicode_escape").decode() if hidden else letter


_UNPRINTED = {"Cc", "Cs", "Zl", "Zp"}
_TURNING = set("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")  # they hide an ending


def looks_like(head: bytes) -> str:
    """Returns the format of a file by its first 16 bytes: as Pillow names it, "HEIC", or "" where they tell nothing."""
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        if brand in {b"avif", b"avis"}:
            return "AVIF"
        return "HEIC" if brand in {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"} else ""
    if head[:4] == b"RIFF":
        return "WEBP" if head[8:12] == b"WEBP" else ""
    if head[:2] == b"BM":
        return "BMP" if head[6:10] == b"\0\0\0\0" and head[14:15] in _BMP_HEADERS else ""
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3] in b" \t\r\n" and head[3:4] in b"#0123456789":
        return "PPM" if len(head) > 3 else ""
    return next((name for start, name in _STARTS if head.startswith(start)), "")


_BMP_HEADERS = {bytes([length]) for length in (12, 40, 52, 56, 64, 108, 124)}
_STARTS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"qoif", "QOI"),
    (b"8BPS", "PSD"),
    (b"SIMPLE  =", "FITS"),
)


def list_files(root: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> list[str]:
    """Returns all image files below a folder, as sorted POSIX paths relative to it; see :func:`survey`."""
    return survey(root, suffixes).files


def survey(root: str | Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> Survey:
    """Looks at everything below a folder.

    A file is an image by its suffix, or, where its suffix says nothing, by its first bytes. Links to folders are
    followed, unless they lead to a folder that they are in. A broken link, a FIFO, a socket or a device with the name
    of an image is listed as one: that it cannot be read is told where it is read.

    Args:
        root: The folder.
        suffixes: Suffixes that are wanted, in lower case and with the dot.

    Returns:
        The images, and what else is there; no path of an ignored folder's content, but the folder itself.
    """
    return _Walk(Path(root), frozenset(suffixes)).run()


_Stop = tuple[str, frozenset[tuple[int, int]]]
"""A folder to be listed: its path, and which folders it is in."""


_RUN = {"run.json", "hparams.yaml"}  # what every run leaves


class _Walk:
    """One walk through a folder."""

    def __init__(self, root: Path, suffixes: frozenset[str]) -> None:
        self.root, self.suffixes = root, suffixes
        self.files: list[str] = []
        self.ignored: dict[str, list[str]] = {}
        self.repeated: list[str] = []
        self.visits: Counter[tuple[int, int]] = Counter()

    def run(self) -> Survey:
        # Folders before links to folders, near ones before far ones: each is listed by its own path first.
        folders: deque[_Stop] = deque([("", frozenset())])
        links: deque[_Stop] = deque()
        while folders or links:
            relative, above = (folders or links).popleft()
            try:
                status = os.stat(self.root / relative)
                entries = list(os.scandir(self.root / relative))
            except OSError as error:
                self._ignore(f"folders that cannot be listed ({error.strerror})", relative or "./")
                continue
            if not self._is_new((status.st_dev, status.st_ino), relative, above):
                continue
            if relative and {entry.name for entry in entries} >= _RUN:
                self._ignore("run folders of vlad", relative)
                continue
            below = above | {(status.st_dev, status.st_ino)}
            for entry in entries:
                is_folder = _is_folder(entry)
                if entry.name.startswith("."):
                    self._ignore("hidden", relative + entry.name + "/" * is_folder)
                elif is_folder:
                    (links if entry.is_symlink() else folders).append((relative + entry.name + "/", below))
                else:
                    self._look(relative + entry.name, entry)
        ignored = {reason: sorted(paths) for reason, paths in sorted(self.ignored.items())}
        return Survey(sorted(self.files), ignored, sorted(self.repeated))

    def _is_new(self, folder: tuple[int, int], relative: str, above: frozenset[tuple[int, int]]) -> bool:
        """Whether a folder has to be listed by this route."""
        if folder in above:
            self._ignore("links to a folder that they are in", relative)
            return False
        self.visits[folder] += 1
        if self.visits[folder] > _MOST_ROUTES:
            self._ignore(f"folders that more than {_MOST_ROUTES} links lead to", relative)
            return False
        if self.visits[folder] > 1:
            self.repeated.append(relative)
        return True

    def _ignore(self, reason: str, path: str) -> None:
        self.ignored.setdefault(reason, []).append(path)

    def _look(self, relative: str, entry: os.DirEntry[str]) -> None:
        suffix = os.path.splitext(entry.name)[1].lower()
        if suffix in self.suffixes:
            self.files.append(relative)
            return
        try:
            mode = entry.stat().st_mode
        except OSError:
            self._ignore("links that lead nowhere", relative)
            return
        if not stat.S_ISREG(mode):
            self._ignore(f"no files but {_kind_of(mode)}s", relative)
        elif suffix in _FOREIGN:
            self._ignore(_FOREIGN[suffix], relative)
        elif suffix in _OTHER_SUFFIXES or suffix in IMAGE_SUFFIXES:
            self._ignore("not an image by the suffix", relative)
        else:
            self._look_inside(relative)

    def _look_inside(self, relative: str) -> None:
        try:
            with open(self.root / relative, "rb", buffering=0) as file:
                found = looks_like(file.read(16))
        except OSError as error:
            self._ignore(f"unreadable ({error.strerror})", relative)
            return
        if found == "HEIC":
            self._ignore(_FOREIGN[".heic"], relative)
        elif found:
            self.files.append(relative)
        else:
            self._ignore("not an image", relative)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _kind_of(mode: int) -> str:
    """Returns what something is that is not a regular file."""
    kinds = (
        (stat.S_ISDIR, "folder"),
        (stat.S_ISFIFO, "FIFO"),
        (stat.S_ISSOCK, "socket"),
        (stat.S_ISBLK, "device"),
        (stat.S_ISCHR, "device"),
    )
    return next((name for is_kind, name in kinds if is_kind(mode)), "special file")


def refuse_special(path: str | Path, mode: int, kind: str = "image") -> None:
    """Refuses what is not a regular file; reading it may never end, or change a device.

    Raises:
        DataError: A folder, FIFO, socket or device.
    """
    if not stat.S_ISREG(mode):
        raise DataError(f"cannot read {kind} {printable(path)} (a {_kind_of(mode)}, no file); remove it")
