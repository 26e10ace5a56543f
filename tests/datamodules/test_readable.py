"""Files are checked ahead of a run, and all bad ones are named."""

import pytest
from tests_support import write_mask, write_picture
from trees import small_data

from vlad.errors import DataError


@pytest.fixture
def parts(tmp_path):
    for number in range(4):
        write_picture(tmp_path / f"parts/good/{number}.png", seed=number)
        write_picture(tmp_path / f"parts/bad/{number}.png", seed=number)
        write_mask(tmp_path / f"parts/masks/{number}.png")
    return tmp_path / "parts"


def damage(path):
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize("stage", ["test", "fit"])
def test_all_bad_files_are_named_at_once(parts, stage):
    damage(parts / "good/1.png")
    damage(parts / "masks/0.png")
    write_mask(parts / "masks/2.png", size=(7, 7))
    (parts / "bad/3.png").unlink()
    (parts / "bad/3.png").symlink_to("/nowhere/3.png")
    part = {"test": "test", "fit": "train"}[stage]
    data = small_data(supervision="auxiliary", **{part: str(parts)})
    with pytest.raises(DataError) as error:
        data.setup(stage)
    first, *lines = str(error.value).splitlines()
    assert first.startswith("4 files cannot be used")
    for name in ("good/1.png", "masks/0.png", "masks/2.png", "/nowhere/3.png"):
        assert sum(name in line for line in lines) == 1
    with pytest.raises(DataError):  # a second try is refused too
        data.setup(stage)


def test_prediction_goes_on_without_them(parts):
    damage(parts / "good/1.png")
    data = small_data(predict=[str(parts / "good")])
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert len(batch["path"]) == 3
    assert len(batch["failed"]) == 1


def test_sound_files_pass(parts):
    small_data(test=str(parts)).setup("test")
