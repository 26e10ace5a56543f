import numpy as np
import pytest
from PIL import Image

from vlad.drawing import map_of_image, read_map, write_map
from vlad.errors import DataError


def test_a_map_gets_its_images_size():
    values = np.random.default_rng(0).random((10, 14)).astype(np.float32)
    whole = map_of_image(values, (33, 47), (40, 50))
    assert whole.shape == (40, 50)
    assert whole.dtype == np.float32
    assert whole.min() >= values.min()
    assert whole.max() <= values.max()
    assert (whole[33:, :47] == whole[32, :47]).all()  # what the method has not seen goes on as the edge
    assert (whole[:33, 47:] == whole[:33, 46:47]).all()
    assert np.array_equal(map_of_image(values, (10, 14), (10, 14)), values)


def test_what_was_not_inspected_does_not_spread():
    values = np.ones((4, 4), np.float32)
    values[:, 2:] = -np.inf
    whole = map_of_image(values, (8, 8), (8, 8))
    assert (whole[:, :4] == 1).all()
    assert (whole[:, 4:] == -np.inf).all()
    assert (map_of_image(np.full((2, 2), -np.inf), (3, 3), (3, 3)) == -np.inf).all()


@pytest.mark.parametrize("kind", ["npy", "png16"])
@pytest.mark.parametrize("case", ["plain", "constant", "hidden", "all hidden", "huge", "tiny"])
def test_both_formats_give_the_map_back(tmp_path, kind, case):
    values = np.random.default_rng(1).normal(size=(9, 7)).astype(np.float32)
    if case == "constant":
        values[:] = -0.25
    elif case == "hidden":
        values[2:4] = -np.inf
    elif case == "all hidden":
        values[:] = -np.inf
    elif case in {"huge", "tiny"}:
        values *= np.float32(1e30 if case == "huge" else 1e-30)
    path = tmp_path / "deep" / ("a.npy" if kind == "npy" else "a.png")
    scale = write_map(path, values, kind)
    back = read_map(path)
    assert back.shape == values.shape
    assert np.array_equal(np.isinf(back), np.isinf(values))
    seen = np.isfinite(values)
    room = 0 if kind == "npy" else (scale["high"] - scale["low"]) / 65534
    assert np.allclose(back[seen], values[seen], rtol=1e-6, atol=room)
    if kind == "png16":
        with Image.open(path) as image:
            assert image.mode == "I;16"
            codes = np.asarray(image)
        assert (codes[~seen] == 0).all()
        assert (codes[seen] > 0).all()


def test_a_png_of_somebody_else_is_refused(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "x.png")
    with pytest.raises(DataError, match="no map of vlad"):
        read_map(tmp_path / "x.png")
