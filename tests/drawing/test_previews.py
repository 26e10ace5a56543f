import numpy as np
import pytest

from vlad.drawing.previews import Preview, load_preview, preview_file, save_preview
from vlad.drawing.scale import Scale


def test_a_preview_comes_back_as_it_was(tmp_path):
    rng = np.random.default_rng(0)
    final = rng.normal(size=(20, 30)).astype(np.float32) * 1e-3 + 5  # float16 could not tell these values apart
    final[:3] = -np.inf
    maps = {"initial": np.zeros((4, 4), np.float32), "": final}
    image = rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)
    scale = Scale(0.1, 0.2, 0.0, 0.15, "by the decision", calibrated=True)
    preview = Preview("a/b", "Flasche 瓶 \udcff", "c", image, maps, image[..., 0] > 99, [(1.0, 2.0, 3.5, 4.0)], scale)
    path = preview_file(tmp_path / "parts", preview.name)
    save_preview(path, preview)
    back = load_preview(path)
    assert (back.name, back.title, back.caption, back.regions, back.scale) == (
        *(preview.name, preview.title, preview.caption, preview.regions, preview.scale),
    )
    assert np.array_equal(back.image, image)
    assert np.array_equal(back.mask, preview.mask)
    assert list(back.maps) == ["initial", ""]
    assert np.array_equal(np.isinf(back.maps[""]), np.isinf(final))
    seen = np.isfinite(final)
    assert abs(back.maps[""][seen] - final[seen]).max() <= np.ptp(final[seen]) / 65534 + 1e-6
    assert back.maps[""][seen].max() == pytest.approx(final[seen].max())
    assert back.panel().earlier.keys() == {"initial"}
    bare = Preview("n", "t", "c", image, {"": final})
    save_preview(path, bare)
    back = load_preview(path)
    assert (back.mask, back.regions, back.scale) == (None, None, None)
