"""The heat maps of a run on disk: what is drawn when, and what a kill leaves."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from vlad.drawing import album as album_module
from vlad.drawing.album import Album, choose_for_contact_sheet
from vlad.drawing.previews import Preview, preview_file
from vlad.drawing.scale import Scale

NUT, BOLT = ("set", "nut"), ("set", "bolt")


def test_contact_sheet_shows_the_middle_of_each_category_and_kind():
    drawn = [(NUT, f"nut{i}", 1, i / 10) for i in range(3)] + [(NUT, "good", 0, 0.9), (BOLT, "bolt", 1, 0.1)]
    assert choose_for_contact_sheet(drawn) == ["nut1", "good", "bolt"]


def test_contact_sheet_of_unknown_images_shows_the_highest_scores():
    drawn = ((NUT, f"nut{i}", -1, i / 100) for i in range(40))
    assert choose_for_contact_sheet(drawn, limit=3) == ["nut39", "nut38", "nut37"]


def batch(numbers, *, scale=None, label=-1, peak=None):
    """Rows and previews of images 0, 1, …: each map's maximum is its number, or the one given."""
    rows, previews = [], []
    for number in numbers:
        values = np.zeros((6, 6), np.float32)
        values[2, 2] = number if peak is None else peak
        row = {"name": f"own/{number}", "set": ["own", "own"], "label": label, "score": float(number)}
        rows.append({**row, "max": float(values.max()), "level": 0.0, "scale": scale and scale.to_dict()})
        image = np.full((20, 30, 3), 99, np.uint8)
        previews.append(Preview(row["name"], f"image {number}", "c", image, {"": values}, scale=scale))
    return rows, previews


def end(*albums):
    """What the processes of a run do at its end, each step on all of them."""
    for one in albums:
        one.settle()
    albums[0].choose()
    for one in albums:
        one.draw(one.waiting())
    return albums[0].finish()


def pictures(folder):
    return {path.stem for path in (folder / "heatmaps").rglob("*.png")} - {"contact_sheet"}


def test_without_a_scale_all_wait_for_the_end(tmp_path):
    album = Album(tmp_path)
    album.add(*batch(range(10)))
    assert pictures(tmp_path) == set()
    assert end(album) == ""
    assert pictures(tmp_path) == {str(number) for number in range(10)}
    scale = json.loads((tmp_path / "heatmaps/scale.json").read_text())
    assert scale["categories"] == {}
    assert "10 images" in scale["chosen"]
    assert scale["floor"] < scale["low"] < scale["high"]
    assert (tmp_path / "heatmaps/contact_sheet.jpg").is_file()
    assert not (tmp_path / "parts").exists()


def test_with_a_decisions_scale_panels_are_drawn_at_once(tmp_path):
    scale = Scale.of_decision(1.0, 3.0, 2.0)
    album = Album(tmp_path)
    album.add(*batch(range(10), scale=scale))
    album._pool.close()
    assert pictures(tmp_path) == {str(number) for number in range(10)}
    assert not list(album.parts.glob("*.safetensors"))
    album._pool = None
    end(album)
    content = json.loads((tmp_path / "heatmaps/scale.json").read_text())
    assert content == {"categories": {"own": scale.to_dict()}}


def test_categories_that_a_decision_does_not_know_have_the_runs_own_scale(tmp_path):
    album = Album(tmp_path)
    album.add(*batch([1, 2], scale=Scale.of_decision(1.0, 3.0, 2.0)))
    album.add(*batch([7, 8]))
    end(album)
    content = json.loads((tmp_path / "heatmaps/scale.json").read_text())
    assert content["high"] == 8
    assert list(content["categories"]) == ["own"]
    assert pictures(tmp_path) == {"1", "2", "7", "8"}


@pytest.mark.parametrize("scale", [None, Scale.of_decision(1.0, 3.0, 2.0)])
@pytest.mark.parametrize("moment", ["scoring", "drawing", "chosen"])
def test_what_a_kill_has_left_is_drawn_by_the_continued_run(tmp_path, monkeypatch, scale, moment):
    whole = tmp_path / "whole"
    album = Album(whole)
    album.add(*batch(range(12), scale=scale))
    end(album)
    folder = tmp_path / "killed"
    with monkeypatch.context() as patch:
        patch.setattr(Album, "_draw", lambda self, path, scale: None)  # killed before a panel is finished
        album = Album(folder)
        album.add(*batch(range(12 if moment != "scoring" else 7), scale=scale))
        album.settle()
        if moment != "scoring":
            album.choose()
    if moment == "drawing":
        album.draw(album.waiting()[:5])
        (album.parts / "rest.png").write_bytes(b"half a picture")
    continued = Album(folder)
    if moment == "scoring":
        continued.add(*batch(range(6, 12), scale=scale))  # the batch in flight comes again
    end(continued)
    for file in sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file()):
        assert (folder / file).read_bytes() == (whole / file).read_bytes(), file
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == sorted(
        path.relative_to(whole) for path in whole.rglob("*")
    )


