"""Options are checked where they are given: one line, exit status 2, and no weights are read before."""

from pathlib import Path

import pytest
import yaml

from vlad.cli import main
from vlad.errors import OptionError

MODEL = ["--model", "sdp", "--model.backbone", "vlad-tiny"]
PARTS = ["--data.test", "mvtec_ad/bottle/"]


@pytest.fixture
def refused(mvtec, monkeypatch, capsys):
    """Runs a command that must be refused, with an encoder that must not be loaded; returns the line."""
    monkeypatch.chdir(mvtec)
    monkeypatch.delenv("VLAD_DEBUG", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def load(*_, **__):
        raise AssertionError("the encoder was loaded")

    monkeypatch.setattr("vlad.methods.base.load_encoder", load)

    def refused(*arguments, status=2):
        try:
            found = main(list(arguments))
        except SystemExit as stop:
            found = stop.code
        out, err = capsys.readouterr()
        assert found == status, out + err
        assert len(err.strip().splitlines()) == 1, err
        assert err.startswith(f"vlad {arguments[0]}: ")
        assert "Union" not in err
        assert "<class" not in err
        assert not Path("runs").exists()
        return err.strip().partition(": ")[2]

    return refused


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--data.batch_size", "0"], "data.batch_size must be at least 1, not 0"),
        (["--data.batch_size", "x"], "data.batch_size must be a whole number, not 'x'"),
        (["--data.num_workers", "-1"], "data.num_workers must be at least 0, not -1"),
        (["--data.shots", "-1"], "data.shots must be at least 0, not -1"),
        (["--data.max_pixels", "0"], "data.max_pixels must be at least 1, not 0"),
        (["--data.fast_jpeg", "x"], "data.fast_jpeg must be true or false, not 'x'"),
        (["--data.class_name_style", "x"], "data.class_name_style must be raw or natural, not 'x'"),
        (["--model.sigma", "-1"], "model.sigma must be at least 0, not -1.0"),
        (["--model.sigma", "x"], "model.sigma must be a number, not 'x'"),
        (["--model.layers", "[0]"], "model.layers are numbered from 1, got [0]"),
        (["--model.layers", "x"], "model.layers must be a list of whole numbers, not 'x'"),
        (["--model.image_size", "100"], "model.image_size 100x100 is no multiple of the patch size 8; use 96 or 104"),
        (["--model.image_size", "0"], "model.image_size must be at least 1, not 0"),
        (["--model.representative", "x"], "model.representative must be mean, dbscan, mean_shift, kde or pca, not 'x'"),
        (["--metrics.mode", "x"], "metrics.mode must be streaming or exact, not 'x'"),
        (["--heatmaps.height", "0"], "heatmaps.height must be at least 1, not 0"),
        (["--heatmaps.limit", "x"], "heatmaps.limit must be a whole number, not 'x'"),
        (["--maps", "npz"], "maps.format must be npy or png16, not 'npz'"),
        (["--seed_everything", "x"], "seed_everything must be true or false or a whole number, not 'x'"),
        (["--trainer.accelerator", "gpu"], "trainer.accelerator gpu: No supported gpu backend found!"),
        (["--trainer.accelerator", "gpux"], "trainer.accelerator gpux: You selected an invalid accelerator name"),
        (["--trainer.devices", "0"], "trainer.devices 0: "),
        (["--trainer.devices", "x"], "trainer.devices x: "),
        (["--trainer.strategy", "ddpp"], "trainer.strategy ddpp: You selected an invalid strategy name"),
        (["--trainer.precision", "17"], "trainer.precision must be 64, 32, 16, "),
        (["--trainer.limit_test_batches", "-1"], "trainer: You have passed invalid value -1"),
        (["--ckpt_path", "best"], "--ckpt_path best means something only after a fit"),
        (["--data.shuffle", "true"], "data.shuffle does nothing in vlad test; it is an option of vlad fit"),
        (["--trainer.max_epochs", "3"], "trainer.max_epochs does nothing in vlad test; it is an option of vlad fit"),
        (["--fail-on-anomaly"], "fail_on_anomaly does nothing in vlad test; it is an option of vlad predict"),
        (["--data.batch_sise", "3"], "no option --data.batch_sise; did you mean data.batch_size"),
        (["--data.batch_size"], "argument --data.batch_size: expected one argument"),
        (["--data.test", "{name: x, splitt: test}"], "data.test: a data source has no field 'splitt'; did you mean sp"),
        (["--data.test", "{name: x, split: tset}"], "data.test.split must be one of train, val, test, all, not 'tset'"),
        (["--data.test", "{name: x, mosaic: a}"], "data.test.mosaic must be a number, not 'a'"),
        (["--trainer.logger", "tensorbord"], "trainer.logger has no 'tensorbord'; did you mean tensorboard?"),
        (["--config", "nowhere.yaml"], "config file nowhere.yaml does not exist"),
        (["--data", "nowhere.yaml"], "config file nowhere.yaml does not exist, or is no mapping of options"),
    ],
)
def test_on_the_command_line(refused, options, line):
    data = [] if options[0] == "--data.test" else PARTS
    assert refused("test", *MODEL, *data, *options).startswith(line)


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ("", "the config is empty, which is no mapping of options"),
        ("just text", "the config holds 'just text', which is no mapping of options"),
        ("[1, 2]", "the config holds '[1, 2]', which is no mapping of options"),
        ("model: sdp\n  data: x", "Problems parsing config"),
        ("model: sdp\ndata: 3", "Problems parsing config: data must be a mapping of options, not 3"),
        ("modell: sdp", "no option 'modell'; did you mean model"),
        ("model: sdp\ntrainer: {precison: 32}", "no option 'trainer.precison'; did you mean trainer.precision"),
        ("model: {class_path: sdp, sigma: x}", "model.sigma must be a number, not 'x'"),
        ("model: {class_path: sdp, layers: 3}", "model.layers must be a list of whole numbers, not '3'"),
        ("model: sdp\ndata: {batch_size: x}", "data.batch_size must be a whole number, not 'x'"),
        ("model: sdp\ndata: {categories: {a: b}}", "data.categories must be a text, not {'a': 'b'}"),
        ("model: sdp\ndata: {predict: [[a]]}", ""),
    ],
)
def test_in_a_config(refused, config, line):
    Path("exp.yaml").write_text(config)
    if line:
        assert refused("test", *PARTS, "--config", "exp.yaml").startswith(line)
    else:  # of another verb: not looked at
        assert refused("test", *PARTS, "--config", "exp.yaml", "--data.batch_size", "0").startswith("data.batch_size")


