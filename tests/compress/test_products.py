"""Tests that a trace of a model finds its weights, for every family and for a user's modules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import MODELS, every
from flax import nnx
from networks import KEY, batch, built

import jaxdistill.compress.aware  # noqa: F401  (registers `aware`)
from jaxdistill.compress.products import Role, weight_roles
from jaxdistill.core import registry
from jaxdistill.core.types import Outputs
from jaxdistill.models.nnx import from_nnx


def aware(spec: str, model):
    return registry.quantizers.build(spec, "student.quantized").wrap(model, 0)


@every(MODELS)
def test_the_trace_tells_the_weights_of_every_family(example):
    model, params, state = built(example.spec)
    roles = weight_roles(model, params, state, batch(example.inputs))
    named = {
        n for n, x in params.items() if x.ndim > 1 and n.endswith(("kernel", "embedding")) and "depthwise" not in n
    }
    assert set(roles) == named  # depthwise kernels are multiplied element by element, so they are no weights
    for name, role in roles.items():
        kernel = {-4: (-4, -3, -2), -3: (-2,), -2: (-2,)}[-params[name].ndim]
        tied = name.endswith("embedding")
        assert role.axes == ((-1,) if tied else kernel), name
        assert role.rank == (4 if params[name].ndim == 4 else 2), name


class Mixed(nnx.Module):
    """A module with kernels of several axes, and a parameter that is the input of a product and no weight."""

    def __init__(self, *, rngs):
        self.attention = nnx.MultiHeadAttention(num_heads=2, in_features=8, decode=False, rngs=rngs)
        self.probe, self.head = nnx.Param(jnp.ones((1, 8))), nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, batch, *, train, key):
        x = self.attention(batch["x"]) + self.head.kernel[...].sum()
        return Outputs(self.head(x.mean(1) + self.probe[...]) + self.head(self.probe[...]))


def test_an_own_module_is_understood_by_what_it_computes():
    model = from_nnx(lambda rngs, batch: Mixed(rngs=rngs))
    rows = {"x": np.random.default_rng(0).normal(size=(4, 5, 8)).astype(np.float32), "mask": np.ones(4, np.float32)}
    params, state = model.init(KEY, rows)
    roles = weight_roles(model, params, state, rows)
    assert roles["attention/query/kernel"].axes == (-3,) and roles["attention/out/kernel"].axes == (-3, -2)
    assert roles["head/kernel"] == Role((-2,), 2, True) and "probe" not in roles
    for spec in ("aware()", "aware(weights=4, ranges='running', scales='learned')"):
        wrapped = aware(spec, model)
        values = wrapped.init(KEY, rows)
        logits, after = wrapped.apply(*values, rows, train=True, key=KEY)
        assert np.isfinite(logits.logits).all() and set(after) == set(values[1])


class Repeated(nnx.Module):
    """A module that runs one layer three times in a scan, and once more after the scan."""

    def __init__(self, *, rngs):
        self.layer = nnx.Linear(6, 6, rngs=rngs)

    def __call__(self, batch, *, train, key):
        x, _ = jax.lax.scan(lambda x, _: (2 * self.layer(x), None), batch["x"], length=3)
        return Outputs(self.layer(x))


def test_a_layer_that_is_used_again_has_one_range_for_all_its_inputs():
    model = from_nnx(lambda rngs, batch: Repeated(rngs=rngs))
    rows = {"x": np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32), "mask": np.ones(4, np.float32)}
    wrapped = aware("aware(weights=0, inputs=16, ranges='running')", model)
    params, state = wrapped.init(KEY, rows)
    after = wrapped.apply(params, state, rows, train=True, key=KEY)[1]["layer/kernel/input_range"]
    x, inputs = np.float64(rows["x"]), []
    for _ in range(3):
        inputs.append(x)
        x = 2 * (x @ np.float64(params["layer/kernel"]) + np.float64(params["layer/bias"]))
    np.testing.assert_allclose(after, [np.min([*inputs, x]), np.max([*inputs, x])], rtol=1e-3)


class Twice(nnx.Module):
    """A module that multiplies by its kernel and by the transpose of it."""

    def __init__(self, *, rngs):
        self.kernel = nnx.Param(jnp.eye(6))

    def __call__(self, batch, *, train, key):
        return Outputs(batch["x"] @ self.kernel[...] @ self.kernel[...].T)


def test_a_weight_that_is_summed_over_different_axes_is_refused():
    model = from_nnx(lambda rngs, batch: Twice(rngs=rngs))
    rows = {"x": np.ones((4, 6), np.float32), "mask": np.ones(4, np.float32)}
    said = r"student\.quantized: products of kernel sum different axes; leave it out by skip='kernel'"
    with pytest.raises(ValueError, match=said):
        aware("aware()", model).init(KEY, rows)
