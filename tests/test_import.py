"""Start-up stays light: nothing heavy is imported before it is needed."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "lightning", "open_clip", "torchmetrics", "albumentations", "kornia", "huggingface_hub"}
HEAVY |= {"pandas", "numpy", "cv2", "sklearn", "PIL"}
UNUSED = {"sklearn", "joblib", "cv2", "albumentations", "kornia", "transformers", "tensorboard", "onnx", "openvino"}


def run(code, *arguments, warnings="error"):
    """Runs code in a process of its own; returns what it imports."""
    code += "; import sys; print('IMPORTED', *sorted(sys.modules))"
    command = [sys.executable, "-W", warnings, "-c", code, *arguments]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name.split(".")[0] for name in out.rpartition("IMPORTED")[2].split()}


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
    assert not run(code) & HEAVY


@pytest.mark.slow
def test_a_prediction_imports_what_it_uses(tmp_path):
    from PIL import Image

    Image.linear_gradient("L").convert("RGB").save(tmp_path / "part.png")
    settings = ["--model", "sdp", "--model.backbone", "vlad-tiny", "--model.image_size", "96"]
    arguments = ["predict", str(tmp_path / "part.png"), *settings, "--output", str(tmp_path / "out")]
    code = "import sys; from vlad.cli import main; assert main(sys.argv[1:]) == 0"
    modules = run(code, *arguments, warnings="default")
    assert "torch" in modules
    assert not modules & UNUSED
    assert (tmp_path / "out/report.html").is_file()


def test_public_names_exist():
    import vlad

    for name in vlad.__all__:
        assert getattr(vlad, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        vlad.nonsense  # noqa: B018
