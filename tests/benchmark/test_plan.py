"""Plans: what is wrong is told, and cells are the same as long as their numbers would be."""

from importlib.resources import files
from pathlib import Path

import pytest

from vlad.benchmark import Plan, read_plan
from vlad.benchmark.run import worthwhile
from vlad.datamodules.catalog import list_datasets
from vlad.errors import OptionError
from vlad.registry import list_methods

PLANS = sorted(Path(str(files("vlad.benchmark"))).glob("plans/*.yaml"))
PLAN = """
title: t
datasets: [mvtec_ad, {name: visa, split: test}]
shots: [0, 2]
seeds: [0, 1]
common: {model: {backbone: vlad-tiny}, data: {batch_size: 4}}
methods:
  - sdp
  - method: sdp_plus
    name: plus
    shots: 0
    train: {visa: mvtec_ad, "*": [visa]}
    model: {lr: 0.1}
    fit: {trainer: {max_epochs: 2}}
    by_dataset: {visa: {model: {sigma: 2}, fit: {trainer: {max_epochs: 3}}}}
"""


def plan(tmp_path, text=PLAN, name="plan.yaml", **overrides):
    (tmp_path / name).write_text(text)
    return read_plan(tmp_path / name, overrides)


def cell(found, **wanted):
    return next(one for one in found.cells if all(getattr(one, key) == value for key, value in wanted.items()))


def test_cells_are_the_product_and_options_lie_over_each_other(tmp_path):
    found = plan(tmp_path, data={"root": "here"})
    assert len(found.cells) == 2 * 2 * 2 + 2 * 2
    one = cell(found, name="sdp", dataset="visa", shots=2, seed=1)
    assert one.config == {
        "model": {"backbone": "vlad-tiny", "class_path": "sdp"},
        "data": {"batch_size": 4, "root": "here", "test": {"name": "visa", "split": "test"}, "shots": 2},
        "seed_everything": 1,
    }
    assert not one.fits
    trained = cell(found, name="plus", dataset="visa", seed=0)
    assert trained.config["model"] == {"backbone": "vlad-tiny", "class_path": "sdp_plus", "lr": 0.1, "sigma": 2}
    assert trained.fit_config == {
        "model": {"backbone": "vlad-tiny", "class_path": "sdp_plus", "lr": 0.1},
        "data": {"batch_size": 4, "root": "here", "train": "mvtec_ad"},
        "trainer": {"max_epochs": 3},
        "seed_everything": 0,
    }
    other = cell(found, name="plus", dataset="mvtec_ad", seed=0)
    assert other.fit_config["data"]["train"] == ["visa"]
    assert other.fit_config["trainer"] == {"max_epochs": 2}


def test_keys_follow_what_decides_numbers_and_not_the_machine(tmp_path):
    base = plan(tmp_path)
    keys = [one.key for one in base.cells]
    assert len(set(keys)) == len(keys)
    machine = {"data": {"root": "/elsewhere", "num_workers": 4}, "trainer": {"accelerator": "gpu", "devices": 2}}
    assert [one.key for one in plan(tmp_path, **machine).cells] == keys
    assert not set(keys) & {one.key for one in plan(tmp_path, model={"image_size": 96}).cells}
    longer = plan(tmp_path, PLAN.replace("max_epochs: 2", "max_epochs: 9"))
    changed = {one.key for one in longer.cells} - set(keys)
    assert {key.split("-0shot")[0] for key in changed} == {"plus-mvtec_ad"}  # its training is another one


def test_shares_are_disjoint_and_keep_a_training_in_one_place(tmp_path):
    text = PLAN.replace('train: {visa: mvtec_ad, "*": [visa]}', "train: btad").replace("    by_dataset", "    #")
    found = plan(tmp_path, text)
    shares = [found.share(i, 3) for i in (1, 2, 3)]
    assert sorted(one.key for share in shares for one in share) == sorted(one.key for one in found.cells)
    for seed in (0, 1):
        holders = [i for i, share in enumerate(shares) if any(one.fits and one.seed == seed for one in share)]
        assert len(holders) == 1
    assert len({one.fit_key for one in found.cells if one.fits}) == 2  # both data sets share it


def test_one_seed_is_enough_where_nothing_is_drawn(tmp_path):
    kept, told = worthwhile(plan(tmp_path).cells)
    assert [(one.name, one.seed) for one in kept if not one.shots and one.name == "sdp"] == [("sdp", 0)] * 2
    assert sum(one.name == "plus" for one in kept) == 4
    assert sum(bool(one.shots) for one in kept) == 4
    assert told == ["sdp draws nothing at random with 0 shots: one seed is enough"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("title: t", "titel: t", "plan has no 'titel'; did you mean title"),
        ("    model: {lr", "    modell: {lr", "a method has no 'modell'; did you mean model"),
        ("common: {model", "common: {modle", "common has no 'modle'; did you mean model"),
        ("fit: {trainer: {max_epochs: 2", "fit: {metrics: {max_epochs: 2", "fit has no 'metrics'"),
        ("seeds: [0, 1]", "seeds: [a]", "seeds must be whole numbers from 0 on, not ['a']"),
        ("{name: visa, split", "{split", "a data set is a name, or a mapping with name"),
        ("    name: plus\n    shots: 0\n    train", "    name: sdp\n    train", "sdp on mvtec_ad is there twice"),
        ("datasets: [mvtec_ad, {name: visa, split: test}]", "datasets: []", "methods and datasets must be lists"),
        ("title: t", "title: [t", "cannot be read"),
        ("  - method: sdp_plus\n", "  - train: x\n", "a method has no name: give method: NAME"),
    ],
)  # fmt: skip
def test_wrong_plans_are_told(tmp_path, old, new, told):
    assert old in PLAN
    with pytest.raises(OptionError) as error:
        plan(tmp_path, PLAN.replace(old, new))
    assert told in str(error.value)


def test_plans_can_be_toml_and_must_be_there(tmp_path):
    text = 'datasets = ["visa"]\n[common.model]\nclass_path = "sdp"\n[[methods]]\nname = "a"\nmodel = { sigma = 2 }\n'
    (one,) = plan(tmp_path, text, "plan.toml").cells
    assert (one.name, one.method, one.config["model"]) == ("a", "sdp", {"class_path": "sdp", "sigma": 2})
    with pytest.raises(OptionError, match="does not exist"):
        read_plan(tmp_path / "no.yaml")


def test_settings_of_another_method_are_not_taken_over(tmp_path):
    text = "datasets: [visa]\ncommon: {model: {class_path: sdp, sigma: 2}}\nmethods: [{method: winclip}, {name: s}]"
    found = plan(tmp_path, text)
    assert [one.config["model"] for one in found.cells] == [
        {"class_path": "winclip"},
        {"class_path": "sdp", "sigma": 2},
    ]


@pytest.mark.parametrize("path", PLANS, ids=[path.stem for path in PLANS])
def test_plans_of_papers_name_what_there_is(path):
    found = read_plan(path)
    assert isinstance(found, Plan)
    assert found.published
    assert path.read_text(encoding="utf-8").startswith("# ")
    for one in found.cells:
        assert one.method in list_methods()
        assert one.dataset in list_datasets()
    assert PLANS
