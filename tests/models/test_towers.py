"""Tests of `towers`: embeddings, scale and bias, locked towers, checkpoints of each network, and errors."""

import batches
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.interfaces import Model, Pretrained
from jaxdistill.core.types import Outputs, Variables
from jaxdistill.models.build import build_model
from jaxdistill.models.hub.check import check_pretrained
from jaxdistill.models.towers import towers

KEY = jax.random.key(0)
IMAGES = "mlp(widths=(6,), classes=2, dropout=0.5)"
TEXTS = "bert(vocabulary=32, width=4, depth=1, heads=2, ffn=4, positions=8, classes=0)"
ROWS = batches.pairs(16)
REAL = np.asarray(ROWS["mask"]) != 0


def built(more: str = "") -> Model:
    return build_model(f"towers(images={IMAGES}, texts='{TEXTS}', width=5{more})", "student.model", "float32")


def outputs(model: Model, train: bool = False) -> Outputs:
    params, state = model.init(KEY, ROWS)
    return jax.jit(lambda p, s, rows: model.apply(p, s, rows, train=train, key=KEY)[0])(params, state, ROWS)


def test_embeddings_are_the_projected_ones_of_each_network():
    model, image = built(), build_model(IMAGES, "", "float32")
    params, state = model.init(KEY, ROWS)
    own = {name.removeprefix("images/"): x for name, x in params.items() if name.startswith("images/")}
    alone, _ = image.apply(own, {}, ROWS, train=False, key=KEY)
    expected = alone.embedding @ params["images_projection/kernel"]
    expected = expected / jnp.linalg.norm(expected, axis=-1, keepdims=True)
    found, _ = model.apply(params, state, ROWS, train=False, key=KEY)
    np.testing.assert_allclose(found.embedding, expected, atol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(found.text_embedding, axis=-1), 1.0, atol=1e-6)
    expected = np.where(REAL, found.embedding @ found.text_embedding.T / 0.07, -1e9)  # a masked text is no candidate
    np.testing.assert_allclose(found.logits, expected, rtol=1e-5, atol=1e-5)
    assert found.bias is None and len(found.hidden_states) == len(alone.hidden_states)


def test_the_checkpoint_of_a_tower_is_checked_before_a_run(tmp_path):
    folder = parity.write_folder(tmp_path / "texts", parity.reference("bert_embedding"))
    model = build_model(
        f"towers(images={IMAGES}, texts=pretrained({str(folder)!r}), width=5)", "student.model", "float32"
    )
    shapes = {name: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype) for name, x in ROWS.items()}
    check_pretrained(model, "student.model", shapes, complete=False)
    with pytest.raises(ConfigError, match=r"^teachers\.big\.model: the checkpoint has no weights for images/head/bias"):
        check_pretrained(model, "teachers.big.model", shapes, complete=True)


def test_scale_and_bias():
    out = outputs(built(", scale=2.0, bias=-3.0"))
    np.testing.assert_allclose(out.scale, 2.0, rtol=1e-6)
    np.testing.assert_array_equal(out.bias, np.full(16, -3.0))
    expected = np.where(REAL, 2 * out.embedding @ out.text_embedding.T - 3, -1e9)
    np.testing.assert_allclose(out.logits, expected, atol=1e-5)


def test_locked_towers_keep_their_weights_and_their_projections_learn():
    model = built(", locked=('images',)")
    params, state = model.init(KEY, ROWS)
    loss = lambda p: model.apply(p, state, ROWS, train=True, key=KEY)[0].logits[0, 1]
    moved = {name for name, slope in jax.jit(jax.grad(loss))(params).items() if np.any(slope)}
    assert "images_projection/kernel" in moved and "texts_projection/kernel" in moved
    assert not any(name.startswith("images/") for name in moved)
    assert any(name.startswith("texts/") for name in moved)
    np.testing.assert_array_equal(outputs(model, train=True).embedding, outputs(model).embedding)  # locked: no dropout
    assert np.any(np.asarray(outputs(built(), train=True).embedding) != outputs(built()).embedding)


def test_each_tower_loads_its_own_checkpoint():
    def with_checkpoint(model: Model, value: float) -> Model:
        def load(abstract: Variables) -> Pretrained:
            first = sorted(abstract.params)[0]
            full = {name: jnp.full(x.shape, value) for name, x in abstract.params.items() if name != first}
            return Pretrained((first,), lambda: Variables(full, {}))

        return model._replace(load=load)

    image, text = build_model(IMAGES, "", "float32"), build_model(TEXTS, "", "float32")
    assert towers(image, text, 5).load is None
    model = towers(with_checkpoint(image, 1.0), with_checkpoint(text, 2.0), 5)
    abstract = Variables(*jax.eval_shape(model.init, KEY, ROWS))
    found = model.load(abstract)
    values = found.read().params
    assert abstract.params.keys() == {*values, *found.fresh} and not values.keys() & set(found.fresh)
    assert all(np.all(x == (1.0 if name.startswith("images/") else 2.0)) for name, x in values.items())
    assert {"logit_scale", "images_projection/kernel", "images/head/bias"} <= set(found.fresh)
    half = towers(with_checkpoint(image, 1.0), text, 5)
    assert all(name.startswith("images/") for name in half.load(abstract).read().params)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (f"towers(images={IMAGES}, texts=3, width=5)", r"towers\(texts=...\): 3 is no model\. Give the spec string"),
        (f"towers(images={IMAGES}, texts=brt(width=3), width=5)", "unknown model 'brt'. Did you mean 'bert'"),
        (f"towers(images={IMAGES}, texts='{TEXTS}', width=0)", "width=0 must be positive"),
        (f"towers(images={IMAGES}, texts='{TEXTS}', width=5, scale=-1.0)", "scale=-1.0 must be positive"),
        (f"towers(images={IMAGES}, texts='{TEXTS}', width=5, locked=('image',))", "unknown 'image'"),
    ],
)
def test_a_wrong_tower_is_named(spec, said):
    with pytest.raises(ConfigError, match=rf"student\.model.*{said}"):
        build_model(spec, "student.model", "float32")


def test_a_network_without_an_embedding_is_no_tower():
    plain = Model(lambda key, rows: ({}, {}), lambda p, s, rows, **_: (Outputs(jnp.zeros((16, 2))), s))
    model = towers(plain, build_model(TEXTS, "", "float32"), 5)
    with pytest.raises(ValueError, match="images: the network returns no embedding"):
        model.init(KEY, ROWS)
