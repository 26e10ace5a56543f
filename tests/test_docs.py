"""What the documentation shows runs."""

import re
import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from vlad.methods.base import Method
from vlad.registry import API_VERSION
from vlad.testing import check_method

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "write-a-method.md").read_text()
METHODS = {  # settings that fit the tiny CLIP
    "TextContrast": {},
    "LinearContrast": {"layers": [2, 4]},
    "PooledMemory": {"layers": [2, 4], "limit": 20},
}


def blocks(page, language="python"):
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


@pytest.fixture
def my_package(monkeypatch):
    """The page's code as the module that it says to declare."""
    module = types.ModuleType("my_package")
    monkeypatch.setitem(sys.modules, "my_package", module)
    exec("\n".join(blocks(PAGE)), module.__dict__)
    return module


def test_there_are_three_methods_and_each_is_short():
    code = [block for block in blocks(PAGE) if "(Method):" in block]
    assert [re.findall(r"class (\w+)\(Method\)", block) for block in code] == [[name] for name in METHODS]
    assert all(len(block.splitlines()) < 60 for block in code)
    assert all(f"api = {API_VERSION}" in block for block in code)


@pytest.mark.parametrize("name", METHODS)
def test_each_is_complete_and_passes_the_suite(name, monkeypatch, tiny):
    module = types.ModuleType("alone")
    monkeypatch.setitem(sys.modules, "alone", module)
    (code,) = [block for block in blocks(PAGE) if f"class {name}(Method)" in block]
    exec(code, module.__dict__)
    check_method(getattr(module, name), backbone=tiny, pretrained=None, image_size=64, **METHODS[name])


def test_the_suite_that_is_shown_beside_them_passes(my_package, tmp_path):
    my_package.test_my_methods(tmp_path)


def test_what_it_says_to_declare_is_there(my_package):
    (toml,) = blocks(PAGE, "toml")
    group, name, value = re.search(r'entry-points\."(.+)"\]\n(\w+) = "(.+)"', toml).groups()
    assert issubclass(EntryPoint(name, value, group).load(), Method)


def test_pseudo_anomalies_are_painted_as_shown():
    scope = {}
    exec("\n".join(blocks((DOCS / "pseudo_anomalies.md").read_text())), scope)
    assert scope["masks"].any()
    assert scope["changed"].shape == scope["images"].shape


def test_links_lead_somewhere():
    root = DOCS.parent
    for page in [root / "README.md", root / "experiments" / "README.md", *DOCS.rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
