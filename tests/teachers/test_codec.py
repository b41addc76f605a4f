"""Tests of the encoding of teacher outputs: the largest logits and the rest, masked classes, and dtypes."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.core.types import Outputs
from jaxdistill.teachers.codec import Encoding, decode, encode

KEYS = jax.random.split(jax.random.key(0), 4)


def test_the_rest_is_one_bucket_spread_evenly():
    logits = jnp.asarray([[3.0, 1.0, 0.5, -1.0, 2.0]])
    written = encode(Outputs(logits), Encoding("x", "float32", 2, ()), KEYS[:1])
    p = np.asarray(jax.nn.softmax(logits))[0]
    q = np.asarray(jax.nn.softmax(decode(written, 5, 0).dense().logits))[0]
    np.testing.assert_allclose(q[[0, 4]], p[[0, 4]], rtol=1e-6)
    np.testing.assert_allclose(q[[1, 2, 3]], p[[1, 2, 3]].mean(), rtol=1e-6)


def test_logits_of_minus_infinity_are_kept_as_nothing():
    logits = jnp.asarray([[3.0, -jnp.inf, 0.5, -jnp.inf]])
    for top in (0, 1, 3):
        written = encode(Outputs(logits), Encoding("x", "float16", top, ()), KEYS[:1])
        q = jax.nn.softmax(decode(written, 4, 0).dense().logits)
        assert bool(jnp.isfinite(q).all()) and (top == 1 or float(q[0, 1]) == 0)


def test_what_is_kept_has_the_type_that_was_asked_for():
    said = Outputs(jnp.asarray([[3.0, 1.0, 0.5]]))
    assert encode(said, Encoding("x", "float16", 0, ()), KEYS[:1])["logits"].dtype == jnp.float16
    top = encode(said, Encoding("x", "float16", 1, ()), KEYS[:1])
    assert top["top"].dtype == top["tail"].dtype == jnp.float16


def test_scale_and_bias_of_two_towers_are_kept_in_32_bits():
    x, scale = jnp.ones((4, 3)), jnp.full(4, 117.33)
    outputs = Outputs(x @ x.T, embedding=x, text_embedding=x, scale=scale, bias=-scale)
    written = encode(outputs, Encoding("x", "float16", 0, ()), jax.random.split(jax.random.key(0), 4))
    types = {name: str(values.dtype) for name, values in written.items()}
    assert types == {"image": "float16", "text": "float16", "scale": "float32", "bias": "float32"}
