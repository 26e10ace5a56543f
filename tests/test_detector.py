"""A detector from Python: what it takes, what it gives, and that its numbers are those of ``vlad predict``."""

import functools
import io
import itertools
import json
import re
import tempfile
import threading
import weakref
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image, ImageOps
from tests_support import write_picture

import vlad
import vlad.loading
from vlad.cli import main
from vlad.datamodules import AnomalyDataModule
from vlad.decision import Decision
from vlad.errors import DataError, DecisionError, MethodError, OptionError, OutputError, VladError
from vlad.methods.patch_memory import NearestPatch
from vlad.methods.sdp import SDP
from vlad.store import COLUMNS


def load(tiny, **options):
    return vlad.load("sdp", **{"backbone": tiny, "pretrained": None, "image_size": 64, "layers": [2, 4], **options})


@pytest.fixture(scope="module")
def detector(tiny):
    return load(tiny)


@pytest.fixture
def photos(tmp_path):
    """A folder of photos of several sizes and formats, of which one is damaged, beside a text file."""
    folder = tmp_path / "photos"
    for number in range(9):
        write_picture(folder / f"{number}.png", (40 + 7 * number, 36), seed=number)
    write_picture(folder / "b" / "grey.png", seed=20, mode="L")
    write_picture(folder / "b" / "alpha.png", seed=21, mode="RGBA")
    write_picture(folder / "c.jpg", seed=22)
    (folder / "b" / "damaged.png").write_bytes((folder / "0.png").read_bytes()[:300])
    (folder / "notes.txt").write_text("nothing to see")
    return folder


def normal_images(folder, count=24):
    for number in range(count):
        write_picture(folder / f"{number:02}.png", seed=100 + number)
    return folder


# -- the numbers of vlad predict -----------------------------------------------------------------------------


def predicted(method, **data):
    """Returns what Lightning's loop says: score and map by path, and the failures."""
    module = AnomalyDataModule(num_workers=0, **data).require(method.requirements)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    batches, failed = [], {}

    class Keep(vlad_callback()):
        def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
            batches.append((batch, outputs))
            failed.update(dict(batch["failed"]))

    options |= {"default_root_dir": tempfile.mkdtemp(), "enable_model_summary": False}
    Trainer(callbacks=[Keep()], **options).predict(method, datamodule=module, return_predictions=False)
    found = {}
    for batch, outputs in batches:
        for place, path in enumerate(batch.get("path", [])):
            found[path] = (float(outputs.image_score[place]), outputs.anomaly_map[place].numpy())
    return found, failed


def vlad_callback():
    from lightning.pytorch import Callback

    return Callback


@pytest.mark.parametrize(("aspect", "references"), [("squash", False), ("squash", True), ("keep", True)])
def test_a_folder_gets_the_numbers_of_the_command_to_the_last_bit(tiny, photos, tmp_path, aspect, references):
    good = normal_images(tmp_path / "good", 3)
    if aspect == "keep":
        method = NearestPatch(backbone=tiny, pretrained=None, image_size=64, layers=[2, 4], aspect="keep")
    else:
        method = SDP(backbone=tiny, pretrained=None, image_size=64, layers=[2, 4])
    data = {"references": str(good)} if references else {}
    expected, failed = predicted(method, predict=str(photos), class_name="bolt", batch_size=4, **data)
    with torch.no_grad():  # what the loop has fitted is forgotten
        method.memory.clear()
    detector = vlad.Detector(method, class_name="bolt")
    if references:
        detector.fit_references(str(good), batch_size=4)
    results = detector.predict(photos, batch_size=4)
    scored = [result for result in results if not result.error]
    assert [result.path for result in scored] == list(expected)
    assert [result.error for result in results.failed] == list(failed.values())
    assert len(failed) == 1
    for result in scored:
        score, anomaly_map = expected[result.path]
        assert result.score == score
        assert np.array_equal(result.raw_map, anomaly_map)


