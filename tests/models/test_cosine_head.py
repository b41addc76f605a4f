"""Tests of `cosine_head`: logits by hand, independence of norms, loading the network's checkpoint, and errors."""

import batches
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.interfaces import Model, Pretrained
from jaxdistill.core.types import Variables
from jaxdistill.models.build import build_model
from jaxdistill.models.cosine_head import KERNEL, cosine_head

KEY = jax.random.key(0)
NETWORK = "mlp(widths=(6, 4), classes=2)"
ROWS = batches.images(8)


def outputs(model, params):
    return model.apply(params, {}, ROWS, train=False, key=KEY)[0]


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
