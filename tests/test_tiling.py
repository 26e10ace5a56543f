"""Tiles: windows that cover, maps without seams, and every verb that scores."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import average_precision_score
from tests_support import SMALL

import vlad
from vlad.cli import main
from vlad.errors import DecisionError, MethodError, OptionError
from vlad.tiling import Tiling, window_starts, window_weights
from vlad.types import Prediction, Preprocess

PLAIN = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
SIDES = st.integers(40, 200)
OVERLAPS = st.floats(0, 0.9)


def batch_of(pixels, **more):
    """Returns the batch of one whole image (H, W, 3), uint8."""
    names = {"class_name": ["bolt"], "dataset": ["images"], "category": ["bolt"]}
    return {"image": torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous(), **names, **more}


def red(batch):
    """A method that looks at every pixel by itself: its map is the red channel, its score the map's maximum."""
    maps = batch["image"][:, 0]
    if "roi" in batch:
        maps = torch.where(batch["roi"], maps, maps.masked_fill(~batch["roi"], torch.inf).amin((1, 2), keepdim=True))
    return Prediction(maps, maps.amax((1, 2)), maps)


@given(st.integers(1, 5000), st.integers(16, 700), OVERLAPS)
def test_windows_cover_a_side_exactly_and_overlap_as_asked(length, tile, overlap):
    starts = window_starts(length, tile, overlap)
    size = min(tile, length)
    assert starts[0] == 0
    assert starts[-1] + size == length
    steps = np.diff(starts)
    assert (steps > 0).all()
    assert (steps <= np.ceil(tile * (1 - overlap) + 1e-6)).all()
    weights = window_weights(starts, size, length)
    total = np.zeros(length)
    for start, weight in zip(starts, weights.numpy(), strict=True):
        total[start : start + size] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    SIDES, SIDES, st.integers(16, 40), OVERLAPS, st.integers(0, 99), st.sampled_from(["noise", "constant", "linear"])
)
def test_a_method_that_sees_pixels_alone_is_tiled_without_a_trace(height, width, tile, overlap, seed, kind):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    if kind != "noise":
        pixels[:] = seed if kind == "constant" else np.arange(width, dtype=np.uint8)[None, :, None]
    found = Tiling(tile, overlap, batch_size=5).score(batch_of(pixels), Preprocess(tile, *PLAIN), red)
    expected = pixels[..., 0].astype(np.float32) / 255
    np.testing.assert_allclose(found.anomaly_map[0].numpy(), expected, atol=1e-6)
    assert found.image_score.item() == pytest.approx(expected.max())


def test_a_large_image_goes_through_in_small_batches():
    pixels = np.zeros((2000, 8000, 3), np.uint8)
    pixels[1500, 7000] = 255
    sizes = []

    def score(batch):
        sizes.append(len(batch["image"]))
        return red(batch)

    found = Tiling(518, 0.25, batch_size=4).score(batch_of(pixels), Preprocess(518, *PLAIN), score)
    assert found.anomaly_map.shape == (1, 2000, 8000)
    assert found.anomaly_map[0, 1500, 7000] == pytest.approx(1)
    assert found.anomaly_map.sum() == pytest.approx(1)
    assert max(sizes) == 4
    assert sum(sizes) == len(window_starts(2000, 518, 0.25)) * len(window_starts(8000, 518, 0.25))


def test_what_is_not_inspected_is_not_scored():
    pixels = np.full((64, 96, 3), 10, np.uint8)
    pixels[:, 64:] = 250  # outside
    roi = torch.zeros(1, 64, 96, dtype=torch.bool)
    roi[:, 8:40, 5:50] = True
    counts = []

    def score(batch):
        counts.append(len(batch["image"]))
        return red(batch)

    found = Tiling(32, 0.0).score(batch_of(pixels, roi=roi), Preprocess(32, *PLAIN), score)
    assert sum(counts) == 4  # of six
    assert found.image_score.item() == pytest.approx(10 / 255)
    assert found.anomaly_map.max().item() == pytest.approx(10 / 255)


# -- detectors -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def options(tiny):
    return {"backbone": tiny, "pretrained": None, "image_size": 64, "layers": [2, 4]}


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)


