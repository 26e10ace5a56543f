"""Metrics work with one thread and leave the number as it was."""

import pytest
import torch

from vlad.metrics import PixelMetrics
from vlad.metrics.threads import one_thread


@pytest.fixture
def two():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two")
def test_the_number_is_put_back_also_after_an_error():
    with one_thread(torch.device("cpu")):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with pytest.raises(ValueError, match="NaN or infinity"):
        PixelMetrics().update(torch.full((4, 4), float("nan")), torch.zeros(4, 4))
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two")
def test_other_devices_are_left_alone():
    with one_thread(torch.device("meta")):
        assert torch.get_num_threads() == 2
