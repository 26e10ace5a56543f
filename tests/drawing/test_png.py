import io

import numpy as np
import pytest
from PIL import Image

from vlad.drawing.png import encode_png


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1), (40, 61)])
def test_a_png_holds_the_very_pixels(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    image[size[0] // 2 :] = image[0]
    with Image.open(io.BytesIO(encode_png(image))) as read:
        read.verify()
    with Image.open(io.BytesIO(encode_png(image))) as read:
        assert (read.format, read.mode, read.size) == ("PNG", "RGB", size[::-1])
        assert np.array_equal(np.asarray(read), image)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_png(image[:, ::-1])))), image[:, ::-1])  # a view


def test_repeated_rows_take_little_room():
    image = np.tile(np.random.default_rng(0).integers(0, 256, (1, 300, 3), dtype=np.uint8), (200, 1, 1))
    assert len(encode_png(image)) < 3000
