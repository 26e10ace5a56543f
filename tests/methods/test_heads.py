import torch
from torch import nn

from vlad.clip.similarity import normalize
from vlad.methods.heads import cosine_margin
from vlad.methods.losses import dice_loss, focal_loss, margin_losses, two_classes


def test_margins_and_gradients_are_those_of_autograd():
    torch.manual_seed(0)
    layer = nn.Linear(7, 5)
    tokens = torch.randn(3, 2, 4, 7, requires_grad=True)
    toward = torch.randn(3, 5)
    weights = torch.randn(3, 2, 4)
    found = []
    for margin in (
        lambda: cosine_margin(layer, tokens, toward),
        lambda: torch.einsum("bhwd,bd->bhw", normalize(layer(tokens)), toward),
    ):
        layer.zero_grad()
        tokens.grad = None
        value = margin()
        (value * weights).sum().backward()
        found.append((value.detach(), layer.weight.grad.clone(), layer.bias.grad.clone(), tokens.grad.clone()))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_margins_under_autocast_are_near():
    torch.manual_seed(0)
    layer, tokens, toward = nn.Linear(32, 16), torch.randn(2, 3, 3, 32), torch.randn(2, 16)
    exact = cosine_margin(layer, tokens, toward)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = cosine_margin(layer, tokens, toward)
    assert rounded.shape == exact.shape == (2, 3, 3)
    assert torch.allclose(rounded, exact, atol=0.1)


def test_losses_of_margins_are_those_of_probabilities():
    torch.manual_seed(0)
    mask = torch.rand(3, 9, 8) > 0.7
    mask[1] = False
    margins = [torch.randn(3, 9, 8, requires_grad=True) for _ in range(2)]
    found = []
    for terms in (
        lambda: margin_losses(margins, mask),
        lambda: {
            "focal": sum(focal_loss(two_classes(margin), mask) for margin in margins),
            "dice": sum(dice_loss(margin.sigmoid(), mask) for margin in margins),
        },
    ):
        for margin in margins:
            margin.grad = None
        values = terms()
        (values["focal"] + 2 * values["dice"]).backward()
        found.append([values["focal"].detach(), values["dice"].detach(), *(margin.grad.clone() for margin in margins)])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)
