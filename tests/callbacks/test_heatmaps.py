import json
import shutil

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from tests_support import write_mask, write_picture
from torch.utils.data import DataLoader
from trees import MEAN, STD, small_data

from vlad.callbacks.heatmaps import HeatMaps, choose_for_contact_sheet
from vlad.types import Prediction, Preprocess

NUT, BOLT = ("set", "nut"), ("set", "bolt")
GAP, HEAD, FOOT, BAR = 6, 42, 20, 72  # of a panel, in pixels


def test_contact_sheet_shows_the_middle_of_each_category_and_kind():
    drawn = [(NUT, f"nut{i}", 1, i / 10) for i in range(3)] + [(NUT, "good", 0, 0.9), (BOLT, "bolt", 1, 0.1)]
    assert choose_for_contact_sheet(drawn) == ["nut1", "good", "bolt"]


def test_contact_sheet_of_unknown_images_shows_the_highest_scores():
    drawn = [(NUT, f"nut{i}", -1, i / 100) for i in range(40)]
    assert choose_for_contact_sheet(drawn, limit=3) == ["nut39", "nut38", "nut37"]


class Brightness(LightningModule):
    """Takes what is bright for anomalous; its initial map is the other way round."""

    def test_step(self, batch):
        values = batch["image"].mean(1)
        initial = Prediction(-values, -values.amax((1, 2)), -values)
        return Prediction(values, values.amax((1, 2)), values, stages={"initial": initial} if self.refines else None)

    predict_step = test_step
    refines = True


class Together(Brightness):
    """Scores a set at its end, as a transductive method: the steps return what no callback can draw."""

    def test_step(self, batch):
        self.batches.append((batch, super().test_step(batch)))

    def on_test_epoch_start(self):
        self.batches = []

    def on_test_epoch_end(self):
        (heatmaps,) = (one for one in self.trainer.callbacks if isinstance(one, HeatMaps))
        for batch, prediction in self.batches:
            heatmaps.on_set_scored(self.trainer, self, {k: v for k, v in batch.items() if k != "image"}, prediction)


class Forget(Callback):
    """Deletes the data as soon as all of it is scored."""

    def __init__(self, folder):
        self.folder = folder

    def on_test_epoch_end(self, trainer, pl_module):
        shutil.rmtree(self.folder)

    on_predict_epoch_end = on_test_epoch_end


def trainer(folder, *callbacks):
    return Trainer(accelerator="cpu", devices=1, default_root_dir=folder, logger=False, callbacks=list(callbacks),
                   enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)  # fmt: skip


def tiles(panel, width, height):
    """Returns a panel's tiles (height, width, 3)."""
    pixels = np.asarray(panel.convert("RGB"))
    count = (panel.width - GAP - BAR) // (width + GAP)
    assert panel.size == (count * (width + GAP) + GAP + BAR, HEAD + height + FOOT)
    starts = [GAP + number * (width + GAP) for number in range(count)]
    return [pixels[HEAD : HEAD + height, start : start + width] for start in starts]


def panels(folder):
    paths = (folder / "heatmaps").rglob("*.png")
    return sorted(path.relative_to(folder / "heatmaps").as_posix() for path in paths)


EXPECTED = [f"mvtec_ad/{category}/test/{kind}/{number:03}.png" for category in ("bottle", "metal_nut")
            for kind in ("broken", "good") for number in range(3)]  # fmt: skip


@pytest.mark.parametrize("method", [Brightness, Together])
def test_test_run_is_drawn_without_opening_an_image_again(mvtec, tmp_path, method):
    out = tmp_path / "run"
    heatmaps = HeatMaps(height=48)
    trainer(out, heatmaps, Forget(mvtec / "mvtec_ad")).test(method(), small_data(mvtec, test="mvtec_ad"), verbose=False)
    assert not (mvtec / "mvtec_ad").exists()
    assert panels(out) == sorted(["contact_sheet.png", *EXPECTED])
    sheet = Image.open(out / "heatmaps/contact_sheet.png")
    panel = Image.open(out / "heatmaps" / EXPECTED[0])
    assert sheet.size == (2 * 640, 2 * panel.height)  # an anomalous and a normal image of each category
    assert len(tiles(panel, 53, 48)) == 5  # image, initial map, anomaly map, mask, overlay
    scale = json.loads((out / "heatmaps/scale.json").read_text())
    assert scale["low"] < 0 < scale["high"]


