"""Pseudo-anomalies: exact masks, at any size, the same for the same seed."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from vlad.errors import MethodError
from vlad.pseudo_anomalies import RECIPES, Random, Synthesizer, foreground, given_textures
from vlad.pseudo_anomalies.perlin import perlin_masks, perlin_noise
from vlad.pseudo_anomalies.poisson import blend, solve_poisson


def normal_images(count=4, size=96, seed=0):
    """A bright disc before a dark plain background, with some texture on it."""
    random = Random(seed)
    line = (torch.arange(size) + 0.5) / size - 0.5
    disc = (line[:, None].square() + line[None, :].square()).sqrt() < 0.35
    texture = 0.6 + 0.3 * perlin_noise(size, torch.full((count, 2), 8), random)
    return torch.where(disc, texture, 0.1)[:, None].expand(-1, 3, -1, -1).clone(), disc


@pytest.mark.parametrize("recipe", [*RECIPES, "mixed"])
@pytest.mark.parametrize("size", [96, 224, 336, 518])
def test_nothing_changes_outside_the_mask_and_something_inside(recipe, size):
    images, _ = normal_images(3, size)
    before = images.clone()
    changed, mask = Synthesizer(recipe)(images, Random(1))
    assert torch.equal(images, before)
    assert mask.shape == (3, size, size)
    assert mask.flatten(1).any(1).all()
    outside = ~mask[:, None].expand_as(images)
    assert torch.equal(changed[outside], images[outside])
    assert ((changed - images).abs().mean(1)[mask]).mean() > 0.03
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 1


@pytest.mark.parametrize("recipe", [*RECIPES, "mixed"])
@pytest.mark.parametrize("textures", ["procedural", "images"])
def test_the_seed_alone_decides(recipe, textures):
    images, _ = normal_images()
    make = Synthesizer(recipe, textures=textures)
    torch.manual_seed(0)
    first = make(images, Random(3))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    second = make(images, Random(3))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[1], make(images, Random(4))[1])


@pytest.mark.parametrize("recipe", [*RECIPES, "mixed"])
def test_a_plain_background_is_left_alone(recipe):
    images, disc = normal_images(6)
    _, mask = Synthesizer(recipe, keep_to_part=True)(images, Random(0))
    near = torch.nn.functional.max_pool2d(disc[None].float(), 5, 1, 2)[0] > 0
    assert mask.any()
    assert not (mask & ~near).any()
    _, free = Synthesizer(recipe)(images, Random(0))
    assert (free & ~near).any()


def test_foreground_of_a_part_and_of_a_texture():
    images, disc = normal_images(2)
    found = foreground(images)
    assert (found == disc).float().mean() > 0.98
    assert foreground(torch.rand(2, 3, 64, 64)).all()  # no plain border
    assert foreground(torch.full((1, 3, 64, 64), 0.3)).all()  # nothing stands out


def test_probability():
    images, _ = normal_images(40, 48)
    changed, mask = Synthesizer("cutpaste", probability=0.5)(images, Random(0))
    share = mask.flatten(1).any(1)
    assert 10 < int(share.sum()) < 30
    assert torch.equal(changed[~share], images[~share])
    assert not Synthesizer("perlin", probability=0.0)(images, Random(0))[1].any()


def test_one_image_alone():
    images, _ = normal_images(1)
    for recipe in RECIPES:
        assert Synthesizer(recipe, textures="images")(images, Random(0))[1].any()


def test_what_cannot_be_seen_stays_normal():
    flat = torch.full((2, 3, 64, 64), 0.5)
    changed, mask = Synthesizer("poisson")(flat, Random(0))  # a flat piece in a flat image
    assert not mask.any()
    assert torch.equal(changed, flat)


def test_autocast_does_not_reach_in():
    images, _ = normal_images()
    plain = Synthesizer("poisson")(images, Random(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = Synthesizer("poisson")(images, Random(0))
    assert all(torch.equal(a, b) for a, b in zip(plain, inside, strict=True))


def test_unknown_recipe_and_textures():
    with pytest.raises(MethodError, match="no recipe is named 'perlim'; did you mean perlin"):
        Synthesizer("perlim")
    with pytest.raises(MethodError, match=r"no textures are named 'proceduarl'; did you mean procedural"):
        Synthesizer(textures="proceduarl")
    with pytest.raises(MethodError, match=r"no textures are named 'photos/dtd'.*given to the data: data\.textures"):
        Synthesizer(textures="photos/dtd")


# -- noise --------------------------------------------------------------------------------------------------


def reference_perlin(size, cells, angle):
    """DRAEM's construction, where the size is divisible: gradients of lattice corners, faded."""
    y, x = np.meshgrid(*(((np.arange(size) + 0.5) / size * n) for n in cells), indexing="ij")
    iy, ix = y.astype(int), x.astype(int)

    def dot(dy, dx):
        a = angle[iy + dy, ix + dx]
        return np.sin(a) * (y - iy - dy) + np.cos(a) * (x - ix - dx)

    fade = [6 * t**5 - 15 * t**4 + 10 * t**3 for t in (y - iy, x - ix)]
    top = dot(0, 0) + fade[1] * (dot(0, 1) - dot(0, 0))
    bottom = dot(1, 0) + fade[1] * (dot(1, 1) - dot(1, 0))
    return np.sqrt(2) * (top + fade[0] * (bottom - top))


