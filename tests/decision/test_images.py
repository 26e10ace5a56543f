"""Which images a decision is made with."""

import shutil

import pytest
import torch
import yaml
from tests_support import SMALL, save_run, write_mask, write_picture

from vlad.datamodules.sources import Locations
from vlad.decision.images import choose_images, index_labelled, index_normal
from vlad.errors import DataError, DecisionError
from vlad.registry import get_method


@pytest.fixture
def good(tmp_path):
    for number in range(12):
        write_picture(tmp_path / "good" / f"{number:02}.png", seed=number)
    return tmp_path / "good"


@pytest.fixture
def method(tiny):
    return get_method("patch_memory")(backbone=tiny, pretrained=None, image_size=64, **SMALL["patch_memory"]).eval()


def indexed(folder, class_name="nut"):
    return index_normal([str(folder)], Locations(None, class_name))[0]


def names(frame):
    return [path.rsplit("/", 1)[1] for path in frame["image_path"]]


def test_copies_are_left_out(good, method):
    shutil.copy(good / "03.png", good / "copy.png")
    chosen = choose_images(indexed(good), method)
    assert len(chosen.frame) == 12
    assert chosen.left_out == {"are copies of others": [str(good / "copy.png")]}
    assert len(set(chosen.keys)) == 12


def test_references_are_left_out_by_content(good, method, tmp_path):
    (tmp_path / "refs").mkdir()
    for number in (1, 5):
        shutil.copy(good / f"{number:02}.png", tmp_path / "refs" / f"other{number}.png")
    chosen = choose_images(indexed(good), method, references=[str(tmp_path / "refs")])
    assert names(chosen.references) == ["other1.png", "other5.png"]
    assert len(chosen.frame) == 10
    assert not set(names(chosen.frame)) & {"01.png", "05.png"}
    assert not chosen.drawn


@pytest.mark.parametrize("given", [True, False])
def test_shots_are_drawn_by_the_seed_and_set_apart(given, good, method):
    references = [str(good)] if given else None
    one, same, other = (
        choose_images(indexed(good), method, references=references, shots=3, seed=seed) for seed in (0, 0, 1)
    )
    assert len(one.references) == 3
    assert len(one.frame) == 9
    assert not set(names(one.frame)) & set(names(one.references))
    assert names(one.references) == names(same.references) != names(other.references)
    assert one.drawn


def test_one_folder_for_both_is_split_in_halves(good, method):
    chosen = choose_images(indexed(good), method, references=[str(good)], seed=4)
    assert len(chosen.references) == len(chosen.frame) == 6
    assert sorted(names(chosen.references) + names(chosen.frame)) == [f"{number:02}.png" for number in range(12)]
    assert chosen.drawn


def test_training_images_are_left_out_as_the_runs_record_tells(good, method, tmp_path):
    train = tmp_path / "trained" / "good"
    train.mkdir(parents=True)
    for number in (0, 7):
        shutil.copy(good / f"{number:02}.png", train / f"{number}.png")
    write_picture(tmp_path / "trained" / "bad" / "0.png", seed=99)
    run = tmp_path / "run"
    run.mkdir()
    (run / "fit.yaml").write_text(yaml.safe_dump({"data": {"train": str(tmp_path / "trained")}}))
    chosen = choose_images(indexed(good), method, run=run)
    assert [path[-6:] for path in chosen.left_out["the method was trained on"]] == ["00.png", "07.png"]
    shutil.rmtree(tmp_path / "trained")
    with pytest.warns(UserWarning, match="whether .*run was trained on some of these images is not known"):
        assert len(choose_images(indexed(good), method, run=run).frame) == 12


def test_references_of_a_run_are_left_out(good, method, tmp_path):
    first = choose_images(indexed(good), method, shots=2)
    keys = choose_images(first.references, method).keys
    method.memory.add("images/nut", tuple(torch.eye(48) for _ in range(2)))
    run = save_run(method, tmp_path / "run")
    lines = ["dataset,category,image_id,path,sha256", *(f"images,nut,{n},x,{key}" for n, key in enumerate(keys))]
    (run / "references.csv").write_text("\n".join(lines) + "\n")
    chosen = choose_images(indexed(good), method, run=run)
    assert len(chosen.left_out["are references of the run"]) == 2
    (run / "references.csv").write_text("nothing\n1\n")
    with pytest.raises(DecisionError, match="is damaged"):
        choose_images(indexed(good), method, run=run)


def test_nothing_left_is_told(good, method, tmp_path):
    shutil.copytree(good, tmp_path / "same")
    frame = indexed(good).iloc[:1]
    with pytest.raises(DecisionError, match="of 1 images none is left to calibrate on: 1 are references"):
        choose_images(frame, method, references=[str(tmp_path / "same")])


def test_folders_of_anomalies_are_refused(good, tmp_path):
    write_picture(tmp_path / "bad" / "0.png", seed=50)
    with pytest.raises(DataError, match=r"1 of those given are not .*bad/0\.png"):
        indexed(tmp_path)


def test_anomalies_in_a_table_are_refused(good, tmp_path):
    table = tmp_path / "parts.csv"
    table.write_text("image_path,label,category\ngood/00.png,0,nut\ngood/01.png,1,nut\n")
    with pytest.raises(DataError, match="1 of those given are not"):
        index_normal([str(table)], Locations(None, None))


def test_labelled_images_come_from_two_folders_or_one_with_masks(good, tmp_path):
    for number in range(3):
        write_picture(tmp_path / "bad" / f"{number}.png", seed=60 + number)
        write_mask(tmp_path / "masks" / f"{number}.png")
    frame, _ = index_labelled(str(good), [str(tmp_path / "bad")], Locations(None, "nut"))
    assert frame["label"].tolist() == [0] * 12 + [1] * 3
    assert not frame["mask_path"].any()
    frame, _ = index_labelled(str(tmp_path), [], Locations(None, "nut"))
    assert sorted(frame["label"]) == [0] * 12 + [1] * 3
    assert set(frame["category"]) == {"nut"}
    assert sum(map(bool, frame["mask_path"])) == 3
    with pytest.raises(DataError, match="folder or a table"):
        index_labelled("synthetic", [], Locations())
