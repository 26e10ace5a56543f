"""Metrics of other packages: found by their metadata, imported by name; what is wrong with one is told."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from metrics.samples import batch_of, prediction_for

from vlad.errors import RegistryError, VladError
from vlad.metrics import Evaluation, PixelMetrics, RankingMetrics, get_metric, list_metrics
from vlad.metrics.registry import BUILT_IN, discover, refresh, resolve

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
ENTRY_POINT = re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL).group(1)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a package as pip leaves it: a module, and metadata that names its entry points."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(distribution, module, code, names):
        (tmp_path / f"{module}.py").write_text(code)
        info = tmp_path / f"{distribution}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        entries = [f"{name} = {module}:{attribute}" for name, attribute in names.items()]
        (info / "entry_points.txt").write_text("\n".join(["[vlad.metrics]", *entries]) + "\n")
        monkeypatch.delitem(sys.modules, module, raising=False)
        refresh()

    yield make
    refresh()


def test_ours_are_there_without_metadata_and_importing_nothing():
    assert get_metric("image") is RankingMetrics
    assert get_metric("Pixel") is PixelMetrics
    assert get_metric("vlad.metrics.pixel.PixelMetrics") is PixelMetrics
    code = "import sys, vlad.metrics; print(vlad.metrics.list_metrics()); assert 'torch' not in sys.modules"
    listed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert set(BUILT_IN) == {"image", "pixel"} == {name for name in ("image", "pixel") if f"'{name}'" in listed}


def test_the_example_of_the_documentation_becomes_columns_of_the_table(install):
    assert 'missed = "my_package:MissedPixels"' in ENTRY_POINT
    install("my-package", "my_package", EXAMPLES[1], {"missed": "MissedPixels"})
    assert "missed" in list_metrics()
    assert "my_package" not in sys.modules  # listing imports nothing
    evaluation, batch = Evaluation(["image", "pixel", "missed"]), batch_of("a")
    said = prediction_for(batch)
    evaluation.update(batch, said)
    result = evaluation.compute()
    missed = (said.anomaly_map[batch["mask"]] < 0.5).float().mean()
    assert result.mean["missed_anomalous"] == pytest.approx(float(missed))
    assert list(result.mean)[-2:] == ["missed_anomalous", "missed_normal"]
    assert result.pooled["missed_normal"] == result.categories["missed_normal"][0]
    scope = {"MissedPixels": get_metric("missed"), "batch": batch, "prediction": said}
    exec(EXAMPLES[2], scope)
    assert scope["evaluation"].compute().mean["missed_anomalous"] > result.mean["missed_anomalous"]


def test_the_example_without_an_evaluation_runs():
    scope = {}
    exec(EXAMPLES[0], scope)
    assert scope["of_this_batch"] == scope["values"]
    assert {"aupro", "aupro_0.05"} <= scope["values"].keys()
    assert "val/streaming_auroc" in scope["collection"].compute()


def test_unknown_names_are_refused_with_the_nearest(install):
    install("my-package", "my_package", EXAMPLES[1], {"missed": "MissedPixels"})
    with pytest.raises(RegistryError, match="no metric is named 'misssed'; did you mean missed"):
        Evaluation(["image", "misssed"])


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import torchmetrics.nothing", "failed to import: ModuleNotFoundError"),
        ("class Thing: level = 'pixel'", "is not a subclass of torchmetrics.Metric"),
        ("from torchmetrics import SumMetric as Thing", "has level None: set the class attribute level"),
    ],
)
def test_a_broken_plug_in_is_named(install, code, reason):
    install("bad-one", "bad_one", code, {"thing": "Thing"})
    with pytest.raises(RegistryError, match=rf"metric 'thing' \(bad_one.Thing, from bad_one 1.2\) {reason}"):
        get_metric("thing")


def test_a_metric_that_cannot_be_made_is_named_before_the_run(install):
    code = EXAMPLES[1].replace("threshold: float = 0.5", "threshold")
    install("my-package", "my_package", code, {"missed": "MissedPixels"})
    with pytest.raises(VladError, match=r"metric 'missed' \(.*from my_package 1.2\) could not be made: TypeError"):
        Evaluation(["missed"])


def test_collisions_and_wrong_names_are_told(install, monkeypatch):
    install("b-first", "b_first", EXAMPLES[1], {"missed": "MissedPixels", "pixel": "MissedPixels"})
    install("a-second", "a_second", EXAMPLES[1], {"Missed": "MissedPixels", "7 times": "MissedPixels"})
    with pytest.warns(UserWarning, match="metric") as told:
        assert resolve("missed").distribution == "a_second"
    messages = sorted(str(one.message) for one in told)
    assert messages == [
        "a_second declares a metric named '7 times', which is no name: letters, digits and _ only",
        "metric name 'missed' is declared by a_second (a_second.MissedPixels) and by b_first (b_first.MissedPixels); "
        "the first is used, the other is reachable as class_path: b_first.MissedPixels",
        "metric name 'pixel' is declared by vlad (vlad.metrics.pixel.PixelMetrics) and by b_first "
        "(b_first.MissedPixels); the first is used, the other is reachable as class_path: b_first.MissedPixels",
    ]
    assert get_metric("pixel") is PixelMetrics
    assert get_metric("b_first.MissedPixels").__module__ == "b_first"
    monkeypatch.setenv("VLAD_PLUGINS", "vlad")
    refresh()
    assert set(discover()) == set(BUILT_IN)