def test_several_processes_draw_what_one_would(tmp_path):
    one = Album(tmp_path / "one")
    one.add(*batch(range(30)))
    end(one)
    ranks = [Album(tmp_path / "two", rank=rank, world=2) for rank in range(2)]
    for rank, each in enumerate(ranks):
        each.add(*batch(range(rank, 30, 2)))
    shares = [{path.name for path in each.waiting()} for each in ranks]
    assert len(shares[0]) + len(shares[1]) == len(shares[0] | shares[1]) == 30
    assert all(shares)
    end(*ranks)
    names = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert names == sorted(path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*.*"))
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_continued_run_keeps_its_scale_and_its_contact_sheet(tmp_path):
    album = Album(tmp_path)
    album.add(*batch(range(10)))
    end(album)
    before = (tmp_path / "heatmaps/scale.json").read_bytes()
    album = Album(tmp_path)
    album.add(*batch([100, 5]))
    end(album)
    assert (tmp_path / "heatmaps/scale.json").read_bytes() == before
    sheet = json.loads((tmp_path / "heatmaps/contact_sheet.json").read_text())["panels"]
    assert [row["name"] for row in sheet] == ["own/100", *(f"own/{number}" for number in range(9, -1, -1))]


def test_nothing_new_leaves_everything_as_it_is(tmp_path):
    end(Album(tmp_path))
    assert not list(tmp_path.iterdir())


def test_images_that_cannot_be_drawn_are_counted_and_one_is_named(tmp_path):
    album = Album(tmp_path)
    rows, previews = batch(range(3))
    missing = [{**row, "name": f"own/nan{n}", "score": None, "max": None, "level": None} for n, row in enumerate(rows)]
    album.add([*rows, *missing], previews)
    assert end(album) == "no heat map of 3 images whose score or map is not finite, such as own/nan0"
    assert pictures(tmp_path) == {"0", "1", "2"}


def test_an_image_that_could_be_drawn_later_is_not_counted(tmp_path):
    album = Album(tmp_path)
    rows, previews = batch(range(1))
    album.add([{**rows[0], "score": None, "max": None, "level": None}], [])
    album.add(rows, previews)
    assert end(album) == ""


def test_a_damaged_preview_costs_its_panel_only(tmp_path):
    album = Album(tmp_path)
    album.add(*batch(range(3)))
    preview_file(album.parts, "own/1").write_bytes(b"PK\x03\x04 no archive")
    with pytest.warns(UserWarning, match="is damaged"):
        end(album)
    assert pictures(tmp_path) == {"0", "2"}


def test_a_preview_whose_journal_is_lost_is_drawn_all_the_same(tmp_path):
    album = Album(tmp_path)
    album.add(*batch([3]))
    album.settle()
    next(album.parts.glob("journal-*")).unlink()
    end(Album(tmp_path))
    assert pictures(tmp_path) == {"3"}


def test_letters_that_no_font_has_are_kept_for_a_word_about_them(tmp_path, monkeypatch):
    monkeypatch.setattr(album_module, "escaped", lambda text: (text, {"瓶"} if "瓶" in text else set()))
    album = Album(tmp_path)
    rows, previews = batch([1])
    album.add(rows, [Preview("own/1", "瓶", "c", previews[0].image, previews[0].maps)])
    end(album)
    assert album.unknown == {"瓶"}


def test_clear_forgets_an_earlier_run(tmp_path):
    album = Album(tmp_path)
    album.add(*batch(range(10), peak=50))
    album.settle()
    album.choose()
    again = Album(tmp_path)
    again.clear()
    again.add(*batch(range(10)))
    end(again)
    assert json.loads((tmp_path / "heatmaps/scale.json").read_text())["high"] < 20


def test_others_parts_stay(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/rows.jsonl").touch()
    album = Album(tmp_path)
    album.add(*batch([1]))
    end(album)
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["rows.jsonl"]


def test_a_full_disk_is_told_in_one_line(tmp_path, monkeypatch):
    from vlad.errors import OutputError

    def full(self, *arguments, **options):
        raise OSError(28, "No space left on device")

    album = Album(tmp_path)
    album.add(*batch([1]))
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OutputError, match=r"cannot write .*heatmaps.*: No space left"):
        end(album)
    monkeypatch.undo()
    end(Album(tmp_path))  # and with room again, it goes on
    assert pictures(tmp_path) == {"1"}
    shutil.rmtree(tmp_path)