def test_the_saved_table_is_that_of_the_command(tiny, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = ["--model.backbone", tiny, "--model.pretrained", "null", "--model.image_size", "64"]
    options = [*model, "--model.layers", "[2,4]", "--data.class_name", "bolt", "--data.num_workers", "0"]
    main(["predict", "photos", "--model", "sdp", *options, "--output", "out", "--heatmaps.enabled", "false"])
    load(tiny, class_name="bolt").predict("photos").save("saved", overlays=False)
    assert Path("saved/predictions.csv").read_bytes() == Path("out/predictions.csv").read_bytes()


def test_workers_change_nothing(detector, photos):
    alone, shared = (detector.predict(photos, batch_size=2, num_workers=number) for number in (0, 2))
    assert [result.row() for result in alone] == [result.row() for result in shared]


def test_an_image_in_memory_gets_the_numbers_of_its_file(detector, photos):
    names = ["0.png", "1.png", "b/grey.png", "b/alpha.png", "c.jpg"]
    files = detector.predict([photos / name for name in names])
    opened = [Image.open(photos / name) for name in names]
    arrays = [np.asarray(Image.open(photos / name)) for name in names]
    assert [array.shape[2:] for array in arrays] == [(3,), (3,), (), (4,), (3,)]
    for given in (opened, arrays, (array for array in arrays), tuple(arrays)):
        results = detector.predict(given)
        assert [result.score for result in results] == [result.score for result in files]
        assert all(np.array_equal(a.raw_map, b.raw_map) for a, b in zip(results, files, strict=True))
        assert [(result.path, result.image_id) for result in results] == [("", str(n)) for n in range(5)]


def test_a_list_of_images_of_several_sizes_keeps_its_batches(tiny, photos):
    method = NearestPatch(backbone=tiny, pretrained=None, image_size=64, layers=[2, 4], aspect="keep")
    detector = vlad.Detector(method).fit_references(photos / "0.png")
    names = [f"{number}.png" for number in (1, 2, 2, 3, 3, 3)]
    files = detector.predict([photos / name for name in names], batch_size=2)
    opened = detector.predict([Image.open(photos / name) for name in names], batch_size=2)
    assert [result.score for result in files] == [result.score for result in opened]
    assert files[0].seen_size[0] <= files[0].original_size[0]


@pytest.mark.parametrize("kind", ["grey.png", "grey.tif", "colour.png"])
@pytest.mark.parametrize("intensity_range", [None, (0, 4095)])
def test_images_of_16_bits_are_read_by_one_rule(tiny, tmp_path, kind, intensity_range):
    import cv2

    values = np.random.default_rng(0).integers(0, 4096, (40, 50, 3), dtype=np.uint16)
    values[0, 0] = 65535 if intensity_range is None else 4095
    file = tmp_path / kind
    cv2.imwrite(str(file), values if kind.startswith("colour") else values[..., 0])
    detector = load(tiny, intensity_range=intensity_range)
    assert detector.predict(Image.open(file)).score == detector.predict(file).score
    loaded = Image.open(file)
    loaded.load()
    if not (kind.startswith("colour") and intensity_range):  # the lower bits are lost by then
        assert detector.predict(loaded).score == detector.predict(file).score


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_photo_is_scored_upright_however_it_is_given(detector, tmp_path, orientation):
    pixels = np.random.default_rng(0).integers(0, 255, (30, 50, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / "phone.png"
    Image.fromarray(pixels).save(file, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(file))
    expected = detector.predict(np.asarray(upright))
    for given in (file, Image.open(file), upright):
        result = detector.predict(given)
        assert result.score == expected.score
        assert result.map.shape == result.original_size == upright.size[::-1]


# -- what is taken -------------------------------------------------------------------------------------------

ARRAY = np.zeros((8, 9, 3), np.uint8)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "there are no images"),
        (iter([]), "there are no images"),
        (None, "NoneType is no image: give a path"),
        (3, "3 is no image"),
        ([[ARRAY]], "image 0: a list within the list is not taken: give one flat list"),
        ({"a": ARRAY}, r"dict is not taken for images: give its values, list\(images\.values\(\)\)"),
        ({"a.png"}, "set is not taken for images: it has no order"),
        (b"\x89PNG", r"bytes is not taken for images: give PIL\.Image\.open\(io\.BytesIO\(content\)\)"),
        ([b"\x89PNG"], "image 0: bytes are not taken"),
        (io.BytesIO(), r"BytesIO is an open file: give PIL\.Image\.open\(file\)"),
        (ARRAY.astype(float), r"array \(8, 9, 3\) of float64 does not say its range: give uint8, \(array \* 255\)"),
        (ARRAY.astype(np.uint16), r"of uint16 does not say its range: give uint8, \(array >> 8\)"),
        (ARRAY[..., 0] > 1, r"of bool is a mask: give array\.astype\('uint8'\) \* 255"),
        (ARRAY.transpose(2, 0, 1), r"\(3, 8, 9\) of uint8 has its channels first: give array\.transpose\(1, 2, 0\)"),
        (ARRAY[..., :1], r"has one channel: give array\[\.\.\., 0\]"),
        (ARRAY[None], r"is several images: give a list, list\(array\)"),
        (ARRAY[:0], "has no pixels"),
        (np.zeros(5, np.uint8), r"\(5,\) of uint8 is no image: give \(H, W\)"),
        (torch.zeros(3, 8, 9, dtype=torch.uint8), r"give an array, tensor\.permute\(1, 2, 0\)\.cpu\(\)\.numpy\(\)"),
        (torch.zeros(2, 3, 8, 9, dtype=torch.uint8), r"give a list of arrays, list\(tensor\.permute\(0, 2, 3, 1\)"),
        (torch.zeros(2, 3, 8, 9), r"normalised images \(B, 3, S, S\) go to detector\.method\.score"),
        ([ARRAY, torch.zeros(3, 8, 9)], r"image 1: a tensor \(3, 8, 9\) of float32 is not taken"),
        ("nowhere/", "nowhere/"),
    ],
)
def test_a_wrong_type_is_named_with_its_fix(detector, given, said):
    with pytest.raises(DataError, match=said) as error:
        detector.predict(given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a"], "class_name has 1 names for 2 images: give one name for all, or one for each"),
        (["a", "b", "c"], "class_name has more names than the 2 images"),
        ((name for name in "a"), "class_name has 1 names for 2 images"),
        (["a", 3], "class_name is a string, or a list of one string per image; 3 in it is none"),
        (3, "class_name is a string, or a list of one string per image, not int"),
        ({"a": 1, "b": 2}, "not dict"),
        ("", "class_name is empty: name what is in the image"),
        (["a", " "], "class_name is empty"),
    ],
)
def test_wrong_class_names_are_told(detector, names, said):
    with pytest.raises(DataError, match=said):
        detector.predict([ARRAY, ARRAY], class_name=names)


