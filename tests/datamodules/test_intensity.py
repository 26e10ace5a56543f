import struct
import warnings

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from vlad.datamodules import intensity
from vlad.datamodules.decode import Reading, inspect_image, load_image
from vlad.errors import DataError

RAMP = np.linspace(0, 1, 120).reshape(12, 10)


@pytest.fixture(autouse=True)
def _nothing_told():
    intensity._told[:] = bytes(len(intensity._told))


def grey(path, reading=None):
    """Reads an image, which must be grey; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pixels = np.asarray(load_image(str(path), reading=reading or Reading()))
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0].astype(int)


def save_tiff(path, values, **tags):
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for number, value in tags.items():
        number = int(number.removeprefix("tag_"))
        info[number] = value
        if number in (340, 341):
            info.tagtype[number] = 12 if values.dtype.kind == "f" else 3
    Image.fromarray(values).save(path, tiffinfo=info)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_of_sixteen_bits_the_upper_eight_count(tmp_path, suffix):
    values = (RAMP * 65535).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / f"deep{suffix}")
    assert np.array_equal(grey(tmp_path / f"deep{suffix}"), values >> 8)


def test_twelve_in_sixteen_bits_is_told_once_and_has_an_option(tmp_path):
    """One rule for a run: a dark image is not read brighter than its neighbour."""
    values = (RAMP * 4095).astype(np.uint16)
    for name in ("a.png", "b.png"):
        Image.fromarray(values).save(tmp_path / name)
    with pytest.warns(UserWarning, match=r"a\.png has 16 bits.* above 4095.*--data\.intensity_range '\[0, 4095\]'"):
        read = np.asarray(load_image(str(tmp_path / "a.png")))
    assert np.array_equal(read[..., 0], values >> 8)
    assert grey(tmp_path / "b.png").max() == 15  # not told again
    assert np.abs(grey(tmp_path / "b.png", Reading((0, 4095))) - RAMP * 255).max() <= 1
    assert grey(tmp_path / "b.png", Reading((1000, 3000))).max() == 255
    Image.new("I;16", (4, 4)).save(tmp_path / "black.png")
    assert grey(tmp_path / "black.png").max() == 0


@pytest.mark.parametrize(
    ("tag", "maximum"), [("tag_341", 4095), ("tag_281", 4095), ("tag_341", 1023), ("tag_341", 16383)]
)
def test_bits_that_metadata_tell(tmp_path, tag, maximum):
    values = (RAMP * maximum).astype(np.uint16)
    save_tiff(tmp_path / "a.tif", values, **{tag: maximum})
    assert np.array_equal(grey(tmp_path / "a.tif"), values >> (maximum.bit_length() - 8))


def test_metadata_that_are_the_statistics_of_one_image_do_not_count(tmp_path):
    """Else two images of a run would be stretched differently."""
    values = (RAMP * 30000).astype(np.uint16)
    save_tiff(tmp_path / "a.tif", values, tag_341=30000)
    assert np.array_equal(grey(tmp_path / "a.tif"), values >> 8)


def test_twelve_packed_bits(tmp_path):
    values = (RAMP * 4095).astype(np.uint16)
    pairs = values.reshape(-1, 2)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1)
    tags = [(256, 10), (257, 12), (258, 12), (259, 1), (262, 1), (273, 0), (277, 1), (278, 12), (279, packed.size)]
    start = 8 + 2 + 12 * len(tags) + 4
    data = b"II*\0" + struct.pack("<IH", 8, len(tags))
    for tag, value in tags:
        data += struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, start if tag == 273 else value)
    (tmp_path / "a.tif").write_bytes(data + struct.pack("<I", 0) + packed.astype(np.uint8).tobytes())
    assert np.array_equal(grey(tmp_path / "a.tif"), values >> 4)


def test_white_is_zero(tmp_path):
    values = (RAMP * 65535).astype(np.uint16)
    save_tiff(tmp_path / "a.tif", values, tag_262=0)
    file = tmp_path / "a.tif"
    if Image.open(file).tag_v2[262] != 0:  # Pillow writes its own
        data = bytearray(file.read_bytes())
        at = data.index(struct.pack("<HHI", 262, 3, 1))
        data[at + 8] = 0
        file.write_bytes(bytes(data))
    assert np.array_equal(grey(file), 255 - (values >> 8))


def test_pgm_tells_its_maximum(tmp_path):
    values = (RAMP * 4095).astype(">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5 10 12 4095\n" + values.tobytes())
    assert np.abs(grey(tmp_path / "a.pgm") - RAMP * 255).max() <= 1


def test_integers_of_32_bits(tmp_path):
    Image.fromarray((RAMP * 65535).astype(np.int32)).save(tmp_path / "a.tif")
    with pytest.warns(UserWarning, match=r"a\.tif holds integers of 32 bits .* 0 to 65535"):
        read = load_image(str(tmp_path / "a.tif"))
    assert np.array_equal(np.asarray(read)[..., 0], (RAMP * 65535).astype(int) >> 8)
    Image.fromarray((RAMP * 4000 - 1000).astype(np.int32)).save(tmp_path / "ct.tif")
    with pytest.raises(DataError, match=r"ct\.tif holds integers from -1000 to 3000.*--data\.intensity_range"):
        load_image(str(tmp_path / "ct.tif"))
    assert "--data.intensity_range" in inspect_image(str(tmp_path / "ct.tif")).problem
    given = Reading((-1000, 3000))
    assert np.abs(grey(tmp_path / "ct.tif", given) - RAMP * 255).max() <= 1
    assert not inspect_image(str(tmp_path / "ct.tif"), reading=given).problem


def test_floats_from_0_to_1_are_told_once(tmp_path):
    values = RAMP.astype(np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.warns(UserWarning, match=r"a\.tif holds floats .* read as 0 to 1"):
        read = np.asarray(load_image(str(tmp_path / "a.tif")))
    assert read.mean() == pytest.approx(127.5, abs=0.5)
    assert np.array_equal(grey(tmp_path / "a.tif"), read[..., 0])
    assert grey(tmp_path / "a.tif", Reading((0, 2))).max() == 128


@pytest.mark.parametrize("values", [RAMP * 255, RAMP - 0.5, RAMP * 1e-3 + 1])
def test_floats_beyond_need_a_range(tmp_path, values):
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif holds floats from .*--data\.intensity_range"):
        load_image(str(tmp_path / "a.tif"))
    assert "--data.intensity_range" in inspect_image(str(tmp_path / "a.tif")).problem
    given = Reading((float(values.min()), float(values.max())))
    assert np.abs(grey(tmp_path / "a.tif", given) - RAMP * 255).max() <= 1


def test_floats_whose_range_metadata_tell(tmp_path):
    save_tiff(tmp_path / "a.tif", (RAMP * 255).astype(np.float32), tag_340=0.0, tag_341=255.0)
    assert np.abs(grey(tmp_path / "a.tif") - RAMP * 255).max() <= 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_floats_that_are_no_numbers(tmp_path, value):
    values = RAMP.astype(np.float32).copy()
    values[3, 3] = value
    Image.fromarray(values).save(tmp_path / "a.tif")
    for reading in (Reading(), Reading((0, 1))):
        with pytest.raises(DataError, match=r"a\.tif holds values that are no numbers"):
            load_image(str(tmp_path / "a.tif"), reading=reading)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 3])
def test_floats_that_pillow_does_not_read(tmp_path, dtype, channels):
    import cv2

    values = np.stack([RAMP, RAMP[::-1], RAMP * 0][:channels], -1).astype(dtype)
    plain = [cv2.IMWRITE_TIFF_COMPRESSION, 1]  # OpenCV up to 4.10 writes LogLuv otherwise, which rounds
    cv2.imwrite(str(tmp_path / "a.tif"), np.ascontiguousarray(values[..., ::-1]), plain)
    read = np.asarray(load_image(str(tmp_path / "a.tif"), reading=Reading((0, 1)))).astype(float)
    assert np.abs(read - np.broadcast_to(values * 255, read.shape)).max() <= 1


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_colours_of_sixteen_bits(tmp_path, suffix):
    """Pillow keeps their upper 8 bits, so a range reads them anew."""
    import cv2

    file = tmp_path / f"a{suffix}"
    values = (np.stack([RAMP, RAMP[::-1], RAMP**2], -1) * 4095).astype(np.uint16)
    cv2.imwrite(str(file), np.ascontiguousarray(values[..., ::-1]))
    with pytest.warns(UserWarning, match="has 16 bits"):
        read = np.asarray(load_image(str(file)))
    assert np.array_equal(read, values >> 8)
    read = np.asarray(load_image(str(file), reading=Reading((0, 4095)))).astype(float)
    assert np.abs(read - values / 4095 * 255).max() <= 1


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1"])
def test_a_range_does_not_change_images_of_8_bits(tmp_path, mode):
    image = Image.fromarray((RAMP * 255).astype(np.uint8)).convert(mode)
    image.save(tmp_path / "a.png")
    plain, given = (load_image(str(tmp_path / "a.png"), reading=one) for one in (Reading(), Reading((0, 10))))
    assert np.array_equal(np.asarray(plain), np.asarray(given))
    assert np.array_equal(np.asarray(plain), np.asarray(image.convert("RGB")))
