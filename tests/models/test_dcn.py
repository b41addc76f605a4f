"""Tests of `dcn` (DCN v2): outputs against the formula of the paper, refused sizes, and dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError


def test_it_is_the_formula_of_the_paper():
    model = registry.models.build("dcn(categories=7, width=3, classes=2, crosses=2, widths=(5, 4))", "model")
    rows = {"categories": jnp.array([[0, 4], [6, 6]], jnp.int32), "mask": jnp.ones(2)}
    params, state = model.init(jax.random.key(0), rows)
    params = {name: x + 0.1 for name, x in params.items()}  # biases start at 0
    out, _ = model.apply(params, state, rows, train=False, key=jax.random.key(0))
    p = {name: np.float64(x) for name, x in params.items()}
    first = p["embed/embedding"][np.asarray(rows["categories"])].reshape(2, 6)
    crossed = deep = first
    states = []
    for number in range(2):
        crossed = first * (crossed @ p[f"crosses/{number}/kernel"] + p[f"crosses/{number}/bias"]) + crossed
        states.append(crossed)
    for number in range(2):
        deep = np.maximum(deep @ p[f"layers/{number}/kernel"] + p[f"layers/{number}/bias"], 0)
        states.append(deep)
    last = np.concatenate([crossed, deep], -1)
    np.testing.assert_allclose(out.logits, last @ p["head/kernel"] + p["head/bias"], rtol=1e-5)
    for found, expected in zip(out.hidden_states, states, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert out.embedding.shape == (2, 10)


def test_it_needs_crosses_or_layers():
    with pytest.raises(ConfigError, match=r"crosses=0 with widths=.*give at least one cross, or one layer"):
        registry.models.build("dcn(categories=7, width=3, classes=2, crosses=0, widths=())", "model")


def test_dropout_is_that_of_training():
    model = registry.models.build("dcn(categories=7, width=3, classes=2, widths=(64,), dropout=0.9)", "model")
    rows = {"categories": jnp.array([[0, 4]], jnp.int32), "mask": jnp.ones(1)}
    params, state = model.init(jax.random.key(0), rows)
    run = lambda train: model.apply(params, state, rows, train=train, key=jax.random.key(1))[0].hidden_states[-1]
    assert (np.asarray(run(True)) == 0).mean() > 0.8 and (np.asarray(run(False)) == 0).mean() < 0.8