def test_wrong_options_are_told(detector, tiny):
    for options in ({"batch_size": 0}, {"batch_size": True}, {"batch_size": 2.0}, {"num_workers": -1}):
        with pytest.raises(DataError, match=f"{next(iter(options))} is a number of"):
            detector.predict(ARRAY, **options)
    with pytest.raises(OptionError, match=r"intensity_range is two numbers, the lower one first: \(0, 4095\)"):
        load(tiny, intensity_range=(1, 2, 3))
    with pytest.raises(DataError, match="class_name of a detector is one string, not list"):
        load(tiny, class_name=["a", "b"])


def test_wrong_things_are_told_before_anything_is_taken_from_the_iterator(detector):
    with pytest.raises(DataError, match="there are no images"):
        detector.stream([])
    with pytest.raises(DataError, match="more names than the 1 images"):
        list(detector.stream([ARRAY], class_name=["a", "b"]))


def test_each_image_may_have_a_class_name(detector, photos):
    names = ["bottle", "cable", "bottle"]
    files = [photos / f"{number}.png" for number in range(3)]
    together = detector.predict(files, class_name=names)
    assert [(result.class_name, result.category) for result in together] == [(name, name) for name in names]
    for result, file, name in zip(together, files, names, strict=True):
        assert result.score == pytest.approx(detector.predict(file, class_name=name).score, abs=1e-5)
    assert abs(together[0].score - detector.predict(files[0], class_name="cable").score) > 1e-4
    from_generator = detector.predict((Image.open(file) for file in files), class_name=(name for name in names))
    assert [result.score for result in from_generator] == [result.score for result in together]


