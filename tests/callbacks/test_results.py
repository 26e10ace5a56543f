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
    assert list(scores) == ["dataset", "category", "image_id", "path", "label", "image_score", "error"]
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


def test_columns_of_the_table_are_chosen(tmp_path, capsys):
    run(
        tmp_path,
        "test",
        Module(),
        Evaluator(columns=["pixel_aupimo", "image_fpr_at_0.95", "odd"]),
        Results(),
        verbose=False,
    )
    out = capsys.readouterr().out
    assert "category  normal  anomalous  P-AUPIMO  I-FPR@0.95" in out
    assert "- no column odd: there are image_auroc, image_ap" in out


def test_published_numbers_stand_beside_ours(tmp_path, capsys, monkeypatch):
    """A test on all categories of a data set, by a method of which numbers are published."""
    from vlad.callbacks import results
    from vlad.results import RunFacts, beside

    def pretended(result, pl_module, datamodule, evaluation_protocol):
        rows = [{**row, "dataset": "headct", "category": "headct"} for row in result.categories.to_dict("records")[:1]]
        return beside(RunFacts("anomalyclip", 0, "vlad-tiny", 96, evaluation_protocol), rows)

    monkeypatch.setattr(results, "published_beside", pretended)
    run(tmp_path, "test", Module(), Evaluator(), Results(), verbose=False)
    out = capsys.readouterr().out
    assert "published on headct (ours less theirs)" in out
    assert "the paper [1]" in out
    assert "this run: encoder vlad-tiny, not ViT-L-14-336; 96 px, not 518" in out
    table = pd.read_csv(tmp_path / "test_published.csv")
    assert table["value"].tolist() == [93.4, 91.6]
    assert table["difference"].tolist() == pytest.approx((table["ours"] - table["value"]).tolist())


class Diverging(Module):
    """Says NaN of the third image, and a map with infinity of the fourth."""

    def test_step(self, batch, batch_idx):
        said = super().test_step(batch, batch_idx)
        for i, number in enumerate(batch["index"].tolist()):
            said.image_score[i] = math.nan if number == 2 else said.image_score[i]
            said.anomaly_map[i, 0, 0] = math.inf if number == 3 else said.anomaly_map[i, 0, 0]
        return said

    validation_step = test_step


@pytest.mark.parametrize("verb", ["test", "validate"])
def test_a_score_that_is_not_finite_is_an_error_of_its_row_and_the_run_goes_on(tmp_path, capsys, verb):
    evaluator = Evaluator()
    run(tmp_path, verb, Diverging(), evaluator, Results(), verbose=False)
    scores = pd.read_csv(tmp_path / f"{verb[: 4 if verb == 'test' else 3]}_scores.csv")
    failed = scores[scores["error"].notna()]
    assert failed["image_id"].tolist() == [2, 3]
    assert failed["image_score"].isna().all()
    assert all("not finite" in error for error in failed["error"])
    assert "2 of 9 images have no finite score and count in no metric" in capsys.readouterr().out
    assert evaluator.exit_status() == 3
    assert not any(math.isnan(value) for value in evaluator.result.mean.values())
