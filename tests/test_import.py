"""Start-up stays light: nothing heavy is imported before it is needed."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "lightning", "open_clip", "torchmetrics", "albumentations", "kornia", "huggingface_hub"}
HEAVY |= {"pandas", "numpy", "cv2", "sklearn", "PIL"}


def run(code):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize(
    "code",
    [
        "import vlad, vlad.cli, vlad.registry, vlad.errors; vlad.list_methods()",
        "from vlad.cli import main; main(['--help'])",
        "from vlad.cli import main; main(['methods'])",
        "from vlad.cli import main; main(['datasets', '--json'])",
    ],
)
def test_no_heavy_import(code):
    out = run(code + "; import sys; print('IMPORTED', *sorted(sys.modules))")
    modules = {name.split(".")[0] for name in out.rpartition("IMPORTED")[2].split()}
    assert not modules & HEAVY


def test_public_names_exist():
    import vlad

    for name in vlad.__all__:
        assert getattr(vlad, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        vlad.nonsense  # noqa: B018