def test_the_score_is_the_highest_of_the_tiles(options):
    pixels = noise(150, 240)
    tiled = vlad.load("sdp", **options, tile=100, overlap=0.25)
    plain = vlad.load("sdp", **options)
    tops, lefts = window_starts(150, 100, 0.25), window_starts(240, 100, 0.25)
    tiles = [pixels[top : top + 100, left : left + 100] for top in tops for left in lefts]
    scores = [plain.predict(tile, batch_size=1).score for tile in tiles]
    found = tiled.predict(pixels, batch_size=1)
    assert found.score == max(scores)
    assert found.map.shape == found.raw_map.shape == (150, 240)
    assert tiled.predict(pixels, batch_size=4).score == pytest.approx(found.score, rel=1e-5)


def test_an_image_no_larger_than_a_tile_is_scored_as_without_tiles(options):
    tiled, plain = vlad.load("sdp", **options, tile=100), vlad.load("sdp", **options)
    for size in ((100, 100), (40, 90)):
        found, expected = (one.predict(noise(*size), batch_size=1) for one in (tiled, plain))
        assert found.score == expected.score
        np.testing.assert_array_equal(found.map, expected.map)


def test_references_are_tiled_too(options):
    pixels = noise(96, 160)
    detector = vlad.load("patch_memory", **options, tile=64, overlap=0.0, references=[pixels])
    (memory,) = detector.method.memory.levels_of(detector.method.memory.categories[0])[:1]
    assert len(memory) == 2 * 3 * 16  # tiles, and patches of each
    with pytest.warns(UserWarning, match="the same image as the reference"):
        assert detector.predict(pixels).score == pytest.approx(0, abs=1e-5)


def test_where_the_aspect_is_kept_a_rest_goes_on(options):
    detector = vlad.load("patch_memory", **options, aspect="keep", tile=100, references=[noise(100, 100)])
    found = detector.predict(noise(70, 260, 1))
    assert found.map.shape == (70, 260)
    assert np.isfinite(found.map).all()


def test_what_cannot_be_tiled_is_refused(options):
    for wrong, reason in (
        ({"tile": 8}, "at least 16"),
        ({"tile": 64.0}, "at least 16"),
        ({"tile": 64, "overlap": 1}, "overlap"),
        ({"overlap": 0.5}, "give tile"),
    ):
        with pytest.raises(OptionError, match=reason):
            vlad.load("sdp", **options, **wrong)
    with pytest.raises(MethodError, match="transductive"):
        vlad.load("musc", **options, tile=64)


def test_a_decision_belongs_to_its_tiles(options, tmp_path):
    good = [noise(90, 120, seed) for seed in range(10)]
    tiled = vlad.load("sdp", **options, tile=64)
    tiled.calibrate(good, false_alarm_rate=0.2).save(tmp_path / "tiled.json")
    plain = vlad.load("sdp", **options)
    plain.calibrate(good, false_alarm_rate=0.2).save(tmp_path / "plain.json")
    assert vlad.load("sdp", **options, tile=64, decision=tmp_path / "tiled.json").predict(good[0]).decision
    for other, file in (({"tile": 64}, "plain"), ({}, "tiled"), ({"tile": 64, "overlap": 0.5}, "tiled")):
        with pytest.raises(DecisionError, match="was made with other scores.*(tile|overlap)"):
            vlad.load("sdp", **options, **other, decision=tmp_path / f"{file}.json")


# -- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def command(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = [
        part for name, value in options.items() if value for part in (f"--model.{name}", json.dumps(value).strip('"'))
    ]

    def command(verb, *rest):
        quiet = ["--data.num_workers", "0", "--trainer.enable_progress_bar", "false"] if verb != "calibrate" else []
        method = ["sdp"] if verb == "calibrate" else ["--model", "sdp"]
        return main([verb, *(method if verb == "calibrate" else []), *rest, *([] if verb == "calibrate" else method),
                     *model, *quiet])  # fmt: skip

    return command


def write_images(folder, sizes):
    folder.mkdir(parents=True)
    for number, size in enumerate(sizes):
        Image.fromarray(noise(*size, number)).save(folder / f"{number:02}.png")
    return folder


