"""``vlad calibrate``: from a folder of images to a decision file, in one command."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from tests_support import SMALL, save_run, write_mask, write_picture

from vlad.cli import main
from vlad.cli.calibrate import _EXAMPLES
from vlad.decision import Decision
from vlad.methods.sdp import SDP

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with good/ (24 images), bad/, parts/ (good, bad, masks) and photos/."""
    for number in range(24):
        write_picture(tmp_path / "good" / f"{number:02}.png", seed=number)
    for number in range(4):
        write_picture(tmp_path / "bad" / f"{number}.png", seed=300 + number)
        write_picture(tmp_path / "photos" / f"{number}.png", seed=400 + number)
        write_picture(tmp_path / "parts" / "bad" / f"{number}.png", seed=500 + number)
        write_mask(tmp_path / "parts" / "masks" / f"{number}.png")
    shutil.copytree(tmp_path / "good", tmp_path / "parts" / "good")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def small(tiny):
    return ["--model.backbone", tiny, "--model.image_size", "64", "--model.layers", "[2,4]", "--data.num_workers", "0"]


def calibrate(*arguments):
    return main(["calibrate", *arguments])


def test_it_says_what_it_promises_and_writes_it(place, small, capsys):
    assert calibrate("sdp", "good", *small, "--class-name", "nut") == 0
    out = capsys.readouterr().out
    decision = Decision.load("decision.json")
    assert (decision.kind, decision.false_alarm_rate) == ("conformal", 0.05)
    assert len(decision.rules["nut"].normal) == 24
    assert decision.identity["options"]["image_size"] == 64
    assert f"from a score of {decision.rules['nut'].threshold:.6g} on (conformal, 24 normal images)" in out
    assert "of this one the rate lies between 0.00213 and 0.117 (5 % to 95 %)" in out
    assert "no rate below 1/25 = 0.04 can be promised with 24 images" in out
    assert "next: vlad predict photos/ --model sdp --model.backbone" in out
    assert "--data.class_name nut --decision decision.json" in out


def test_a_calibration_made_again_is_the_same(place, small):
    for name in ("one.json", "other.json"):
        assert calibrate("sdp", "good", *small, "--output", name) == 0
    one, other = (json.loads(Path(name).read_text()) for name in ("one.json", "other.json"))
    own = {"created": "", "digest": ""}  # of the whole content, the time included
    assert {**one, **own} == {**other, **own}


def test_the_examples_of_the_help_run(place, small, tiny, capsys):
    save_run(SDP(tiny, None, 64, [2, 4]), place / "runs" / "sdp_plus" / "RUN")
    lines = [line.strip().split("   ")[0] for line in _EXAMPLES.splitlines() if "vlad calibrate" in line]
    assert len(lines) == 4
    for line in lines:
        words = shlex.split(line)[2:]
        settings = small[-2:] if words[0].startswith("runs/") else small
        assert calibrate(*words, *settings) == 0, line
    assert (place / "runs" / "sdp_plus" / "RUN" / "decision.json").is_file()
    assert "vlad calibrate sdp good/ --class-name bottle" in _EXAMPLES
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        calibrate("--help")
    assert end.value.code == 0
    assert all(line in capsys.readouterr().out for line in lines[:1])


def test_references_that_are_drawn_are_listed_and_the_list_gives_them_again(place, small, capsys):
    arguments = ("patch_memory", "good", *small, "--class-name", "nut")
    assert calibrate(*arguments, "--shots", "4", "--seed", "3", "--output", "drawn.json") == 0
    out = capsys.readouterr().out
    assert "left out: 4 are references" in out
    assert "--references drawn.references.csv --decision drawn.json" in out
    assert calibrate(*arguments, "--references", "drawn.references.csv", "--output", "given.json") == 0
    drawn, given = (Decision.load(name).rules["nut"] for name in ("drawn.json", "given.json"))
    assert len(drawn.normal) == 20
    assert drawn == given


def test_one_folder_for_both_is_split(place, small, capsys):
    settings = ("--false-alarm-rate", "0.1", "--class-name", "nut")
    assert calibrate("patch_memory", "good", "--references", "good", *small, *settings) == 0
    assert len(Decision.load("decision.json").rules["nut"].normal) == 12
    assert "left out: 12 are references" in capsys.readouterr().out


def test_labelled_images_with_masks(place, small, capsys):
    assert calibrate("sdp", "parts", "--labelled", "f1", *small, "--class-name", "nut") == 0
    decision = Decision.load("decision.json")
    assert (decision.kind, decision.target, decision.rules["nut"].anomalous) == ("labelled", "f1", 4)
    out = capsys.readouterr().out
    assert "on these images themselves" in out
    assert "by the best pixel F1" in out


