"""Constructor arguments: plain in a checkpoint, built again, and never a way to run code."""

import json
import subprocess
import sys
from dataclasses import dataclass

import pytest
from tests_support import SMALL

import vlad
from vlad.encoders import load_encoder
from vlad.errors import MethodError
from vlad.methods.arguments import build_options, check_known, init_parameters, plain_arguments
from vlad.methods.clip_ada import CLIPADA
from vlad.methods.losses import Losses
from vlad.methods.refinement import Head, Refinement, Zoom
from vlad.methods.sdp import SDP
from vlad.methods.sdp_plus import SDPPlus
from vlad.pseudo_anomalies import Synthesizer


@pytest.mark.parametrize("name", list(SMALL))
def test_hyper_parameters_rebuild_every_method(name, tiny):
    cls = vlad.get_method(name)
    given = {"backbone": tiny, "pretrained": None, "image_size": 64, **SMALL[name]}
    given |= {"sigma": 1.5} if "sigma" in init_parameters(cls) else {}
    method = cls(**given)
    arguments = json.loads(json.dumps(dict(method.hparams)))
    assert set(arguments) == set(init_parameters(cls)) - {"weights"}
    assert [arguments[option] for option in ("backbone", "image_size")] == [tiny, 64]
    assert arguments.get("sigma", 1.5) == 1.5
    again = cls(**arguments)
    assert dict(again.hparams) == dict(method.hparams)
    assert {key: value.shape for key, value in again.state_dict().items()} == {
        key: value.shape for key, value in method.state_dict().items()
    }


def test_positional_arguments_are_known_by_name(tiny):
    method = SDP(tiny, None, 64, (2, 4))
    assert method.hparams["layers"] == [2, 4]
    assert method.hparams["eps"] == 0.5


def test_arguments_that_are_handed_on_belong_to_the_method():
    assert list(init_parameters(SDPPlus))[:3] == ["lr", "weights", "backbone"]
    assert "eps" in init_parameters(SDPPlus)
    check_known(SDPPlus, {"eps": 1.0, "lr": 1.0})
    with pytest.raises(MethodError, match="SDPPlus has no argument 'epss'; did you mean eps"):
        check_known(SDPPlus, {"epss": 1.0})


def test_nested_options_become_plain_and_come_back():
    given = {"synthesis": Synthesizer("mixed", 0.5), "losses": Losses("focal", 0.0), "refinement": Head(8)}
    plain = json.loads(json.dumps(plain_arguments(CLIPADA, (), given)))
    assert plain["refinement"] == {"class_path": "vlad.methods.refinement.Head", "init_args": {"width": 8}}
    for name, kind in (("synthesis", Synthesizer), ("losses", Losses), ("refinement", Refinement)):
        assert build_options(plain[name], kind) == given[name]


def test_a_ready_encoder_is_told_apart(tiny):
    assert SDP(load_encoder(tiny), image_size=64, layers=[4]).hparams["backbone"] == f"object:{tiny}"


# -- options from a checkpoint or a config -----------------------------------------------------------------


def test_short_forms_of_options():
    built = Zoom(count=2)
    assert build_options(built, Refinement) is built
    assert build_options({"class_path": "Zoom", "init_args": {"count": 2}}, Refinement) == built
    assert build_options({"class_path": "Zoom", "count": 2}, Refinement) == built
    assert build_options({"pixel": "focal"}, Losses) == Losses("focal")
    assert build_options({"class_path": "Head", "init_args": None}, Refinement) == Head()


@dataclass
class Tempting:
    """Looks like options and is of another kind."""

    command: str = ""

    def __post_init__(self):
        """Must never run."""
        raise AssertionError("it was called")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("subprocess.Popen", "subprocess.Popen is no refinement"),
        ("subprocess.run", "subprocess.run is no refinement"),
        ("builtins.exec", "builtins.exec is no refinement"),
        ("os.system", "os.system is no refinement"),
        ("tempting.Tempting", "tempting.Tempting is no refinement"),
        ("vlad.methods.losses.Losses", "vlad.methods.losses.Losses is no refinement"),
        ("no_such_module.Thing", "there is no refinement no_such_module.Thing"),
        ("Zom", "there is no refinement Zom"),
        ("dataclass", "dataclass is no refinement"),
    ],
)
def test_nothing_but_the_kind_asked_for_is_ever_called(path, message, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tempting", sys.modules[__name__])
    calls = []
    for name in ("Popen.__init__", "run"):
        monkeypatch.setattr(f"subprocess.{name}", lambda *a, **k: calls.append(a))
    before = subprocess.Popen
    with pytest.raises(MethodError, match=message):
        build_options({"class_path": path, "init_args": {"args": ["touch", str(tmp_path / "ran")]}}, Refinement)
    assert subprocess.Popen is before
    assert not calls
    assert not (tmp_path / "ran").exists()


def test_wrong_options_are_named():
    with pytest.raises(MethodError, match="Zoom has no argument 'cuont'; did you mean count"):
        build_options({"class_path": "Zoom", "init_args": {"cuont": 1}}, Refinement)
