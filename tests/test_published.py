"""Published weights by name: fetched, checked, told how to get by hand."""

import hashlib
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

import vlad
from vlad.errors import WeightsError
from vlad.published import Published, find_checkpoint, locate


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on this machine that serves one file of one space; returns its content."""
    content = b"weights" * 1000
    etag = hashlib.sha256(content).hexdigest()

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            found = self.path == "/spaces/someone/demo/resolve/main/weights/a.pth"
            self.send_response(200 if found else 404)
            if found:
                for name, value in (("X-Repo-Commit", "c" * 40), ("ETag", f'"{etag}"'), ("Accept-Ranges", "bytes")):
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
            else:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            return found

        def do_GET(self):
            if self.do_HEAD():
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    yield content
    server.shutdown()
    server.server_close()


def test_published_weights_are_fetched_by_name_and_checked(hub, monkeypatch):
    digest = hashlib.sha256(hub).hexdigest()
    known = {"a": Published("someone/demo", "weights/a.pth", digest, "space")}
    assert locate("a", known).read_bytes() == hub
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")  # now from the cache
    assert locate("a", known).read_bytes() == hub


def test_another_file_than_published_is_refused(hub):
    known = {"a": Published("someone/demo", "weights/a.pth", "0" * 64, "space")}
    with pytest.raises(WeightsError, match=r"a\.pth .* has the checksum .*, not the published 0{64}"):
        locate("a", known)


def test_what_cannot_be_fetched_says_how_to_get_it(hub):
    known = {"b": Published("someone/demo", "weights/b.pth", "0" * 64, "space")}
    with pytest.raises(
        WeightsError, match=r"cannot download https://.*/spaces/someone/demo/resolve/main/weights/b\.pth"
    ):
        locate("b", known)


def test_a_run_folder_gives_its_newest_checkpoint(tmp_path):
    with pytest.raises(WeightsError, match="holds no checkpoints"):
        find_checkpoint(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    for age, name in ((1, "new.ckpt"), (9, "old.ckpt")):
        (tmp_path / "checkpoints" / name).touch()
        os.utime(tmp_path / "checkpoints" / name, (1e9 - age, 1e9 - age))
    assert find_checkpoint(tmp_path).name == "new.ckpt"


def test_unknown_names(tiny):
    with pytest.raises(
        WeightsError, match="'mvtec_colndb' are neither a file nor published; did you mean mvtec_colondb"
    ):
        vlad.load("adaclip", backbone=tiny, image_size=64, weights="mvtec_colndb")
    with pytest.raises(WeightsError, match=r"weights file nowhere\.pth does not exist"):
        vlad.load("adaclip", backbone=tiny, image_size=64, weights="nowhere.pth")
