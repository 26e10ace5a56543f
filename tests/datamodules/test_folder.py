import os

import pytest
from PIL import Image
from tests_support import write_mask, write_picture

from vlad.datamodules.decode import load_mask
from vlad.datamodules.folder import index_folder, read_folder
from vlad.datamodules.masks_of import looks_like_mask, split_masks
from vlad.errors import DataError


def test_good_and_bad_without_masks(tmp_path):
    for i in range(2):
        write_picture(tmp_path / "OK" / f"{i}.png")
        write_picture(tmp_path / "ng" / f"{i}.jpg")
    frame = index_folder(tmp_path, class_name="gasket")
    assert dict(zip(frame["image_id"], frame["label"], strict=True)) == {
        "OK/0": 0,
        "OK/1": 0,
        "ng/0": 1,
        "ng/1": 1,
    }
    assert set(frame["class_name"]) == {"gasket"}
    assert set(frame["split"]) == {"test"}
    assert not frame["has_mask"].any()


def test_masks_pair_by_stem_not_by_order(tmp_path):
    for stem in ("1", "2", "10"):
        write_picture(tmp_path / "bad" / f"{stem}.png")
        write_mask(tmp_path / "masks" / f"{stem}_mask.png")
    write_picture(tmp_path / "good" / "1.png")
    frame = index_folder(tmp_path)
    for row in frame[frame["label"] == 1].to_dict("records"):
        assert row["mask_path"].endswith(f"/{row['image_id'].split('/')[-1]}_mask.png")
    assert frame["has_mask"].all()
    assert frame[frame["label"] == 0]["mask_path"].item() == ""


def test_mvtec_like_folder(tmp_path):
    write_picture(tmp_path / "train" / "good" / "0.png")
    for kind in ("scratch", "hole"):
        write_picture(tmp_path / "test" / kind / "0.png")
        write_mask(tmp_path / "ground_truth" / kind / "0_mask.png")
    write_picture(tmp_path / "test" / "good" / "0.png")
    frame = index_folder(tmp_path)
    rows = {row["image_id"]: row for row in frame.to_dict("records")}
    assert [rows[f"test/{k}/0"]["label"] for k in ("scratch", "hole", "good")] == [1, 1, 0]
    assert rows["test/hole/0"]["mask_path"].endswith("ground_truth/hole/0_mask.png")
    assert rows["train/good/0"]["split"] == "train"


