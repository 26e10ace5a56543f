import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests_support import write_mask, write_mvtec, write_picture
from trees import MEAN, STD, small_data

from vlad.datamodules.catalog import get_record
from vlad.datamodules.dataset import AnomalyDataset, collate
from vlad.datamodules.decode import load_image, load_mask
from vlad.datamodules.index import index_record
from vlad.datamodules.order import Drawn
from vlad.datamodules.roi import regions_digest
from vlad.errors import DataError
from vlad.types import Preprocess


@pytest.fixture
def dataset(tmp_path):
    frame = index_record(get_record("mvtec_ad"), write_mvtec(tmp_path / "m", ("bottle",)))
    return AnomalyDataset(frame[frame["split"] == "test"], Preprocess(32, MEAN, STD))


def test_image_arithmetic_is_the_published_one(dataset):
    from torchvision import transforms as T

    published = T.Compose(
        [
            T.Resize((32, 32), T.InterpolationMode.BICUBIC),
            T.CenterCrop(32),
            T.ToTensor(),
            T.Normalize(MEAN, STD),
        ]
    )
    for i in range(len(dataset)):
        expected = published(Image.open(dataset.rows[i]["image_path"]).convert("RGB"))
        torch.testing.assert_close(dataset[i]["image"], expected, rtol=0, atol=1e-6)


def test_mask_arithmetic_is_the_published_one(dataset):
    from torchvision import transforms as T

    resize = T.Compose([T.Resize((32, 32)), T.CenterCrop(32), T.ToTensor()])
    for i, row in enumerate(dataset.rows):
        if row["label"] == 1:
            values = np.array(Image.open(row["mask_path"]).convert("L")) > 0
            expected = resize(Image.fromarray(values.astype(np.uint8) * 255, mode="L"))[0] > 0.5
            assert torch.equal(dataset[i]["mask"], expected)
            assert dataset[i]["mask"].any()
        else:
            assert not dataset[i]["mask"].any()


def test_samples_join_to_a_batch(dataset):
    batch = collate([dataset[0], dataset[4]])
    assert batch["image"].shape == (2, 3, 32, 32)
    assert batch["mask"].dtype == torch.bool
    assert batch["label"].tolist() == [1, 0]
    assert batch["index"].tolist() == [0, 4]
    assert batch["class_name"] == ["bottle", "bottle"]


def test_prediction_samples_hold_no_truth(dataset):
    bare = AnomalyDataset(_frame(dataset), dataset.preprocess, truth=False)[0]
    assert not {"mask", "has_mask", "label", "mask_preview"} & set(bare)


def test_batches_hold_what_their_type_names_and_no_recipes(mvtec):
    data = small_data(mvtec, "auxiliary", train="mvtec_ad", predict=str(mvtec / "mvtec_ad/bottle/test"))
    names = {"image", "class_name", "dataset", "category", "image_id", "path", "index", "original_size", "seen_size"}
    data.setup("fit")
    data.setup("predict")
    assert set(next(iter(data.train_dataloader()))) == names | {"mask", "has_mask", "label"}
    assert set(next(iter(data.predict_dataloader()))) == names | {"digest", "failed", "output"}


def test_previews_are_small_images_and_masks(tmp_path):
    """A normal image's mask is known and empty; of an anomaly without a mask nothing is known."""
    sizes = {"good/0": (120, 60), "bad/1": (60, 120), "bad/2": (400, 40)}
    for name, size in sizes.items():
        write_picture(tmp_path / f"own/{name}.png", size)
    write_mask(tmp_path / "own/masks/1.png", sizes["bad/1"])
    data = small_data(test=str(tmp_path / "own"), predict=str(tmp_path / "own"), batch_size=3)
    data.preview_height = 24
    data.setup("test")
    (batch,) = data.test_dataloader()
    by_id = dict(zip(batch["image_id"], zip(batch["preview"], batch["mask_preview"], strict=True), strict=True))
    shapes = {name: tuple(preview.shape) for name, (preview, _) in by_id.items()}
    assert shapes == {"good/0": (24, 48, 3), "bad/1": (48, 24, 3), "bad/2": (24, 240, 3)}  # at their own aspect ratio
    assert {preview.dtype for preview in batch["preview"]} == {torch.uint8}
    assert {mask.dtype for mask in batch["mask_preview"]} == {torch.bool}
    assert by_id["good/0"][1].shape == (24, 48)
    assert not by_id["good/0"][1].any()
    expected = load_mask(str(tmp_path / "own/masks/1.png"))
    expected = np.array(Image.fromarray(expected).resize((24, 48), Image.Resampling.NEAREST))
    assert np.array_equal(by_id["bad/1"][1].numpy(), expected)
    assert expected.any()
    assert by_id["bad/2"][1].numel() == 0
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert [mask.numel() for mask in batch["mask_preview"]] == [0, 0, 0]
    data.preview_height = 0
    assert not {"preview", "mask_preview"} & set(next(iter(data.test_dataloader())))