def test_predict_calibrate_and_the_decision_between_them(command, options, tmp_path, capsys):
    good = write_images(tmp_path / "good", [(90, 120)] * 8 + [(60, 200)] * 4)
    assert command("calibrate", str(good), "--tile", "64", "--false-alarm-rate", "0.1") == 0
    assert "--tile 64" in capsys.readouterr().out
    photos = write_images(tmp_path / "photos", [(90, 120), (64, 64), (130, 70)])
    run = ["photos", "--output", "out", "--decision", "decision.json", "--maps", "npy"]
    assert command("predict", *run, "--tile", "64") == 0
    found = pd.read_csv(tmp_path / "out/predictions.csv")
    detector = vlad.load("sdp", **options, tile=64, decision=tmp_path / "decision.json")
    expected = detector.predict("photos")
    assert found["image_score"].tolist() == pytest.approx([one.score for one in expected], rel=1e-6)
    assert found["decision"].tolist() == [one.decision for one in expected]
    maps = sorted((tmp_path / "out/maps").rglob("*.npy"))
    assert [np.load(file).shape for file in maps] == [(90, 120), (64, 64), (130, 70)]
    assert json.loads((tmp_path / "out/run.json").read_text())["tiling"] == {
        "tile": 64, "overlap": 0.25, "tiled_score": "max",
    }  # fmt: skip
    capsys.readouterr()
    assert command("predict", *run, "--tile", "64", "--overlap", "0.5") == 1
    assert command("predict", "photos", "--decision", "decision.json") == 1
    assert capsys.readouterr().err.count("overlap (was 0.25") == 2
    assert command("predict", "photos", "--overlap", "0.5") == 2
    assert "give tile" in capsys.readouterr().err
    assert photos.is_dir()


def test_test_measures_pixels_at_the_images_own_size(command, options, tmp_path):
    for kind, size in (("good", (90, 120)), ("bad", (110, 80))):
        write_images(tmp_path / "parts/test" / kind, [size] * 2)
    masks = tmp_path / "parts/ground_truth/bad"
    masks.mkdir(parents=True)
    for number in range(2):
        mask = np.zeros((110, 80), np.uint8)
        mask[20:60, 10:40] = 255
        Image.fromarray(mask).save(masks / f"{number:02}_mask.png")
    run = ["--data.test", "parts", "--output", "out", "--heatmaps.enabled", "false", "--metrics.mode", "exact"]
    assert command("test", *run, "--tile", "64") == 0
    found = json.loads((tmp_path / "out/test_metrics.json").read_text())["pooled"]["pixel_ap"]
    detector = vlad.load("sdp", **options, tile=64, class_name="parts")
    files = sorted((tmp_path / "parts/test").rglob("*.png"))
    maps = [detector.predict(file).map.ravel() for file in files]
    truth = [(mask > 0).ravel() if file.parent.name == "bad" else np.zeros(90 * 120, bool) for file in files]
    expected = average_precision_score(np.concatenate(truth), np.concatenate(maps))
    assert found == pytest.approx(expected, rel=1e-3)


def test_training_knows_no_tiles(command, capsys):
    assert command("fit", "--data.train", "parts", "--tile", "64") == 2
    assert "tile does nothing in vlad fit" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in vlad.list_methods() if name in SMALL])
def test_every_method_is_tiled_or_says_why_not(name, tiny):
    options = {"backbone": tiny, "image_size": 64, **SMALL[name], "allow_untrained": True, "tile": 64}
    if name == "musc":
        with pytest.raises(MethodError, match="is not tiled"):
            vlad.load(name, **options)
        return
    detector = vlad.load(name, **options)
    if detector.method.tags.needs_references:
        detector.fit_references([noise(64, 64, 5)])
    result = detector.predict(noise(70, 110))
    assert result.map.shape == (70, 110)
    assert np.isfinite(result.map).all()
    assert np.isfinite(result.score)


def test_the_experiment_measures_with_and_without():
    file = Path(__file__).parents[1] / "experiments/tiling.py"
    spec = importlib.util.spec_from_file_location("tiling_experiment", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    whole, tiled = (module.measure(tile, 500, 1, referenced=True) for tile in (0, 250))
    assert 0 < whole["ap"] < tiled["ap"] < 1