@pytest.mark.parametrize("cells", [(1, 1), (4, 2), (32, 16)])
def test_noise_follows_its_definition(cells):
    angle = Random(5).uniform(0, 2 * torch.pi, 2, 33, 33).double().numpy()
    noise = perlin_noise(64, torch.tensor([cells, cells]), Random(5))
    for i in range(2):
        np.testing.assert_allclose(noise[i], reference_perlin(64, cells, angle[i]), atol=2e-4)


@pytest.mark.parametrize("cells", [(2, 8), (32, 16)])
def test_noise_of_large_images_is_near_its_definition(cells):
    """It is computed at ten pixels a cell and enlarged."""
    angle = Random(5).uniform(0, 2 * torch.pi, 1, 33, 33).double().numpy()
    noise = perlin_noise(832, torch.tensor([cells]), Random(5))[0].numpy()
    off = np.abs(noise - reference_perlin(832, cells, angle[0]))
    assert off.max() < 0.1
    assert off.mean() < 0.01


def test_turned_noise_is_turned():
    cells, quarter = torch.tensor([[4, 8]]), torch.tensor([torch.pi / 2])
    plain = perlin_noise(64, cells, Random(0))
    turned = perlin_noise(64, cells, Random(0), turn=quarter)
    inner = (..., slice(2, -2), slice(2, -2))
    options = [plain[0].rot90(k) for k in (1, 3)]
    assert min(float((turned[0] - option)[inner].abs().max()) for option in options) < 1e-3


@pytest.mark.parametrize("size", [336, 518, 97])
def test_masks_at_sizes_that_break_the_published_recipe(size):
    masks = perlin_masks(64, size, Random(0))
    share = masks.float().mean((1, 2))
    assert 0.005 < float(share.mean()) < 0.15
    assert float(share.max()) < 0.5


# -- blending -----------------------------------------------------------------------------------------------


def test_poisson_equation_is_solved():
    right = torch.randn(2, 3, 9, 14, dtype=torch.float32)
    u = torch.nn.functional.pad(solve_poisson(right), (1, 1, 1, 1))
    laplacian = u[..., 2:, 1:-1] + u[..., :-2, 1:-1] + u[..., 1:-1, 2:] + u[..., 1:-1, :-2] - 4 * u[..., 1:-1, 1:-1]
    torch.testing.assert_close(laplacian, right, atol=1e-4, rtol=1e-4)


def test_seamless_blending():
    torch.manual_seed(0)
    target, source = torch.rand(2, 3, 12, 12), torch.rand(2, 3, 12, 12)
    plain = torch.zeros(2, dtype=torch.bool)
    torch.testing.assert_close(blend(target, target, plain), target[..., 1:-1, 1:-1], atol=1e-5, rtol=0)
    torch.testing.assert_close(  # a constant is no gradient
        blend(target, target + 0.3, ~plain), target[..., 1:-1, 1:-1], atol=1e-5, rtol=0
    )
    assert (blend(target, source, plain) - target[..., 1:-1, 1:-1]).abs().mean() > 0.05


# -- textures -----------------------------------------------------------------------------------------------


def test_given_textures_are_drawn_from():
    pool = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    draw = given_textures(pool)
    drawn = draw(torch.zeros(40, 3, 32, 32), torch.arange(30), Random(0))
    assert drawn.shape == (30, 3, 32, 32)
    found = (drawn[:, None] * 255).round().byte().eq(pool).flatten(2).all(2)
    assert (found.sum(1) == 1).all()  # each is one of them
    assert found.any(0).all()  # and all of them come up


@pytest.mark.parametrize("recipe", ["perlin", "mixed"])
def test_given_textures_take_the_place_of_those_named(recipe):
    images, _ = normal_images()
    pool = torch.zeros(2, 3, 96, 96, dtype=torch.uint8)
    pool[:, 0] = 255
    plain, plain_mask = Synthesizer(recipe)(images, Random(2))
    changed, mask = Synthesizer(recipe)(images, Random(2), pool)
    again, _ = Synthesizer(recipe, textures="images")(images, Random(2), pool)
    assert torch.equal(changed, again)
    assert mask.flatten(1).any(1).all()
    assert not (torch.equal(changed, plain) and torch.equal(mask, plain_mask))
    outside = ~mask[:, None].expand_as(images)
    assert torch.equal(changed[outside], images[outside])


def test_kornia_is_not_imported_before_it_is_needed():
    code = "import vlad.methods.clip_ada, vlad.pseudo_anomalies, sys; print('kornia' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
