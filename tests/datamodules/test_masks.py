import numpy as np
import pytest
from PIL import Image

from vlad.datamodules.decode import load_mask
from vlad.errors import DataError

Y, X = np.mgrid[:128, :160]
DISK = (X - 60) ** 2 + (Y - 65) ** 2 < 40**2


def drawn(background, colour, alpha=None):
    pixels = np.where(DISK[..., None], np.array(colour, np.uint8), np.array(background, np.uint8)).astype(np.uint8)
    return Image.fromarray(pixels)


def same(mask, share=0.02):
    return mask.shape == DISK.shape and (mask != DISK).sum() <= share * DISK.sum()


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


@pytest.mark.parametrize("options", [{"quality": 75}, {"quality": 30}, {"quality": 95, "subsampling": 0}])
@pytest.mark.parametrize("value", [255, 128, 60])
def test_noise_of_lossy_formats_is_not_anomalous(tmp_path, options, value):
    image = Image.fromarray(DISK.astype(np.uint8) * value)
    image.save(tmp_path / "m.jpg", **options)
    image.save(tmp_path / "m.webp", quality=60)
    image.convert("RGB").save(tmp_path / "rgb.jpg", **options)
    assert all(same(load_mask(str(tmp_path / name))) for name in ("m.jpg", "m.webp", "rgb.jpg"))
    # The sets of the catalogue state their threshold, and are read as published code reads them.
    assert np.array_equal(
        load_mask(str(tmp_path / "m.jpg"), threshold=0), np.asarray(Image.open(tmp_path / "m.jpg")) > 0
    )


def test_a_lossy_mask_with_nothing_in_it(tmp_path):
    noise = np.random.default_rng(0).integers(0, 9, DISK.shape, np.uint8)
    Image.fromarray(noise).save(tmp_path / "m.jpg")
    assert not load_mask(str(tmp_path / "m.jpg")).any()


def test_lossless_masks_count_any_value(tmp_path):
    image = Image.fromarray(DISK.astype(np.uint8))
    image.save(tmp_path / "m.png")
    image.save(tmp_path / "m.webp", lossless=True)
    Image.fromarray(DISK.astype(np.uint16) * 3).save(tmp_path / "deep.png")
    Image.fromarray(DISK.astype(np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(DISK).save(tmp_path / "bits.png")
    for name in ("m.png", "m.webp", "deep.png", "float.tif", "bits.png"):
        assert np.array_equal(load_mask(str(tmp_path / name)), DISK), name


@pytest.mark.parametrize(
    ("background", "colour"),
    [
        ((0, 0, 0, 0), (255, 0, 0, 255)),  # a red brush on a transparent layer
        ((255, 255, 255, 0), (0, 0, 0, 255)),  # black on transparent white
        ((0, 0, 0, 0), (0, 0, 0, 255)),  # black on transparent black: only alpha tells
        ((10, 200, 10, 0), (10, 200, 10, 90)),  # one colour, half transparent
        ((0, 0, 0, 255), (255, 255, 255, 255)),  # no use is made of alpha
        ((0, 0, 0, 0), (0, 0, 255, 0)),  # all transparent, a broken export: colours tell
        ((0, 0, 0, 255), (0, 0, 2, 255)),
    ],
)
def test_masks_in_alpha(tmp_path, background, colour):
    drawn(background, colour).save(tmp_path / "m.png")
    assert np.array_equal(load_mask(str(tmp_path / "m.png")), DISK)


def test_a_drawn_background_within_a_transparent_margin(tmp_path):
    pixels = np.asarray(drawn((0, 0, 0, 255), (255, 255, 255, 255))).copy()
    pixels[:, :10] = 0
    Image.fromarray(pixels).save(tmp_path / "m.png")
    assert np.array_equal(load_mask(str(tmp_path / "m.png")), DISK)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 0, 255), (255, 220, 0), (128, 0, 128)])
@pytest.mark.parametrize("background", [(0, 0, 0), (255, 255, 255)])
def test_colours_on_black_or_white(tmp_path, background, colour, suffix):
    drawn(background, colour).save(tmp_path / f"m{suffix}", quality=95, subsampling=0)
    assert same(load_mask(str(tmp_path / f"m{suffix}")))


def test_a_grey_mask_of_a_large_defect_is_not_turned_round(tmp_path):
    drawn((255, 255, 255), (0, 0, 0)).save(tmp_path / "m.png")
    assert np.array_equal(load_mask(str(tmp_path / "m.png")), ~DISK)


def test_palettes_in_any_order(tmp_path):
    """Programs that save few colours number them as they come; class ids have colours of any kind."""
    for name, colours, raw in (
        ("swapped.png", [255, 255, 255, 0, 0, 0], ~DISK),
        ("plain.png", [0, 0, 0, 255, 255, 255], DISK),
        ("classes.png", [0, 0, 0, 0, 0, 0, 0, 0, 0, 128, 0, 0], DISK * 3),
    ):
        image = Image.fromarray(raw.astype(np.uint8), mode="P")
        image.putpalette(colours)
        image.save(tmp_path / name)
        assert np.array_equal(load_mask(str(tmp_path / name)), DISK), name
    image = Image.fromarray((~DISK).astype(np.uint8), mode="P")  # 0: red; 1: transparent
    image.putpalette([255, 0, 0, 0, 0, 0])
    image.save(tmp_path / "see-through.png", transparency=1)
    assert np.array_equal(load_mask(str(tmp_path / "see-through.png")), DISK)


def test_masks_of_several_files_and_pages(tmp_path):
    halves = [DISK & (Y < 65), DISK & (Y >= 65)]
    files = []
    for number, half in enumerate(halves):
        files.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(half.astype(np.uint8) * 255).save(files[-1])
    assert np.array_equal(load_mask(files, (160, 128)), DISK)
    pages = [Image.fromarray(half.astype(np.uint8) * 255) for half in halves]
    pages[0].save(tmp_path / "m.tif", save_all=True, append_images=pages[1:])
    for frame, half in enumerate(halves):
        assert np.array_equal(load_mask(str(tmp_path / "m.tif"), frame=frame), half)
    assert np.array_equal(load_mask(files[0], frame=1), halves[0])  # one page serves for all
    with pytest.raises(DataError, match="2 pages.*frame 2"):
        load_mask(str(tmp_path / "m.tif"), frame=2)


def test_another_size_names_both_and_the_turn(tmp_path):
    Image.fromarray(DISK).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=r"m\.png is 160x128 pixels, its image 160x120; give the mask of this image"):
        load_mask(str(tmp_path / "m.png"), (160, 120))
    with pytest.raises(DataError, match=r"m\.png is 160x128 pixels, its image 128x160; .* turned as its EXIF"):
        load_mask(str(tmp_path / "m.png"), (128, 160))
