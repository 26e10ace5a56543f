"""What the documentation shows runs."""

import re
import sys
import types
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_example_method_passes_the_suite_that_is_shown_beside_it(tmp_path, monkeypatch):
    code, test = re.findall(r"```python\n(.*?)```", (DOCS / "write-a-method.md").read_text(), re.DOTALL)
    module = types.ModuleType("example_method")
    monkeypatch.setitem(sys.modules, "example_method", module)
    exec(code + test, module.__dict__)
    module.test_my_method(tmp_path)


def test_links_lead_somewhere():
    root = DOCS.parent
    for page in [root / "README.md", root / "experiments" / "README.md", *DOCS.rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
