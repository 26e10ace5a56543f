"""Names of outputs: contained, one for each image, bounded, and the same on every file system."""

import unicodedata

from faults.hostile import HOSTILE

from vlad.names import output_names, safe_name


def folded(name):
    return unicodedata.normalize("NFC", name.casefold())


def test_names_of_hostile_images_are_contained_unique_and_bounded():
    images = [(dataset, category, one) for one in HOSTILE for dataset, category in (("set", "part"), (one, "x"))]
    names = output_names(images)
    assert len(set(map(folded, names))) == len(images)
    files = {folded(f"{name}{suffix}") for name in names for suffix in (".png", ".npy")}
    for name in names:
        parts = name.split("/")
        assert not {"", ".", ".."} & set(parts)
        assert name.isprintable()
        assert not set(name) & set('\\<>:"|?*')
        assert all(len(part.encode()) <= 200 for part in parts)
        assert len(name.encode()) <= 1200
        folders = {folded("/".join(parts[:depth])) for depth in range(1, len(parts))}
        assert not folders & files  # no image's file has the name of another's folder


def test_usual_names_stay():
    usual = ["metal_nut", "#3", "test/a b/000", "Bär/日本", "IMG_0001", "2026-11-29T12.30", "a..b"]
    assert output_names(("set", "part", one) for one in usual[:-1]) == [f"set/part/{one}" for one in usual[:-1]]
    assert safe_name("metal_nut") == "metal_nut"
    assert safe_name("a..b", folder=True) == "a..b"  # nothing leads elsewhere
    assert output_names([("own", "own", "cam1/a")]) == ["own/cam1/a"]


def test_a_name_that_looks_made_is_of_no_other():
    made = safe_name("../../etc")
    assert safe_name(made) != made


def test_names_are_told_apart_only_where_they_meet():
    assert output_names([("a", "a", "x"), ("a", "b", "X")]) == ["a/x", "a/b/X"]
    first, second = output_names([("photos", "photos", "a/b"), ("photos", "a", "b")])
    assert first != second
    assert output_names([("a", "a", "x")] * 2) == ["a/x"] * 2  # one image
    both = output_names([("a", "a", "x"), ("a", "a", "X")])
    assert both[::-1] == output_names([("a", "a", "X"), ("a", "a", "x")])  # whatever their order
