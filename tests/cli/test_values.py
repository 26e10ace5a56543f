"""What is typed for an option that takes text is what the option gets."""

import pytest
import yaml

from vlad.cli.values import keep_text, typed_value
from vlad.cli.verbs import drop_foreign, refuse_foreign
from vlad.errors import OptionError


@pytest.mark.parametrize(
    "text", ["#3 bolt", "null", "no", "01", "1e3", "~", "a: b", "[x", "- a", "'q'", "{}", "*", "%"]
)
def test_text_is_kept(text):
    assert typed_value("text", text) == text


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("names", "[01]", ["01"]),
        ("names", "[01, no, null, 1e3]", ["01", "no", "null", "1e3"]),
        ("names", "bottle", ["bottle"]),
        ("names", "bottle, cable", ["bottle", "cable"]),
        ("names", "['a, b']", ["a, b"]),
        ("sources", "01", "01"),
        ("sources", "[headct, brain_mri]", ["headct", "brain_mri"]),
        ("sources", "headct,brain_mri", ["headct", "brain_mri"]),
        ("sources", "{name: x, class_names: {a b: 01}}", {"name": "x", "class_names": {"a b": "01"}}),
        ("paths", '["#1.png", "null"]', ["#1.png", "null"]),
        ("paths", "in/[ab]*.png", "in/[ab]*.png"),
        ("paths", "[ab].png", "[ab].png"),
        ("paths", "", None),
    ],
)
def test_brackets_make_lists_whose_words_are_kept(kind, text, expected):
    assert typed_value(kind, text) == expected


def test_a_path_that_is_there_is_never_a_list(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("[old]", "a,b"):
        (tmp_path / name).mkdir()
        assert typed_value("sources", name) == typed_value("paths", name) == name


def test_configs_keep_the_text_too():
    text = """
seed_everything: 7
model: {class_path: sdp, sigma: 1e1}
data:
  root: 2024
  class_name: "null"
  categories: [01, no, 1e3]
  test: [{name: x, categories: [03]}, 12]
  batch_size: 010
  predict: null
trainer: {default_root_dir: 1e5, max_epochs: 2}
"""
    tree = keep_text(yaml.safe_load(text), text)
    assert tree["data"] == {
        "root": "2024",
        "class_name": "null",
        "categories": ["01", "no", "1e3"],
        "test": [{"name": "x", "categories": ["03"]}, "12"],
        "batch_size": 8,
        "predict": None,
    }
    assert tree["trainer"] == {"default_root_dir": "1e5", "max_epochs": 2}
    assert tree["seed_everything"] == 7
    section = "root: 01\ntest: {name: 02}\nbatch_size: 4\n"
    assert keep_text(yaml.safe_load(section), section) == {"root": "01", "test": {"name": "02"}, "batch_size": 4}


def test_options_of_other_verbs():
    with pytest.raises(OptionError, match=r"data.shuffle does nothing in vlad predict; it is an option of vlad fit$"):
        refuse_foreign("predict", ["data.batch_size", "data.shuffle"])
    with pytest.raises(OptionError, match=r"metrics.mode does nothing .* of vlad fit, validate and test$"):
        refuse_foreign("predict", ["metrics.mode"])
    with pytest.raises(OptionError, match="weights_only does nothing in vlad test; leave it out"):
        refuse_foreign("test", ["weights_only"])
    tree = {"data": {"shuffle": False, "test": "x", "root": "y"}, "metrics": {}, "trainer": {"max_epochs": 3}}
    assert drop_foreign("test", tree) == {"data": {"test": "x", "root": "y"}, "metrics": {}, "trainer": {}}
    assert drop_foreign("predict", tree) == {"data": {"root": "y"}, "trainer": {}}
    assert tree["data"]["shuffle"] is False
