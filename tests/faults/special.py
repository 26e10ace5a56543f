"""What is no file where a file is expected, and files that are small and have no end: each is told, soon."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import socket
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from faults.inputs import RECORD, read_archive, read_config, read_image, read_record_file
from faults.judge import WrongError, peak_memory
from faults.kinds import KINDS
from faults.weights import read_checkpoint_file
from PIL import Image

__all__ = ["SPECIAL", "bombs", "special_cases"]

_MEMORY = 500  # MiB that a case may take


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path) if len(str(path)) < 100 else _short(path))
        if not path.exists():
            shutil.move(_short(path), path)


def _short(path: Path) -> str:
    return f"/tmp/{abs(hash(path)) % 10**8}.sock"


SPECIAL: dict[str, Callable[[Path], None]] = {
    "FIFO": _fifo,
    "socket": _socket,
    "link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "link to nowhere": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "folder": lambda path: path.mkdir(),
    "empty file": lambda path: path.write_bytes(b""),
    "nothing": lambda path: None,
}


def special_cases(snapshot: Path, work: Path, name: str, file: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yields a case for each thing that may stand in a file's place; the folder is restored before each."""
    for what, put in SPECIAL.items():

        def case(put: Callable[[Path], None] = put) -> None:
            shutil.rmtree(work)
            shutil.copytree(snapshot, work, symlinks=True)
            file.unlink()
            put(file)
            KINDS[name].read(file)

        yield what, case


# -- bombs -------------------------------------------------------------------------------------------------------


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, *beside: bytes, rows: int = 1) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes((1 + 3 * width) * rows))
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + b"".join(beside)
        + _chunk(b"IDAT", pixels)
        + _chunk(b"IEND", b"")
    )


def _animated_png(frames: int) -> bytes:
    return _png(8, 8, _chunk(b"acTL", struct.pack(">II", frames, 0)), rows=8)


def _gif(frames: int) -> bytes:
    stream = io.BytesIO()
    pictures = [Image.new("L", (1, 1), value) for value in (0, 255)]
    pictures[0].save(stream, "GIF", save_all=True, append_images=pictures[1:], duration=10)
    data = stream.getvalue()
    start = data.index(b"\x21\xf9")
    second = data.index(b"\x21\xf9", start + 1)
    return data[:start] + data[start:second] * frames + b";"


def _with_size(format_: str, at: int, size: bytes) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, format_)
    data = bytearray(stream.getvalue())
    data[at : at + len(size)] = size
    return bytes(data)


def _aliases(levels: int, key: str = "a") -> str:
    lines = [f"{key}0: &{key}0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{key}{n}: &{key}{n} [{', '.join([f'*{key}{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


def _zip_bomb(file: Path) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("data/a.bin", "w") as member:
        for _ in range(400):
            member.write(bytes(1 << 20))


def _tar_bomb(file: Path) -> None:
    with tarfile.open(file, "w:gz", compresslevel=1) as archive:
        member = tarfile.TarInfo("data/a.bin")
        member.size = 400 << 20
        archive.addfile(member, _Zeros(member.size))


class _Zeros(io.RawIOBase):
    def __init__(self, size: int) -> None:
        self.left = size

    def read(self, size: int = -1) -> bytes:
        size = min(size, self.left) if size >= 0 else self.left
        self.left -= size
        return bytes(size)


def _packed_checkpoint(file: Path) -> None:
    """A file of torch.save whose archive is packed: some KiB for 400 MiB."""
    torch.save({"state_dict": {"a": torch.zeros(8)}, "vlad": {}}, file)
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data + bytes(400 << 20) if name.endswith("data/0") else data)


def _expanded_checkpoint(file: Path) -> None:
    """A tensor of 10¹² values, all of them one."""
    torch.save({"state_dict": {"a": torch.zeros(1).expand(10**12)}, "vlad": {}, "hyper_parameters": {}}, file)


class _Code:
    def __reduce__(self) -> Any:
        return os.mkdir, ("/tmp/vlad_fault_suite_was_here",)


def _code(file: Path) -> None:
    torch.save({"state_dict": {}, "vlad": _Code()}, file)


def _no_code(file: Path) -> None:
    try:
        read_checkpoint_file(file)
    finally:
        if os.path.exists("/tmp/vlad_fault_suite_was_here"):
            os.rmdir("/tmp/vlad_fault_suite_was_here")
            raise WrongError("code of a checkpoint has run")


def _safetensors(file: Path, header: bytes, length: int | None = None) -> None:
    file.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header)