def test_paths_arrays_and_images_may_be_mixed(detector, photos):
    given = [str(photos / "0.png"), ARRAY, photos / "b", Image.open(photos / "1.png"), photos / "0.png"]
    results = detector.predict(given)
    assert [bool(result.path) for result in results] == [True, False, True, True, True, False, True]
    assert len({result.image_id for result in results}) == len(results)
    assert [bool(result.error) for result in results] == [False, False, False, True, False, False, False]


def test_results_follow_the_list_that_is_given(detector, photos, tmp_path):
    table = tmp_path / "parts.csv"
    table.write_text("image_path\nphotos/5.png\n")
    one, other = str(photos / "1.png"), str(photos / "2.png")
    given = [one, one, "gone.png", table, other, photos / "b" / ".." / "1.png", table]
    results = detector.predict(given)
    assert [result.path for result in results][:3] == [one, one, "gone.png"]
    assert [result.path.rpartition("/")[2] for result in results][3:] == ["5.png", "2.png", "1.png", "5.png"]
    assert results[0].score == pytest.approx(results[1].score, abs=1e-6)
    assert len({(result.dataset, result.category, result.image_id) for result in results}) == 7


def test_a_pattern_and_a_table_are_taken(detector, photos, tmp_path):
    assert len(detector.predict(f"{photos}/[0-3].png")) == 4
    table = tmp_path / "parts.csv"
    table.write_text("image_path,category,class_name\nphotos/0.png,m3,bolt\nphotos/1.png,m4,nut\n")
    results = detector.predict(table)
    assert [(result.category, result.class_name) for result in results] == [("m3", "bolt"), ("m4", "nut")]


def test_an_image_that_cannot_be_read_is_a_result_among_others_and_an_error_alone(detector, photos, tmp_path):
    damaged = photos / "b" / "damaged.png"
    with pytest.raises(DataError, match=r"cannot read image .*damaged\.png"):
        detector.predict(damaged)
    missing = str(tmp_path / "gone.png")
    results = detector.predict([photos / "0.png", missing, damaged, photos / "1.png"])
    assert [result.path for result in results.failed] == [missing, str(damaged)]
    assert "gone.png does not exist" in results[1].error
    assert [result.score is None for result in results] == [False, True, True, False]
    assert [result.raw_map is None for result in results] == [False, True, True, False]
    for use in (lambda: results[1].map, results[1].overlay):
        with pytest.raises(DataError, match="does not exist"):
            use()
    closed = Image.open(photos / "0.png")
    closed.close()
    assert "cannot read image 1" in detector.predict([ARRAY, closed])[1].error
    with pytest.raises(DataError, match="cannot read image 0"):
        detector.predict(closed)


def test_a_score_that_is_not_finite_is_an_error(tiny):
    detector = load(tiny)
    with torch.no_grad():
        detector.method.backbone.image.visual.proj.fill_(torch.nan)
    (result,) = detector.predict([ARRAY])
    assert result.score is None
    assert "not finite" in result.error


# -- what is given -------------------------------------------------------------------------------------------


def test_one_image_gives_a_result_and_several_give_results(detector, photos):
    for given in (photos / "0.png", str(photos / "0.png"), ARRAY, Image.open(photos / "0.png")):
        assert isinstance(detector.predict(given), vlad.Result)
    for given in (photos, [photos / "0.png"], [ARRAY], iter([ARRAY]), f"{photos}/0*.png"):
        assert isinstance(detector.predict(given), vlad.Results)


def test_a_map_has_the_size_of_its_image(detector, photos):
    result = detector.predict(photos / "3.png")
    assert result.raw_map.shape == (64, 64)
    assert result.map.shape == (36, 61) == result.original_size
    assert result.map.dtype == np.float32
    assert result.map.max() <= result.raw_map.max()
    assert result.overlay().size == (61, 36)
    assert result.overlay(longest=30).size == (30, 18)