def test_a_false_positive_rate_from_two_folders(place, small):
    assert calibrate("sdp", "good", "--labelled", "fpr", "--false-alarm-rate", "0.25", "bad", *small) == 0
    decision = Decision.load("decision.json")
    (rule,) = decision.rules.values()
    assert sum(score >= rule.threshold for score in rule.normal) == 6
    assert rule.anomalous == 4


def test_a_number_of_ones_own(place, small):
    assert calibrate("sdp", "good", "--threshold", "0.62", *small) == 0
    decision = Decision.load("decision.json")
    (rule,) = decision.rules.values()
    assert (decision.kind, rule.threshold) == ("number", 0.62)
    assert rule.pixel_threshold is not None


def test_what_cannot_be_read_is_left_out_and_said(place, small, capsys):
    (place / "good" / "03.png").write_bytes((place / "good" / "03.png").read_bytes()[:60])
    assert calibrate("sdp", "good", *small, "--class-name", "nut") == 0
    assert "not scored: " in capsys.readouterr().out
    assert len(Decision.load("decision.json").rules["nut"].normal) == 23


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["sdp", "nowhere/"], 1, "nowhere"),
        (["sdpp", "good"], 1, "did you mean sdp"),
        (["sdp", "good", "--false-alarm-rate", "0.01"], 1, "give at least 99, or a rate of 0.04 or more"),
        (["sdp", "good", "--false-alarm-rate", "1.5"], 1, "--false-alarm-rate lies between 0 and 1"),
        (["sdp", "good", "--false-alarm-rate", "nan"], 1, "--false-alarm-rate lies between 0 and 1"),
        (["sdp", "good", "--min-area", "2"], 1, "--min-area is a share"),
        (["sdp", "good", "--threshold", "inf"], 1, "finite"),
        (["sdp", "good", "bad"], 2, "with --labelled"),
        (["sdp", "parts"], 1, "give the normal images alone, or --labelled f1"),
        (["sdp", "good", "--labelled", "f1", "--threshold", "1"], 2, "leave one of them out"),
        (["sdp", "good", "--labelled", "f1"], 1, "good"),
        (["sdp", "good", "--shots", "0"], 2, "--shots is a number"),
        (["sdp", "good", "--seed", "-1"], 2, "--seed is a whole number"),
        (["sdp", "good", "--references", "nothing/"], 1, "nothing"),
        (["sdp", "good", "--output", "good/00.png"], 1, "is not a decision file: give another name"),
        (["sdp", "good", "--model.sigmaa", "3"], 2, "there is no --model.sigmaa here; did you mean sigma"),
        (["sdp", "good", "--model.sigma", "much"], 2, "sigma"),
        (["sdp", "good", "--data.batch_size", "0"], 2, "batch_size"),
        (["sdp", "good", "--data.textures", "x"], 2, "there is no --data.textures here"),
        (["sdp", "good", "--model.sigma"], 2, "--model.sigma needs a value"),
        (["sdp", "good", "--model.image_fusion", "minmax"], 1, "transductive"),
        (["sdp_plus", "good"], 1, "has not been trained"),
        (["nothing/run", "good"], 1, "nothing/run"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(arguments, status, said, place, tiny, capsys):
    wrong = {"nowhere/", "sdpp", "nothing/run"} & set(arguments)
    extra = [] if wrong else ["--model.backbone", tiny, "--model.image_size", "64", "--model.layers", "[2,4]"]
    before = sorted(place.rglob("*"))
    assert calibrate(*arguments[:2], *extra, *arguments[2:]) == status
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1, error
    assert error[0].startswith("vlad calibrate: ")
    assert said in error[0]
    assert sorted(place.rglob("*")) == before


def test_settings_of_every_method_are_taken(place, tiny):
    for name in ("sdp", "patch_memory"):
        settings = [f"--model.{key}={json.dumps(value)}" for key, value in SMALL[name].items()]
        settings += [f"--model.backbone={tiny}", "--model.image_size=64", "--data.num_workers=0"]
        assert calibrate(name, "good", "--shots", "2", "--output", f"{name}.json", *settings) == 0


def test_the_next_command_quotes_what_has_to_be(place, small, capsys):
    assert calibrate("sdp", "good", *small, "--class-name", "hex nut", "--output", "my decision.json") == 0
    command = re.search(r"next: (.*)", capsys.readouterr().out).group(1)
    words = shlex.split(command)
    assert words[words.index("--data.class_name") + 1] == "hex nut"
    assert words[-1] == "my decision.json"
