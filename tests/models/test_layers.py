"""Tests of layers and small networks by hand: dropout, batch normalisation, perceptrons, ResNets and attention."""

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from checks import all_finite, assert_close, assert_same
from networks import KEY, ROWS, batch, built, compiled

from jaxdistill.core import registry
from jaxdistill.core.collectives import PMAP_AXIS
from jaxdistill.core.errors import ConfigError
from jaxdistill.models.layers import BatchNorm, dropout, pixels, require_dropout_rate

# Dropout


def test_dropout_drops_a_share_and_keeps_the_mean():
    x = jnp.ones((64, 1000))
    y = dropout(x, 0.25, train=True, key=KEY)
    assert set(np.unique(y)) == {0.0, np.float32(4 / 3)}
    assert abs((y == 0).mean() - 0.25) < 0.01 and abs(y.mean() - 1) < 0.01
    assert_same(dropout(x, 0.25, train=False, key=KEY), x)
    assert_same(dropout(x, 0.0, train=True, key=KEY), x)
    assert dropout(x.astype(jnp.bfloat16), 0.25, train=True, key=KEY).dtype == jnp.bfloat16


@pytest.mark.parametrize("rate", [1.0, -0.1, float("nan")])
def test_a_rate_that_keeps_nothing_or_is_no_probability_is_refused(rate):
    require_dropout_rate("dropout", 0.0)
    require_dropout_rate("dropout", 0.99)
    with pytest.raises(ValueError, match="dropout must be at least 0 and below 1; got"):
        require_dropout_rate("dropout", rate)


def test_dropout_draws_by_row_so_that_pmap_draws_what_jit_draws():
    x = jnp.ones((8, 20, 3))
    whole = dropout(x, 0.5, train=True, key=KEY)
    assert len({row.tobytes() for row in np.asarray(whole)}) == 8
    assert_same(dropout(x[:3], 0.5, train=True, key=KEY), whole[:3])
    shards = x.reshape(4, 2, 20, 3)  # a named vmap has the collectives of pmap
    mapped = jax.vmap(lambda rows: dropout(rows, 0.5, train=True, key=KEY), axis_name=PMAP_AXIS)(shards)
    assert_same(mapped.reshape(x.shape), whole)


@pytest.mark.sampled("mlp*")
@pytest.mark.parametrize(
    "spec",
    ["mlp(widths=(12, 8), classes=5, dropout=0.5)", "vit(patch=4, width=8, depth=2, heads=2, classes=5, dropout=0.5)"],
)
def test_a_models_dropout_depends_on_the_key_and_the_row_and_is_off_in_use(spec):
    model, params, state = built(spec)
    same_rows = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), batch())
    apply = jax.jit(model.apply, static_argnames="train")
    logits = lambda rows, train, seed: apply(params, state, rows, train=train, key=jax.random.key(seed))[0].logits
    trained = logits(same_rows, True, 0)
    assert len({row.tobytes() for row in np.asarray(trained)}) == ROWS
    assert_same(logits(same_rows, True, 0), trained)
    assert not np.array_equal(logits(same_rows, True, 1), trained)
    assert_close(logits(jax.tree.map(lambda x: x[:4], same_rows), True, 0), trained[:4])
    in_use = logits(same_rows, False, 0)
    assert_close(in_use, jnp.broadcast_to(in_use[:1], in_use.shape))
    assert_same(logits(same_rows, False, 1), in_use)


def test_every_place_of_dropout_draws_anew():
    """Check that each layer draws its own mask: with kernels of 0 and biases of 1, a branch adds its mask, 0 or 2."""

    def hidden_states(spec):
        model, params, state = built(spec)
        params = {name: jnp.zeros_like(x) if "kernel" in name else jnp.ones_like(x) for name, x in params.items()}
        return jax.jit(model.apply, static_argnames="train")(params, state, batch(), train=True, key=KEY)[
            0
        ].hidden_states

    first, second = hidden_states("mlp(widths=(16, 16), classes=5, dropout=0.5)")
    assert set(np.unique(first)) == set(np.unique(second)) == {0, 2} and not np.array_equal(first, second)
    start, middle, end = hidden_states("vit(patch=4, width=8, depth=2, heads=2, classes=5, dropout=0.5)")
    first, second = middle - start, end - middle
    assert not np.array_equal(first, second)
    assert set(np.unique(first)) == set(np.unique(second)) == {0, 2, 4}  # 2: one of two branches was dropped


# Batch normalisation


def normalise(x, mask, train=True, module=None):
    module = module or BatchNorm(x.shape[-1])
    return module(jnp.asarray(x), jnp.asarray(mask, jnp.float32), train), module


def test_batch_normalisation_by_hand():
    x = np.random.default_rng(0).normal(3, 2, (6, 4, 4, 3)).astype(np.float32)
    y, module = normalise(x, [1, 1, 1, 1, 0, 0])
    mean, var = x[:4].mean((0, 1, 2)), x[:4].var((0, 1, 2))
    assert_close(y, (x - mean) / np.sqrt(var + 1e-5), rtol=1e-4, atol=1e-5)
    assert_close(module.mean.get_value(), 0.1 * mean)
    assert_close(module.var.get_value(), 0.9 + 0.1 * var)
    used, _ = normalise(x, np.ones(6), train=False, module=module)
    assert_close(used, (x - 0.1 * mean) / np.sqrt(0.9 + 0.1 * var + 1e-5), rtol=1e-4, atol=1e-5)


