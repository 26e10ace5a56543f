"""The verbs as a user runs them: fit, test and predict on files, and what they leave behind."""

import json
from datetime import date
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from tests_support import write_mask, write_mvtec, write_picture

import vlad
from vlad.cli import main


@pytest.fixture
def run(mvtec, tiny, monkeypatch):
    """Runs a verb in a folder of its own on the small data; returns the newest run folder."""
    monkeypatch.chdir(mvtec)
    model = ["--model.backbone", tiny, "--model.image_size", "64", "--model.layers", "[2,4]"]

    def run(*arguments, method: str | None = "sdp"):
        chosen = ["--model", method, *model] if method else []
        quiet = ["--trainer.enable_progress_bar", "false", "--data.num_workers", "0"]
        assert main([*arguments, *chosen, *quiet]) == 0
        return Path("runs") / Path("runs/latest").read_text().strip()

    return run


def test_test_leaves_table_scores_config_and_heat_maps(run, capsys):
    folder = run("test", "--data.root", ".", "--data.test", "mvtec_ad", "--heatmaps.height", "64")
    assert folder == Path(f"runs/sdp/{date.today()}_test_mvtec_ad")
    out = capsys.readouterr().out
    assert "metal_nut" in out
    assert "I-AUROC" in out
    assert f"run folder: {folder}" in out
    table = pd.read_csv(folder / "test_metrics.csv")
    assert table["category"].tolist() == ["bottle", "metal_nut"]
    assert table[["normal", "anomalous"]].to_numpy().tolist() == [[3, 3], [3, 3]]
    saved = json.loads((folder / "test_metrics.json").read_text())
    assert saved["mean"]["pixel_auroc"] == pytest.approx(table["pixel_auroc"].mean())
    assert len(pd.read_csv(folder / "test_scores.csv")) == 12
    config = yaml.safe_load((folder / "test.yaml").read_text())
    assert config["model"]["class_path"] == "vlad.methods.sdp.SDP"
    assert config["data"]["test"] == "mvtec_ad"
    pictures = sorted(folder.glob("heatmaps/*/**/*.png"))
    assert len(pictures) == 12
    assert folder / "heatmaps/mvtec_ad/bottle/test/broken/000.png" in pictures
    Image.open(pictures[0]).verify()
    assert {"low", "high"} <= set(json.loads((folder / "heatmaps/scale.json").read_text()))
    assert not list(folder.glob("checkpoints/*"))


def test_saved_scores_are_the_methods_own(run, tiny):
    folder = run("test", "--data.root", ".", "--data.test", "mvtec_ad")
    method = vlad.load("sdp", backbone=tiny, pretrained=None, image_size=64, layers=[2, 4]).method
    from vlad.datamodules import AnomalyDataModule

    data = AnomalyDataModule(root=".", test="mvtec_ad", num_workers=0).require(method.requirements)
    data.setup("test")
    with torch.no_grad():
        scores = torch.cat([method.score(b["image"], b["class_name"]).image_score for b in data.test_dataloader()])
    assert pd.read_csv(folder / "test_scores.csv")["image_score"].tolist() == pytest.approx(scores.tolist(), rel=1e-5)


def test_fit_then_test_from_the_run_folder(run, capsys):
    fitted = run(
        "fit",
        "--data.root",
        ".",
        "--data.train",
        "mvtec_ad",
        "--data.categories",
        "[bottle]",
        method="sdp_plus",
    )
    _, checkpoint = sorted(fitted.glob("checkpoints/*.ckpt"))  # the newest two are kept
    assert checkpoint.stat().st_size < 200_000  # the frozen CLIP alone is 7 MB
    content = torch.load(checkpoint, weights_only=True)
    assert {key.split(".")[0] for key in content["state_dict"]} == {"heads"}
    assert content["vlad"]["class_path"] == "vlad.methods.sdp_plus.SDPPlus"
    assert content["epoch"] == 4  # the published five epochs
    assert f"checkpoint: {checkpoint}" in capsys.readouterr().out
    tested = run("test", "--ckpt_path", str(fitted), "--data.root", ".", "--data.test", "mvtec_ad", method=None)
    config = yaml.safe_load((tested / "test.yaml").read_text())
    assert config["model"]["class_path"] == "vlad.methods.sdp_plus.SDPPlus"
    assert config["model"]["init_args"]["image_size"] == 64
    assert vlad.load(str(fitted)).method.image_size == 64
    other = run(
        "test",
        "--ckpt_path",
        str(fitted),
        "--model.sigma",
        "1",
        "--data.root",
        ".",
        "--data.test",
        "mvtec_ad",
        method=None,
    )
    assert yaml.safe_load((other / "test.yaml").read_text())["model"]["init_args"]["sigma"] == 1.0
    assert not pd.read_csv(other / "test_metrics.csv").equals(pd.read_csv(tested / "test_metrics.csv"))


