import pytest

from vlad.cli.messages import short_error
from vlad.cli.names import expand_arguments, expand_tree, given, split_arguments
from vlad.errors import OptionError, RegistryError

SDP = "vlad.methods.sdp.SDP"


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"model": "sdp"}, {"model": {"class_path": SDP}}),
        (
            {"model": {"class_path": "SDP", "sigma": 2}},
            {"model": {"class_path": SDP, "init_args": {"sigma": 2}}},
        ),
        (
            {"model": {"class_path": SDP, "init_args": {"sigma": 2}, "eps": 1}},
            {"model": {"class_path": SDP, "init_args": {"sigma": 2, "eps": 1}}},
        ),
        ({"test": {"model": "sdp"}}, {"test": {"model": {"class_path": SDP}}}),
        ({"class_path": "sdp", "sigma": 1}, {"class_path": SDP, "init_args": {"sigma": 1}}),
        (
            {"class_path": "lightning.pytorch.loggers.CSVLogger"},
            {"class_path": "lightning.pytorch.loggers.CSVLogger"},
        ),
        ({"model": "model.yaml", "data": {"test": "sdp"}}, {"model": "model.yaml", "data": {"test": "sdp"}}),
        ([1, 2], [1, 2]),
        ("text", "text"),
    ],
)
def test_trees(tree, expected):
    assert expand_tree(tree) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["fit", "--model", "sdp"], ["fit", f"--model={SDP}"]),
        (["fit", "--model=sdp"], ["fit", f"--model={SDP}"]),
        (["fit", "--model.class_path", "sdp"], ["fit", f"--model.class_path={SDP}"]),
        (["fit", "--model.help", "sdp"], ["fit", f"--model.help={SDP}"]),
        (["fit", "--model", "my.module.Cls"], ["fit", "--model=my.module.Cls"]),
        (["predict", "a", "b c", "--model", "sdp"], ["predict", '--data.predict=["a", "b c"]', f"--model={SDP}"]),
        (["predict", "--model", "sdp", "null"], ["predict", "--data.predict=null", f"--model={SDP}"]),
        (["predict", "a", "--data.predict", "b"], ["predict", '--data.predict=["a", "b"]']),
        (
            ["predict", "a", "--references", "b", "c", "--allow-untrained", "d"],
            ["predict", '--data.predict=["a", "d"]', '--data.references=["b", "c"]', "--allow_untrained=true"],
        ),
        (["test", "--ckpt_path", "x"], ["test", "--ckpt_path=x"]),
        (
            ["test", "--shots", "4", "--references=good", "--references.save=true"],
            ["test", "--data.shots=4", "--data.references=good", "--references.save=true"],
        ),
        (
            ["predict", "a", "-o", "out", "--decision", "0.5", "--maps", "npy", "--fail-on-anomaly", "-c", "x"],
            [
                *("predict", "--data.predict=a", "--output=out", "--decisions.decision=0.5", "--maps.format=npy"),
                *("--fail_on_anomaly=true", "--config=x"),
            ],
        ),
        (
            ["test", "--allow-untrained", "--allow-overlap=false"],
            ["test", "--allow_untrained=true", "--data.allow_overlap=false"],
        ),
        (
            ["fit", "--model.a", "-1", "--model.b=2", "--config", "x", "--model.c", "--model", "sdp"],
            ["fit", "--config=x", f"--model={SDP}", "--model.a=-1", "--model.b=2", "--model.c"],
        ),
        (["fit", "--data.class_name", "#3 bolt=a"], ["fit", "--data.class_name=#3 bolt=a"]),
    ],
)
def test_arguments(arguments, expected):
    assert expand_arguments(arguments) == expected


def test_unknown_names_are_refused():
    with pytest.raises(RegistryError, match="did you mean sdp"):
        expand_arguments(["fit", "--model", "sdb"])
    with pytest.raises(RegistryError, match="did you mean sdp"):
        expand_tree({"model": {"class_path": "sdb"}})


def test_words_that_belong_to_nothing_are_refused():
    with pytest.raises(OptionError, match=r"'parts' belongs to no option; give --data.test parts"):
        expand_arguments(["test", "--model", "sdp", "parts"])
    assert split_arguments(["--", "--a"]) == ([], ["--a"])


def test_what_was_given(tmp_path):
    (tmp_path / "a.yaml").write_text("model: {class_path: sdp, image_size: 48}\nckpt_path: x\n")
    (tmp_path / "b.yaml").write_text("class_path: sdp\ninit_args: {sigma: 1}\n")
    assert given(["--model.init_args.image_size=3"], "model.image_size")
    assert given([f"--config={tmp_path / 'a.yaml'}"], "model.image_size")
    assert given([f"--config={tmp_path / 'a.yaml'}"], "ckpt_path")
    assert given([f"--model={tmp_path / 'b.yaml'}"], "model.sigma")
    assert not given([f"--model={tmp_path / 'b.yaml'}", "--config=nowhere"], "model.image_size", "ckpt_path")
    assert not given(["--model.sigma=3"], "model")


def test_errors_get_a_suggestion():
    known = {"model.image_size", "data.test"}
    assert short_error("Option 'imagesize' is\n not accepted", known).endswith("did you mean image_size?")
    assert short_error("Something else", known) == "Something else"