def test_tiles_show_image_stages_and_mask(tmp_path):
    """A bright left half: the map is light there, the initial map dark, and the mask is its right half."""
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:, :20] = 255
    for place in ("own/bad/a.png", "own/good/b.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / place)
    mask = np.zeros((40, 40), np.uint8)
    mask[:, 20:] = 255
    (tmp_path / "own/masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "own/masks/a.png")
    trainer(tmp_path, HeatMaps(height=40)).test(Brightness(), small_data(test=str(tmp_path / "own")), verbose=False)
    image, initial, final, truth, _ = tiles(Image.open(tmp_path / "heatmaps/own/bad/a.png"), 40, 40)
    left, right = (slice(5, 35), slice(2, 12)), (slice(5, 35), slice(28, 38))
    assert (image[left] == 255).all()
    assert (image[right] == 0).all()
    for tile, inside, outside in ((final, left, right), (initial, right, left)):
        assert tile[inside].astype(int).sum(-1).min() > 500
        assert tile[outside].astype(int).sum(-1).max() < 100
    assert (truth[left] == 0).all()
    assert (truth[right] == 255).all()
    assert not tiles(Image.open(tmp_path / "heatmaps/own/good/b.png"), 40, 40)[3].any()


def test_rectangular_maps_and_images_without_truth(tmp_path):
    keep = Preprocess(98, MEAN, STD, aspect="keep", multiple=14)
    for name, size in {"a": (128, 96), "b": (96, 128)}.items():
        write_picture(tmp_path / f"own/{name}.png", size)
    method = Brightness()
    method.refines = False
    data = small_data(predict=str(tmp_path / "own"), preprocess=keep)
    trainer(tmp_path, HeatMaps(height=48), Forget(tmp_path / "own")).predict(method, data, return_predictions=False)
    drawn = panels(tmp_path)
    assert len(drawn) == 3
    for name, width in {"a": 62, "b": 37}.items():
        (path,) = (tmp_path / "heatmaps").rglob(f"{name}.png")
        assert len(tiles(Image.open(path), width, 48)) == 3  # image, anomaly map, overlay


def test_limit_is_per_category(mvtec, tmp_path):
    data = small_data(mvtec, test="mvtec_ad")
    trainer(tmp_path / "run", HeatMaps(height=32, limit=2)).test(Brightness(), data, verbose=False)
    drawn = panels(tmp_path / "run")
    assert len(drawn) == 5
    assert sum("bottle" in name for name in drawn) == 2


def test_no_heat_maps_unless_enabled(mvtec, tmp_path):
    data = small_data(mvtec, test="mvtec_ad")
    trainer(tmp_path / "run", HeatMaps(enabled=False)).test(Brightness(), data, verbose=False)
    assert not (tmp_path / "run/heatmaps").exists()
    assert data.preview_height == 0


def test_batches_without_previews_are_told_once(tmp_path, capsys):
    samples = [{"image": torch.rand(3, 8, 8), "path": f"{n}", "dataset": "d", "category": "c"} for n in range(4)]
    trainer(tmp_path, HeatMaps()).test(Brightness(), DataLoader(samples, batch_size=2), verbose=False)
    told = [line for line in capsys.readouterr().out.splitlines() if "heat maps" in line]
    assert told == ["no heat maps: the batches hold no previews; give the trainer vlad's data module"]
    assert not (tmp_path / "heatmaps").exists()


def test_colours_mean_the_same_in_every_image_of_a_run(tmp_path):
    """Grey values 60, 120 and 240: the map of each is of one colour, lighter where the image is."""
    for name, value in {"good/a": 60, "good/b": 120, "bad/c": 240}.items():
        (tmp_path / f"own/{name}.png").parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (value,) * 3).save(tmp_path / f"own/{name}.png")
    write_mask(tmp_path / "own/masks/c.png", (40, 40))
    trainer(tmp_path, HeatMaps(height=40)).test(Brightness(), small_data(test=str(tmp_path / "own")), verbose=False)
    found = []
    for name in ("good/a", "good/b", "bad/c"):
        final = tiles(Image.open(tmp_path / f"heatmaps/own/{name}.png"), 40, 40)[2]
        assert np.ptp(final.reshape(-1, 3), axis=0).max() <= 2
        found.append(int(final.astype(int).sum(-1).mean()))
    assert found == sorted(found)
    assert found[2] - found[0] > 100
