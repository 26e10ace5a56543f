import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from tests_support import write_mask, write_picture
from torch.utils.data import DataLoader
from trees import MEAN, STD, small_data

from vlad.callbacks.heatmaps import HeatMaps
from vlad.drawing.colors import FOUND
from vlad.drawing.scale import Scale
from vlad.errors import OptionError, OutputError
from vlad.types import Prediction, Preprocess

GAP, HEAD, FOOT, BAR = 6, 42, 20, 72  # of a panel, in pixels
KEEP = Preprocess(98, MEAN, STD, aspect="keep", multiple=14)


class Brightness(LightningModule):
    """Takes what is bright for anomalous; its initial map is the other way round."""

    refines = False

    def test_step(self, batch):
        values = batch["image"].mean(1)
        initial = Prediction(-values, -values.amax((1, 2)), -values)
        return Prediction(values, values.amax((1, 2)), values, stages={"initial": initial} if self.refines else None)

    def predict_step(self, batch):
        return self.test_step(batch) if len(batch["path"]) else None


class Refining(Brightness):
    refines = True


class Together(Brightness):
    """Scores a set at its end, as a transductive method: the steps return what no callback can draw."""

    refines = True

    def test_step(self, batch):
        self.batches.append((batch, super().test_step(batch)))

    def on_test_epoch_start(self):
        self.batches = []

    def on_test_epoch_end(self):
        for batch, prediction in self.batches:
            rest = {key: value for key, value in batch.items() if key != "image"}
            for callback in self.trainer.callbacks:
                if hasattr(callback, "on_set_scored"):
                    callback.on_set_scored(self.trainer, self, rest, prediction)


class Forget(Callback):
    """Deletes the data as soon as all of it is scored."""

    def __init__(self, folder):
        self.folder = folder

    def on_test_epoch_end(self, trainer, pl_module):
        shutil.rmtree(self.folder)

    on_predict_epoch_end = on_test_epoch_end


class Decide(Callback):
    """Stands for vlad's: bright images are anomalous, from a map of 1 on."""

    def __init__(self, scale=(0.0, 2.0, 1.0), known=("own", "object")):
        self.decision = SimpleNamespace(scale=lambda category, class_name: scale if category in known else None)

    def verdicts(self, batch, prediction):
        found = []
        for maps, score in zip(prediction.anomaly_map, prediction.image_score, strict=True):
            bright = bool(maps.max() >= 1)
            box = SimpleNamespace(x=0, y=0, w=20, h=40, area=800, score=1.5)
            kind = "anomalous" if score >= 1 else "normal"
            found.append(SimpleNamespace(decision=kind, p_value=0.05, threshold=1.0, anomalous_area=800 * bright,
                                         regions=(box,) * bright))  # fmt: skip
        return found


def trainer(folder, *callbacks):
    return Trainer(accelerator="cpu", devices=1, default_root_dir=folder, logger=False, callbacks=list(callbacks),
                   enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)  # fmt: skip


def run_test(folder, data, *callbacks, method=Brightness):
    trainer(folder, *callbacks).test(method(), data, verbose=False)


def predict(folder, data, *callbacks, method=Brightness):
    trainer(folder, *callbacks).predict(method(), data, return_predictions=False)


def tiles(path, width, height):
    """Returns a panel's tiles (height, width, 3)."""
    panel = Image.open(path)
    pixels = np.asarray(panel.convert("RGB"))
    count = (panel.width - GAP - BAR) // (width + GAP)
    assert panel.height == HEAD + height + FOOT
    starts = [GAP + number * (width + GAP) for number in range(count)]
    return [pixels[HEAD : HEAD + height, start : start + width] for start in starts]


def panels(folder):
    paths = [path for suffix in ("png", "jpg") for path in (folder / "heatmaps").rglob(f"*.{suffix}")]
    return sorted(path.relative_to(folder / "heatmaps").as_posix() for path in paths)


