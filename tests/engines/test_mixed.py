"""Bfloat16 within a graph: the products and what moves their values, and nothing that rounding would spoil."""

import numpy as np
import pytest
import torch
from torch import nn

from vlad.engines.convert import capture, to_openvino, write_graph
from vlad.engines.mixed import attention_products, to_bf16
from vlad.engines.sessions import open_session

pytest.importorskip("openvino", reason="the extra 'export' is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class Block(nn.Module):
    """A transformer's block on flattened images, ending in a cosine with a fixed direction."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)
        self.register_buffer("direction", torch.randn(16, 2))

    def forward(self, images):
        tokens = images.flatten(1, 2)
        query, key, value = self.qkv(self.norm(tokens)).chunk(3, dim=-1)
        tokens = tokens + self.out(nn.functional.scaled_dot_product_attention(query, key, value))
        tokens = tokens + self.down(nn.functional.gelu(self.up(self.norm(tokens))))
        weights = (query @ key.transpose(1, 2)).softmax(-1)  # attention written out
        return tokens, self.out(weights @ value)


@pytest.fixture(scope="module")
def program():
    return capture(Block().eval(), torch.randn(2, 3, 4, 16))


def kinds(model, element="bf16"):
    """Returns which operations make tensors of a type."""
    made = [(one.get_type_name(), one.output(0).get_element_type().get_type_name()) for one in model.get_ops()]
    return {kind for kind, type_name in made if type_name == element} - {"Convert", "Constant"}


def test_products_take_bfloat16_and_the_residual_stream_does_not(program):
    model = to_openvino(program, ("tokens", "attended"))
    to_bf16(model)
    assert kinds(model) >= {"MatMul", "ScaledDotProductAttention", "Gelu"}
    wide = kinds(model, "f32")
    assert wide >= {"MVN", "Softmax", "Add"}  # norms, softmax, residual sums
    assert "MatMul" not in wide
    assert [str(output.get_element_type()) for output in model.outputs] == ["<Type: 'float32'>"] * 2


def test_what_is_kept_keeps_float32(program):
    model = to_openvino(program, ("tokens", "attended"))
    to_bf16(model, keep=lambda name: True)
    assert not kinds(model)


def test_products_around_attention_are_found(program):
    model = to_openvino(program, ("tokens", "attended"))
    found = attention_products(model)
    weights = {
        one.get_friendly_name(): tuple(one.input(1).get_partial_shape().to_shape())
        for one in model.get_ops()
        if one.get_type_name() == "MatMul" and one.input(1).get_partial_shape().is_static
    }
    assert sorted(weights.get(name, "products") for name in found if name in weights) == [(16, 16), (16, 16)]
    assert len(found) == 4  # two projections, and both products of the written-out attention
    assert set(weights) - set(found)


def test_a_file_is_half_as_large_and_near(program, tmp_path):
    image = np.random.default_rng(0).normal(size=(3, 3, 4, 16)).astype(np.float32)
    sessions, sizes = [], []
    for precision in ("fp32", "bf16"):
        file = write_graph("openvino", program, tmp_path / precision, ("tokens", "attended"), precision)
        sessions.append(open_session("openvino", file, threads=1))
        sizes.append(file.with_suffix(".bin").stat().st_size)
    assert sizes[1] < 0.6 * sizes[0]
    for exact, near in zip(*(session(image) for session in sessions), strict=True):
        assert 0 < np.abs(near - exact).max() < 0.02 * np.ptp(exact)
