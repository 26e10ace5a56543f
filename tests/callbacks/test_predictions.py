"""What a prediction leaves: a row for every file, as they come; runs that are continued; and what it says."""

import os
import shutil

import pandas as pd
import pytest
import torch
from lightning.pytorch import Trainer
from tests_support import write_picture

from vlad import Method
from vlad.callbacks import Predictions
from vlad.datamodules import AnomalyDataModule
from vlad.errors import DataError
from vlad.store import COLUMNS, StoreError
from vlad.types import Features, Preprocess, Requirements, Scores

pytestmark = pytest.mark.filterwarnings("ignore")


class Brightness(Method):
    """Scores an image by its brightest pixel.

    Paper: none, a test.
    """

    def __init__(self, sigma: float = 0.0) -> None:
        super().__init__(backbone=None, image_size=16, sigma=sigma)
        self.seen: list[str] = []

    @property
    def requirements(self):
        return Requirements(Preprocess(16, (0.0,) * 3, (1.0,) * 3))

    def encode(self, images):
        return Features((images.mean(1)[..., None],))

    def compare(self, features, text, references=None):
        return Scores(features.levels[0][..., 0][:, None])

    def predict_step(self, batch, batch_idx):
        self.seen += batch.get("path", [])
        return super().predict_step(batch, batch_idx)


@pytest.fixture
def photos(tmp_path):
    for number in range(7):
        write_picture(tmp_path / f"photos/{number}.png", seed=number)
    content = (tmp_path / "photos/3.png").read_bytes()
    (tmp_path / "photos/3.png").write_bytes(content[: len(content) // 3])
    (tmp_path / "photos/list.txt").write_text("no image")
    return tmp_path / "photos"


def predict(photos, out, method=None, **options):
    method, callback = method or Brightness(), Predictions(progress=False)
    data = AnomalyDataModule(predict=[str(photos)], batch_size=2, num_workers=0, **options)
    out.mkdir(exist_ok=True)
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        default_root_dir=out,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.predict(method, data.require(method.requirements), return_predictions=False)
    return pd.read_csv(out / "predictions.csv", keep_default_na=False, dtype=str), method, callback


def test_every_file_is_accounted_for(photos, tmp_path, capsys):
    table, _, callback = predict(photos, tmp_path / "out")
    assert list(table) == list(COLUMNS)
    assert [os.path.basename(path) for path in table["path"]] == [f"{number}.png" for number in range(7)]
    (error,) = table["error"][table["error"] != ""]
    assert "3.png" in error
    assert table["image_score"][3] == table["map_max"][3] == ""
    assert {float(score) > 0 for score in table["image_score"].drop(3)} == {True}
    assert callback.counts["scored"] == 6
    assert callback.counts["failed"] == 1
    assert callback.counts["ignored"] == 1
    assert callback.exit_status() == 3
    told = capsys.readouterr().out
    assert "list.txt" in told
    assert "6 images scored" in told
    assert "1 skipped" in told


def test_a_continued_run_scores_what_is_new_changed_or_failed(photos, tmp_path, capsys):
    first, method, _ = predict(photos, tmp_path / "out")
    assert len(method.seen) == 6
    write_picture(photos / "3.png", seed=30)  # repaired
    write_picture(photos / "5.png", seed=50)  # changed
    write_picture(photos / "9.png", seed=9)  # new
    os.utime(photos / "0.png")  # touched
    (photos / "6.png").unlink()  # gone
    second, method, callback = predict(photos, tmp_path / "out")
    assert [os.path.basename(path) for path in method.seen] == ["3.png", "5.png", "9.png"]
    assert callback.counts["kept"] == 4
    assert callback.counts["changed"] == callback.counts["vanished"] == 1
    assert "4 images are scored already, 1 have changed, 1 are no longer there" in capsys.readouterr().out
    assert second["image_score"][:3].tolist() == first["image_score"][:3].tolist()
    assert second["image_score"][5] != first["image_score"][5]
    fresh, _, _ = predict(photos, tmp_path / "other")
    assert second.equals(fresh)


def test_nothing_left_to_score_gives_the_table_again(photos, tmp_path):
    (photos / "3.png").unlink()
    first, _, _ = predict(photos, tmp_path / "out")
    (tmp_path / "out" / "predictions.csv").unlink()
    second, method, callback = predict(photos, tmp_path / "out")
    assert method.seen == []
    assert second.equals(first)
    assert callback.exit_status() == 0


def test_a_run_that_was_killed_anywhere_is_continued_to_the_same_table(photos, tmp_path):
    whole, _, _ = predict(photos, tmp_path / "whole")
    (rows,) = (tmp_path / "whole/parts").glob("rows*.jsonl")
    content = rows.read_bytes()
    for cut in range(0, len(content), 397):  # what a kill leaves of the file
        out = tmp_path / f"cut_{cut}"
        shutil.copytree(tmp_path / "whole/parts", out / "parts")
        (out / "parts" / rows.name).rename(out / "parts/rows-1-a.jsonl")
        (out / "parts/rows-1-a.jsonl").write_bytes(content[:cut])
        again, _, _ = predict(photos, out)
        assert again.equals(whole)


@pytest.mark.parametrize(
    ("method", "options", "told"),
    [
        (Brightness(sigma=2.0), {}, r"sigma \(was 0.0, is 2.0\)"),
        (Brightness(), {"fast_jpeg": True}, r"fast_jpeg \(was False, is True\)"),
    ],
)
def test_results_made_otherwise_are_refused(photos, tmp_path, method, options, told):
    before = predict(photos, tmp_path / "out")[0]
    with pytest.raises(StoreError, match=told):
        predict(photos, tmp_path / "out", method, **options)
    assert pd.read_csv(tmp_path / "out/predictions.csv", keep_default_na=False, dtype=str).equals(before)


def test_a_score_that_is_not_finite_is_an_error_of_its_image(photos, tmp_path):
    class Broken(Brightness):
        """Paper: none, a test."""

        def compare(self, features, text, references=None):
            scores = super().compare(features, text)
            scores.patches[0] = torch.nan
            return scores

    table, _, callback = predict(photos, tmp_path / "out", Broken())
    assert callback.counts["failed"] == 5  # the first of each of four batches, and the one that cannot be read
    assert "not finite (score nan" in table["error"][0]
    assert table["image_score"][0] == ""


def test_a_folder_of_other_things_is_not_written_to(photos):
    with pytest.raises(StoreError, match="holds no results"):
        predict(photos, photos)
    assert not (photos / "parts").exists()


def test_another_data_module_is_told():
    trainer = Trainer(accelerator="cpu", callbacks=[Predictions()], logger=False, enable_progress_bar=False)
    with pytest.raises(DataError, match="needs a data module of vlad"):
        trainer.predict(Brightness(), torch.utils.data.DataLoader([{}]))


@pytest.mark.parametrize(
    ("counts", "fail", "status"),
    [
        ({"scored": 3}, False, 0),
        ({"failed": 3}, False, 1),
        ({"scored": 3, "failed": 1}, False, 3),
        ({"scored": 3, "anomalous": 1}, False, 0),
        ({"scored": 3, "anomalous": 1}, True, 4),
        ({"scored": 3, "failed": 1, "anomalous": 1}, True, 4),
        ({"scored": 3, "failed": 1}, True, 3),
    ],
)
def test_exit_statuses(counts, fail, status):
    callback = Predictions()
    callback.counts.update(counts)
    assert callback.exit_status(fail) == status
