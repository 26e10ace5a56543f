"""Every registered method passes the checks that plug-in authors run."""

import pytest
from tests_support import SMALL

import vlad
from vlad.testing import CHECKS, check_method, iter_checks


@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
@pytest.mark.parametrize("name", [n for n in vlad.list_methods() if vlad.registry.resolve(n).distribution == "vlad"])
def test_method(name, check, tiny):
    cls = vlad.get_method(name)
    dict(iter_checks(cls, backbone=tiny, pretrained=None, image_size=64, **SMALL[name]))[check]()


def test_a_method_that_breaks_the_rules_is_caught(tiny):
    from vlad.methods.sdp import SDP

    class MixesTheBatch(SDP):
        def smooth(self, unsmoothed_map):
            return super().smooth(unsmoothed_map) - unsmoothed_map.mean()

    with pytest.raises(AssertionError, match="MixesTheBatch: check_batch_independence"):
        check_method(MixesTheBatch, backbone=tiny, pretrained=None, image_size=64, layers=[2, 4])