def test_previews_show_what_the_method_sees(tmp_path):
    """Of 128 columns the method sees 124.06: a white edge at the right is cut off of image and mask."""
    pixels = np.zeros((96, 128, 3), np.uint8)
    pixels[:, 125:] = 255
    for place, content in (("bad/a.png", pixels), ("masks/a.png", pixels[..., 0])):
        (tmp_path / place).parent.mkdir(parents=True)
        Image.fromarray(content).save(tmp_path / place)
    write_picture(tmp_path / "good/b.png")
    for aspect, seen in (("squash", True), ("keep", False)):
        data = small_data(test=str(tmp_path), preprocess=Preprocess(98, MEAN, STD, aspect=aspect, multiple=14))
        data.preview_height = 98
        data.setup("test")
        sample = next(one for one in data.dataset("test") if one["label"])
        assert tuple(sample["preview"].shape[:2]) == (98, 131 if seen else 127)
        assert bool(sample["preview"].max() > 200) == seen
        assert bool(sample["mask_preview"].any()) == seen


def test_previews_of_a_limit_are_spread_over_each_category(mvtec):
    data = small_data(mvtec, test="mvtec_ad", batch_size=12)
    data.preview_height, data.preview_limit = 24, 2
    data.setup("test")
    (batch,) = data.test_dataloader()
    drawn = [bool(preview.numel()) for preview in batch["preview"]]
    assert drawn == [bool(mask.numel()) for mask in batch["mask_preview"]] == [row % 6 in {1, 4} for row in range(12)]


def test_only_what_is_scored_has_previews(mvtec):
    data = small_data(mvtec, "one-class", train="mvtec_ad", test="mvtec_ad", shots=1)
    data.preview_height = 24
    data.setup("fit")
    data.setup("test")
    assert "preview" in data.dataset("test")[0]
    assert not any("preview" in data.dataset(part)[0] for part in ("train", "references"))


def test_sizes_by_the_header_are_those_of_the_samples(tmp_path):
    for name, size in {"good/0": (128, 96), "bad/1": (96, 128), "bad/2": (98, 98), "bad/3": (300, 100)}.items():
        write_picture(tmp_path / f"{name}.png", size)
    data = small_data(test=str(tmp_path), preprocess=Preprocess(98, MEAN, STD, aspect="keep", multiple=14))
    data.setup("test")
    dataset = data.dataset("test")
    assert sorted(dataset.sizes()) == [(98, 98), (98, 126), (98, 294), (126, 98)]
    assert [tuple(dataset[row]["image"].shape[-2:]) for row in range(4)] == dataset.sizes()


def _frame(dataset):
    import pandas as pd

    return pd.DataFrame(dataset.rows)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA", "I;16"])
def test_any_mode_and_lying_suffix(tmp_path, mode):
    image = Image.fromarray(np.full((8, 9, 3), 100, np.uint8)).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.full((8, 9), 30000, np.uint16))
    image.save(tmp_path / "x.jpg", format="PNG")
    assert load_image(str(tmp_path / "x.jpg")).size == (9, 8)


def test_unreadable_images_are_named(tmp_path):
    write_picture(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    for name, content in {
        "empty.png": b"",
        "text.png": b"hello",
        "cut.png": whole[: len(whole) // 2],
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"cannot read image .*{name} \(.*\); replace it or remove it"):
            load_image(str(tmp_path / name))
    with pytest.raises(DataError, match="does not exist"):
        load_image(str(tmp_path / "none.png"))


def test_mask_rules(tmp_path):
    write_mask(tmp_path / "ids.png", value=2)
    assert load_mask(str(tmp_path / "ids.png"), (40, 36)).sum() == 12 * 16
    assert not load_mask(str(tmp_path / "ids.png"), (40, 36), threshold=127).any()
    with pytest.raises(DataError, match=r"mask .*ids.png is 40x36 pixels, its image 50x36"):
        load_mask(str(tmp_path / "ids.png"), (50, 36))
    palette = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), mode="P")
    palette.putpalette([9, 9, 9, 0, 0, 0])  # index 0 is not black
    palette.save(tmp_path / "p.bmp")
    assert load_mask(str(tmp_path / "p.bmp"), (2, 2)).tolist() == [[False, True], [True, False]]


