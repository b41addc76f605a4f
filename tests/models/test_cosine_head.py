"""Tests of `cosine_head`: logits by hand, independence of norms, loading the network's checkpoint, and errors."""

import batches
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.interfaces import Model, Pretrained
from jaxdistill.core.types import Outputs, Variables
from jaxdistill.models.build import build_model
from jaxdistill.models.cosine_head import KERNEL, cosine_head

KEY = jax.random.key(0)
NETWORK = "mlp(widths=(6, 4), classes=2)"
ROWS = batches.images(8)


def outputs(model, params):
    return model.apply(params, {}, ROWS, train=False, key=KEY)[0]


def test_a_cosine_head_of_a_cosine_head_is_refused():
    model = build_model(f"cosine_head(cosine_head({NETWORK}, classes=5), classes=5)", "", "float32")
    with pytest.raises(ValueError, match="the network has such a head itself; give the network inside"):
        model.init(KEY, ROWS)


def test_logits_are_scaled_cosines_of_the_embedding():
    network, model = (build_model(s, "", "float32") for s in (NETWORK, f"cosine_head({NETWORK}, classes=5)"))
    params, _ = model.init(KEY, ROWS)
    assert params[KERNEL].shape == (4, 5)
    own = {name: x for name, x in params.items() if name != KERNEL}
    embedding, vectors = np.asarray(outputs(network, own).embedding), np.asarray(params[KERNEL])
    cosines = embedding @ vectors / np.linalg.norm(embedding, axis=1)[:, None] / np.linalg.norm(vectors, axis=0)
    np.testing.assert_allclose(outputs(model, params).logits, 12 * cosines, rtol=1e-5, atol=1e-5)
    longer = {**params, KERNEL: params[KERNEL] * jnp.arange(1, 6)}
    np.testing.assert_allclose(outputs(model, longer).logits, outputs(model, params).logits, rtol=1e-5, atol=1e-5)
    assert len(outputs(model, params).hidden_states) == len(outputs(network, own).hidden_states)


def test_zero_vectors_have_the_logit_0_and_no_gradient():
    embedding = jnp.zeros((8, 4)).at[1].set(1.0)
    network = Model(
        lambda key, rows: ({}, {}), lambda p, s, rows, train, key: (Outputs(embedding, embedding=rows["e"]), s)
    )
    model = cosine_head(network, 3)
    kernel = jnp.ones((4, 3)).at[:, 2].set(0.0)
    logits = lambda e, k: model.apply({KERNEL: k}, {}, {"e": e, "mask": jnp.ones(8)}, train=False, key=KEY)[0].logits
    np.testing.assert_allclose(logits(embedding, kernel)[:2], [[0, 0, 0], [12, 12, 0]], rtol=1e-6)
    slopes = jax.grad(lambda e, k: jnp.sum(logits(e, k)), argnums=(0, 1))(embedding, kernel)
    assert not np.any(slopes[0][0]) and not np.any(slopes[1][:, 2]) and all(np.isfinite(x).all() for x in slopes)


def test_the_fields_of_the_network_are_kept():
    network = build_model(NETWORK, "", "float32")._replace(locked=("layers/0/",))
    assert cosine_head(network, 5).locked == ("layers/0/",)
    single = build_model(f"cosine_head({NETWORK}, classes=5)", "", "bfloat16")
    assert outputs(single, single.init(KEY, ROWS)[0]).logits.dtype == jnp.bfloat16


def test_a_network_without_an_embedding_is_refused():
    network = Model(lambda key, rows: ({}, {}), lambda p, s, rows, train, key: (Outputs(jnp.zeros((8, 2))), s))
    with pytest.raises(ValueError, match="the network returns no embedding; choose another one"):
        cosine_head(network, 5).init(KEY, ROWS)


def test_the_network_loads_its_checkpoint_and_the_head_is_new():
    network = build_model(NETWORK, "", "float32")
    values = Variables(network.init(KEY, ROWS)[0], {})
    seen = []
    model = cosine_head(network._replace(load=lambda shapes: seen.append(shapes) or Pretrained((), lambda: values)), 5)
    loaded = model.load(Variables(*jax.eval_shape(model.init, KEY, ROWS)))
    assert loaded.fresh == (KERNEL,) and loaded.read() is values and seen[0].params.keys() == values.params.keys()
    assert cosine_head(network, 5).load is None and isinstance(cosine_head(network, 5), Model)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (f"cosine_head({NETWORK}, classes=5, scale=-1.0)", "scale=-1.0 must be positive"),
        ("cosine_head(3, classes=5)", r"cosine_head\(network=...\): 3 is no model"),
    ],
)
def test_mistakes_are_named(spec, said):
    with pytest.raises(ConfigError, match=rf"^student\.model: .*{said}"):
        build_model(spec, "student.model", "float32")
