import numpy as np
from PIL import Image

from vlad.callbacks.panel import Panel, colorize, draw_contact_sheet, draw_panel


def panel(values, **more):
    return Panel("title", "caption", Image.new("RGB", (80, 40), (90, 90, 90)), values, **more)


def tile(drawn, position, width=100, height=50):
    x = 6 + position * (width + 6)
    return np.asarray(drawn)[42 : 42 + height, x : x + width]


def test_colors_get_lighter_with_the_score():
    brightness = colorize(np.linspace(0, 1, 64)[None])[0].astype(int).sum(-1)
    assert (np.diff(brightness) >= 0).all()
    assert np.array_equal(colorize(np.array([[-3.0, 9.0]])), colorize(np.array([[0.0, 1.0]])))


def test_same_score_same_color_whatever_else_is_in_the_map():
    a, b = np.full((8, 8), 0.5), np.full((8, 8), 0.5)
    b[0, 0] = 7.0
    images = [tile(draw_panel(panel(values), 0.0, 1.0, height=50), 1) for values in (a, b)]
    assert np.array_equal(images[0][25:, 50:], images[1][25:, 50:])


def test_tiles_keep_the_images_proportions_and_show_the_mask():
    mask = np.zeros((40, 80), dtype=bool)
    mask[:, :40] = True
    image = draw_panel(panel(np.zeros((8, 8)), mask=mask), 0.0, 1.0, height=50)
    assert (tile(image, 0) == 90).all()
    shown = tile(image, 2)
    assert (shown[:, :50] == 255).all()
    assert (shown[:, 50:] == 0).all()
    overlay = tile(image, 3)
    assert (overlay[10:40, 49] == (0, 230, 118)).all()  # the contour
    assert (overlay[10:40, 70] == 90).all()  # a score of nothing leaves the image


def test_without_a_mask_there_are_three_tiles():
    with_mask = draw_panel(panel(np.zeros((8, 8)), mask=np.zeros((40, 80), bool)), 0, 1, height=50)
    without = draw_panel(panel(np.zeros((8, 8))), 0, 1, height=50)
    assert with_mask.width - without.width == 106


def test_long_titles_are_shortened():
    long = Panel("x" * 400, "v", Image.new("RGB", (40, 40)), np.zeros((4, 4)))
    assert draw_panel(long, 0, 1, height=50).width < 500


def test_contact_sheet_puts_panels_in_rows_and_shrinks_them():
    red, blue = Image.new("RGB", (1280, 400), "red"), Image.new("RGB", (300, 100), "blue")
    sheet = draw_contact_sheet([red, blue, red])
    assert sheet.size == (1280, 400)
    assert sheet.getpixel((5, 5)) == sheet.getpixel((5, 205)) == (255, 0, 0)
    assert sheet.getpixel((645, 5)) == (0, 0, 255)
    assert sheet.getpixel((1000, 5)) == (255, 255, 255)


def test_the_map_before_a_refinement_stands_beside_the_map():
    before, after = np.zeros((8, 8)), np.ones((8, 8))
    image = draw_panel(panel(after, earlier={"initial": before}), 0.0, 1.0, height=50)
    assert np.array_equal(tile(image, 1)[10, 10], colorize(np.array([[0.0]]))[0, 0])
    assert np.array_equal(tile(image, 2)[10, 10], colorize(np.array([[1.0]]))[0, 0])
