"""Bad input ends in one short line that names the culprit and the fix; no traceback unless asked for."""

import re
from pathlib import Path

import pytest
from tests_support import write_mask

from vlad.cli import main


@pytest.fixture
def fails(mvtec, tiny, monkeypatch, capsys):
    monkeypatch.chdir(mvtec)
    monkeypatch.delenv("VLAD_DEBUG", raising=False)

    def fails(*arguments, model=True):
        options = [
            "--model",
            "sdp",
            "--model.backbone",
            tiny,
            "--model.image_size",
            "64",
            "--model.layers",
            "[2,4]",
        ]
        try:
            status = main(
                [
                    arguments[0],
                    *(options if model else []),
                    *arguments[1:],
                    "--trainer.enable_progress_bar",
                    "false",
                ]
            )
        except SystemExit as stop:
            status = stop.code
        assert status not in {0, None}
        err = capsys.readouterr().err.strip()
        assert "Traceback" not in err
        assert len(err.splitlines()) == 1, err
        return err

    return fails


DATA = ("--data.root", ".", "--data.test", "mvtec_ad")


def test_wrong_config_key(fails):
    Path("exp.yaml").write_text("model: {class_path: sdp, image_sise: 64}\ndata: {test: mvtec_ad}\n")
    assert "'image_sise' is not accepted; did you mean image_size" in fails("test", "--config", "exp.yaml", model=False)
    Path("exp.yaml").write_text("model: sdp\ndata: {tests: mvtec_ad}\n")
    assert "no option 'data.tests'; did you mean data.test" in fails("test", "--config", "exp.yaml", model=False)


def test_wrong_option(fails):
    assert "no option --data.tset; did you mean data.test" in fails("test", "--data.tset", "x")


def test_wrong_value(fails):
    assert "model.image_size must be a whole number, not 'big'" in fails("test", *DATA, "--model.image_size", "big")


def test_broken_yaml_and_missing_config(fails):
    Path("exp.yaml").write_text("model: sdp\n  data: x\n")
    assert "Problems parsing config" in fails("test", "--config", "exp.yaml", model=False)
    assert "nowhere.yaml" in fails("test", "--config", "nowhere.yaml", model=False)


def test_wrong_method_name(fails):
    message = "no method is named 'sdp_pluss'; did you mean sdp_plus or "
    assert message in fails("test", *DATA, "--model", "sdp_pluss", model=False)
    Path("exp.yaml").write_text("model: {class_path: sdp_pluss}\n")
    assert "did you mean sdp_plus" in fails("test", "--config", "exp.yaml", model=False)


def test_no_method(fails):
    assert "no method is named: give --model NAME" in fails("test", *DATA, model=False)


def test_missing_data_folder(fails):
    assert "MVTec AD: folder /nowhere does not exist" in fails(
        "test", "--data.root", "/nowhere", "--data.test", "mvtec_ad"
    )


def test_unreadable_image(fails):
    Path("mvtec_ad/bottle/test/good/001.png").write_bytes(b"no image")
    err = fails("test", *DATA)
    assert "mvtec_ad/bottle/test/good/001.png: cannot read image (no known image format)" in err


def test_mask_of_another_size(fails):
    write_mask(Path("mvtec_ad/bottle/ground_truth/broken/001_mask.png"), size=(20, 21))
    err = fails("test", *DATA)
    assert re.search(r"001_mask.png.* 20x21 pixels, its image", err)


def test_empty_category(fails):
    assert "mvtec_ad has no category 'cable'" in fails("test", *DATA, "--data.categories", "[cable]")
    for file in Path("mvtec_ad/bottle/test").glob("*/*.png"):
        file.unlink()
    assert "mvtec_ad/bottle has no images in its test split" in fails("test", *DATA, "--data.categories", "[bottle]")


def test_training_a_training_free_method(fails):
    assert "SDP is training-free; run vlad test" in fails("fit", "--data.root", ".", "--data.train", "mvtec_ad")


