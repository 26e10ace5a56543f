from vlad.callbacks.heatmaps import choose_for_contact_sheet

NUT, BOLT = ("set", "nut"), ("set", "bolt")


def test_sheet_shows_the_middle_of_each_category_and_kind():
    drawn = [(NUT, f"nut{i}", 1, i / 10) for i in range(3)] + [(NUT, "good", 0, 0.9), (BOLT, "bolt", 1, 0.1)]
    assert choose_for_contact_sheet(drawn) == ["nut1", "good", "bolt"]


def test_sheet_of_unknown_pictures_shows_the_highest_scores():
    drawn = [(NUT, f"nut{i}", -1, i / 100) for i in range(40)]
    assert choose_for_contact_sheet(drawn, limit=3) == ["nut39", "nut38", "nut37"]