def own(folder, **values):
    """Writes grey images of 40 x 40 by name; returns the folder's name."""
    for name, value in values.items():
        place = folder / "own" / f"{name.replace('_', '/')}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (value,) * 3).save(place)
    return str(folder / "own")


EXPECTED = [f"mvtec_ad/{category}/test/{kind}/{number:03}.png" for category in ("bottle", "metal_nut")
            for kind in ("broken", "good") for number in range(3)]  # fmt: skip


@pytest.mark.parametrize("method", [Refining, Together])
def test_test_run_is_drawn_without_opening_an_image_again(mvtec, tmp_path, method):
    out = tmp_path / "run"
    run_test(out, small_data(mvtec, test="mvtec_ad"), HeatMaps(height=100), Forget(mvtec / "mvtec_ad"), method=method)
    assert not (mvtec / "mvtec_ad").exists()
    assert panels(out) == sorted(["contact_sheet.jpg", *EXPECTED])
    sheet = Image.open(out / "heatmaps/contact_sheet.jpg")
    panel = Image.open(out / "heatmaps" / EXPECTED[0])
    assert sheet.size == (2 * 640, 2 * round(panel.height * 640 / panel.width))  # an anomalous and a normal one each
    assert len(tiles(out / "heatmaps" / EXPECTED[0], 111, 100)) == 5  # image, initial map, map, ground truth, overlay
    scale = json.loads((out / "heatmaps/scale.json").read_text())
    assert scale["floor"] < scale["low"] < scale["high"]
    assert "6 normal" not in scale["chosen"]  # too few of them
    assert not (out / "parts").exists()