def test_unusable_backbone_and_size(fails):
    assert "did you mean ViT-B-16" in fails("test", *DATA, "--model.backbone", "ViT-B-1")
    assert "no multiple of the patch size 16; use 48 or 64" in fails("test", *DATA, "--model.image_size", "60")


def test_foreign_checkpoints(fails, tiny):
    import torch

    torch.save({"linear_layers": {}}, "official.pth")
    assert "official.pth is no vlad checkpoint" in fails("test", *DATA, "--ckpt_path", "official.pth", model=False)
    record = {"class_path": "vlad.methods.sdp_plus.SDPPlus"}
    torch.save({"vlad": record, "state_dict": {}, "pytorch-lightning_version": "2.6.0"}, "other.ckpt")
    assert "the checkpoint is of vlad.methods.sdp_plus.SDPPlus" in fails("test", *DATA, "--ckpt_path", "other.ckpt")


def test_missing_checkpoint(fails):
    assert "weights file none.ckpt does not exist" in fails("test", *DATA, "--ckpt_path", "none.ckpt", model=False)


def test_unknown_verb(capsys):
    assert main(["tets"]) == 2
    assert "no verb 'tets'; did you mean test" in capsys.readouterr().err


def test_traceback_on_request(mvtec, tiny, monkeypatch):
    from vlad.errors import DataError

    monkeypatch.setenv("VLAD_DEBUG", "1")
    with pytest.raises(DataError, match="does not exist"):
        main(
            [
                "test",
                "--model",
                "sdp",
                "--model.backbone",
                tiny,
                "--model.image_size",
                "64",
                "--model.layers",
                "[4]",
                "--data.root",
                "/nowhere",
                "--data.test",
                "mvtec_ad",
            ]
        )


@pytest.mark.parametrize(
    ("option", "new"),
    [
        ("--data.few", "data.images_per_category"),
        ("--data.texts", "data.class_name_style"),
        ("--data.protocol", "data.split_protocol"),
        ("--metrics.pro_limit", "metrics.pro_limits"),
    ],
)
def test_an_option_that_was_renamed_names_the_new_one(fails, option, new):
    assert f"is called {new} now" in fails("test", *DATA, option, "1")


def test_a_renamed_key_of_a_config_names_the_new_one(fails):
    Path("exp.yaml").write_text("model: clip_ada\ndata: {few: 3}\n")
    assert "the option data.few is called data.images_per_category now" in fails(
        "test", "--config", "exp.yaml", model=False
    )


def test_an_untrained_method_does_not_score(fails, tiny):
    here = ["--model", "sdp_plus", "--model.backbone", tiny, "--model.image_size", "64", "--model.layers", "[2,4]"]
    assert "SDPPlus has not been trained" in fails("test", *here, *DATA, model=False)
    quiet = ["--data.num_workers", "0", "--heatmaps.enabled", "false", "--trainer.enable_progress_bar", "false"]
    assert main(["test", *here, *DATA, *quiet, "--allow-untrained"]) == 0


def test_random_weights_are_asked_for_by_name(fails):
    err = fails("test", *DATA, "--model.backbone", "ViT-B-16", "--model.pretrained", "null")
    assert "needs weights" in err
    assert "pretrained: random" in err


def test_a_transductive_method_does_not_predict(fails):
    err = fails("predict", "--data.predict", "mvtec_ad/bottle/test", "--model.image_fusion", "minmax")
    assert "scores a whole test set at once" in err


def test_images_in_two_parts_are_refused(fails, tiny):
    here = ["--model", "sdp_plus", "--model.backbone", tiny, "--model.image_size", "64", "--model.layers", "[2,4]"]
    both = ["--data.root", ".", "--data.train", "mvtec_ad", "--data.val", "{name: mvtec_ad, split: test}"]
    err = fails("fit", *here, *both, model=False)
    assert "12 images are in data.train and in data.val" in err
    assert "--allow-overlap" in err
    assert "say which split to validate on" in fails("fit", *here, *both[:4], "--data.val", "mvtec_ad", model=False)
