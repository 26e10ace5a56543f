"""Any encoder by one call: names, ready objects, none."""

import pytest
import torch
from torch import nn

from vlad.clip import Backbone
from vlad.encoders import Encoder, load_encoder
from vlad.encoders.protocol import patch_grid
from vlad.errors import BackboneError
from vlad.types import Features


class Pixels(nn.Module):
    """An encoder of one's own: patches of pixels."""

    name, pretrained, text = "pixels", None, None
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    patch_size, native_size, depth, width = 8, 64, 1, 192

    def grid(self, height, width):
        return patch_grid(height, width, self.patch_size)

    def encode(self, images, layers):
        tokens = nn.functional.unfold(images, 8, stride=8).transpose(1, 2)
        return Features(tuple(tokens.unflatten(1, self.grid(*images.shape[-2:])) for _ in layers), tokens.mean(1))

    def fingerprint(self):
        return "pixels-1"


def test_names_and_none():
    assert load_encoder(None) is None
    tiny = load_encoder("vlad-tiny")
    assert isinstance(tiny, Backbone)
    assert isinstance(tiny, Encoder)
    assert load_encoder("vlad-tiny", text=False).text is None


def test_a_ready_encoder_is_returned_as_it_is():
    ready = Pixels().eval()
    assert isinstance(ready, Encoder)
    assert load_encoder(ready, text=False) is ready
    assert ready.encode(torch.zeros(2, 3, 16, 24), [1]).levels[0].shape == (2, 2, 3, 192)


def test_what_is_no_encoder_is_refused():
    with pytest.raises(BackboneError, match="Linear is no encoder: it lacks name, pretrained, mean"):
        load_encoder(nn.Linear(1, 1), text=False)
    with pytest.raises(BackboneError, match="Pixels is not frozen"):
        load_encoder(Pixels().train(), text=False)
    learned = Pixels()
    learned.weight = nn.Parameter(torch.zeros(1))
    with pytest.raises(BackboneError, match="Pixels is not frozen"):
        load_encoder(learned.eval(), text=False)
    with pytest.raises(BackboneError, match="'pixels' has no text tower"):
        load_encoder(Pixels().eval())
    with pytest.raises(BackboneError, match="'timm:vit_tiny_patch16_224' has no text tower"):
        load_encoder("timm:vit_tiny_patch16_224", "random")