def test_training_resumes_where_it_stopped(run):
    data = ["--data.root", ".", "--data.train", "mvtec_ad", "--data.shuffle", "false"]
    half = run("fit", *data, "--trainer.max_epochs", "1", method="sdp_plus")
    resumed = run("fit", *data, "--ckpt_path", str(half), "--trainer.max_epochs", "2", method=None)
    whole = run("fit", *data, "--trainer.max_epochs", "2", method="sdp_plus")
    a, b = (torch.load(max(f.glob("checkpoints/*.ckpt")), weights_only=True) for f in (resumed, whole))
    assert a["global_step"] == b["global_step"] == 4
    for key, value in a["state_dict"].items():
        torch.testing.assert_close(value, b["state_dict"][key])
    method = vlad.get_method("sdp_plus").load_from_checkpoint(max(resumed.glob("checkpoints/*.ckpt")))
    assert torch.equal(method.heads[0].weight, a["state_dict"]["heads.0.weight"])


def test_fit_learns(run):
    options = [
        "--data.root",
        ".",
        "--data.train",
        "mvtec_ad",
        "--trainer.max_epochs",
        "30",
        "--model.lr",
        "0.01",
    ]
    folder = run("fit", *options, "--trainer.log_every_n_steps", "1", method="sdp_plus")
    losses = pd.read_csv(folder / "metrics.csv")["train/loss"].dropna()
    assert losses.iloc[-1] < 0.8 * losses.iloc[0]


def test_validation_while_fitting_and_alone(run, capsys):
    fitted = run(
        "fit",
        "--data.root",
        ".",
        "--data.train",
        "mvtec_ad",
        "--data.val",
        "{name: mvtec_ad, split: test}",
        "--allow-overlap",
        "--trainer.max_epochs",
        "1",
        method="sdp_plus",
    )
    assert "val/pixel_auroc" in pd.read_csv(fitted / "metrics.csv").columns
    assert (fitted / "val_metrics.csv").exists()
    run("validate", "--data.root", ".", "--data.val", "{name: mvtec_ad, split: test}")
    assert "I-AUROC" in capsys.readouterr().out


def test_predict_on_a_bare_folder(run, capsys):
    for i in range(3):
        write_picture(Path("photos") / f"{i}.jpg", seed=i)
    folder = run("predict", "photos")
    assert len(list(folder.glob("heatmaps/*/**/*.png"))) == 3
    table = pd.read_csv(folder / "predictions.csv")
    assert table["path"].tolist() == ["photos/0.jpg", "photos/1.jpg", "photos/2.jpg"]
    assert table["image_score"].notna().all()
    assert "3 images scored" in capsys.readouterr().out
    assert len(pd.read_csv(run("predict", "photos/0.jpg", "photos/2.jpg") / "predictions.csv")) == 2
    named = run("predict", "--data.predict", "photos", "--data.class_name", "nut")
    assert set(pd.read_csv(named / "predictions.csv")["class_name"]) == {"nut"}


def test_flat_config_with_short_names(run, tiny, mvtec):
    config = {
        "seed_everything": 7,
        "model": {
            "class_path": "SDP-plus",
            "backbone": tiny,
            "pretrained": None,
            "image_size": 64,
            "layers": [2, 4],
        },
        "data": {"root": ".", "train": "mvtec_ad", "num_workers": 0},
        "trainer": {"max_epochs": 1, "enable_progress_bar": False},
    }
    Path("exp.yaml").write_text(yaml.safe_dump(config))
    folder = run("fit", "--config", "exp.yaml", "--model.lr", "0.5", method=None)
    saved = yaml.safe_load((folder / "fit.yaml").read_text())
    assert saved["model"]["class_path"] == "vlad.methods.sdp_plus.SDPPlus"
    assert saved["model"]["init_args"]["lr"] == 0.5
    assert saved["seed_everything"] == 7
    again = run("fit", "--config", str(folder / "fit.yaml"), method=None)  # a saved config runs as it is
    losses = [pd.read_csv(f / "metrics.csv") if (f / "metrics.csv").exists() else None for f in (folder, again)]
    a, b = (torch.load(next(f.glob("checkpoints/*.ckpt")), weights_only=True)["state_dict"] for f in (folder, again))
    assert all(torch.equal(a[key], b[key]) for key in a), losses


def test_bfloat16_runs_close_to_float32(run):
    data = ["--data.root", ".", "--data.test", "mvtec_ad", "--heatmaps.enabled", "false"]
    scores = [
        pd.read_csv(run("test", *data, *extra) / "test_scores.csv")["image_score"]
        for extra in ([], ["--trainer.precision", "bf16-mixed"])
    ]
    assert (scores[0] - scores[1]).abs().max() < 0.05
    assert not scores[0].equals(scores[1])
    run(
        "fit",
        "--data.root",
        ".",
        "--data.train",
        "mvtec_ad",
        "--trainer.precision",
        "bf16-mixed",
        "--trainer.max_epochs",
        "1",
        method="sdp_plus",
    )


