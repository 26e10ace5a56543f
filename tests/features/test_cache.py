import pytest
import torch
from torch import nn

from vlad.clip.backbone import Backbone
from vlad.clip.numerics import Numerics
from vlad.errors import OptionError
from vlad.features import FeatureCache
from vlad.types import Features, name_features


class Encoder(nn.Module):
    """Means of images; counts what it computes."""

    def __init__(self, fingerprint="f", factor=1.0):
        super().__init__()
        self._fingerprint, self.factor, self.seen = fingerprint, factor, 0

    def fingerprint(self):
        return self._fingerprint

    def forward(self, images):
        self.seen += len(images)
        means = self.factor * images.mean((2, 3))
        return Features((means[:, None, None], 2 * means[:, None, None]), image=means)


NAMES = name_features(levels=("once", "twice"), image="mean")


@pytest.fixture
def images():
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def fetch(cache, images, encoder, names=NAMES, **options):
    return cache.fetch(images, encoder, names, encoder, **options)


def test_what_is_there_is_not_computed_again(tmp_path, images):
    encoder, cache = Encoder(), FeatureCache(tmp_path)
    first = fetch(cache, images[:3], encoder)
    again = fetch(cache, images, encoder)
    assert encoder.seen == 4
    assert (cache.read, cache.computed) == (3, 4)
    cache.close()
    other = FeatureCache(tmp_path)
    last = fetch(other, images.flip(0), encoder)
    assert encoder.seen == 4
    assert torch.equal(first.image, again.image[:3])
    assert torch.equal(last.levels[1].flip(0), again.levels[1])
    assert last.classes == ()
    assert last.images is None


def test_each_tensor_is_shared_by_its_name(tmp_path, images):
    encoder, cache = Encoder(), FeatureCache(tmp_path)
    fetch(cache, images, encoder)
    alone = cache.fetch(images, lambda some: encoder(some).image, "mean", encoder)
    assert encoder.seen == 4
    assert torch.equal(alone, encoder(images).image)
    found = cache.fetch(images, lambda some: (encoder(some).image, some.amax((1, 2, 3))), ("mean", "highest"), encoder)
    assert torch.equal(found[1], images.amax((1, 2, 3)))
    assert cache.computed == 8


def test_nothing_of_another_encoder_precision_or_image_is_read(tmp_path, images):
    cache = FeatureCache(tmp_path)
    for number, factor in enumerate((1.0, 2.0)):
        encoder = Encoder(str(number), factor)
        assert torch.equal(fetch(cache, images, encoder).image, factor * images.mean((2, 3)))
    encoder = Encoder()
    fetch(cache, images, encoder)
    fetch(cache, images.bfloat16(), encoder)
    with torch.autocast("cpu", torch.bfloat16):
        fetch(cache, images, encoder)
    fetch(cache, images.reshape(4, 3, 4, 16), encoder)
    fetch(FeatureCache(tmp_path, half=True), images, encoder)
    assert encoder.seen == 5 * 4


def test_images_that_do_not_come_again_are_not_kept(tmp_path, images):
    encoder, cache = Encoder(), FeatureCache(tmp_path)
    for _ in range(2):
        found = fetch(cache, images, encoder, fixed=torch.tensor([True, False, True, False]))
        assert torch.equal(found.image, images.mean((2, 3)))
    assert (cache.read, cache.computed, encoder.seen) == (2, 6, 6)


def test_half_precision_is_the_same_in_every_epoch(tmp_path, images):
    encoder, cache = Encoder(), FeatureCache(tmp_path, half=True)
    first, second = fetch(cache, images, encoder), fetch(cache, images, encoder)
    assert torch.equal(first.image, images.mean((2, 3)).half().float())
    assert torch.equal(first.image, second.image)
    assert first.image.dtype == torch.float32
    with pytest.raises(OptionError, match="too large for half"):
        fetch(cache, 1e6 * images, encoder)


def test_features_of_prediction_serve_training(tmp_path, images):
    encoder, cache = Encoder(), FeatureCache(tmp_path)
    with torch.inference_mode():
        fetch(cache, images, encoder)
    layer = nn.Linear(3, 1)
    layer(fetch(cache, images, encoder).image).sum().backward()
    assert layer.weight.grad is not None
    assert encoder.seen == 4


def test_budget_is_announced_and_kept(tmp_path, images):
    lines = []
    encoder, cache = Encoder(), FeatureCache(tmp_path, budget=100, tell=lines.append)
    cache.images = 4
    with pytest.warns(UserWarning, match="find no room"):
        fetch(cache, images, encoder)
    assert torch.equal(fetch(cache, images, encoder).image, images.mean((2, 3)))
    assert len(lines) == 1
    assert "36 B an image, 144 B for 4 images" in lines[0]
    assert cache.uncached == 4
    assert (cache.read, cache.computed) == (2, 6)


def test_nothing_of_a_clip_driven_otherwise_is_read(tmp_path, tiny):
    cache, images = FeatureCache(tmp_path), torch.randn(1, 3, 64, 64)
    variants = [Numerics(), Numerics(position_resize="bilinear"), Numerics(activation="quick_gelu")]
    for numerics in (*variants, Numerics(activation="gelu")):
        for text in (True, False):
            clip = Backbone.load(tiny, numerics=numerics, text=text)
            cache.fetch(images, clip.image.encode, "embedding", clip)
    assert cache.computed == 3  # the tiny CLIP has GELU, and with it comes what is asked for at last
    assert cache.read == 5
