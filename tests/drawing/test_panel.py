import numpy as np
import pytest
from PIL import Image

from vlad.drawing.colors import FOUND, TRUTH, color_map, outline
from vlad.drawing.panel import Panel, draw_contact_sheet, draw_panel
from vlad.drawing.scale import Scale

HEAD, GAP = 42, 6
SCALE = Scale(low=0.5, high=1.0, floor=0.0)
LINED = Scale(low=0.5, high=1.0, floor=0.0, contour=0.75)


def panel(values, *, size=(160, 100), **more):
    return Panel("title", "caption", Image.new("RGB", size, (90, 90, 90)), np.asarray(values, float), **more)


def tile(drawn, position, size=(160, 100)):
    x = GAP + position * (size[0] + GAP)
    return np.asarray(drawn)[HEAD : HEAD + size[1], x : x + size[0]]


def test_same_score_same_colour_whatever_else_is_in_the_map():
    a, b = np.full((8, 8), 0.7), np.full((8, 8), 0.7)
    b[0, 0] = 7.0
    one, other = (draw_panel(panel(values), SCALE) for values in (a, b))
    for position in (1, 2):
        assert np.array_equal(tile(one, position)[60:, 90:], tile(other, position)[60:, 90:])


@pytest.mark.parametrize("size", [(160, 100), (199, 100), (40, 300), (100, 100)])
def test_tiles_have_the_images_own_size(size):
    drawn = draw_panel(panel(np.zeros((8, 8)), size=size), SCALE)
    assert (tile(drawn, 0, size) == 90).all()
    assert np.asarray(drawn)[HEAD + size[1] :, GAP : GAP + size[0]].max(-1).min() < 120  # the tile's name below it
    assert drawn.height == HEAD + size[1] + 20


def test_tiles_of_wide_images_stand_one_below_the_other():
    size = (1024, 13)
    drawn = draw_panel(panel(np.ones((8, 8)), size=size), SCALE)
    assert drawn.size[0] < 1024 + 100
    pixels = np.asarray(drawn)
    below = [pixels[HEAD + number * 33 : HEAD + number * 33 + 13, GAP : GAP + 1024] for number in range(3)]
    assert (below[0] == 90).all()
    assert (below[1] == color_map(np.ones((1, 1)), SCALE)).all()
    assert (below[2] != 90).all()


def test_ground_truth_is_a_dashed_line_and_a_tile_of_its_own():
    mask = np.zeros((40, 80), dtype=bool)
    mask[10:30, 20:60] = True
    drawn = draw_panel(panel(np.zeros((8, 8)), mask=mask), SCALE)
    shown = tile(drawn, 2)
    assert (shown[30:70, 45:115] == 255).all()
    assert (shown[:20] == 0).all()
    line = outline(np.asarray(Image.fromarray(mask).resize((160, 100), Image.Resampling.NEAREST)))
    overlay = tile(drawn, 3)
    assert 0.4 < (overlay[line] == TRUTH).all(-1).mean() < 0.9
    assert (overlay[45:55, 60:100] == 90).all()


def test_a_line_runs_where_the_map_reaches_the_pixel_threshold():
    values = np.zeros((100, 160))
    values[20:60, 30:90] = 0.9
    overlay = tile(draw_panel(panel(values), LINED), 2)
    inside = np.zeros((100, 160), bool)
    inside[20:60, 30:90] = True
    assert (overlay[outline(inside)] == FOUND).all()
    assert (overlay[0:18] == 90).all()
    assert not (tile(draw_panel(panel(values), SCALE), 2) == FOUND).all(-1).any()  # no decision, no line


def test_no_line_where_the_decision_has_no_region():
    """A spot below the decision's minimum area gets no line, whatever its score."""
    values = np.zeros((100, 160))
    values[20:60, 30:90] = 0.9
    values[80:82, 140:142] = 0.9
    overlay = tile(draw_panel(panel(values, regions=[(30, 20, 60, 40)]), LINED), 2)
    assert (overlay[20, 30:90] == FOUND).all()
    assert not (overlay[70:, 130:] == FOUND).all(-1).any()
    assert not (tile(draw_panel(panel(values, regions=[]), LINED), 2) == FOUND).all(-1).any()


def test_what_was_not_inspected_is_hatched_in_map_and_overlay():
    values = np.full((10, 16), 0.9)
    values[:, 8:] = -np.inf
    drawn = draw_panel(panel(values), LINED)
    for position in (1, 2):
        right = tile(drawn, position)[:, 95:]
        assert np.ptp(right, axis=-1).max() == 0
        assert len(np.unique(right)) == 2
    assert np.ptp(tile(drawn, 1)[:, :70], axis=-1).min() > 0


def test_the_map_before_a_refinement_stands_beside_the_map():
    before, after = np.zeros((8, 8)), np.ones((8, 8))
    drawn = draw_panel(panel(after, earlier={"initial": before}), SCALE)
    assert np.array_equal(tile(drawn, 1)[10, 10], color_map(np.zeros((1, 1)), SCALE)[0, 0])
    assert np.array_equal(tile(drawn, 2)[10, 10], color_map(np.ones((1, 1)), SCALE)[0, 0])


def test_long_titles_are_shortened():
    long = Panel("x" * 4000, "v" * 4000, Image.new("RGB", (40, 40)), np.zeros((4, 4)))
    assert draw_panel(long, SCALE).width < 500


def test_contact_sheet_puts_panels_in_rows_and_shrinks_them():
    red, blue = Image.new("RGB", (1280, 400), "red"), Image.new("RGB", (300, 100), "blue")
    sheet = draw_contact_sheet([red, blue, red])
    assert sheet.size == (1280, 400)
    assert sheet.getpixel((5, 5)) == sheet.getpixel((5, 205)) == (255, 0, 0)
    assert sheet.getpixel((645, 5)) == (0, 0, 255)
    assert sheet.getpixel((1000, 5)) == (255, 255, 255)
