import pytest

from vlad.datamodules.words import is_mask_word, is_open_word, label_of, label_of_stem, label_of_word, split_of

GOOD = (
    "good Good_1 OK ok-2 03_OK iO i.O. IO_7 gut Gutteile in_Ordnung fehlerfrei pass PASSED normal accept bon conforme "
    "sans_défaut bueno aprobado sin_defecto buono senza_difetti 合格 良品 正常 liangpin hege ryohin 양품 정상 "
    "good_images non-defective no free"
)
BAD = (
    "bad NG ng_2 NG-Teile nOK n.i.O. NIO nicht_iO not_ok KO schlecht Defekt fehlerhaft Ausschuß reject scrap FAIL "
    "anomaly mauvais défauts non_conforme rebut malo defectuosos rechazado scarti difettoso 不良 不合格 缺陷 buliang "
    "quexian furyo 欠陥 불량 결함 bad_parts Ungood yes 不良品3"
)
OTHER = "scratch dent No1 No_12 free_2 0 1 object screw oklahoma goods_in capsule"


@pytest.mark.parametrize(("words", "label"), [(GOOD, 0), (BAD, 1), (OTHER, -1)])
def test_words_for_good_and_bad(words, label):
    assert {word: label_of_word(word) for word in words.split()} == dict.fromkeys(words.split(), label)


def test_the_nearest_folder_counts():
    assert label_of(["bad", "lot1", "good", "x"]) == 0
    assert label_of(["lot1"]) == -1


def test_other_words():
    splits = {"Train": "train", "VALID": "val", "test_set": "test", "Tests": "test", "good": ""}
    assert {word: split_of(word) for word in splits} == splits
    masks = {"Ground Truth": True, "masks": True, "GT": True, "labels": False, "face": False}
    assert {word: is_mask_word(word) for word in masks} == masks
    assert is_mask_word("labels", sure=False)
    assert is_open_word("Unsorted")


def test_words_in_the_names_of_files():
    stems = {"NG_0012": 1, "part3-ok": 0, "part no 4": -1, "IMG_1": -1, "bad parts": 1}
    assert {stem: label_of_stem(stem) for stem in stems} == stems
