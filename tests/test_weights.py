import hashlib
import pickle
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch
from safetensors.torch import save_file

import vlad
from vlad.cli import main
from vlad.errors import MethodError, RegistryError, WeightsError
from vlad.methods.sdp_plus import SDPPlus
from vlad.weights import Published, locate


@pytest.fixture
def method(tiny):
    torch.manual_seed(3)
    return SDPPlus(backbone=tiny, pretrained=None, image_size=64, layers=[2, 4])


def published(method, folder, **changes):
    layers = {
        name.replace("heads.", "fc."): p.detach().clone() for name, p in method.named_parameters() if "heads" in name
    }
    layers.update(changes)
    file = folder / "official.pth"
    torch.save({"linear_layers": {k: v for k, v in layers.items() if v is not None}}, file)
    return file


def build(tiny, weights):
    return SDPPlus(backbone=tiny, pretrained=None, image_size=64, layers=[2, 4], weights=str(weights))


def test_published_file_loads(method, tiny, tmp_path):
    loaded = build(tiny, published(method, tmp_path))
    assert torch.equal(loaded.heads[1].weight, method.heads[1].weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fc.1.bias": None}, "missing heads.1.bias"),
        ({"fc.2.bias": torch.zeros(32)}, "unexpected heads.2.bias"),
        ({"fc.0.bias": torch.zeros(5)}, r"heads.0.bias has shape \(5,\), expected \(32,\)"),
    ],
)
def test_what_does_not_fit_is_listed(method, tiny, tmp_path, changes, message):
    with pytest.raises(WeightsError, match=message):
        build(tiny, published(method, tmp_path, **changes))


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_pickle_with_code_is_refused(tiny, tmp_path, capsys):
    torch.save({"linear_layers": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="evil.pth is refused: it holds Python objects"):
        build(tiny, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(WeightsError, match=r"plain.pth"):
        build(tiny, tmp_path / "plain.pth")
    assert "code ran" not in capsys.readouterr().out


def test_unreadable_and_foreign_files(tiny, tmp_path):
    with pytest.raises(WeightsError, match="does not exist"):
        build(tiny, tmp_path / "none.pth")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        build(tiny, tmp_path / "cut.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="holds a list"):
        build(tiny, tmp_path / "list.pth")
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"neither a vlad checkpoint nor in the published format .*other\)"):
        build(tiny, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="training-free and has no weights"):
        vlad.load("sdp", backbone=tiny, pretrained=None, image_size=64, layers=[4], weights="x.pth")


def test_load_by_name_with_overrides(tiny):
    method = vlad.load("sdp", backbone=tiny, pretrained=None, image_size=96, layers=[1, 4])
    assert not method.training
    assert method.preprocess.size == 96
    with pytest.raises(MethodError, match="SDP has no argument 'image_sise'; did you mean image_size"):
        vlad.load("sdp", image_sise=3)
    with pytest.raises(RegistryError, match="did you mean sdp"):
        vlad.load("sdb")


def checkpoint(method, folder):
    content = {"state_dict": dict(method.state_dict()), "hyper_parameters": dict(method.hparams)}
    method.on_save_checkpoint(content)
    (folder / "run" / "checkpoints").mkdir(parents=True)
    torch.save(content, folder / "run" / "checkpoints" / "epoch=0.ckpt")
    return folder / "run"


def test_own_checkpoint_by_file_and_run_folder(method, tiny, tmp_path):
    run = checkpoint(method, tmp_path)
    for source in (run, run / "checkpoints" / "epoch=0.ckpt"):
        loaded = vlad.load(str(source))
        assert torch.equal(loaded.heads[0].weight, method.heads[0].weight)
        assert torch.equal(build(tiny, source).heads[0].weight, method.heads[0].weight)
    assert vlad.load(str(run), sigma=1.0).sigma == 1.0
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="no run folder"):
        vlad.load(str(tmp_path / "empty"))


def test_another_clip_is_refused(method, tmp_path):
    from vlad.testing import tiny_clip

    run = checkpoint(method, tmp_path)
    with pytest.raises(WeightsError, match="trained on CLIP .* this one is"):
        vlad.load(str(run), backbone=tiny_clip(tmp_path / "other", seed=9))


def test_a_layer_out_of_range_is_named(tiny):
    with pytest.raises(MethodError, match=r"from 1 to 4, got \[3, 6\]"):
        vlad.load("sdp", backbone=tiny, pretrained=None, image_size=64, layers=[3, 6])


def test_exported_weights_hold_everything(method, tiny, tmp_path, capsys):
    run = checkpoint(method, tmp_path)
    target = tmp_path / "out" / "trained.safetensors"
    assert main(["export-weights", str(run), "-o", str(target)]) == 0
    assert [path.name for path in target.parent.iterdir()] == ["trained.safetensors"]
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = method.eval().score(images, ["bottle"]).anomaly_map
        for loaded in (vlad.load(str(target)), type(method)(**{**method.hparams, "weights": str(target)}).eval()):
            assert torch.equal(loaded.score(images, ["bottle"]).anomaly_map, expected)
    assert main(["export-weights", str(run), "-o", str(tmp_path / "x.pth")]) == 1
    assert "ending in .safetensors" in capsys.readouterr().err


# -- published weights by name ------------------------------------------------------------------------------


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


def test_unknown_names(tiny):
    with pytest.raises(
        WeightsError, match="'mvtec_colndb' are neither a file nor published; did you mean mvtec_colondb"
    ):
        vlad.load("adaclip", backbone=tiny, pretrained=None, image_size=64, weights="mvtec_colndb")
    with pytest.raises(WeightsError, match=r"weights file nowhere\.pth does not exist"):
        vlad.load("adaclip", backbone=tiny, pretrained=None, image_size=64, weights="nowhere.pth")
