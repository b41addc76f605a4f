"""Check that rounded products and their gradients are those of qwix, given the scales of our grids."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.compress.aware import aware
from jaxdistill.core.interfaces import Model
from jaxdistill.core.types import Outputs

KNOWN = dict(np.load(Path(__file__).parents[1] / "golden" / "qwix.npz"))


def linear() -> Model:
    init = lambda key, batch: ({"kernel": jnp.asarray(KNOWN["w"])}, {})
    return Model(init, lambda params, state, batch, *, train, key: (Outputs(batch["x"] @ params["kernel"], ()), state))


@pytest.mark.parametrize("bits", [8, 4])
def test_a_product_and_its_gradients_are_those_of_qwix(bits):
    model = aware(weights=bits, inputs=8).wrap(linear(), 1)
    key, x = jax.random.key(0), jnp.asarray(KNOWN["x"])
    params, state = model.init(key, {"x": x})

    def product(x, params):
        return model.apply(params, state, {"x": x}, train=True, key=key)[0].logits

    y, back = jax.vjp(product, x, params)
    dx, dparams = back(jnp.asarray(KNOWN["g"]))
    np.testing.assert_allclose(y, KNOWN[f"y{bits}"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dx, KNOWN[f"dx{bits}"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dparams["kernel"], KNOWN[f"dw{bits}"], rtol=1e-5, atol=1e-5)
    exact = KNOWN["x"] @ KNOWN["w"]
    assert np.abs(y - exact).max() > 1e-3  # the product is rounded at all