def test_tiles_show_image_stages_and_mask(tmp_path):
    """A bright left half: the map is light there, the initial map dark, and the mask is its right half."""
    pixels = np.zeros((140, 140, 3), np.uint8)
    pixels[:, :70] = 255
    for place in ("own/bad/a.png", "own/good/b.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / place)
    (tmp_path / "own/masks").mkdir()
    Image.fromarray(255 - pixels[..., 0]).save(tmp_path / "own/masks/a.png")
    run_test(tmp_path, small_data(test=str(tmp_path / "own")), HeatMaps(height=140), method=Refining)
    image, initial, final, truth, overlay = tiles(tmp_path / "heatmaps/own/bad/a.png", 140, 140)
    left, right = (slice(15, 125), slice(5, 55)), (slice(15, 125), slice(85, 130))
    assert (image[left] == 255).all()
    assert (image[right] == 0).all()
    for tile, inside, outside in ((final, left, right), (initial, right, left)):
        assert tile[inside].astype(int).sum(-1).min() > 400
        assert tile[outside].astype(int).sum(-1).max() < 300
    assert (truth[left] == 0).all()
    assert (truth[right] == 255).all()
    assert (overlay[right] == 0).all()
    assert (overlay[left] != 255).any(-1).all()
    assert not tiles(tmp_path / "heatmaps/own/good/b.png", 140, 140)[3].any()


@pytest.mark.parametrize(("size", "tile"), [((128, 96), (133, 100)), ((96, 128), (100, 133)), ((900, 90), (1000, 100))])
def test_panels_have_the_images_own_shape(tmp_path, size, tile):
    write_picture(tmp_path / "own/a.png", size)
    predict(tmp_path, small_data(predict=str(tmp_path / "own")), HeatMaps(height=100), Forget(tmp_path / "own"))
    (path,) = (tmp_path / "heatmaps").rglob("a.png")
    pixels = np.asarray(Image.open(path))
    image = pixels[HEAD : HEAD + tile[1], GAP : GAP + tile[0]]
    assert image.shape[:2] == tile[::-1]
    assert image.std() > 10
    assert (pixels[HEAD : HEAD + tile[1], :GAP] == 255).all()


def test_maps_that_do_not_cover_the_whole_image(tmp_path):
    for name, size in {"a": (128, 96), "b": (96, 128)}.items():
        write_picture(tmp_path / f"own/{name}.png", size)
    predict(tmp_path, small_data(predict=str(tmp_path / "own"), preprocess=KEEP), HeatMaps(height=98))
    assert len(panels(tmp_path)) == 3
    for name, (width, height) in {"a": (127, 98), "b": (98, 127)}.items():
        (path,) = (tmp_path / "heatmaps").rglob(f"{name}.png")
        assert len(tiles(path, width, height)) >= 3  # image, anomaly map, overlay


def test_limit_is_per_category_and_spread_over_it(mvtec, tmp_path):
    run_test(tmp_path / "run", small_data(mvtec, test="mvtec_ad"), HeatMaps(height=32, limit=2))
    drawn = panels(tmp_path / "run")
    expected = [f"mvtec_ad/{one}/test/{kind}/001.png" for one in ("bottle", "metal_nut") for kind in ("broken", "good")]
    assert drawn == sorted(["contact_sheet.jpg", *expected])


def test_no_heat_maps_unless_enabled(mvtec, tmp_path):
    data = small_data(mvtec, test="mvtec_ad", predict=str(mvtec / "mvtec_ad/bottle/test/good"))
    run_test(tmp_path / "run", data, HeatMaps(enabled=False))
    predict(tmp_path / "run", data, HeatMaps(enabled=False))
    assert not list((tmp_path / "run").glob("*"))
    assert data.preview_height == 0


@pytest.mark.parametrize("options", [{"height": 0}, {"height": 5000}, {"limit": 0}, {"limit": -3}])
def test_options_that_cannot_be_are_refused(options):
    ((name, value),) = options.items()
    with pytest.raises(OptionError, match=rf"heatmaps\.{name} is {value}: give"):
        HeatMaps(**options)


def test_batches_without_previews_are_told_once(tmp_path):
    samples = [{"image": torch.rand(3, 8, 8), "path": f"{n}", "dataset": "d", "category": "c"} for n in range(4)]
    with pytest.warns(UserWarning, match="no heat maps: the batches hold no previews") as told:
        run_test(tmp_path, DataLoader(samples, batch_size=2), HeatMaps())
    assert sum("no heat maps" in str(one.message) for one in told) == 1
    assert not list(tmp_path.iterdir())


def test_colours_mean_the_same_in_every_image_of_a_run(tmp_path):
    """Grey values 60, 120 and 240: the map of each is of one colour, lighter where the image is."""
    folder = own(tmp_path, good_a=60, good_b=120, bad_c=240)
    write_mask(tmp_path / "own/masks/c.png", (40, 40))
    run_test(tmp_path, small_data(test=folder), HeatMaps(height=100))
    found = []
    for name in ("good/a", "good/b", "bad/c"):
        final = tiles(tmp_path / f"heatmaps/own/{name}.png", 100, 100)[1]
        assert np.ptp(final.reshape(-1, 3), axis=0).max() <= 2
        found.append(int(final.astype(int).sum(-1).mean()))
    assert found == sorted(found)
    assert found[2] - found[0] > 100


# -- with a decision ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [run_test, predict])
def test_with_a_calibrated_scale_panels_are_drawn_while_scoring(tmp_path, monkeypatch, stage):
    folder = own(tmp_path, good_a=20, bad_b=255)
    seen = []

    class Watch(Callback):
        def on_test_epoch_end(self, trainer, pl_module):
            (heatmaps,) = (one for one in trainer.callbacks if isinstance(one, HeatMaps))
            heatmaps._album._pool._executor.shutdown(wait=True)
            seen.extend(panels(tmp_path))

        on_predict_epoch_end = on_test_epoch_end

    data = small_data(test=folder, predict=folder)
    stage(tmp_path, data, Decide(), HeatMaps(height=140), Watch())
    assert [name.split("/")[-1] for name in sorted(seen)] == ["b.png", "a.png"]
    scale = json.loads((tmp_path / "heatmaps/scale.json").read_text())
    assert set(scale) == {"categories"}
    (used,) = scale["categories"].values()
    assert {"low": 0.0, "high": 2.0, "contour": 1.0, "calibrated": True}.items() <= used.items()
    (bright,) = (tmp_path / "heatmaps").rglob("b.png")
    (dark,) = (tmp_path / "heatmaps").rglob("a.png")
    overlay = tiles(bright, 140, 140)[-1]
    assert (overlay[30:110, 71] == FOUND).all()  # 20 of 40 columns are the region's, and a pixel around it
    assert (tiles(dark, 140, 140)[-1] == 20).all()


def test_categories_that_the_decision_does_not_know_wait_for_the_end(tmp_path):
    folder = own(tmp_path, a=20, b=255)
    predict(tmp_path, small_data(predict=folder), Decide(known=()), HeatMaps(height=40))
    assert json.loads((tmp_path / "heatmaps/scale.json").read_text())["chosen"]
    assert len(panels(tmp_path)) == 3


def test_no_decision_is_as_none(tmp_path):
    folder = own(tmp_path, a=20)
    decide = Decide()
    decide.decision = None
    predict(tmp_path, small_data(predict=folder), decide, HeatMaps(height=40))
    assert len(panels(tmp_path)) == 2


# -- what goes wrong ---------------------------------------------------------------------------------------------


class Broken(Brightness):
    """Says for dark images what no method should."""

    value, where = math.nan, "map"

    def test_step(self, batch):
        found = super().test_step(batch)
        dark = found.image_score < 0
        if self.where == "score":
            return found._replace(image_score=torch.where(dark, self.value, found.image_score))
        return found._replace(anomaly_map=torch.where(dark[:, None, None], self.value, found.anomaly_map))


@pytest.mark.parametrize("stage", [run_test, predict])
@pytest.mark.parametrize(
    ("value", "where"), [(math.nan, "map"), (math.inf, "map"), (math.nan, "score"), (-math.inf, "score")]
)
def test_what_is_not_finite_has_no_panel_and_is_counted(tmp_path, stage, value, where):
    folder = own(tmp_path, good_a=20, good_b=21, bad_c=255)
    method = type("Sometimes", (Broken,), {"value": value, "where": where})
    with pytest.warns(
        UserWarning, match=r"no heat map of 2 images whose score or map is not finite, such as (own|images/object)/"
    ):
        stage(tmp_path, small_data(test=folder, predict=folder, batch_size=2), HeatMaps(height=40), method=method)
    assert len(panels(tmp_path)) == 2
    scale = json.loads((tmp_path / "heatmaps/scale.json").read_text())
    assert all(math.isfinite(scale[name]) for name in ("low", "high", "floor"))


def test_a_run_of_nothing_finite_leaves_no_panel(tmp_path):
    folder = own(tmp_path, a=20)
    with pytest.warns(UserWarning, match="no heat map of 1 images"):
        predict(tmp_path, small_data(predict=folder), HeatMaps(height=40), method=Broken)
    assert panels(tmp_path) == []


def test_a_batch_may_hold_no_image(tmp_path):
    folder = own(tmp_path, a=20)
    heatmaps = HeatMaps(height=40)
    run = trainer(tmp_path, heatmaps)
    run.predict(Brightness(), small_data(predict=folder), return_predictions=False)
    heatmaps._begun = True
    heatmaps.on_predict_batch_end(run, Brightness(), None, {"failed": [(3, "truncated")]}, 0)
    empty = torch.zeros(0, 4, 4)
    nothing = Prediction(empty, torch.zeros(0), empty)
    heatmaps.on_predict_batch_end(run, Brightness(), nothing, {"path": [], "failed": [(3, "truncated")]}, 0)


def test_what_is_outside_of_the_region_of_interest_is_hatched(tmp_path):
    class Half(Brightness):
        def predict_step(self, batch):
            batch["roi"] = torch.ones(len(batch["path"]), 32, 32, dtype=torch.bool)
            batch["roi"][:, :, 16:] = False
            found = self.test_step(batch)
            return found._replace(anomaly_map=torch.where(batch["roi"], found.anomaly_map, torch.nan))

    predict(tmp_path, small_data(predict=own(tmp_path, a=20)), HeatMaps(height=140), method=Half)
    (path,) = (tmp_path / "heatmaps").rglob("a.png")
    for tile in tiles(path, 140, 140)[1:]:
        assert len(np.unique(tile[:, 80:].reshape(-1, 3), axis=0)) == 2
    assert (tiles(path, 140, 140)[2][:, :60] == 20).all()


def test_a_run_that_fails_leaves_its_previews_and_is_drawn_when_it_goes_on(tmp_path):
    class Killed(Brightness):
        def predict_step(self, batch):
            if "c" in batch["image_id"]:
                raise KeyError("as if killed")
            return super().predict_step(batch)

    folder = own(tmp_path, a=20, b=40, c=60)
    data = small_data(predict=folder, batch_size=2)
    with pytest.raises(KeyError):
        predict(tmp_path, data, HeatMaps(height=40), method=Killed)
    assert len(list((tmp_path / "parts/previews").glob("*.safetensors"))) == 2
    assert panels(tmp_path) == []
    for name in ("a", "b"):  # scored already
        (tmp_path / f"own/{name}.png").unlink()
    predict(tmp_path, small_data(predict=folder, batch_size=2), HeatMaps(height=40))
    assert [name.split("/")[-1] for name in panels(tmp_path)] == ["contact_sheet.jpg", "a.png", "b.png", "c.png"]
    assert not (tmp_path / "parts").exists()


def test_a_test_does_not_go_on_with_what_an_earlier_one_has_left(tmp_path):
    folder = own(tmp_path, good_a=20, bad_b=255)
    (tmp_path / "heatmaps").mkdir()
    (tmp_path / "heatmaps/scale.json").write_text(json.dumps({**Scale(1e9, 2e9, 0).to_dict(), "categories": {}}))
    (tmp_path / "parts/previews").mkdir(parents=True)
    (tmp_path / "parts/previews/x.safetensors").write_bytes(b"of another run")
    run_test(tmp_path, small_data(test=folder), HeatMaps(height=40))
    assert json.loads((tmp_path / "heatmaps/scale.json").read_text())["low"] < 100
    assert len(panels(tmp_path)) == 3


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(self, *arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    folder = tmp_path / "run"
    write_picture_to = tmp_path / "own"
    write_picture_to.mkdir()
    (write_picture_to / "a.ppm").write_bytes(b"P6 8 8 255\n" + bytes(192))
    with pytest.raises(OutputError, match="No space left"):
        predict(folder, small_data(predict=str(write_picture_to)), HeatMaps(height=40))


def test_a_test_whose_heat_maps_cannot_be_written_goes_on_to_its_end(tmp_path, monkeypatch):
    def full(path, preview):
        raise OutputError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr("vlad.drawing.album.save_preview", full)
    write_picture(tmp_path / "parts/good/0.png")
    write_picture(tmp_path / "parts/bad/0.png")
    data, ended = small_data(test=str(tmp_path / "parts")), []

    class Ends(Callback):
        def on_test_end(self, trainer, pl_module):
            ended.append(True)

    with pytest.raises(OutputError, match="No space left"), pytest.warns(match="no further heat maps"):
        trainer(tmp_path / "run", HeatMaps(height=40), Ends()).test(Brightness(), data, verbose=False)
    assert ended == [True]


def test_names_that_lead_elsewhere_stay_in_the_run_folder(tmp_path):
    class Elsewhere(Brightness):
        def predict_step(self, batch):
            batch["category"], batch["image_id"] = ["../../.."], ["../../../escaped"]
            return super().predict_step(batch)

    inside = tmp_path / "deep/er/run"
    predict(inside, small_data(predict=own(tmp_path, a=20)), HeatMaps(height=40), method=Elsewhere)
    everything = {*tmp_path.rglob("*.png"), *tmp_path.rglob("*.jpg")} - set((tmp_path / "own").rglob("*"))
    assert len(everything) == 2
    assert all(inside in path.parents for path in everything)
