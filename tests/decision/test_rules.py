"""What a decision says, and when it refuses to."""

import numpy as np
import pytest

from vlad.decision import Decision, ReferenceRecord, Rule
from vlad.decision.conformal import conformal_threshold
from vlad.errors import DecisionError

NORMAL = tuple(float(np.float32(number / 20)) for number in range(20))
MAXIMA = tuple(number / 2 for number in range(20))
IDENTITY = {"method": "a.B", "options": {"sigma": 4.0, "layers": [3, 6]}, "precision": "32-true", "references": "x"}


def rule(**changes):
    given = {"class_name": "bottle", "normal": NORMAL, "maxima": MAXIMA, "level": 1.0, "pixel_threshold": 9.0}
    return Rule(conformal_threshold(NORMAL, 0.1), **{**given, **changes})


def decision(**changes):
    given = {"rules": {"bottle": rule()}, "identity": IDENTITY, "false_alarm_rate": 0.1, "source": "d.json"}
    return Decision("conformal", **{**given, **changes})


def verdict(score, category="bottle", peak=0.0, **names):
    anomaly_map = np.zeros((4, 4), np.float32)
    anomaly_map[1, 1] = peak
    return decision().verdict(category, score, anomaly_map, (8, 16), (8, 20), **names)


def test_the_score_alone_decides():
    low, high = verdict(0.5, peak=9.5), verdict(0.97)
    assert (low.decision, low.p_value, low.anomalous_area) == ("normal", 11 / 21, 8)
    assert [region[:4] for region in low.regions] == [(4, 2, 4, 2)]
    assert (high.decision, high.p_value, high.anomalous_area, high.regions) == ("anomalous", 1 / 21, 0, ())
    assert high.threshold == conformal_threshold(NORMAL, 0.1)


def test_a_tie_with_the_score_at_the_threshold_is_normal():
    assert verdict(NORMAL[18]).decision == "normal"
    assert verdict(NORMAL[19]).decision == "anomalous"


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_gets_no_decision(score):
    assert verdict(score).columns() == dict.fromkeys(("p_value", "threshold", "decision", "anomalous_area", "regions"))


def test_an_unknown_category_gets_no_decision():
    assert verdict(0.97, "cable").decision == ""
    assert decision().scale("cable") is None


def test_a_folder_goes_by_the_class_name_of_its_images():
    assert verdict(0.97, "parts", class_name="bottle").decision == "anomalous"
    assert verdict(0.97, "parts", class_name="cable").decision == ""


def test_other_words_in_the_prompt_are_other_scores():
    assert verdict(0.97, class_name="flask").decision == ""
    with pytest.raises(DecisionError, match="'bottle' in the prompts, and here they are called 'flask'"):
        decision().check_class_name("bottle", "flask")
    assert decision(rules={"bottle": rule(class_name="")}).rule_of("bottle", "flask") is not None
    decision().check_class_name("cable", "flask")


def test_no_box_leaves_the_image():
    anomaly_map = np.full((4, 4), 10, np.float32)
    (region,) = decision().verdict("bottle", 0.5, anomaly_map, (9, 21), (8, 20)).regions
    assert region[:4] == (0, 0, 20, 8)


def test_a_number_decides_for_every_category_and_nothing_else_is_known():
    one = Decision.number(0.62)
    found = [one.verdict(name, score, np.zeros((2, 2)), (2, 2), (2, 2)) for name, score in (("a", 0.62), ("b", 0.61))]
    assert [each.decision for each in found] == ["anomalous", "normal"]
    assert found[0].p_value is None
    assert found[0].anomalous_area is None
    assert one.scale("a") is None
    one.check({"method": "any"})


@pytest.mark.parametrize("given", ["nan", "inf", float("nan"), "-inf"])
def test_a_number_must_be_finite(given):
    with pytest.raises(DecisionError, match="finite"):
        Decision.read(given)


def test_what_an_option_may_be():
    assert Decision.read(None) is None
    assert Decision.read("none") is None
    assert Decision.read("0.5").default.threshold == 0.5
    with pytest.raises(DecisionError, match="decision nothing.json is neither a number nor a file"):
        Decision.read("nothing.json")


def test_most_normal_images_are_not_coloured_at_all():
    low, high, contour = decision().scale("bottle")
    assert sum(value <= low for value in MAXIMA) >= len(MAXIMA) / 2
    assert low == (sorted(MAXIMA)[(len(MAXIMA) - 1) // 2] + contour) / 2
    assert low < contour == 9.0 < high
    assert high == 17.0
    flat = decision(rules={"bottle": rule(level=9.0, maxima=(9.0, 9.0))}).scale("bottle")
    assert flat[0] <= flat[2] < flat[1]


def test_it_is_refused_where_scores_are_made_otherwise():
    same = {**IDENTITY, "options": {"sigma": 4.0, "layers": (3, 6)}}  # as a method has them, before they are JSON
    decision().check(same)
    with pytest.raises(
        DecisionError, match=r"d\.json was made with other scores: what differs is sigma \(was 4\.0, is 8"
    ):
        decision().check({**IDENTITY, "options": {"sigma": 8.0, "layers": [3, 6]}})
    with pytest.raises(
        DecisionError, match=r"the precision \(was 32-true, is bf16-mixed\); .*the references|precision"
    ):
        decision().check({**IDENTITY, "precision": "bf16-mixed"})
    with pytest.raises(DecisionError, match=r"the reference images \(was x, is y\)"):
        decision().check({**IDENTITY, "references": "y"})


def test_references_are_compared_category_by_category():
    mine = decision(rules={"bottle": rule(references=ReferenceRecord("files", "tokens"))})
    other = {**IDENTITY, "references": "of more categories"}
    mine.check(other, [("bottle", ReferenceRecord("files", "rounded otherwise"))])
    mine.check(other, [("bottle", ReferenceRecord("", "tokens"))])  # restored: the files are not known
    for wrong in (ReferenceRecord("others", "tokens"), ReferenceRecord()):
        with pytest.raises(DecisionError, match=r"the references of bottle \(was files, is (others|none)\)"):
            mine.check(other, [("bottle", wrong)])
