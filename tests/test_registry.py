import sys
import warnings
from importlib import metadata

import pytest

import vlad
from vlad import registry
from vlad.errors import RegistryError
from vlad.methods.base import Method
from vlad.methods.sdp import SDP


class FakeDistribution:
    def __init__(self, name, version="1.0"):
        self.name, self.version = name, version


def entry(name, value, distribution):
    point = metadata.EntryPoint(name, value, registry.GROUP)
    object.__setattr__(point, "dist", FakeDistribution(distribution))
    vars(point)["dist"] = FakeDistribution(distribution)
    return point


@pytest.fixture
def declare(monkeypatch):
    def declare(*entries):
        monkeypatch.setattr(metadata, "entry_points", lambda group: list(entries))
        registry.refresh()

    yield declare
    monkeypatch.undo()
    registry.refresh()


def test_own_methods_are_listed_and_loaded():
    assert {"sdp", "sdp_plus"} <= set(vlad.list_methods())
    assert vlad.get_method("sdp") is SDP
    assert vlad.get_method("SDP-Plus").__name__ == "SDPPlus"
    assert vlad.get_method("vlad.methods.sdp.SDP") is SDP


def test_unknown_name_lists_the_nearest():
    with pytest.raises(RegistryError, match="no method is named 'sdpplus'; did you mean sdp_plus"):
        vlad.get_method("sdpplus")


def test_collision_is_resolved_in_order_and_told_once(declare):
    declare(
        entry("sdp", "aardvark:SDP", "aardvark"),
        entry("sdp", "vlad.methods.sdp:SDP", "vlad"),
        entry("foo", "zeta:Foo", "zeta"),
        entry("foo", "alpha:Foo", "alpha"),
    )
    with pytest.warns(UserWarning, match="declared by") as caught:
        found = registry.discover()
    assert found["sdp"].distribution == "vlad"
    assert found["foo"].class_path == "alpha.Foo"
    assert sorted("zeta.Foo" in str(w.message) for w in caught) == [False, True]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        registry.discover()


def test_broken_plugin_is_named_with_its_cause_and_breaks_nothing_else(declare):
    declare(entry("broken", "no_such_module_here:X", "vlad-broken"), entry("sdp", "vlad.methods.sdp:SDP", "vlad"))
    assert vlad.list_methods() == ["broken", "sdp"]
    with pytest.raises(RegistryError, match=r"'broken' .*from vlad_broken 1.0\) failed to import: ModuleNotFoundError"):
        vlad.get_method("broken")
    assert vlad.get_method("sdp") is SDP


def test_a_class_that_is_no_method_is_refused(declare):
    declare(entry("odd", "pathlib:Path", "odd"))
    with pytest.raises(RegistryError, match="is not a subclass of vlad.Method"):
        vlad.get_method("odd")


class Old(Method):
    """A method of interface 1, which did not have to say so."""

    def score(self, images, class_names):
        """Scores."""


class Stated(SDP):
    api = 1


class Later(SDP):
    api = 3


class Own(SDP):
    """Of the present interface, with a score of its own beside the joints."""

    def score(self, images, class_names, categories=None):
        """Scores."""
        return super().score(images, class_names, categories)


@pytest.mark.parametrize(("name", "version"), [("Old", 1), ("Stated", 1), ("Later", 3)])
def test_another_interface_version_is_refused(declare, monkeypatch, name, version):
    monkeypatch.setitem(sys.modules, "old_package", sys.modules[__name__])
    declare(entry("old", f"old_package:{name}", "vlad-old"))
    with pytest.raises(RegistryError) as refused:
        vlad.get_method("old")
    assert str(refused.value) == (
        f"method 'old' (old_package.{name}, from vlad_old 1.0) was written for method interface {version}; this vlad "
        "has 2: write score as encode and compare (docs/write-a-method.md), or install a version of vlad_old made "
        "for it"
    )
    with pytest.raises(RegistryError, match=r"\(docs/write-a-method\.md\)$"):
        vlad.get_method(f"old_package.{name}")


def test_a_score_of_ones_own_is_no_sign_of_age(declare, monkeypatch):
    monkeypatch.setitem(sys.modules, "old_package", sys.modules[__name__])
    assert vlad.get_method("old_package.Own") is Own


def test_plugins_can_be_switched_off(declare, monkeypatch):
    both = (entry("foo", "foo:Foo", "foo"), entry("sdp", "vlad.methods.sdp:SDP", "vlad"))
    monkeypatch.setenv("VLAD_PLUGINS", "none")
    declare(*both)
    assert vlad.list_methods() == ["sdp"]
    monkeypatch.setenv("VLAD_PLUGINS", "foo,bar")
    declare(*both)
    assert vlad.list_methods() == ["foo", "sdp"]


def test_malformed_entries_are_left_out_and_told(declare):
    declare(
        entry("nothing", "", "empty"),
        entry("bare", "a_module", "bare"),
        entry("odd", "not a path!", "odd-one"),
        entry("sdp", "vlad.methods.sdp:SDP", "vlad"),
    )
    with pytest.warns(UserWarning, match="names no class") as caught:
        assert vlad.list_methods() == ["sdp"]
    assert [str(one.message).split()[0] for one in caught] == ["empty", "bare", "odd_one"]


def test_a_package_whose_entry_points_cannot_be_read_is_told_and_left_out(tmp_path, monkeypatch):
    for name, content in {
        "bad_package": b"[vlad.methods]\nno equals sign\n",
        "good_package": b"[vlad.methods]\nfine = json:X\n",
    }.items():
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    registry.refresh()
    with pytest.warns(UserWarning, match="the entry points of bad_package cannot be read"):
        found = vlad.list_methods()
    registry.refresh()
    assert {"sdp", "fine"} <= set(found)


def test_a_plugin_that_ends_python_is_an_error(declare, tmp_path, monkeypatch):
    (tmp_path / "ends_python.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    declare(entry("ends", "ends_python:X", "ends"))
    with pytest.raises(RegistryError, match=r"'ends' .* failed to import: it ends Python \(SystemExit 0\)"):
        vlad.get_method("ends")


def test_a_file_names_registered_and_imported_methods_alone(tmp_path, monkeypatch):
    (tmp_path / "never_imported.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert registry.named_method("vlad.methods.sdp.SDP", "x.ckpt") is SDP
    assert registry.named_method(f"{__name__}.Fine", "x.ckpt") is Fine
    for name in ("never_imported.X", "os.system", "X", ""):
        with pytest.raises(RegistryError, match=r"x.ckpt names the method|is not a subclass"):
            registry.named_method(name, "x.ckpt")
    assert "never_imported" not in sys.modules


class Fine(SDP):
    """A method of a user's own module."""
