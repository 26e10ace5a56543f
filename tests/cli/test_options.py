"""Options read off the source: those that the parser has, so that what is refused early would be refused late."""

import subprocess
import sys

import pytest

from vlad.cli.options import arguments_of, known_options, refuse_unknown
from vlad.cli.parser import CALLBACKS
from vlad.cli.verbs import VERBS, foreign
from vlad.errors import OptionError
from vlad.methods.arguments import init_parameters
from vlad.registry import discover, get_method


@pytest.mark.parametrize("name", sorted(discover()))
def test_methods_have_the_arguments_that_their_source_tells(name):
    found = arguments_of(discover()[name].class_path)
    assert found is not None
    assert found == set(init_parameters(get_method(name)))


@pytest.mark.parametrize("verb", VERBS)
def test_sections_are_those_of_the_verb(verb):
    known = known_options(verb)
    assert set(known) == {"model", "data", "trainer", *(set(CALLBACKS) - set(foreign(verb)))}
    assert all(known[section] is not None for section in known if section != "model")
    for section, callback in CALLBACKS.items():
        if section in known:
            assert known[section] == set(init_parameters(callback))


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("modl", "model"),
        ("data.batchsize", "data.batch_size"),
        ("trainer.acelerator", "trainer.accelerator"),
        ("model.backbon", "model.backbone"),
        ("heatmaps.enable", "heatmaps.enabled"),  # no abbreviations either
    ],
)
def test_a_typo_is_told_with_what_was_meant(option, meant):
    with pytest.raises(OptionError, match=f"no option --{option}; did you mean {meant}"):
        refuse_unknown("predict", [option], "vlad.methods.sdp.SDP")


def test_what_the_source_does_not_tell_is_left_to_the_parser():
    refuse_unknown("predict", ["model.anything"], "nowhere.to.be.Found")
    refuse_unknown("fit", ["trainer.callbacks.every_n_train_steps", "trainer.callbacks+", "data.train.name"], None)


@pytest.mark.parametrize("words", [["--model", "sdpp"], ["--model", "sdp", "--model.backbon", "x"], ["--modl", "sdp"]])
def test_a_typo_imports_no_torch(words):
    code = "import sys; from vlad.cli import main; s = main(sys.argv[1:]); sys.exit(9 if 'torch' in sys.modules else s)"
    done = subprocess.run([sys.executable, "-c", code, "test", *words], capture_output=True, text=True)
    assert done.returncode in {1, 2}, done.stderr
    assert "did you mean" in done.stderr