def test_what_fails_is_a_matter_of_decisions(refused):
    err = refused("predict", "mvtec_ad/bottle/test", *MODEL, "--fail-on-anomaly")
    assert err.startswith("--fail-on-anomaly needs a decision: give --decision")


def test_an_output_that_is_taken_is_told_before_weights_are_read(refused):
    Path("out").mkdir()
    Path("out/x").touch()
    assert refused("test", *MODEL, *PARTS, "--output", "out").startswith("--output out holds files already")


def test_data_are_looked_for_before_weights_are_read(refused):
    assert refused("predict", "nothere/", status=1) == "no image, folder or pattern nothere/: nothing is there"
    assert refused("test", *MODEL, "--data.test", "nothere/", status=1) == "data folder nothere/ does not exist"
    Path("empty").mkdir()
    assert refused("predict", "empty", status=1).startswith("empty holds no images")
    assert "where is BTAD?" in refused("test", *MODEL, "--data.test", "btad", status=1)
    assert "data.test is not set" in refused("test", *MODEL, status=1)
    Path("exp.yaml").write_text("model: sdp\ndata: {test: nothere/}\n")
    assert refused("test", "--config", "exp.yaml", status=1) == "data folder nothere/ does not exist"


def test_a_config_of_all_verbs_serves_each(refused, capsys):
    shared = {
        "model": {"class_path": "sdp", "backbone": "vlad-tiny"},
        "data": {"train": "x", "test": "mvtec_ad/bottle/", "shuffle": False, "images_per_category": 3},
        "trainer": {"max_epochs": 3, "limit_test_batches": 2},
        "metrics": {"mode": "exact"},
        "heatmaps": {"limit": 3},
        "return_predictions": False,
    }
    Path("exp.yaml").write_text(yaml.safe_dump(shared))
    for verb, missing in {"test": "", "predict": "mvtec_ad/bottle/test", "fit": ""}.items():
        with pytest.raises(SystemExit) as stop:
            main([verb, *([missing] if missing else []), "--config", "exp.yaml", "--print_config"])
        assert stop.value.code == 0
        printed = yaml.safe_load(capsys.readouterr().out)
        assert ("shuffle" in printed["data"]) == (verb == "fit")
        assert ("metrics" in printed) == (verb != "predict")
        assert ("heatmaps" in printed) == (verb != "fit")
        assert ("test" in printed["data"]) == (verb == "test")
        assert not {"return_predictions", "verbose", "weights_only"} & set(printed)


@pytest.mark.parametrize("name", ["#3 bolt", "null", "no", "01", "1e3", "a: b", "[x]", "- a"])
def test_a_class_name_survives_command_line_and_config(mvtec, monkeypatch, capsys, name):
    monkeypatch.chdir(mvtec)
    with pytest.raises(SystemExit):
        main(["predict", "null", "--data.class_name", name, "--output", "1e3", "--print_config"])
    Path("printed.yaml").write_text(capsys.readouterr().out)
    for _ in range(2):  # a config that was printed says the same again
        printed = yaml.safe_load(Path("printed.yaml").read_text())
        assert printed["data"]["class_name"] == name
        assert printed["data"]["predict"] == "null"
        assert printed["output"] == "1e3"
        with pytest.raises(SystemExit):
            main(["predict", "--config", "printed.yaml", "--print_config"])
        Path("printed.yaml").write_text(capsys.readouterr().out)


def test_the_same_from_python():
    from vlad import AnomalyDataModule, load
    from vlad.errors import MethodError

    assert AnomalyDataModule(categories="bottle").selection.categories == ["bottle"]
    for options in ({"batch_size": 0}, {"batch_size": "8"}, {"num_workers": -1}):
        with pytest.raises(OptionError, match=next(iter(options))):
            AnomalyDataModule(**options)
    for options in ({"sigma": -1}, {"sigma": "x"}, {"image_size": 0}):
        with pytest.raises(MethodError, match=next(iter(options))):
            load("sdp", backbone="vlad-tiny", **options)


def test_the_encoders_own_image_size_where_none_is_given():
    from vlad import load
    from vlad.encoders.facts import default_image_size, known_sizes
    from vlad.methods.adaclip import AdaCLIP
    from vlad.methods.sdp import SDP

    assert load("sdp", backbone="vlad-tiny").method.image_size == 96
    assert load("sdp", backbone="vlad-tiny", image_size=48).method.image_size == 48
    assert default_image_size(SDP, {}) is None
    assert default_image_size(SDP, {"backbone": "ViT-B-16"}) is None  # its patches fit the published size
    assert default_image_size(AdaCLIP, {"backbone": "ViT-B-16"}) == 224
    assert known_sizes("hf-hub:org/repo") is None
    assert known_sizes("local-dir:nowhere") is None
