"""A texture with every training image."""

import os

import pytest
import torch
from PIL import Image
from trees import small_data

from vlad.datamodules import textures
from vlad.errors import DataError


@pytest.fixture
def folder(tmp_path):
    """Two textures, one of them in a sub-folder: red and green."""
    for name, colour in (("dots/red.png", (255, 0, 0)), ("green.jpg", (0, 255, 0))):
        (tmp_path / "textures" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (50, 20), colour).save(tmp_path / "textures" / name)
    return str(tmp_path / "textures")


def test_every_training_image_has_a_texture(mvtec, folder):
    data = small_data(mvtec, "one-class", train="mvtec_ad", test="mvtec_ad", textures=folder, batch_size=6)
    data.setup("fit")
    data.setup("test")

    def colours(seed):
        data.selection.seed = seed
        (batch,) = data.train_dataloader()
        assert batch["texture"].shape == (6, 3, 32, 32)
        assert batch["texture"].dtype == torch.uint8
        return batch["texture"].float().mean((2, 3)).argmax(1).tolist()

    drawn = [colours(seed) for seed in range(4)]
    assert {one for some in drawn for one in some} == {0, 1}
    assert colours(0) == drawn[0]
    assert len({tuple(some) for some in drawn}) > 1
    assert "texture" not in next(iter(data.test_dataloader()))


def test_no_textures_unless_asked_for(mvtec):
    data = small_data(mvtec, "one-class", train="mvtec_ad")
    data.setup("fit")
    assert "texture" not in next(iter(data.train_dataloader()))


def test_textures_are_decoded_where_images_are_read(mvtec, folder, tmp_path, monkeypatch):
    real, log = textures.load_image, tmp_path / "processes"

    def logged(path):
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return real(path)

    monkeypatch.setattr(textures, "load_image", logged)
    data = small_data(mvtec, "one-class", train="mvtec_ad", textures=folder, num_workers=1, batch_size=3)
    data.setup("fit")
    assert len(list(data.train_dataloader())) == 2
    processes = log.read_text().split()
    assert len(processes) == 6
    assert set(processes).isdisjoint({str(os.getpid())})


def test_missing_textures_are_told_before_training(mvtec, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").write_text("")
    for place, message in (("none", "texture folder .*none does not exist"), ("empty", "holds no images")):
        data = small_data(mvtec, "one-class", train="mvtec_ad", textures=str(tmp_path / place))
        data.setup("fit")
        with pytest.raises(DataError, match=message):
            data.train_dataloader()


def test_a_broken_texture_is_named(mvtec, tmp_path):
    (tmp_path / "textures").mkdir()
    (tmp_path / "textures/broken.png").write_bytes(b"nothing")
    data = small_data(mvtec, "one-class", train="mvtec_ad", textures=str(tmp_path / "textures"))
    data.setup("fit")
    with pytest.raises(DataError, match=r"textures/broken\.png"):
        list(data.train_dataloader())
