"""Cropping regions and pasting their maps: Pillow's numbers, and nothing moved."""

import numpy as np
import pytest
import torch
from PIL import Image

from vlad.clip.regions import crop_regions, find_regions, full_boxes, paste_maps
from vlad.clip.similarity import upsample


@pytest.mark.parametrize(("source", "target"), [(64, 64), (64, 32), (96, 40), (32, 80)])
def test_the_whole_image_is_resized_as_pillow_does(source, target):
    values = np.random.default_rng(0).random((source, source), dtype=np.float32)
    expected = np.array(Image.fromarray(values).resize((target, target), Image.Resampling.BICUBIC))
    found = crop_regions(torch.from_numpy(values)[None, None], full_boxes(1), target)[0, 0]
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("target", [16, 32, 50])
def test_a_region_is_what_pillow_crops(target):
    values = np.random.default_rng(1).random((64, 64), dtype=np.float32)
    box = torch.tensor([[8, 16, 40, 48]]) / 64
    whole_area = (16, 8, 48, 40)  # left, upper, right, lower
    expected = np.array(Image.fromarray(values).resize((target, target), Image.Resampling.BICUBIC, box=whole_area))
    found = crop_regions(torch.from_numpy(values)[None, None], box, target)[0, 0].numpy()
    inner = slice(2, -2)  # Pillow does not look beyond the box, we do
    np.testing.assert_allclose(found[inner, inner], expected[inner, inner], atol=2e-5)


def test_maps_are_pasted_where_they_were_cropped():
    maps = torch.rand(2, 6, 6)
    back, cover = paste_maps(maps, full_boxes(2), 48)
    torch.testing.assert_close(back, upsample(maps, 48, align_corners=False))
    assert cover.all()
    box = torch.tensor([[0.25, 0.5, 0.5, 0.75], [0.0, 0.0, 1.0, 1.0]])
    back, cover = paste_maps(maps, box, 48)
    torch.testing.assert_close(back[0, 12:24, 24:36], upsample(maps[:1], 12, align_corners=False)[0])
    assert cover[0].sum() == 144
    assert back[0].abs().sum() == pytest.approx(float(back[0, 12:24, 24:36].abs().sum()))


def test_a_place_is_the_same_in_image_and_region():
    """A bright spot, cropped, found in the region's map and pasted, lies where it was."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        image = torch.zeros(1, 1, 128, 128)
        row, column = torch.randint(40, 88, (2,), generator=generator).tolist()
        image[..., row - 2 : row + 3, column - 2 : column + 3] = 1
        low = torch.rand(2, generator=generator) * 0.2
        box = torch.cat([low, low + 0.75])[None]
        back, _ = paste_maps(crop_regions(image, box, 96)[:, 0], box, 128)
        found = divmod(int(back[0].argmax()), 128)
        assert abs(found[0] - row) <= 2
        assert abs(found[1] - column) <= 2


def test_regions_are_the_highest_parts_first():
    maps = torch.full((3, 24, 24), 0.1)
    maps[0, 4:6, 4:6], maps[0, 18:20, 10:12], maps[0, 2, 20] = 0.9, 0.8, 0.7
    maps[1, 12, 12] = 0.5
    index, boxes = find_regions(maps, count=2)
    assert index.tolist() == [0, 0, 1, 2]
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    torch.testing.assert_close(boxes[:3, 2:] - boxes[:3, :2], torch.full((3, 2), 1 / 3))
    torch.testing.assert_close(middle[0], torch.tensor([5 / 24, 5 / 24]))
    torch.testing.assert_close(middle[1], torch.tensor([19 / 24, 11 / 24]).clamp(max=5 / 6))
    torch.testing.assert_close(middle[2], torch.tensor([12.5 / 24, 12.5 / 24]))
    assert boxes[3].tolist() == [0, 0, 1, 1]  # a flat map is one part
    assert (boxes >= 0).all()
    assert (boxes <= 1).all()


def test_large_parts_get_large_boxes():
    maps = torch.zeros(1, 20, 20)
    maps[0, 5:13, 3:5] = 1
    _, boxes = find_regions(maps, margin=1.5)
    torch.testing.assert_close(boxes[0, 2] - boxes[0, 0], torch.tensor(0.6))
    torch.testing.assert_close(boxes[0], torch.tensor([0.15, 0.0, 0.75, 0.6]))