def test_mosaic_joins_four_images_and_masks_of_a_category(dataset, tmp_path):
    """The parts are known by their content; the label is that of all four, not of the image replaced."""
    frame = index_record(get_record("mvtec_ad"), write_mvtec(tmp_path / "n", ("bottle", "metal_nut"), count=2))
    frame = frame[frame["split"] == "test"].assign(mosaic=1.0)
    joined, plain = (AnomalyDataset(part, Preprocess(80, MEAN, STD)) for part in (frame, frame.drop(columns="mosaic")))
    half = AnomalyDataset(frame.drop(columns="mosaic"), Preprocess(40, MEAN, STD))
    samples = [half[i] for i in range(len(half))]
    labels = set()
    for seed in range(12):
        index = seed % len(joined)
        sample = joined[Drawn(index, epoch=seed)]
        found = []
        for row in range(2):
            for column in range(2):
                part = sample["image"][:, 40 * row : 40 * row + 40, 40 * column : 40 * column + 40]
                near = [float((part - other["image"]).abs().mean()) for other in samples]
                found.append(int(np.argmin(near)))
                mask = sample["mask"][40 * row : 40 * row + 40, 40 * column : 40 * column + 40]
                assert (mask == samples[found[-1]]["mask"]).float().mean() > 0.9
        assert {samples[i]["category"] for i in found} == {plain[index]["category"]}
        assert sample["label"] == max(samples[i]["label"] for i in found)
        assert sample["mask"].any() == bool(sample["label"])
        labels.add(sample["label"])
    assert 1 in labels
    never = AnomalyDataset(frame.assign(mosaic=0.0), Preprocess(80, MEAN, STD))
    assert torch.equal(never[1]["image"], plain[1]["image"])


def test_an_image_that_cannot_be_read_is_listed_where_that_is_tolerated(dataset, tmp_path):
    frame = _frame(dataset).reset_index(drop=True)
    (tmp_path / "broken.png").write_text("no image")
    frame.loc[1, "image_path"] = str(tmp_path / "broken.png")
    strict = AnomalyDataset(frame, dataset.preprocess, truth=False)
    with pytest.raises(DataError, match=r"broken\.png"):
        strict[1]
    tolerant = AnomalyDataset(frame, dataset.preprocess, truth=False, tolerant=True)
    batch = collate([tolerant[0], tolerant[1], tolerant[2]])
    assert batch["index"].tolist() == [0, 2]
    ((index, reason),) = batch["failed"]
    assert index == 1
    assert "broken.png" in reason
    assert batch["digest"][0] == hashlib.sha256(Path(frame["image_path"][0]).read_bytes()).hexdigest()
    nothing = collate([tolerant[1]])
    assert len(nothing["image"]) == 0
    assert nothing["failed"] == [(1, reason)]


def test_a_batch_tells_the_size_of_the_image_and_what_of_it_is_seen(tmp_path):
    write_picture(tmp_path / "a.png", (130, 96))
    data = small_data(preprocess=Preprocess(98, MEAN, STD, aspect="keep", multiple=14), predict=[str(tmp_path)])
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert batch["original_size"].tolist() == [[96, 130]]
    assert batch["image"].shape[-2:] == (98, 126)
    assert batch["seen_size"].tolist() == [[96, 124]]  # of the 132 columns after resizing, 126 are kept


def test_regions_of_interest_come_with_the_batch(tmp_path):
    for name in ("a", "b"):
        write_picture(tmp_path / f"p/{name}.png", (64, 64))
    half = np.zeros((64, 64), np.uint8)
    half[:, :32] = 255
    (tmp_path / "roi").mkdir()
    Image.fromarray(half).save(tmp_path / "roi/part.png")
    Image.fromarray(255 - half).save(tmp_path / "roi/b.png")
    data = small_data(predict=[str(tmp_path / "p")], class_name="part", roi=str(tmp_path / "roi"))
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    side = batch["image"].shape[-1]
    assert batch["roi"][0, :, : side // 2].all()
    assert not batch["roi"][0, :, side // 2 :].any()
    assert torch.equal(batch["roi"][1], ~batch["roi"][0])  # the image's own mask takes precedence
    ignore = small_data(predict=[str(tmp_path / "p")], class_name="part", ignore=str(tmp_path / "roi"))
    ignore.setup("predict")
    (other,) = ignore.predict_dataloader()
    assert torch.equal(other["roi"], ~batch["roi"])
    frames = [one.frames["predict"] for one in (data, ignore)]
    assert regions_digest(frames[0], whole=True) != regions_digest(frames[1], whole=True)
    assert regions_digest(frames[0]) == "per image"


@pytest.mark.parametrize(
    ("size", "value", "told"),
    [((32, 32), 255, "roi.png is 32x32"), ((64, 64), 0, "roi.png leaves no pixel of")],
)
def test_a_region_that_does_not_fit_is_an_error_of_the_image(tmp_path, size, value, told):
    write_picture(tmp_path / "p/a.png", (64, 64))
    Image.fromarray(np.full(size, value, np.uint8)).save(tmp_path / "roi.png")
    data = small_data(predict=[str(tmp_path / "p")], roi=str(tmp_path / "roi.png"))
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert told in batch["failed"][0][1]


@pytest.mark.parametrize("option", ["roi", "ignore"])
def test_a_region_of_nothing_is_refused(tmp_path, option):
    write_picture(tmp_path / "p/a.png", (64, 64))
    (tmp_path / "roi").mkdir()
    for given, told in ((tmp_path / "nowhere", "does not exist"), (tmp_path / "roi", "has a mask for none of the 1")):
        with pytest.raises(DataError, match=rf"data\.{option} .* {told}"):
            small_data(predict=[str(tmp_path / "p")], **{option: str(given)}).setup("predict")