def test_results_are_a_list_and_a_table(detector, photos):
    results = detector.predict(photos, class_name="bolt")
    assert len(results) == 13
    assert [result.image_id for result in results] == [results[number].image_id for number in range(13)]
    assert repr(results) == "Results(13 images: 12 scored, 1 failed, 1 files ignored)"
    assert [path for paths in results.ignored.values() for path in paths] != []
    assert len(results[2:5]) == 3
    table = results.to_dataframe()
    assert list(table.columns) == list(COLUMNS)
    assert table["image_score"].isna().sum() == (table["error"] != "").sum() == 1
    assert table["image_score"].dtype == float
    assert set(table["decision"]) == {""}


def test_saved_results_read_as_the_table(detector, photos, tmp_path):
    results = detector.predict(photos, class_name="bolt/../..")
    folder = results.save(tmp_path / "out", maps=True)
    read = pd.read_csv(folder / "predictions.csv", float_precision="round_trip")
    table = results.to_dataframe()
    assert read["path"].tolist() == table["path"].tolist()
    assert read["image_score"].tolist()[:3] == table["image_score"].tolist()[:3]
    assert len(list(folder.rglob("*.png"))) == len(list(folder.rglob("*.npy"))) == 12
    assert {path.name for path in folder.iterdir()} == {"maps", "overlays", "predictions.csv"}
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "out"}
    run = tmp_path / "run"
    (run / "parts").mkdir(parents=True)
    with pytest.raises(OutputError, match="is a run of vlad predict, which this would overwrite"):
        results.save(run)


def test_a_result_is_saved_by_its_ending(detector, photos, tmp_path):
    result = detector.predict(photos / "0.png")
    assert Image.open(result.save(tmp_path / "a.png")).size == (40, 36)
    assert Image.open(result.save(tmp_path / "new" / "a.JPG")).format == "JPEG"
    assert np.array_equal(np.load(result.save(tmp_path / "a.npy")), result.map)
    assert json.loads(result.save(tmp_path / "a.json").read_text())["image_score"] == result.score
    with pytest.raises(DataError, match=r"a result is saved as an image \(\.png"):
        result.save(tmp_path / "a.xlsx")


def test_results_of_one_call_have_one_scale(detector, photos):
    results = detector.predict(photos)
    assert len({id(result.scale) for result in results if not result.error}) == 1


# -- a stream ------------------------------------------------------------------------------------------------


def test_a_camera_without_an_end_is_answered_image_by_image(detector):
    taken = []

    def camera():
        for number in itertools.count():
            taken.append(number)
            yield np.full((20, 30, 3), number % 256, np.uint8)

    results = list(itertools.islice(detector.stream(camera(), batch_size=1), 3))
    assert [result.image_id for result in results] == ["0", "1", "2"]
    assert len(taken) <= 4


def test_a_stream_keeps_no_images(detector):
    alive = []

    def camera():
        for _ in range(40):
            image = Image.new("RGB", (64, 64))
            alive.append(weakref.ref(image))
            yield image

    most = 0
    for _ in detector.stream(camera(), batch_size=4):
        most = max(most, sum(reference() is not None for reference in alive))
    assert most <= 12


# -- what it leaves alone ------------------------------------------------------------------------------------


