import hashlib
import http.server
import io
import os
import re
import tarfile
import threading
import zipfile
from pathlib import Path
from typing import ClassVar

import pytest

from vlad.datamodules.download import fetch, unpack
from vlad.datamodules.record import Download
from vlad.errors import DataError

CONTENT = bytes(range(256)) * 4096


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT, by ranges; /broken drops the connection half way."""

    asked: ClassVar[list[str | None]] = []
    fail = False

    def do_GET(self):
        if "missing" in self.path:
            self.send_error(404)
            return
        asked = self.headers.get("Range")
        Handler.asked.append(asked)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked).group(1)) if asked else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : len(CONTENT) // 2] if Handler.fail else CONTENT[start:])

    def log_message(self, *_):
        pass


@pytest.fixture
def url():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Handler.asked, Handler.fail = [], False
    yield f"http://127.0.0.1:{server.server_port}/data.zip?token=1"
    server.shutdown()


def wanted(url, content=CONTENT):
    return Download(url, "sha256:" + hashlib.sha256(content).hexdigest())


def test_download_is_continued_after_a_broken_connection(url, tmp_path):
    Handler.fail = True
    with pytest.raises(DataError, match="the connection broke after 524288 of 1048576 bytes.*is kept and continued"):
        fetch(wanted(url), tmp_path)
    assert not (tmp_path / "data.zip").exists()
    Handler.fail = False
    assert fetch(wanted(url), tmp_path).read_bytes() == CONTENT
    assert Handler.asked == [None, "bytes=524288-"]
    fetch(wanted(url), tmp_path)  # there already
    assert len(Handler.asked) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["data.zip"]


def test_wrong_checksum_leaves_nothing(url, tmp_path):
    with pytest.raises(DataError, match="another checksum than the published sha256"):
        fetch(wanted(url, b"other"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_partial_file_that_is_already_whole(url, tmp_path):
    (tmp_path / "data.zip.part").write_bytes(CONTENT)
    assert fetch(wanted(url), tmp_path).read_bytes() == CONTENT


def test_what_cannot_be_reached(url, tmp_path):
    with pytest.raises(DataError, match=r"cannot download .*missing\.zip\?token=1: Not Found"):
        fetch(Download(url.replace("data.zip", "missing.zip"), "md5:0"), tmp_path)


def tar(path, members):
    with tarfile.open(path, "w:gz") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                file.addfile(info)
            else:
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return path


def pack_zip(path, members):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            if isinstance(content, str):
                info = zipfile.ZipInfo(name)
                info.external_attr = 0o120777 << 16
                file.writestr(info, content)
            else:
                file.writestr(name, content)
    return path


PACKERS = {"tar.gz": tar, "zip": pack_zip}


@pytest.mark.parametrize("kind", PACKERS)
def test_unpack(kind, tmp_path):
    archive = PACKERS[kind](tmp_path / f"a.{kind}", {"a/x.txt": b"x", "b/c/y.txt": b"y"})
    target = unpack([archive], tmp_path / "out")
    assert {path.relative_to(target).as_posix() for path in target.rglob("*.txt")} == {"a/x.txt", "b/c/y.txt"}
    with pytest.raises(DataError, match="exists and is not empty"):
        unpack([archive], target)
    single = PACKERS[kind](tmp_path / f"b.{kind}", {"Only/x.txt": b"x", "__MACOSX/._x": b""})
    assert (unpack([single], tmp_path / "lifted") / "x.txt").is_file()
    two = unpack([archive, single], tmp_path / "two")
    assert (two / "Only/x.txt").is_file()
    assert (two / "a/x.txt").is_file()


EVIL = ["../evil.txt", "/evil.txt", "a/../../evil.txt", "a/..\\..\\evil.txt", "\\evil.txt", "C:/evil.txt"]


@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize("name", EVIL)
def test_members_outside_the_folder_are_refused(kind, name, tmp_path):
    inner = tmp_path / "in"
    inner.mkdir()
    archive = PACKERS[kind](inner / f"a.{kind}", {"good.txt": b"x", name: b"evil"})
    with pytest.raises(DataError, match="outside its folder"):
        unpack([archive], inner / "out")
    assert sorted(path.name for path in inner.iterdir()) == [archive.name]
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert not Path("/evil.txt").exists()


@pytest.mark.parametrize("kind", PACKERS)
def test_links_are_refused(kind, tmp_path):
    archive = PACKERS[kind](tmp_path / f"a.{kind}", {"link": "/etc", "link/passwd": b"x"})
    with pytest.raises(DataError, match="link"):
        unpack([archive], tmp_path / "out")
    assert os.listdir(tmp_path) == [archive.name]


@pytest.mark.parametrize("kind", PACKERS)
def test_damaged_archives_leave_nothing(kind, tmp_path):
    archive = PACKERS[kind](tmp_path / f"a.{kind}", {f"{i}.bin": os.urandom(5000) for i in range(20)})
    whole = archive.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) * 3 // 4):
        archive.write_bytes(whole[:size])
        with pytest.raises(DataError, match="a\\."):
            unpack([archive], tmp_path / "out")
        assert os.listdir(tmp_path) == [archive.name]
    flipped = bytearray(whole)
    flipped[len(flipped) // 2] ^= 0xFF
    archive.write_bytes(flipped)
    with pytest.raises(DataError, match="cannot unpack"):
        unpack([archive], tmp_path / "out")
    assert os.listdir(tmp_path) == [archive.name]
