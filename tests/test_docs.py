"""What the documentation shows runs."""

import importlib
import re
import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from vlad.datamodules.catalog import get_record, list_datasets
from vlad.methods.base import Method
from vlad.registry import API_VERSION, discover
from vlad.testing import check_method

DOCS = Path(__file__).parents[1] / "docs"
ROOT = DOCS.parent
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


@pytest.fixture(scope="module")
def site():
    """The module that makes the generated pages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        yield importlib.import_module("site_pages")


def own(site):
    """The pages that are written by hand."""
    generated = {"_build", *site.GENERATED}
    yield from (page for page in DOCS.rglob("*.md") if page.name == "index.md" or not generated & set(page.parts))


def test_links_lead_somewhere(site):
    files = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CODE_OF_CONDUCT.md", "SECURITY.md")]
    for page in [*files, ROOT / "experiments" / "README.md", *own(site)]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_method_of_vlad_has_a_card_and_a_page(site):
    assert set(site.CARDS) == {name for name, plugin in discover().items() if plugin.distribution == "vlad"}
    pages = {page.stem for page in (DOCS / "methods").glob("*.md")} - {"index"}
    assert {card["page"] for card in site.CARDS.values()} == pages
    for name, card in site.CARDS.items():
        assert f"`{name}`" in site.method_card(card["page"])
        assert discover()[name].class_path in site.method_reference(card["page"])
        arxiv = card.get("arxiv")
        assert arxiv is None or arxiv in (DOCS / "methods" / f"{card['page']}.md").read_text(), f"{name}: {arxiv}"


def test_the_table_of_the_readme_is_that_of_the_cards(site):
    part = (ROOT / "README.md").read_text().partition("<!-- methods -->\n")[2].partition("\n<!-- end of methods -->")[0]
    assert part == site.methods_table("docs/methods/{page}.md")


def test_every_data_set_has_a_page(site):
    for name in list_datasets():
        record, page = get_record(name), site.record_page(get_record(name))
        assert page.startswith(f"# {record.title}\n")
        assert record.licence in page
        for layout in record.layouts:
            assert layout.name in page
        rows = [line for line in page.splitlines() if line.startswith("|")]
        cells = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
        assert cells <= {3, 4, 6}, f"{name}: a row of a table is broken"


def test_every_public_package_is_in_the_reference():
    pages = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    inner = {
        "vlad.cli",
        "vlad.methods",
        "vlad.serve",
        "vlad.app",
    }  # commands, and methods, which have pages of their own
    packages = {f"vlad.{file.parent.name}" for file in (ROOT / "src/vlad").glob("*/__init__.py")} - inner
    missing = {name for name in packages if f"automodule:: {name}\n" not in pages}
    assert not missing, f"docs/api does not describe {missing}"


def test_the_drawing_is_that_of_its_script_and_figures_are_small(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    assert (DOCS / "figures" / "road.svg").read_text() == importlib.import_module("figures").road()
    for figure in (DOCS / "figures").iterdir():
        assert figure.stat().st_size < 300_000, figure.name
