"""Tests of `siamese`: embeddings of two texts by one network, a single text, and errors."""

import batches
import jax
import numpy as np
import pytest

from jaxdistill.core.errors import ConfigError
from jaxdistill.models.build import build_model
from jaxdistill.models.combinators import strip_prefix

KEY = jax.random.key(0)
TEXTS = "bert(vocabulary=32, width=4, depth=1, heads=2, ffn=4, positions=8, classes=0)"
ROWS = {name: x for name, x in batches.pairs(6).items() if name != "image"}


def outputs(model, params, rows=ROWS):
    return model.apply(params, {}, rows, train=False, key=KEY)[0]


def test_both_embeddings_are_those_of_the_network():
    network, model = (build_model(spec, "student.model", "float32") for spec in (TEXTS, f"siamese({TEXTS})"))
    params, _ = network.init(KEY, ROWS)
    assert params.keys() == model.init(KEY, ROWS)[0].keys()
    found, second = outputs(model, params), strip_prefix(ROWS, "teacher/")
    np.testing.assert_allclose(found.embedding, outputs(network, params).embedding, atol=1e-6)
    np.testing.assert_allclose(found.text_embedding, outputs(network, params, second).embedding, atol=1e-6)
    states = zip(found.hidden_states, outputs(network, params).hidden_states, strict=True)
    assert all(np.allclose(one, other, atol=1e-6) for one, other in states)  # those of the first text
    real = np.asarray(ROWS["mask"]) != 0
    similar = np.where(real, 20 * found.embedding @ found.text_embedding.T, -1e9)
    np.testing.assert_allclose(found.logits, similar, rtol=1e-5, atol=1e-5)
    assert np.any(np.abs(found.embedding - found.text_embedding) > 0.01)


def test_one_text_alone_has_the_outputs_of_the_network():
    network, model = (build_model(spec, "student.model", "float32") for spec in (TEXTS, f"siamese({TEXTS})"))
    params, _ = network.init(KEY, ROWS)
    alone = {name: x for name, x in ROWS.items() if not name.startswith("teacher/")}
    found = outputs(model, params, alone)
    assert found.text_embedding is None
    np.testing.assert_array_equal(found.logits, outputs(network, params, alone).logits)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (f"siamese({TEXTS}, scale=0.0)", "scale=0.0 must be positive"),
        (f"siamese({TEXTS}, other='')", "other='' must end with a slash"),
        (f"siamese({TEXTS}, other='teacher')", "other='teacher' must end with a slash, such as 'teacher/'"),
        (f"cosine_head(siamese({TEXTS}), classes=3)", "the network reads two texts and has no classes"),
        ("siamese(3)", r"siamese\(network=...\): 3 is no model"),
    ],
)
def test_mistakes_are_named(spec, said):
    with pytest.raises(ConfigError, match=rf"^student\.model: .*{said}"):
        build_model(spec, "student.model", "float32")
