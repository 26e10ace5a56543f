"""The decision file: exact, checked, and nothing but data."""

import json
import os
import pickle

import numpy as np
import pytest

from vlad.decision import Decision, ReferenceRecord, Rule, find_decision
from vlad.decision.conformal import conformal_threshold
from vlad.errors import DecisionError

SCORES = tuple(sorted(np.random.default_rng(0).normal(size=40).astype(np.float32).tolist()))


def made():
    rule = Rule(
        conformal_threshold(SCORES, 0.05),
        float(np.float32(0.1)),
        "Flasche ä",
        SCORES,
        SCORES[::2],
        0.1 + 0.2,
        3,
        ReferenceRecord("a", "b"),
        {"0" * 64: 12345},
    )
    return Decision("conformal", {"bottle/ä": rule}, None, {"options": {"eps": 0.1}}, 0.05, "", 0.001, 7, "now", "0.1")


def test_what_is_written_is_read_to_the_last_bit(tmp_path):
    decision = made()
    assert Decision.load(decision.save(tmp_path / "d.json")) == decision
    number = Decision.number(0.1 + 0.2)
    assert Decision.load(number.save(tmp_path / "n.json")) == number


def test_it_holds_what_people_ask_of_it(tmp_path):
    content = json.loads(made().save(tmp_path / "d.json").read_text())
    assert content["format"] == 2
    assert content["categories"]["bottle/ä"]["counts"] == {"normal": 40, "anomalous": 3}
    assert {"vlad", "created", "kind", "false_alarm_rate", "identity", "seed", "min_area"} <= set(content)


def test_a_number_that_is_not_finite_is_not_written(tmp_path):
    with pytest.raises(DecisionError, match="cannot be written"):
        Decision("number", default=Rule(float("nan"))).save(tmp_path / "d.json")
    assert not list(tmp_path.iterdir())


def change(**changes):
    def apply(content):
        content.update(changes)

    return apply


def change_rule(**changes):
    def apply(content):
        content["categories"]["bottle/ä"].update(changes)

    return apply


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (change(format=3), "its format is 3, this vlad reads 2"),
        (change(kind="magic"), "kind must be one of"),
        (change(kind=[]), "kind must be one of"),
        (change(false_alarm_rate=1.5), "false_alarm_rate must be"),
        (change(false_alarm_rate=True), "false_alarm_rate must be"),
        (change(false_alarm_rate=None), "false_alarm_rate must be above 0"),
        (change(false_alarm_rate=0.2), "threshold does not follow from the scores"),
        (change(categories={}), "no categories"),
        (change(categories=[]), "categories must be a mapping"),
        (change(categories={"a": None}), "a: it must be a mapping"),
        (change(identity=None), "identity must be"),
        (change(min_area=-1), "min_area must be"),
        (change(target="best"), "target must be"),
        (change_rule(threshold=0.5), "threshold does not follow from the scores"),
        (change_rule(threshold="0.5"), "threshold must be a number"),
        (change_rule(threshold=10**400), "no decision file"),
        (change_rule(scores=[1, "2"]), "scores must be a list of numbers"),
        (change_rule(scores=[1, 2]), "counts.normal is 40, and there are 2 scores"),
        (change_rule(pixel_threshold=[]), "pixel_threshold must be"),
        (change_rule(digests={"a": -1}), "digests must be"),
        (change_rule(references={}), "references.images must be"),
        (lambda content: content.pop("seed"), "seed must be"),
    ],
)
def test_a_malformed_file_is_told_in_one_line(damage, said, tmp_path):
    file = made().save(tmp_path / "d.json")
    content = json.loads(file.read_text())
    damage(content)
    file.write_text(json.dumps(content))
    with pytest.raises(DecisionError) as error:
        Decision.load(file)
    assert said in str(error.value)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


class Evil:
    """Leaves a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b"\xff\xfe", b'{"format": NaN}', b"[" * 100_000, b"nothing", b'{"format": 1e999}', b"null"],
)
def test_other_files_are_told_in_one_line(content, tmp_path):
    file = tmp_path / "d.json"
    file.write_bytes(content)
    with pytest.raises(DecisionError, match="no decision file of vlad") as error:
        Decision.load(file)
    assert "\n" not in str(error.value)


def test_it_is_never_unpickled(tmp_path):
    file = tmp_path / "d.json"
    file.write_bytes(pickle.dumps(Evil(tmp_path / "evil")))
    with pytest.raises(DecisionError):
        Decision.load(file)
    assert not (tmp_path / "evil").exists()


def test_a_fifo_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "d.json")
    with pytest.raises(DecisionError, match="no regular file"):
        Decision.load(tmp_path / "d.json")


def test_a_folder_stands_for_the_file_in_it(tmp_path):
    with pytest.raises(DecisionError, match=r"holds no decision\.json"):
        Decision.load(tmp_path)
    made().save(tmp_path / "decision.json")
    assert Decision.load(tmp_path) == made()


def test_where_a_runs_decision_lies(tmp_path):
    assert find_decision(None) is None
    assert find_decision(tmp_path) is None
    file = made().save(tmp_path / "decision.json")
    assert find_decision(tmp_path) == file
    assert find_decision(tmp_path / "checkpoints" / "epoch=0.ckpt") == file
    assert find_decision(tmp_path / "loose.ckpt") is None
