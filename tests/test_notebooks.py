"""The tutorials run from the first cell to the last, and hold no outputs."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TUTORIALS = sorted((Path(__file__).parents[1] / "docs" / "tutorials").glob("*.ipynb"))
SHOWN = {  # what a reader must see at the end of it
    "photos-to-decisions": ("anomalous", "normal"),
    "compare-methods": ("sdp_plus, trained", "patch_memory", "image_auroc"),
    "write-a-method": ("tensor([",),
}


def test_every_tutorial_has_its_expectation():
    assert {file.stem for file in TUTORIALS} == set(SHOWN)


@pytest.mark.parametrize("file", TUTORIALS, ids=lambda file: file.stem)
def test_a_tutorial_runs(file, tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="the extra test is not installed")
    from nbclient import NotebookClient

    notebook = nbformat.read(file, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code), "a notebook is kept without outputs"
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in code for output in cell.outputs]
    last = [str(one.get("text") or one.get("data", {}).get("text/plain", "")) for one in outputs if "ename" not in one]
    assert all(
        word in next(text for text in reversed(last) if words[0] in text)
        for words in [SHOWN[file.stem]]
        for word in words
    )