def _parquet(file: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table({"image_path": pa.nulls(30_000_000, pa.string())})
    parquet.write_table(table, file)


def _sparse(file: Path) -> None:
    with file.open("wb") as stream:
        stream.write(_png(8, 8, rows=8))
        stream.truncate(5 << 30)


def _predict(file: Path) -> None:
    """Reads an image as prediction does: its bytes, and then its pixels."""
    from trees import small_data

    data = small_data(predict=str(file))
    data.setup("predict")
    frame = data.frames["predict"]
    if len(frame) > 20_000:
        raise WrongError(f"{len(frame)} rows of one file")
    data.dataset("predict")[0]


def _table(file: Path) -> None:
    from vlad.datamodules.custom import index_table

    index_table(file)


def _decision(file: Path) -> None:
    from vlad.decision import Decision

    Decision.load(file)


Bomb = tuple[str, Callable[[Path], object], Callable[[Path], object]]


def _bombs() -> Iterator[Bomb]:
    def image(name: str, data: Callable[[], bytes], suffix: str = ".png") -> Iterator[Bomb]:
        for read in (read_image, _predict):
            yield f"{name}{suffix}", lambda file: file.write_bytes(data()), read

    yield from image("177 megapixels", lambda: _png(13_300, 13_300))
    yield from image("40 gigapixels", lambda: _png(200_000, 200_000))
    yield from image("4 billion frames", lambda: _animated_png(2**32 - 1))
    yield from image(
        "text that unfolds", lambda: _png(8, 8, _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(300 << 20))))
    )
    yield from image(
        "profile that unfolds", lambda: _png(8, 8, _chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(300 << 20))))
    )
    yield from image("20,000 frames", lambda: _gif(20_000), ".gif")
    yield from image("huge bitmap", lambda: _with_size("BMP", 18, struct.pack("<ii", 2**30, 2**30)), ".bmp")
    yield from image("huge screen", lambda: _with_size("GIF", 6, struct.pack("<HH", 65535, 65535)), ".gif")
    yield from image("huge TIFF", lambda: _with_size("TIFF", 18, struct.pack("<I", 2**31 - 1)), ".tif")
    yield "5 GiB of nothing.png", _sparse, _predict
    for levels in (6, 9, 12):
        text = _aliases(levels)
        yield f"aliases, {levels} levels.yaml", lambda file, text=text: file.write_text(text), read_config
    inside = "data:\n" + "".join(f"  {line}\n" for line in _aliases(9).splitlines())
    yield "aliases in a section.yaml", lambda file: file.write_text(inside), read_config
    yield "contains itself.yaml", lambda file: file.write_text("data: &d\n  predict: [*d]\n"), read_config
    yield "deep.yaml", lambda file: file.write_text("a: " + "{a: " * 4000 + "1" + "}" * 4000), read_config
    yield "deep list.yaml", lambda file: file.write_text("[" * 20_000), read_config
    yield "large.yaml", lambda file: file.write_text("# " + "x" * (2 << 20)), read_config
    for key, value in (
        ("row_crops", "1000000"),
        ("row_crops", "-3"),
        ("mask_threshold", "1" + "0" * 40),
        ("normal_test", "7.5"),
    ):
        text = "\n".join(f"{key} = {value}" if line.startswith(key) else line for line in RECORD.splitlines())
        yield f"{key} {value[:9]}.toml", lambda file, text=text: file.write_text(text), read_record_file
    for path in ("../../outside", "/etc", "C:\\Windows"):
        text = RECORD.replace('folders = ["own"]', f"folders = [{json.dumps(path)}]")
        name = f"folder {path[-7:].replace('/', '_')}.toml"
        yield name, lambda file, text=text: file.write_text(text), read_record_file
    yield "zip of 400 MiB.zip", _zip_bomb, read_archive
    yield "tar of 400 MiB.tar.gz", _tar_bomb, read_archive
    yield "packed.ckpt", _packed_checkpoint, read_checkpoint_file
    yield "expanded.ckpt", _expanded_checkpoint, read_checkpoint_file
    yield "code.ckpt", _code, _no_code
    yield "plain pickle.ckpt", lambda file: file.write_bytes(pickle.dumps({"vlad": _Code()})), _no_code
    yield "endless header.safetensors", lambda file: _safetensors(file, b"{", 2**62), read_checkpoint_file
    huge = b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    yield "huge tensor.safetensors", lambda file: _safetensors(file, huge), read_checkpoint_file
    yield "deep header.safetensors", lambda file: _safetensors(file, b"[" * 100_000), read_checkpoint_file
    yield "30 million rows.parquet", _parquet, _table
    yield "deep.json", lambda file: file.write_text("[" * 100_000), _table
    yield "long number.json", lambda file: file.write_text('[{"image_path": ' + "9" * 100_000 + "}]"), _table
    yield "long cell.csv", lambda file: file.write_text("image_path\n" + "x" * 1_000_000), _table
    yield "open quote.csv", lambda file: file.write_text('image_path\n"' + "x,\n" * 400_000), _table
    yield "deep decision.json", lambda file: file.write_text("[" * 100_000), _decision
    yield "number without end.json", lambda file: file.write_text('{"format": 2, "min_area": 1e999}'), _decision


def bombs(folder: Path) -> Iterator[tuple[str, Callable[[], Any], Path]]:
    """Yields bombs: name, case and file."""
    for number, (name, make, read) in enumerate(_bombs()):
        place = folder / f"{number:03}"
        file = place / name.replace(" ", "_").replace(",", "")

        def case(file: Path = file, make: Any = make, read: Any = read) -> None:
            file.parent.mkdir(parents=True)
            make(file)
            with peak_memory() as peak:
                try:
                    read(file)
                finally:
                    if peak() > _MEMORY:
                        raise WrongError(f"{peak()} MiB taken")
            shutil.rmtree(file.parent)

        yield name, case, file
