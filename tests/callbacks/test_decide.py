"""Decisions on what is tested and predicted: made once, counted, refused where they do not belong."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import Trainer
from tests_support import write_picture

from vlad.callbacks import Decide, Evaluator, References
from vlad.datamodules import AnomalyDataModule
from vlad.datamodules.sources import Locations
from vlad.decision import Decision, Rule
from vlad.decision.images import choose_images, index_normal
from vlad.decision.make import Wish, make_decision
from vlad.decision.scoring import score_images
from vlad.errors import DecisionError
from vlad.methods.sdp import SDP
from vlad.types import Batch, Prediction

pytestmark = pytest.mark.filterwarnings("ignore")
GOOD, BAD = 6, 4


def trainer(folder, *callbacks, **options):
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=list(callbacks), **options
    )  # fmt: skip


@pytest.fixture
def sdp(tiny):
    return SDP(tiny, None, 64, [2, 4]).eval()


@pytest.fixture
def parts(tmp_path):
    """Images to calibrate on, and others to test on: sizes 40 by 36."""
    for number in range(20):
        write_picture(tmp_path / "calibration" / f"{number}.png", seed=number)
    for number in range(GOOD):
        write_picture(tmp_path / "parts" / "good" / f"{number}.png", seed=100 + number)
    for number in range(BAD):
        write_picture(tmp_path / "parts" / "bad" / f"{number}.png", seed=200 + number)
    return tmp_path / "parts"


def calibrated(method, folder, rate=0.3, **options):
    """Returns a decision file made from a folder, as ``vlad calibrate`` does."""
    frame, _ = index_normal([str(folder)], Locations(None, "nut"))
    chosen = choose_images(frame, method, **options)
    scored, depends = score_images(method, chosen.frame, chosen.references, data={"num_workers": 0})
    decision = make_decision(
        method, chosen.frame, chosen.keys, scored, Wish(rate), data=depends, references=chosen.references
    )
    return decision.save(folder.parent / "decision.json"), chosen


def run(verb, method, root, folder, *callbacks, data=None, **options):
    source = {"test": str(root)} if verb == "test" else {"predict": [str(root)]}
    given = {"num_workers": 0, "batch_size": 3, "class_name": "nut", **source, **(data or {})}
    module = AnomalyDataModule(**given).require(method.requirements)
    one = trainer(folder, *callbacks, **options)
    getattr(one, verb)(method, datamodule=module, **({"verbose": False} if verb == "test" else {}))
    return module


def test_a_test_counts_false_alarms_and_misses(sdp, parts, tmp_path, capsys):
    file, _ = calibrated(sdp, tmp_path / "calibration")
    decide, evaluator = Decide(str(file)), Evaluator(("image",))
    run("test", sdp, parts, tmp_path / "run", decide, evaluator)
    images = evaluator.result.images
    rule = Decision.load(file).rules["nut"]
    called = images["image_score"].to_numpy().astype(float) >= rule.threshold
    table = pd.read_csv(tmp_path / "run" / "test_decisions.csv")
    assert table["false_alarms"].tolist() == [int((called & (images["label"] == 0)).sum())]
    assert table["misses"].tolist() == [int((~called & (images["label"] == 1)).sum())]
    assert (table["normal"][0], table["anomalous"][0], table["undecided"][0]) == (GOOD, BAD, 0)
    out = capsys.readouterr().out
    assert "decisions" in out
    assert "promised: at most 30 % false alarms" in out
    columns = decide.decision_columns(images)
    assert columns["decision"].tolist() == ["anomalous" if one else "normal" for one in called]
    assert columns["p_value"].between(1 / 21, 1).all()
    assert columns["regions"].str.startswith("[").all()
    assert list(columns)[-5:] == ["p_value", "threshold", "decision", "anomalous_area", "regions"]


def test_without_a_decision_nothing_changes(sdp, parts, tmp_path, capsys):
    decide, evaluator = Decide(), Evaluator(("image",))
    run("test", sdp, parts, tmp_path / "run", decide, evaluator)
    assert decide.decision is None
    assert decide.digest == ""
    assert decide.decision_columns(evaluator.result.images) is evaluator.result.images
    assert not (tmp_path / "run" / "test_decisions.csv").exists()
    assert "decisions" not in capsys.readouterr().out


def test_images_that_a_decision_was_made_with_are_not_tested(sdp, parts, tmp_path):
    file, _ = calibrated(sdp, tmp_path / "calibration")
    shutil.copy(tmp_path / "calibration" / "3.png", parts / "good" / "renamed.png")
    with pytest.raises(DecisionError, match=r"1 of the tested images are among those .*renamed\.png"):
        run("test", sdp, parts, tmp_path / "run", Decide(str(file)))


def test_what_scores_otherwise_is_refused(sdp, parts, tmp_path, tiny):
    file, _ = calibrated(sdp, tmp_path / "calibration")
    smoother = SDP(tiny, None, 64, [2, 4], sigma=3.0).eval()
    with pytest.raises(DecisionError, match=r"what differs is sigma \(was 8.0, is 3.0\)"):
        run("predict", smoother, parts, tmp_path / "run", Decide(str(file)))
    with pytest.raises(DecisionError, match=r"the precision \(was 32-true, is bf16-mixed\)"):
        run("predict", sdp, parts, tmp_path / "run", Decide(str(file)), precision="bf16-mixed")
    run("predict", smoother, parts, tmp_path / "run", Decide("0.5"))
    run("predict", smoother, parts, tmp_path / "run", Decide("none"))


def test_other_class_names_are_refused(sdp, tmp_path, parts):
    file, _ = calibrated(sdp, tmp_path / "calibration")
    table = tmp_path / "list.csv"
    table.write_text("image_path,category,class_name\nparts/good/0.png,nut,screw nut\n")
    with pytest.raises(DecisionError, match="called 'nut' in the prompts, and here they are called 'screw nut'"):
        run("predict", sdp, table, tmp_path / "run", Decide(str(file)), data={"class_name": None})


def test_unknown_categories_are_told_and_get_no_decision(sdp, tmp_path, parts, capsys):
    file, _ = calibrated(sdp, tmp_path / "calibration")
    decide = Decide(str(file))
    run("test", sdp, parts, tmp_path / "run", decide, data={"class_name": "bolt"})
    assert "no decision on images of parts" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "run" / "test_decisions.csv")["undecided"].tolist() == [GOOD + BAD]


def test_references_must_be_those_it_was_made_with(sdp, parts, tmp_path):
    file, chosen = calibrated(sdp, tmp_path / "calibration", shots=3)
    mine = chosen.references["image_path"].tolist()
    decide = Decide(str(file))
    run("predict", sdp, parts, tmp_path / "run", decide, References(), data={"references": mine})
    run("predict", sdp, parts, tmp_path / "run", References(), decide, data={"references": mine[::-1]})
    with pytest.raises(DecisionError, match="the references of nut"):
        run("predict", sdp, parts, tmp_path / "run", Decide(str(file)), data={"references": mine[:2]})
    sdp.memory.clear()
    with pytest.raises(DecisionError, match=r"the references of nut \(was \w+, is none\)"):
        run("predict", sdp, parts, tmp_path / "run", Decide(str(file)))


def test_a_transductive_method_is_refused(tiny, tmp_path, parts):
    method = SDP(tiny, None, 64, [2, 4], image_fusion="minmax").eval()
    with pytest.raises(DecisionError, match="transductive"):
        run("test", method, parts, tmp_path / "run", Decide(0.5))


@pytest.mark.parametrize(("given", "kind"), [(None, "conformal"), ("none", None), (0.5, "number")])
def test_that_of_the_checkpoints_run_is_taken_where_none_is_given(given, kind, sdp, parts, tmp_path):
    saving = trainer(tmp_path / "fitted")
    saving.strategy.connect(sdp)
    checkpoint = tmp_path / "fitted" / "checkpoints" / "epoch=0.ckpt"
    saving.save_checkpoint(checkpoint, weights_only=True)
    file, _ = calibrated(sdp, tmp_path / "calibration")
    shutil.copy(file, tmp_path / "fitted" / "decision.json")
    module = AnomalyDataModule(test=str(parts), num_workers=0, class_name="nut").require(sdp.requirements)
    decide = Decide(given)
    trainer(tmp_path / "run", decide).test(sdp, datamodule=module, ckpt_path=str(checkpoint), verbose=False)
    assert getattr(decide.decision, "kind", None) == kind
    assert (tmp_path / "run" / "test_decisions.csv").exists() == (kind is not None)


def batch_of(**changes):
    given = {
        "category": ["nut", "bolt"],
        "class_name": ["nut", "bolt"],
        "original_size": torch.tensor([[16, 8], [16, 8]]),
        "seen_size": torch.tensor([[16, 8], [16, 8]]),
    }
    return Batch(**{**given, **changes})


def test_a_batch_is_decided_on_once(monkeypatch):
    decide = Decide()
    decide._decision = Decision("number", {"nut": Rule(0.5, 1.0)})
    maps = torch.zeros(2, 4, 4)
    maps[0, 1, 1] = 1.0
    prediction, batch = Prediction(maps, torch.tensor([0.5, 9.0]), maps), batch_of()
    first = decide.verdicts(batch, prediction)
    assert [one.decision for one in first] == ["anomalous", ""]
    assert first[0].regions[0][:5] == (2, 4, 2, 4, 8)
    monkeypatch.setattr(Decision, "verdict", None)
    assert decide.verdicts(batch, prediction) is first
    monkeypatch.undo()
    assert decide.verdicts(batch_of(), prediction) == first


def test_scores_that_are_no_numbers_get_no_decision():
    maps = torch.full((2, 4, 4), np.nan)
    found = Decide(0.5).verdicts(batch_of(), Prediction(maps, torch.tensor([np.nan, 1.0]), maps))
    assert [one.decision for one in found] == ["", "anomalous"]


@pytest.mark.parametrize("given", ["nothing.json", "nan", ""])
def test_what_is_no_decision_is_told_when_it_is_given(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DecisionError):
        Decide(given)


def test_the_digest_is_of_what_is_decided_not_of_where_it_lies(sdp, tmp_path, parts):
    file, _ = calibrated(sdp, tmp_path / "calibration")
    shutil.copy(file, tmp_path / "other.json")
    assert Decide(str(file)).digest == Decide(str(tmp_path / "other.json")).digest != Decide(0.5).digest != ""
