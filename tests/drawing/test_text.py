import numpy as np
import pytest
from PIL import Image, ImageDraw

from vlad.drawing import text


@pytest.fixture
def no_system_fonts(monkeypatch):
    monkeypatch.setattr(text, "_system_fonts", tuple)
    text._font_of.cache_clear()
    yield
    text._font_of.cache_clear()


def drawn(words):
    image = Image.new("RGB", (300, 24), "white")
    text.write(ImageDraw.Draw(image), (2, 2), words, (0, 0, 0))
    return np.asarray(image).min(-1) < 128


def test_plain_text_needs_no_other_font():
    assert text.escaped("score 0.5, map max 0.7: café") == ("score 0.5, map max 0.7: café", set())
    assert len(text._runs("bottle/test/good/004")) == 1


def test_letters_of_no_font_are_written_as_code_points(no_system_fonts):
    assert text.escaped("瓶-Ж-😀") == ("\\u74f6-\\u0416-\\U0001f600", {"瓶", "Ж", "😀"})
    assert drawn(text.escaped("瓶")[0]).any()


def test_bytes_that_are_no_text_and_control_characters_are_escaped():
    shown, unknown = text.escaped("a\udcffb\nc\x00")
    assert shown == "a\\udcffb\\u000ac\\u0000"
    assert len(unknown) == 3
    assert drawn(shown).any()


def test_a_font_of_the_system_is_found_for_letters_that_it_has(monkeypatch, tmp_path):
    """Stands for any script: Pillow's own font, as a file of the system's, has what the first one lacks."""
    first, second = tmp_path / "first.ttf", tmp_path / "second.ttf"
    monkeypatch.setattr(text, "_system_fonts", lambda: (first, second))
    monkeypatch.setattr(text, "_has", lambda path, letter: (path == second) if letter == "瓶" else path is None)
    text._font_of.cache_clear()
    assert text._font_of("瓶") == (second,)
    assert text._font_of("a") == (None,)
    assert text.escaped("a瓶") == ("a瓶", set())
    text._font_of.cache_clear()


def test_a_letter_that_a_font_lacks_is_told_from_those_it_has():
    assert text._has(None, "A")
    assert text._has(None, " ")
    assert not text._has(None, "\U0010fffe")
    assert not text._has(None, "瓶")


def test_fonts_that_cannot_be_opened_are_passed_over(tmp_path):
    (tmp_path / "bad.ttf").write_bytes(b"no font")
    assert not text._has(tmp_path / "bad.ttf", "A")


def test_fonts_for_running_text_come_first(monkeypatch, tmp_path):
    for name in ("Zapf.ttf", "DejaVuSans-Bold.ttf", "DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "readme.txt"):
        (tmp_path / name).touch()
    monkeypatch.setattr(text, "_folders", lambda: iter([tmp_path, tmp_path / "missing"]))
    names = [path.name for path in text._system_fonts.__wrapped__()]
    assert names == ["DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "Zapf.ttf", "DejaVuSans-Bold.ttf"]


def test_text_is_shortened_where_it_matters_least():
    assert text.fit("short", 100) == "short"
    for keep_end in (True, False):
        shown = text.fit("abc" * 50 + "END", 80, keep_end=keep_end)
        assert text.measure(shown) <= 80
        assert len(shown) > 5
        assert shown.startswith("…") == shown.endswith("END") == keep_end
    assert text.fit("abc", 0) == "…"


@pytest.mark.parametrize("place", [(5, 3.5), (6, 24.25), (7, 11)])
def test_letters_that_are_kept_make_the_text_that_pillow_draws(place):
    words, color = "score 0.25 AVAT_jg, map max", (200, 100, 50)
    once, direct = Image.new("RGB", (300, 60), (90, 90, 90)), Image.new("RGB", (300, 60), (90, 90, 90))
    text.write(ImageDraw.Draw(once), place, words, color)
    ImageDraw.Draw(direct).text((place[0], place[1] + 11), words, color, text._load(None), anchor="ls")
    assert abs(np.asarray(once, int) - np.asarray(direct, int)).max() <= 2  # where letters meet
    assert text.measure(words) == text._load(None).getlength(words)