def test_batch_statistics_are_those_of_the_whole_batch_over_devices():
    x = jnp.asarray(np.random.default_rng(0).normal(3, 2, (8, 5)), jnp.float32)
    mask = jnp.asarray([1, 1, 1, 0, 1, 0, 0, 0], jnp.float32)  # the last device has padding only
    run = lambda x, mask: (lambda y, module: (y, module.mean.get_value()))(*normalise(x, mask))
    whole, mean = run(x, mask)
    shards, means = jax.vmap(run, axis_name=PMAP_AXIS)(x.reshape(4, 2, 5), mask.reshape(4, 2))
    assert_close(shards.reshape(8, 5), whole)
    assert_close(means, jnp.broadcast_to(mean, (4, 5)))


def test_batch_normalisation_of_padding_alone_is_finite():
    y, module = normalise(np.ones((4, 3), np.float32), np.zeros(4))
    assert all_finite((y, module.mean.get_value(), module.var.get_value()))


# Layers and families by hand


def test_bytes_become_numbers_from_minus_1_to_1():
    assert_close(pixels(jnp.asarray([0, 51, 255], jnp.uint8), jnp.float32), [-1.0, -0.6, 1.0])
    assert_same(pixels(jnp.asarray([0.5, 3.0]), jnp.float32), jnp.asarray([0.5, 3.0]))
    assert pixels(jnp.asarray([0, 255], jnp.uint8), jnp.bfloat16).dtype == jnp.bfloat16


def test_a_perceptron_by_hand():
    model, params, _ = built("mlp(widths=(12, 8), classes=5)")
    x = np.asarray(batch()["image"], np.float64).reshape(ROWS, -1)
    w = {name: np.asarray(value, np.float64) for name, value in params.items()}
    first = np.maximum(x @ w["layers/0/kernel"] + w["layers/0/bias"], 0)
    second = np.maximum(first @ w["layers/1/kernel"] + w["layers/1/bias"], 0)
    out, _ = model.apply(params, {}, batch(), train=False, key=KEY)
    assert_close(out.hidden_states, (first, second))
    assert_close(out.embedding, second)
    assert_close(out.logits, second @ w["head/kernel"] + w["head/bias"], atol=1e-5)


def test_residual_stages_halve_the_extent():
    _, params, state = built("resnet(widths=(4, 8), blocks=1, classes=5)")
    out, _ = compiled("resnet(widths=(4, 8), blocks=1, classes=5)", False)(params, state, batch())
    assert [x.shape[1:] for x in out.hidden_states] == [(8, 8, 4), (8, 8, 4), (4, 4, 8)]
    assert_close(out.embedding, out.hidden_states[-1].mean((1, 2)))


def test_the_papers_resnet_20_has_its_270_thousand_parameters():
    model = registry.models.build("resnet(widths=(16, 32, 64), blocks=3, classes=10)", "")
    rows = {"image": jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32), "mask": jax.ShapeDtypeStruct((2,), jnp.float32)}
    params, _ = jax.eval_shape(model.init, KEY, rows)
    assert 270_000 < sum(x.size for x in params.values()) < 276_000  # our two downsampling shortcuts have weights


def test_attentions_are_distributions_over_patches():
    spec = "vit(patch=4, width=8, depth=2, heads=2, classes=5, attentions=True)"
    _, params, state = built(spec)
    out, _ = compiled(spec, False)(params, state, batch())
    assert [x.shape for x in parity.probabilities(out)] == [(ROWS, 2, 4, 4)] * 2
    assert [x.shape for x in out.hidden_states] == [(ROWS, 4, 8)] * 3
    assert_close(sum(x.sum(-1) for x in parity.probabilities(out)), 2 * np.ones((ROWS, 2, 4)))


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("mlp(widths=(), classes=5)", "widths must have at least one entry, all positive"),
        ("mlp(widths=(0,), classes=5)", "must be positive"),
        ("resnet(widths=(), blocks=1, classes=5)", "must be positive"),
        ("resnet(widths=(4,), blocks=0, classes=5)", "must be positive"),
        ("vit(patch=4, width=9, depth=2, heads=2, classes=5)", "heads=2 does not divide width=9"),
    ],
)
def test_sizes_that_make_no_model_are_refused(spec, problem):
    with pytest.raises(ConfigError, match=f"student.model: .*{problem}"):
        registry.models.build(spec, "student.model")


def test_a_patch_that_does_not_divide_the_image_is_refused():
    model = registry.models.build("vit(patch=3, width=8, depth=1, heads=2, classes=5)", "")
    with pytest.raises(ValueError, match="patch=3 does not divide an image of 8 x 8"):
        model.init(KEY, batch())
