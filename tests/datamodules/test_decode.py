import struct

import numpy as np
import pytest
from PIL import Image

from vlad.datamodules.custom import index_images
from vlad.datamodules.dataset import AnomalyDataset
from vlad.datamodules.decode import RowCrop, load_image, load_mask
from vlad.errors import DataError
from vlad.types import Preprocess

PIXELS = np.random.default_rng(0).integers(0, 255, (12, 10, 3), np.uint8)


def malformed_tiff(path, pixels, *, order="<", strips=3):
    """Writes a TIFF of three samples that calls itself grey, in several strips, as CVC-ClinicDB's are."""
    rows, columns, _ = pixels.shape
    data = pixels.tobytes()
    size = -(-rows // strips) * columns * 3
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    tags = [(256, 3, [columns]), (257, 3, [rows]), (258, 3, [8, 8, 8]), (259, 3, [1]), (262, 3, [1]), (273, 4, None)]
    tags += [(277, 3, [3]), (278, 3, [-(-rows // strips)]), (279, 4, [len(part) for part in parts])]
    at = 8 + 2 + 12 * len(tags) + 4
    extra = b""
    offsets_at = at
    at += 4 * len(parts)
    starts = []
    lengths_at = at
    at += 4 * len(parts)
    bits_at = at
    at += 6
    for part in parts:
        starts.append(at)
        at += len(part)
    directory = struct.pack(order + "H", len(tags))
    for tag, kind, values in tags:
        if tag == 273:
            entry = struct.pack(order + "HHII", tag, kind, len(parts), offsets_at)
        elif tag == 279:
            entry = struct.pack(order + "HHII", tag, kind, len(parts), lengths_at)
        elif tag == 258:
            entry = struct.pack(order + "HHII", tag, kind, 3, bits_at)
        else:
            entry = struct.pack(order + "HHIHH", tag, kind, 1, values[0], 0)
        directory += entry
    directory += struct.pack(order + "I", 0)
    extra = struct.pack(f"{order}{len(parts)}I", *starts)
    extra += struct.pack(f"{order}{len(parts)}I", *[len(part) for part in parts]) + struct.pack(order + "3H", 8, 8, 8)
    path.write_bytes(header + directory + extra + b"".join(parts))


@pytest.mark.parametrize("order", ["<", ">"])
def test_malformed_tiff_in_true_colour_and_as_published(tmp_path, order):
    file = tmp_path / "1.tif"
    malformed_tiff(file, PIXELS, order=order)
    with pytest.raises(Exception, match="identify"):
        Image.open(file)
    assert np.array_equal(np.asarray(load_image(str(file))), PIXELS)
    red = np.asarray(load_image(str(file), reader="red"))
    assert np.array_equal(red, np.repeat(PIXELS[..., :1], 3, axis=2))
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"1\.tif \(image file is truncated"):
        load_image(str(file))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "LA", "CMYK"])
def test_modes_and_lying_suffixes(tmp_path, mode):
    image = Image.fromarray(PIXELS).convert(mode)
    file = tmp_path / "image.jpg"
    image.save(file, format="TIFF" if mode == "CMYK" else "PNG")
    read = load_image(str(file))
    assert (read.mode, read.size) == ("RGB", (10, 12))
    assert np.array_equal(np.asarray(read), np.asarray(image.convert("RGB")))


def test_sixteen_bits_keep_their_upper_half(tmp_path):
    values = np.arange(120, dtype=np.uint16).reshape(12, 10) * 500
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert np.array_equal(np.asarray(load_image(str(tmp_path / "deep.png")))[..., 0], values >> 8)


def test_row_crops_cover_the_image(tmp_path):
    Image.fromarray(PIXELS[:11]).save(tmp_path / "a.png")
    Image.fromarray(PIXELS[:11, :, 0]).save(tmp_path / "m.png")
    row_crops = [RowCrop(k, 3) for k in range(3)]
    assert [row_crop.rows(11) for row_crop in row_crops] == [(0, 3), (3, 7), (7, 11)]
    images = [np.asarray(load_image(str(tmp_path / "a.png"), crop=row_crop)) for row_crop in row_crops]
    assert np.array_equal(np.concatenate(images), PIXELS[:11])
    mask = load_mask(str(tmp_path / "m.png"), (10, 4), threshold=99, crop=row_crops[1])
    assert np.array_equal(mask, PIXELS[3:7, :, 0] > 99)


def test_masks_by_raw_value_threshold_and_union(tmp_path):
    palette = Image.new("P", (10, 12))
    palette.putpalette([255, 255, 255] * 3)  # all colours alike: only the indices tell
    palette.putpixel((3, 4), 1)
    palette.save(tmp_path / "label.bmp")
    assert load_mask(str(tmp_path / "label.bmp")).sum() == 1
    folder = tmp_path / "000"
    folder.mkdir()
    with pytest.raises(DataError, match="000 is empty"):
        load_mask(str(folder))
    for number, value in enumerate((236, 255)):
        mask = np.zeros((12, 10), np.uint8)
        mask[number, :4] = value
        Image.fromarray(mask).save(folder / f"{number:03}.png")
    assert load_mask(str(folder), (10, 12)).sum() == 8
    assert load_mask(str(folder), (10, 12), threshold=240).sum() == 4
    Image.new("L", (9, 9)).save(folder / "002.png")
    with pytest.raises(DataError, match="different sizes"):
        load_mask(str(folder))


def test_large_jpeg_near_its_target_size(tmp_path):
    y, x = np.mgrid[:900, :1200]
    smooth = np.stack([x / 5, y / 4, (x + y) / 9], -1).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "big.jpg", quality=95)
    full, near = load_image(str(tmp_path / "big.jpg")), load_image(str(tmp_path / "big.jpg"), near=224)
    assert (full.size, near.size) == ((1200, 900), (600, 450))
    small = [np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC), float) for image in (full, near)]
    assert np.abs(small[0] - small[1]).mean() < 1


@pytest.fixture
def video(tmp_path):
    import cv2

    file = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for number in range(5):
        writer.write(np.full((48, 64, 3), 40 * number, np.uint8))
    writer.release()
    return file


def test_frames_of_a_video_are_rows_in_order(video):
    frame = index_images(str(video.parent))
    assert frame["frame"].tolist() == [0, 1, 2, 3, 4]
    assert frame["image_id"].tolist()[:2] == ["clip_000000", "clip_000001"]
    dataset = AnomalyDataset(frame, Preprocess(32, (0, 0, 0), (1, 1, 1)), truth=False)
    for number in (0, 1, 2, 4, 1):  # forward, over one, and back
        assert float(dataset[number]["image"].mean()) == pytest.approx(40 * number / 255, abs=0.02)


def test_what_is_no_video(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"cannot read video .*clip\.mp4"):
        index_images(str(tmp_path))