def test_predicting_writes_nothing_and_draws_nothing(detector, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = detector.predict(photos), detector.predict(photos)
    assert [result.row() for result in first] == [result.row() for result in second]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert sorted(tmp_path.rglob("*")) == before
    assert not detector.method.training


def test_a_method_that_draws_by_its_published_seed_draws_alike_each_time(tiny):
    options = {"backbone": tiny, "pretrained": None, "image_size": 64, "depth": 2, "length": 3, "clusters": 3}
    detector = vlad.load("adaclip", as_published=True, allow_untrained=True, **options)
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (detector.predict([image, image[::-1]]) for _ in range(2))
    assert [result.score for result in first] == [result.score for result in second]
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_several_threads_get_their_own_results(tiny, photos):
    detector = load(tiny)
    files = [photos / f"{number}.png" for number in range(6)]
    expected = [detector.predict(file, class_name=f"class {n % 3}").score for n, file in enumerate(files)]
    detector, found = load(tiny), {}

    def answer(number):
        for _ in range(3):
            found[number] = detector.predict(files[number], class_name=f"class {number % 3}").score

    threads = [threading.Thread(target=answer, args=(number,)) for number in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert [found[number] for number in range(6)] == expected


# -- references ----------------------------------------------------------------------------------------------


def test_references_are_fitted_on_loading(tiny, tmp_path):
    good = normal_images(tmp_path / "good", 3)
    detector = load(tiny, references=str(good), class_name="bolt")
    assert detector.method.memory.categories == ("images/bolt",)
    assert [record["image_id"] for record in detector.references] == ["00", "01", "02"]
    assert all(len(record["sha256"]) == 64 for record in detector.references)
    assert "references of bolt" in repr(detector)
    score = detector.predict(ARRAY).score
    arrays = [np.asarray(Image.open(path)) for path in sorted(good.iterdir())]
    assert load(tiny, references=arrays, class_name="bolt").predict(ARRAY).score == score
    assert load(tiny, class_name="bolt").predict(ARRAY).score != score


def test_references_of_several_classes_are_a_mapping(tiny, tmp_path):
    for name in ("bolt", "nut"):
        normal_images(tmp_path / "good" / name, 2)
    places = {name: tmp_path / "good" / name for name in ("bolt", "nut")}
    detector = load(tiny, references=places)
    assert detector.method.memory.categories == ("images/bolt", "images/nut")
    detector.predict(ARRAY, class_name="nut")
    with pytest.raises(MethodError, match="no references of 'washer': give class_name, of bolt, nut"):
        detector.predict(ARRAY, class_name="washer")
    with pytest.raises(MethodError, match="no references of 'object'"):
        detector.predict(ARRAY)
    with pytest.raises(DataError, match="give one of them"):
        detector.fit_references(places, class_name="bolt")
    assert len(detector.fit_references(places, shots=1).references) == 2


def test_references_of_no_class_serve_every_class(tiny, tmp_path):
    detector = load(tiny, references=normal_images(tmp_path / "good", 2))
    assert detector.predict(ARRAY, class_name="bolt").score is not None
    detector.fit_references(tmp_path / "good", class_name="bolt")
    assert detector.predict(ARRAY).score is not None
    with pytest.raises(MethodError, match="no references of 'nut'"):
        detector.predict(ARRAY, class_name="nut")


def test_what_is_no_reference_is_told(tiny, tmp_path):
    detector = load(tiny)
    write_picture(tmp_path / "parts" / "bad" / "0.png")
    with pytest.raises(DataError, match="references are normal images, and 1 of"):
        detector.fit_references(tmp_path / "parts")
    (tmp_path / "broken.png").write_bytes(b"x" * 40)
    with pytest.raises(DataError, match=r"a reference cannot be used: cannot read image .*broken\.png"):
        detector.fit_references(tmp_path / "broken.png")
    with pytest.raises(DataError, match=r"number of reference images"):
        detector.fit_references(ARRAY, shots=-1)
    with pytest.raises(DataError, match="has 1 given references, shots asks for 2"):
        detector.fit_references(ARRAY, shots=2)


def test_a_reference_that_is_scored_is_warned_of(tiny, tmp_path):
    good = normal_images(tmp_path / "good", 2)
    detector = load(tiny, references=good)
    with pytest.warns(
        UserWarning, match=r"00\.png is the same image as the reference .*its score means nothing"
    ) as told:
        detector.predict(good)
    assert len(told) == 1
    assert told[0].filename == __file__


def test_a_method_of_references_says_how_to_give_them(tiny):
    detector = vlad.load("patch_memory", backbone=tiny, pretrained=None, image_size=64)
    with pytest.raises(MethodError, match="compares with reference images and has none"):
        detector.predict(ARRAY)
    assert detector.fit_references([ARRAY]).predict(ARRAY + 3).score is not None


# -- decisions -----------------------------------------------------------------------------------------------


def test_a_number_decides(tiny):
    detector = load(tiny)
    score = detector.predict(ARRAY).score
    assert load(tiny, decision=score).predict(ARRAY).is_anomalous is True
    detector.decision = score + 1
    result = detector.predict(ARRAY)
    assert (result.decision, result.is_anomalous, result.threshold) == ("normal", False, score + 1)
    detector.decision = None
    assert detector.predict(ARRAY).is_anomalous is None


def test_a_calibration_decides_and_is_kept(tiny, tmp_path):
    good = normal_images(tmp_path / "good")
    detector = load(tiny, class_name="bolt")
    decision = detector.calibrate(good, false_alarm_rate=0.1)
    assert decision.kind == "conformal"
    results = detector.predict(good)
    assert sum(result.is_anomalous for result in results) <= 2
    assert all(result.p_value is not None and result.threshold is not None for result in results)
    assert "normal" in repr(results)
    row = results.to_dataframe().iloc[0]
    assert (row["decision"], row["threshold"], json.loads(row["regions"])) == (
        results[0].decision,
        results[0].threshold,
        [region._asdict() for region in results[0].regions],
    )
    file = decision.save(tmp_path / "decision.json")
    again = load(tiny, class_name="bolt", decision=file)
    assert [one.row() for one in again.predict(good)] == [one.row() for one in results]
    with pytest.raises(DecisionError, match="sigma"):
        load(tiny, sigma=2.0, decision=file)
    with pytest.raises(DecisionError, match="neither a number nor a file"):
        load(tiny, decision=str(tmp_path / "none.json"))


def test_a_calibration_is_that_of_the_command(tiny, tmp_path):
    from vlad.datamodules.sources import Locations
    from vlad.decision.images import choose_images, index_normal
    from vlad.decision.make import Wish, make_decision
    from vlad.decision.scoring import score_images

    good = normal_images(tmp_path / "good")
    detector = load(tiny, class_name="bolt")
    frame, _ = index_normal([str(good)], Locations(class_name="bolt"))
    chosen = choose_images(frame, detector.method)
    scored, data = score_images(detector.method, chosen.frame, accelerator="cpu", data={"num_workers": 0})
    expected = make_decision(detector.method, chosen.frame, chosen.keys, scored, Wish(rate=0.1), data=data)
    found = detector.calibrate(good, false_alarm_rate=0.1)
    assert found.rules == expected.rules
    assert found.identity == expected.identity


def test_references_and_copies_do_not_calibrate(tiny, tmp_path):
    good = normal_images(tmp_path / "good")
    (good / "copy.png").write_bytes((good / "05.png").read_bytes())
    detector = load(tiny, references=good / "00.png", class_name="bolt")
    with pytest.warns(UserWarning, match="1 images are left out: they are (references|copies)"):
        decision = detector.calibrate(good, false_alarm_rate=0.1)
    assert len(decision.rules["bolt"].normal) == 23
    write_picture(tmp_path / "other.png", seed=7)
    with pytest.raises(DecisionError, match="what differs is the references of bolt"):
        detector.fit_references(tmp_path / "other.png", class_name="bolt").predict(ARRAY)


def test_images_in_memory_calibrate(tiny, tmp_path):
    good = normal_images(tmp_path / "good")
    arrays = [np.asarray(Image.open(path)) for path in sorted(good.iterdir())]
    by_arrays, by_files = (load(tiny).calibrate(images, false_alarm_rate=0.1) for images in (arrays, good))
    assert by_arrays.rules["object"].threshold == by_files.rules["object"].threshold
    with pytest.raises(DecisionError, match="cannot be promised with 3 normal images"):
        load(tiny).calibrate(arrays[:3], false_alarm_rate=0.1)
    with pytest.raises(DecisionError, match="lies between 0 and 1"):
        load(tiny).calibrate(arrays, false_alarm_rate=5)


def test_an_unknown_class_gets_no_decision(tiny, tmp_path):
    detector = load(tiny)
    detector.calibrate(normal_images(tmp_path / "good"), class_name="bolt", false_alarm_rate=0.1)
    with pytest.warns(UserWarning, match="no decision on images of 'nut': .* knows bolt; give class_name"):
        assert detector.predict(ARRAY, class_name="nut").decision == ""


def test_the_decision_of_a_run_folder_is_taken(tiny, tmp_path):
    import yaml

    run = tmp_path / "run"
    run.mkdir()
    options = {"backbone": tiny, "pretrained": None, "image_size": 64, "layers": [2, 4]}
    model = {"class_path": "vlad.methods.sdp.SDP", "init_args": options}
    (run / "test.yaml").write_text(yaml.safe_dump({"model": model}))
    Decision.number(0.5).save(run / "decision.json")
    assert vlad.load(run).decision.kind == "number"
    assert vlad.load(run, decision="none").decision is None
    assert vlad.load(run, decision=0.25).predict(ARRAY).threshold == 0.25


# -- itself --------------------------------------------------------------------------------------------------


def test_it_says_what_it_is(tiny):
    detector = load(tiny)
    assert repr(detector) == f"Detector(SDP on {tiny}, 64 px, zero-shot, no decision, cpu)"
    assert repr(load(tiny, decision=0.5)).endswith("number decision, cpu)")
    with pytest.raises(AttributeError, match=r"a Detector has no 'score', its method has: detector\.method\.score"):
        detector.score  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        detector.nonsense  # noqa: B018


def test_a_device_that_is_not_there_is_told(tiny):
    assert load(tiny, device="cpu").method.device.type == "cpu"
    for device in ("cuda:77", "cuba"):
        with pytest.raises(MethodError, match=f"device '{device}' cannot be used, there is cpu") as error:
            load(tiny, device=device)
        assert "\n" not in str(error.value)


def test_a_transductive_method_is_refused(tiny):
    with pytest.raises(MethodError, match="transductive"):
        load(tiny, image_fusion="minmax").predict(ARRAY)


def test_what_is_raised_for_what_a_user_gave_is_a_vlad_error():
    assert all(issubclass(error, VladError) for error in (DataError, DecisionError, MethodError, OutputError))


# -- what the documentation shows ----------------------------------------------------------------------------

ROOT = Path(__file__).parents[1]


@pytest.fixture
def with_vlad_tiny(monkeypatch, tmp_path):
    """An empty folder with photos, and vlad-tiny in place of the backbone; nothing else is changed."""
    plain = vlad.loading.load
    tiny = functools.partial(plain, backbone="vlad-tiny", pretrained=None, image_size=96)
    monkeypatch.setattr(vlad.loading, "load", tiny)
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        write_picture(tmp_path / "photos" / f"{number}.png", (60, 50), seed=number)
    normal_images(tmp_path / "good")


def snippets(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def test_the_snippet_of_the_readme_runs(with_vlad_tiny, tmp_path):
    (snippet,) = snippets("README.md")
    assert len([line for line in snippet.splitlines() if line and not line.startswith("import ")]) == 3
    exec(snippet, {})
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "good", "out"}
    assert len(pd.read_csv("out/predictions.csv")) == len(list(Path("out/overlays").rglob("*.png"))) == 3


def test_the_snippets_of_the_page_on_python_run_one_after_another(with_vlad_tiny, tmp_path, capsys):
    scope = {}
    with pytest.warns(UserWarning, match="4 images are left out: they are references"):
        exec("\n".join(snippets("docs/python.md")), scope)
    assert "photos/0.png" in capsys.readouterr().out
    assert scope["decision"].kind == "conformal"
    assert len(scope["table"]) == 3
    assert len(list(Path("out/maps").rglob("*.npy"))) == 3
    for name in ("overlay.png", "overlay.jpg", "map.npy", "row.json", "decision.json"):
        assert (tmp_path / name).is_file()
