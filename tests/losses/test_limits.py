"""Tests of arguments at their limits: the last value that is accepted, and the first that is refused."""

import pytest

import jaxdistill.losses  # noqa: F401  (registers the losses)
from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError
from jaxdistill.losses.hidden.layers import check_layers


@pytest.mark.parametrize(
    ("spec", "refused"),
    [
        ("policy_gradient(clip=0.001)", False),
        ("policy_gradient(clip=0)", True),
        ("policy_gradient(clip=-1)", True),
        ("rkd(triplets=100)", False),
        ("rkd(triplets=16777216)", False),
        ("rkd(triplets=16777217)", True),
    ],
)
def test_a_limit_is_where_the_docstring_says(spec, refused):
    if refused:
        with pytest.raises(ConfigError):
            registry.losses.build(spec, "term")
    else:
        registry.losses.build(spec, "term")


def test_layer_maps_of_deep_networks_are_allowed():
    check_layers(((5000, 1), (1, 5000)))
    check_layers("6-5000")
