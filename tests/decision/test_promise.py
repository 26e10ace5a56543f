"""What conformal calibration promises, measured: on made-up scores, and on real ones of the rendered benchmark.

``experiments/calibration.py`` measures it on all of the benchmark; the table is in docs/decisions.md.
"""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def experiment():
    spec = importlib.util.spec_from_file_location("calibration", ROOT / "experiments" / "calibration.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rendered(experiment):
    """Scores and map maxima of 40 normal images of a category."""
    return experiment.normal_scores(["striped_gear"], 40)["striped_gear"]


@pytest.mark.parametrize("rate", [0.2, 0.1, 0.05])
@pytest.mark.parametrize("kind", ["normal", "heavy tails", "ties"])
def test_the_mean_rate_is_kept_on_any_scores(kind, rate, experiment):
    generator = np.random.default_rng(3)
    scores = {
        "normal": generator.normal(size=400),
        "heavy tails": generator.standard_cauchy(size=400),
        "ties": generator.integers(0, 12, size=400),
    }[kind].astype(np.float32)
    row = experiment.row(kind, scores, rate, 50)
    assert row["kept"]
    low, high = row["counted"]
    assert kind == "ties" or (low - 0.03 < row["spread"][0] and row["spread"][1] < high + 0.03)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", [0, 1], ids=["scores", "map maxima"])
def test_the_mean_rate_is_kept_on_rendered_images(part, rendered, experiment):
    for rate in (0.2, 0.1, 0.05):
        row = experiment.row("striped_gear", rendered[part], rate, 50)
        assert row["n"] == 20
        assert row["kept"], row


def test_the_table_in_the_docs_is_of_the_experiment_and_keeps_the_promise(experiment):
    page = (ROOT / "docs" / "decisions.md").read_text()
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in page.splitlines() if " to " in line
            and line.startswith("|") and "±" in line]  # fmt: skip
    assert len(rows) == 42
    for name, promised, _, _, measured, *_ in rows:
        mean, error = map(float, re.findall(r"[\d.]+", measured))
        assert mean <= float(promised) + 2 * error + 0.051, name  # rounded to a tenth