def test_transductive_fusion_from_the_command_line(run):
    folder = run("test", "--data.root", ".", "--data.test", "mvtec_ad", "--model.image_fusion", "minmax")
    scores = pd.read_csv(folder / "test_scores.csv").groupby("category")["image_score"]
    assert (scores.min() >= 0).all()
    assert (scores.max() <= 2).all()
    assert (scores.max() >= 1).all()


def test_two_sets_without_masks_print_dashes_and_reasons(run, capsys):
    for i in range(2):
        write_picture(Path("mri/yes") / f"Y{i}.jpg", seed=i)
        write_picture(Path("mri/no") / f"N{i}.jpg", seed=5 + i)
    sets = "[{name: brain_mri, root: mri}, mvtec_ad]"
    folder = run("test", "--data.root", ".", "--data.test", sets, "--heatmaps.limit", "1")
    out = capsys.readouterr().out
    assert "- brain_mri: no pixel metrics: no masks" in out
    assert len(list(folder.glob("heatmaps/*/**/*.png"))) == 3


def test_a_tables_rows_and_a_folder_with_masks(run):
    write_mvtec(Path("x"), ("bottle",))
    write_mask(Path("parts/masks/1.png"))
    write_picture(Path("parts/bad/1.png"))
    write_picture(Path("parts/good/2.png"))
    Path("t.csv").write_text("image_path,label\nparts/bad/1.png,bad\nparts/good/2.png,good\n")
    table = pd.read_csv(run("test", "--data.test", "[parts, t.csv]") / "test_metrics.csv").set_index("dataset")
    assert table["category"].to_dict() == {"parts": "parts", "t": "object"}
    assert table["pixel_auroc"].notna().to_dict() == {"parts": True, "t": False}
    assert table["image_auroc"].notna().all()


# -- few-shot references ------------------------------------------------------------------------------------


def test_references_of_a_train_split_are_used_and_recorded(run, capsys):
    data = ["--data.root", ".", "--data.test", "mvtec_ad", "--heatmaps.enabled", "false"]
    zero, two = run("test", *data), run("test", *data, "--shots", "2")
    assert "references: 4 normal images of 2 categories" in capsys.readouterr().out
    records = pd.read_csv(two / "references.csv")
    assert records.groupby("category").size().to_dict() == {"bottle": 2, "metal_nut": 2}
    assert records["sha256"].str.fullmatch("[0-9a-f]{64}").all()
    scores = [pd.read_csv(folder / "test_scores.csv")["image_score"] for folder in (zero, two)]
    assert not scores[0].equals(scores[1])
    assert not (zero / "references.csv").exists()


def test_a_method_of_references_alone_predicts_with_a_folder(mvtec, tiny, monkeypatch, capsys):
    monkeypatch.chdir(mvtec)
    for i in range(3):
        write_picture(Path("good") / f"{i}.png", seed=50 + i)
    here = ["--model", "patch_memory", "--model.backbone", tiny, "--model.image_size", "64", "--data.num_workers", "0"]
    quiet = ["--trainer.enable_progress_bar", "false", "--heatmaps.enabled", "false"]
    photos = "mvtec_ad/bottle/test/broken"
    assert main(["predict", photos, *here, *quiet]) == 1
    assert "NearestPatch compares with reference images and has none" in capsys.readouterr().err
    assert main(["predict", photos, *here, *quiet, "--references", "good", "--references.save", "true"]) == 0
    (folder,) = Path("runs/patch_memory").glob("*/predictions.csv")
    scores = pd.read_csv(folder)["image_score"]
    method = vlad.load(str(folder.parent)).method
    assert method.memory.categories == ("images/object",)
    from vlad.datamodules import AnomalyDataModule

    data = AnomalyDataModule(predict=photos, num_workers=0).require(method.requirements)
    data.setup("predict")
    batch = next(iter(data.predict_dataloader()))
    with torch.no_grad():
        again = method.score(batch["image"], batch["class_name"]).image_score
    assert scores.tolist() == pytest.approx(again.tolist(), rel=1e-5)


def test_the_record_of_a_run(run):
    record = json.loads((run("test", "--data.root", ".", "--data.test", "mvtec_ad") / "run.json").read_text())
    assert record["verb"] == "test"
    assert record["command"][:2] == ["vlad", "test"]
    assert record["method"]["api"] == 2
    assert len(record["method"]["fingerprint"]) >= 16
    assert len(record["weights"]["sha256"]) == 64
