import numpy as np

from vlad.drawing.colors import FOUND, blend, color_map, colorize, draw_line, hatch, outline
from vlad.drawing.scale import Scale

SCALE = Scale(low=0.5, high=1.0, floor=0.0)


def test_colours_get_lighter_with_the_score_for_every_kind_of_eye():
    """Lightness alone carries the order, so that it is there for colour-blind eyes and in print."""
    shown = color_map(np.linspace(-0.1, 1.1, 200)[None], SCALE)[0].astype(float)
    lightness = shown @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) >= -1).all()
    assert lightness[-1] - lightness[0] > 200
    assert np.array_equal(colorize(np.array([[-3.0, 9.0]])), colorize(np.array([[0.0, 1.0]])))


def test_an_overlay_is_the_image_itself_wherever_nothing_is_wrong():
    image = np.random.default_rng(0).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    for value in (-7.0, 0.0, 0.49, 0.5):
        assert np.array_equal(blend(image, np.full((6, 6), value), SCALE), image)
    grey = np.full((1, 50, 3), 128, np.uint8)
    distance = abs(blend(grey, np.linspace(0.5, 1.2, 50)[None], SCALE).astype(int) - 128).max(-1)[0]
    assert distance[0] == 0
    assert distance[2] > 5
    assert distance[-1] > 80


def test_a_line_runs_around_a_region_with_a_dark_rim():
    mask = np.zeros((12, 12), bool)
    mask[4:8, 4:8] = True
    image = np.full((12, 12, 3), 200, np.uint8)
    draw_line(image, mask, FOUND)
    assert (image[outline(mask)] == FOUND).all()
    assert (image[3, 4:8] == 0).all()
    assert (image[5:7, 5:7] == 200).all()
    assert (image[0] == 200).all()


def test_a_region_at_the_edge_of_the_image_is_closed():
    mask = np.zeros((6, 6), bool)
    mask[:3] = True
    assert outline(mask)[0].all()


def test_a_dashed_line_has_gaps():
    mask = np.zeros((40, 40), bool)
    mask[5:35, 5:35] = True
    image = np.zeros((40, 40, 3), np.uint8)
    draw_line(image, mask, (1, 2, 3), dashed=True)
    drawn = (image[outline(mask)] == (1, 2, 3)).all(-1)
    assert 0.4 < drawn.mean() < 0.9


def test_what_is_not_inspected_is_grey_and_hatched():
    image = np.full((16, 16, 3), (200, 10, 10), np.uint8)
    inspected = np.ones((16, 16), bool)
    assert hatch(image, inspected) is image
    inspected[:, 8:] = False
    shown = hatch(image, inspected)
    assert np.array_equal(shown[:, :8], image[:, :8])
    assert np.ptp(shown[:, 8:], axis=-1).max() == 0
    assert len(np.unique(shown[:, 8:])) == 2