def test_folder_errors(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        index_folder(tmp_path / "none")
    with pytest.raises(DataError, match="holds no images"):
        index_folder(tmp_path)
    write_picture(tmp_path / "x" / "0.png")
    with pytest.raises(DataError, match=r"does not tell good from bad.*x/0.png.*vlad predict"):
        index_folder(tmp_path)


def labels(root):
    frame = read_folder(root).frame
    return {
        path[len(str(root)) + 1 :]: (category, split, label)
        for path, category, split, label in zip(
            frame["image_path"], frame["category"], frame["split"], frame["label"], strict=True
        )
    }


def masks(root):
    frame = read_folder(root).frame
    return {
        path[len(str(root)) + 1 :]: [mask[len(str(root)) + 1 :] for mask in split_masks(cell)]
        for path, cell in zip(frame["image_path"], frame["mask_path"], strict=True)
        if cell
    }


def notes(root):
    return {note.kind.split(":")[0]: list(note.paths) for note in read_folder(root).notes}


def test_sub_folders_are_categories_each_with_its_own_masks(tmp_path):
    for part in "AB":
        for name in ("good/0.png", "bad/0.png"):
            write_picture(tmp_path / f"part{part}" / name)
        write_mask(tmp_path / f"part{part}/masks/0.png")
    assert labels(tmp_path) == {
        "partA/bad/0.png": ("partA", "test", 1),
        "partA/good/0.png": ("partA", "test", 0),
        "partB/bad/0.png": ("partB", "test", 1),
        "partB/good/0.png": ("partB", "test", 0),
    }
    assert masks(tmp_path) == {"partA/bad/0.png": ["partA/masks/0.png"], "partB/bad/0.png": ["partB/masks/0.png"]}
    frame = read_folder(tmp_path).frame
    assert frame["image_id"].tolist()[0] == "bad/0"
    assert set(frame["class_name"]) == {"partA", "partB"}
    (tmp_path / "partB/masks/0.png").unlink()
    assert notes(tmp_path) == {"anomalous images have no mask": ["partB/bad/0.png"]}
    known = read_folder(tmp_path).frame.groupby("category")["has_mask"].all().to_dict()
    assert known == {"partA": True, "partB": False}


@pytest.mark.parametrize("where", ["{c}/ground_truth/scratch/0_mask.png", "masks/{c}/test/scratch/0.png"])
def test_several_categories_like_mvtec(tmp_path, where):
    for category in ("bolt", "lines/nut"):
        write_picture(tmp_path / category / "train/good/0.png")
        write_picture(tmp_path / category / "test/good/0.png")
        write_picture(tmp_path / category / "test/scratch/0.png")
        write_mask(tmp_path / where.format(c=category))
    found = labels(tmp_path)
    assert found["lines/nut/test/scratch/0.png"] == ("lines/nut", "test", 1)
    assert found["bolt/train/good/0.png"] == ("bolt", "train", 0)
    assert masks(tmp_path)["bolt/test/scratch/0.png"] == [where.format(c="bolt")]
    assert notes(tmp_path) == {}


def test_folders_that_are_no_categories(tmp_path):
    for name in ("lot1/good/0.png", "lot2/good/0.png", "bad/0.png", "images/bad/1.png"):
        write_picture(tmp_path / "gear" / name)
    assert {row[0] for row in labels(tmp_path / "gear").values()} == {"gear"}


def test_kinds_of_defects_beside_good(tmp_path):
    for folder in ("good", "scratch", "dent/deep"):
        write_picture(tmp_path / folder / "0.png")
    found = labels(tmp_path)
    assert {path: row[2] for path, row in found.items()} == {"good/0.png": 0, "scratch/0.png": 1, "dent/deep/0.png": 1}
    assert notes(tmp_path) == {"images beside good ones are taken for anomalous": ["dent/deep/0.png", "scratch/0.png"]}
    with pytest.warns(UserWarning, match=r"2 images beside good ones are taken for anomalous: dent, scratch \(first"):
        frame = index_folder(tmp_path)
    assert frame["defect_type"].tolist() == ["dent", "good", "scratch"]


def test_what_cannot_be_told_good_from_bad_is_said(tmp_path):
    for name in ("good/0.png", "NG/0.png", "strange/0.png", "loose.png", "test/good/1.png", "test/unsorted/1.png"):
        write_picture(tmp_path / name)
    unknown = [path for path, row in labels(tmp_path).items() if row[2] == -1]
    assert unknown == ["loose.png", "strange/0.png", "test/unsorted/1.png"]
    with pytest.warns(UserWarning, match=r"3 images cannot be told good from bad.*\(first: loose\.png\)"):
        index_folder(tmp_path)


def test_labels_in_the_names_of_files_or_of_the_folder(tmp_path):
    for name in ("a/OK_001.png", "a/NG_002.png", "parts/good/1.png"):
        write_picture(tmp_path / name)
    assert [row[2] for row in labels(tmp_path / "a").values()] == [1, 0]
    assert "images are labelled by the words in their names" in notes(tmp_path / "a")
    assert labels(tmp_path / "parts/good") == {"1.png": ("good", "test", 0)}
    assert notes(tmp_path / "parts/good") == {"images are taken for good by the folder's name": ["1.png"]}
    write_picture(tmp_path / "a/003.png")
    with pytest.raises(DataError, match="does not tell good from bad"):
        read_folder(tmp_path / "a")


@pytest.mark.parametrize("name", ["0_mask.png", "0.mask.png", "0_gt.png", "0-label.png", "mask_0.png", "0_MASK.PNG"])
def test_masks_beside_their_images(tmp_path, name):
    for folder in ("good", "bad"):
        write_picture(tmp_path / folder / "0.png")
    write_mask(tmp_path / "bad" / name)
    assert masks(tmp_path) == {"bad/0.png": [f"bad/{name}"]}
    assert len(read_folder(tmp_path).frame) == 2
    write_mask(tmp_path / "bad/9_mask.png")
    assert notes(tmp_path) == {"masks belong to no image": ["bad/9_mask.png"]}


def test_an_image_whose_name_ends_like_a_mask(tmp_path):
    for name in ("good/0.png", "bad/0.png", "bad/0_label.png", "bad/only_mask.png"):
        write_picture(tmp_path / name)
    assert not looks_like_mask(tmp_path / "bad/0_label.png")
    assert len(labels(tmp_path)) == 4


def test_several_masks_of_an_image_are_united(tmp_path):
    for folder in ("good", "bad"):
        for i in range(3):
            write_picture(tmp_path / folder / f"{i}.png")
    for place, name in (
        (2, "masks/0_mask_1.png"),
        (9, "masks/0_mask_2.png"),
        (4, "masks/1/a.png"),
        (6, "masks/1/b.png"),
    ):
        mask = Image.new("L", (40, 36))
        mask.putpixel((place, place), 255)
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        mask.save(tmp_path / name)
    write_mask(tmp_path / "bad/2_mask.png")
    found = masks(tmp_path)
    assert found == {
        "bad/0.png": ["masks/0_mask_1.png", "masks/0_mask_2.png"],
        "bad/1.png": ["masks/1/a.png", "masks/1/b.png"],
        "bad/2.png": ["bad/2_mask.png"],
    }
    cells = read_folder(tmp_path).frame.set_index("image_id")["mask_path"]
    assert [int(load_mask(cells[f"bad/{i}"]).sum()) for i in range(2)] == [2, 2]


def test_masks_that_fit_several_images_or_none(tmp_path):
    for name in ("good/0.png", "good/7.png", "scratch/0.png", "dent/0.png", "dent/1.png"):
        write_picture(tmp_path / "test" / name)
    for name in ("0.png", "1.png", "1_gt.png", "7.png", "8.png"):
        write_mask(tmp_path / "masks" / name)
    assert masks(tmp_path) == {"test/dent/1.png": ["masks/1.png"]}
    found = notes(tmp_path)
    assert found["masks fit several images and are given to none"] == ["masks/0.png"]
    assert found["masks belong to no image"] == ["masks/8.png"]
    assert found["masks of images that have another one are left out"] == ["masks/1_gt.png"]
    assert found["masks of normal images are not read"] == ["masks/7.png"]
    assert found["anomalous images have no mask"] == ["test/dent/0.png", "test/scratch/0.png"]


@pytest.mark.parametrize("folder", ["labels", "Annotations", "bad_masks", "GT", "Maske"])
def test_names_of_folders_of_masks(tmp_path, folder):
    for name in ("good/0.png", "bad/0.png"):
        write_picture(tmp_path / name)
    write_mask(tmp_path / folder / "0.png")
    assert masks(tmp_path) == {"bad/0.png": [f"{folder}/0.png"]}


def test_a_part_that_is_called_label_is_no_folder_of_masks(tmp_path):
    for name in ("label/good/0.png", "label/bad/0.png", "gas mask/good/0.png", "gas mask/bad/0.png"):
        write_picture(tmp_path / name)
    assert {row[0] for row in labels(tmp_path).values()} == {"label", "gas mask"}


def test_a_linked_folder_is_read_once_more(tmp_path):
    for name in ("train/good/0.png", "test/broken/0.png"):
        write_picture(tmp_path / name)
    os.symlink("../train/good", tmp_path / "test/good")
    assert labels(tmp_path)["test/good/0.png"] == (tmp_path.name, "test", 0)


def test_the_first_of_several_pages_is_said(tmp_path):
    write_picture(tmp_path / "good/0.png")
    (tmp_path / "bad").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "bad/0.tif", save_all=True, append_images=[Image.new("L", (8, 8), 9)])
    assert notes(tmp_path) == {
        "images of several pages, of which the first is taken": [str(tmp_path / "bad/0.tif")],
    }
