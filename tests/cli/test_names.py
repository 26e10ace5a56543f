import pytest

from vlad.cli.names import expand_arguments, expand_tree, short_error
from vlad.errors import RegistryError

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
        (["fit", "--model", "sdp"], ["fit", "--model", SDP]),
        (["fit", "--model=sdp"], ["fit", f"--model={SDP}"]),
        (["fit", "--model.class_path", "sdp"], ["fit", "--model.class_path", SDP]),
        (["fit", "--model.help", "sdp"], ["fit", "--model.help", SDP]),
        (["fit", "--model", "my.module.Cls"], ["fit", "--model", "my.module.Cls"]),
        (
            ["predict", "a", "b c", "--model", "sdp"],
            ["predict", "--data.predict+", "a", "--data.predict+", "b c", "--model", SDP],
        ),
        (["test", "--ckpt_path", "x"], ["test", "--ckpt_path", "x"]),
        (
            ["test", "--shots", "4", "--references=good", "--references.save=true"],
            ["test", "--data.shots", "4", "--data.references=good", "--references.save=true"],
        ),
        (
            ["test", "--allow-untrained", "--allow-overlap"],
            ["test", "--allow_untrained", "true", "--data.allow_overlap", "true"],
        ),
        (
            ["fit", "--model.a", "-1", "--model.b=2", "--config", "x", "--model.c", "--model", "sdp"],
            ["fit", "--config", "x", "--model", SDP, "--model.a", "-1", "--model.b=2", "--model.c"],
        ),
    ],
)
def test_arguments(arguments, expected):
    assert expand_arguments(arguments) == expected


def test_unknown_names_are_refused():
    with pytest.raises(RegistryError, match="did you mean sdp"):
        expand_arguments(["fit", "--model", "sdb"])
    with pytest.raises(RegistryError, match="did you mean sdp"):
        expand_tree({"model": {"class_path": "sdb"}})


def test_errors_get_a_suggestion():
    known = {"model.image_size", "data.test"}
    assert short_error("Option 'imagesize' is\n not accepted", known).endswith("did you mean image_size?")
    assert short_error("Something else", known) == "Something else"
