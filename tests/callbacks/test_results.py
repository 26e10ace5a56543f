"""What a run leaves on disk and on the screen, from the Evaluator's result."""

import json
import math

import pandas as pd
import pytest
from callbacks.test_evaluator import Listener, Module, OfFeatures, OfScores, loader, trainer

from vlad.callbacks.evaluator import Evaluator
from vlad.callbacks.results import Results, format_table
from vlad.errors import VladError
from vlad.metrics.results import EvaluationResult

pytestmark = pytest.mark.filterwarnings("ignore")


def run(folder, verb, module, *callbacks, **options):
    one = trainer(*callbacks, default_root_dir=folder)
    getattr(one, verb)(module, loader(), **options)
    return {path.name for path in folder.iterdir() if path.is_file()}


def test_a_test_leaves_tables_of_every_stage(tmp_path, capsys):
    evaluator = Evaluator(pro_limits=[0.3, 0.05])
    files = run(tmp_path, "test", Module(stages=True), Results(), evaluator, verbose=False)
    tables = ["test_metrics.csv", "test_scores.csv", "test_initial_metrics.csv", "test_initial_scores.csv"]
    assert files == {*tables, "test_metrics.json"}
    categories = pd.read_csv(tmp_path / "test_metrics.csv")
    assert categories["pixel_aupro_0.05"].tolist() == pytest.approx(
        evaluator.result.categories["pixel_aupro_0.05"].tolist()
    )
    initial = pd.read_csv(tmp_path / "test_initial_metrics.csv")
    assert initial["pixel_auroc"].tolist() == pytest.approx((1 - categories["pixel_auroc"]).tolist())
    scores = pd.read_csv(tmp_path / "test_scores.csv")
    assert list(scores) == ["dataset", "category", "image_id", "path", "label", "image_score"]
    assert scores["image_id"].tolist() == list(range(9))
    content = json.loads((tmp_path / "test_metrics.json").read_text())
    assert content["mean"]["pixel_auroc"] == pytest.approx(evaluator.result.mean["pixel_auroc"])
    assert content["stages"]["initial"]["mean"]["pixel_auroc"] == pytest.approx(initial["pixel_auroc"].mean())
    assert content["transductive"] == ""
    printed = capsys.readouterr().out
    assert printed.index("\ninitial\n") < printed.index("\nfinal\n") < printed.index("run folder:")
    headings = "category normal anomalous I-AUROC I-AP I-F1max P-AUROC P-AP P-F1max P-PRO P-PRO@0.05"
    assert [line.split() for line in printed.splitlines() if "I-AUROC" in line] == [headings.split()] * 2
    assert "transductive" not in printed


@pytest.mark.parametrize(
    ("module", "kind", "told"),
    [
        (OfScores, "scores", "transductive: the image scores of a category were combined over its whole test set"),
        (OfFeatures, "features", "transductive: the images of a category were scored together with its whole test set"),
    ],
)
def test_tables_of_transductive_methods_say_so(tmp_path, capsys, module, kind, told):
    run(tmp_path, "test", module(), Evaluator(), Results(), verbose=False)
    assert told in capsys.readouterr().out
    assert json.loads((tmp_path / "test_metrics.json").read_text())["transductive"] == kind


def test_validation_is_printed_where_it_is_the_run_and_only_written_while_fitting(tmp_path, capsys):
    files = run(tmp_path, "validate", Module(), Evaluator(), Results(), verbose=False)
    assert files == {"val_metrics.csv", "val_metrics.json", "val_scores.csv"}
    assert "P-AUROC" in capsys.readouterr().out
    other = tmp_path / "fit"
    one = trainer(Evaluator(), Results(), default_root_dir=other, max_epochs=1, num_sanity_val_steps=1)
    one.fit(Module(), loader(), loader())
    assert len(pd.read_csv(other / "val_scores.csv")) == 9
    assert "P-AUROC" not in capsys.readouterr().out


def test_without_an_evaluator_a_test_is_refused(tmp_path):
    with pytest.raises(VladError, match=r"add vlad.callbacks.Evaluator\(\) to the callbacks"):
        run(tmp_path, "test", Module(), Results(), verbose=False)


def test_an_evaluator_that_the_module_brings_is_found(tmp_path):
    class Own(Module):
        def configure_callbacks(self):
            return [Evaluator(), Listener()]

    assert "test_metrics.csv" in run(tmp_path, "test", Own(), Results(), verbose=False)


def test_plug_in_columns_and_undefined_values_are_printed():
    table = pd.DataFrame(
        [
            {"dataset": "d", "category": "a", "normal": 1, "anomalous": 2, "missed_here": 0.25, "pixel_iou_max": 0.5},
            {"dataset": "e", "category": "e", "normal": 3, "anomalous": 0, "missed_here": math.nan},
        ]
    )
    note = {"dataset": "e", "category": "e", "level": "pixel", "metric": "missed", "reason": "no masks"}
    result = EvaluationResult(table, table, {"missed_here": 0.25, "pixel_iou_max": 0.5}, {}, [note])
    lines = [line.split() for line in format_table(result).splitlines() if not line.startswith("---")]
    assert lines[:4] == [
        ["category", "normal", "anomalous", "missed_here"],
        ["d/a", "1", "2", "25.0"],
        ["e", "3", "0", "-"],
        ["mean", "25.0"],
    ]
    assert " ".join(lines[4]) == "- e: no missed metrics: no masks"
