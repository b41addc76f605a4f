"""Tests of every model family: variables, padding, seeds, microbatches, bfloat16, and a user's own flax module."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import all_finite, assert_close, assert_same
from examples import MODELS, every, slow
from flax import nnx
from networks import CLASSES, INPUTS, KEY, ROWS, batch, built, compiled

from jaxdistill.core import registry
from jaxdistill.core.interfaces import Model
from jaxdistill.core.types import Factored, Outputs
from jaxdistill.models.combinators import in_dtype, microbatched, remap_classes
from jaxdistill.models.nnx import from_nnx

# Compilation takes most of the time, so only one model of each kind of layer is among the fast cases.
FAMILIES = pytest.mark.sampled("*mlp*", "*resnet(*", "*decoder*", "*bert*")
ROW_BY_ROW = {name: [e for e in table if e.inputs != "pairs"] for name, table in MODELS.items()}


def counted_tokens(rows):
    return jnp.any(rows["mask"].reshape(ROWS, -1) > 0, axis=1)


def loss_of(model: Model, state, batch, train: bool = True):
    """Return a loss function of the parameters that depends on all outputs in rows that are not padding."""

    def loss(params):
        out = model.apply(params, state, batch, train=train, key=KEY)[0].dense()
        counts = lambda x: counted_tokens(batch).reshape(-1, *[1] * (x.ndim - 1))
        parts = jax.tree.map(lambda x: jnp.mean(jnp.where(counts(x), jnp.sin(x.astype(jnp.float32)), 0)), out)
        return sum(jax.tree.leaves(parts))

    return loss


@functools.cache
def gradient_of(spec: str):
    """Compute the loss of `loss_of` and its gradient for the example with this spec."""
    model, params, state = built(spec)
    return jax.jit(jax.value_and_grad(loss_of(model, state, batch(INPUTS[spec]))))(params)


@FAMILIES
@every(MODELS)
def test_a_model_returns_logits_and_all_its_hidden_states(example):
    _, params, state = built(example.spec)
    out, _ = compiled(example.spec, False)(params, state, batch(example.inputs))
    classes = ROWS if example.inputs == "pairs" else CLASSES
    assert out.logits.shape == (*batch(example.inputs)["mask"].shape, classes)
    assert len(out.hidden_states) == example.hidden_states
    if example.inputs != "tokens":
        assert out.embedding.shape[0] == ROWS and out.embedding.ndim == 2
    assert all(x.shape[0] == ROWS and x.ndim >= 2 for x in jax.tree.leaves((out.hidden_states, out.attentions)))
    assert all_finite(out) and all(x.dtype == jnp.float32 for x in jax.tree.leaves(out))


@FAMILIES
@every(MODELS)
def test_params_and_state_are_flat_dictionaries_of_float32(example):
    for tree in built(example.spec)[1:]:
        assert all(isinstance(name, str) and isinstance(x, jax.Array) for name, x in tree.items())
        assert all(x.dtype == jnp.float32 and not x.weak_type for x in tree.values())
    assert any(name.endswith("kernel") for name in built(example.spec)[1])


@FAMILIES
@every(MODELS)
def test_shapes_are_known_without_computing(example):
    model, params, state = built(example.spec)
    shapes = jax.eval_shape(model.init, KEY, batch(example.inputs))
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, (params, state))


@FAMILIES
@every(MODELS)
def test_a_model_in_use_leaves_its_state_alone_and_in_training_keeps_its_form(example):
    _, params, state = built(example.spec)
    _, same = compiled(example.spec, False)(params, state, batch(example.inputs))
    assert_same(same, state)
    _, new = compiled(example.spec, True)(params, state, batch(example.inputs))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert not state or any(not np.array_equal(new[name], state[name]) for name in state)


@FAMILIES
@every(MODELS)
@pytest.mark.parametrize("train", [True, False])
def test_rows_that_do_not_count_change_neither_the_others_nor_the_statistics(example, train):
    _, params, state = built(example.spec)
    rows = batch(example.inputs)
    padding, rows = np.asarray(~counted_tokens(rows)), jax.device_get(rows)
    foreign = lambda x: (x + 1) % CLASSES if x.dtype == np.int32 else np.full_like(x, 1e3)
    select = lambda x: np.where(padding.reshape(-1, *[1] * (x.ndim - 1)), foreign(x), x)
    other = {name: x if name.endswith("mask") else select(x) for name, x in rows.items()}
    (out, new), (same, same_new) = (compiled(example.spec, train)(params, state, each) for each in (rows, other))
    counted = lambda tree: jax.tree.map(lambda x: np.asarray(x)[~padding], tree)
    assert_same(counted(same), counted(out))
    assert_same(same_new, new)


@FAMILIES
@every(MODELS)
def test_the_order_of_rows_does_not_matter(example):
    _, params, state = built(example.spec)
    order = np.asarray([5, 3, 7, 1, 0, 2, 6, 4])
    permute = lambda tree: jax.tree.map(lambda x: np.asarray(x)[order], tree)
    out, _ = jax.device_get(compiled(example.spec, True)(params, state, batch(example.inputs)))
    permuted, _ = compiled(example.spec, True)(params, state, permute(batch(example.inputs)))
    out = replace(out, logits=out.logits[:, order]) if example.inputs == "pairs" else out
    assert_close(permuted, permute(out), rtol=1e-4, atol=1e-5)


@FAMILIES
@every(MODELS)
def test_every_seed_is_another_model_and_the_same_seed_the_same(example):
    model, params, _ = built(example.spec)
    again, _ = jax.jit(model.init)(KEY, batch(example.inputs))
    assert_same(again, params)
    other, _ = jax.jit(model.init)(jax.random.key(1), batch(example.inputs))
    assert all(not np.array_equal(other[name], params[name]) for name in params if name.endswith("kernel"))


@pytest.mark.sampled("mlp*")
@every(MODELS)
def test_bfloat16_computes_over_float32_parameters_with_float32_gradients(example):
    model, params, state = built(example.spec)
    half = in_dtype(model, "bfloat16")
    rows = batch(example.inputs)
    out, new = jax.jit(lambda p: half.apply(p, state, rows, train=True, key=KEY))(params)
    whole, _ = compiled(example.spec, True)(params, state, batch(example.inputs))
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves((out.logits, out.hidden_states, out.embedding)))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(new))
    assert_close(out.dense().logits.astype(jnp.float32), whole.logits, rtol=0.1, atol=0.1)
    gradient = jax.jit(jax.grad(loss_of(half, state, batch(example.inputs))))(params)
    _, expected = gradient_of(example.spec)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(gradient))
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (gradient, expected))
    assert np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) > 0.98
    assert_same(jax.jit(half.init)(KEY, batch(example.inputs)), (params, state))
    odd = jax.tree.map(lambda x: x + 1e-4, state)  # bfloat16 would round the difference away
    assert_same(jax.jit(lambda s: half.apply(params, s, batch(example.inputs), train=False, key=KEY)[1])(odd), odd)


@FAMILIES
@every(MODELS)
def test_only_models_with_statistics_have_state(example):
    assert bool(built(example.spec)[2]) == example.statistics


@pytest.mark.sampled("2-mlp*")
@every(ROW_BY_ROW, statistics=False)  # statistics and logits of pairs depend on the piece
@pytest.mark.parametrize("parts", [2, slow(4)])
def test_a_batch_in_pieces_is_the_whole_batch(example, parts):
    model, params, state = built(example.spec)
    pieces = microbatched(model, parts)
    out, _ = jax.jit(lambda p: pieces.apply(p, state, batch(example.inputs), train=True, key=KEY))(params)
    assert_close(out.dense(), compiled(example.spec, True)(params, state, batch(example.inputs))[0])
    got = jax.jit(jax.value_and_grad(loss_of(pieces, state, batch(example.inputs))))(params)
    assert_close(got, gradient_of(example.spec))


def test_each_piece_draws_dropout_of_its_own():
    model = registry.models.build("mlp(widths=(32,), classes=5, dropout=0.5)", "")
    equal = {name: jnp.repeat(x[:1], 8, axis=0) for name, x in batch().items()}
    params, state = jax.jit(model.init)(KEY, equal)
    apply = jax.jit(lambda: microbatched(model, 4).apply(params, state, equal, train=True, key=KEY)[0].logits)
    assert len(np.unique(np.asarray(apply()), axis=0)) == 8


def test_the_statistics_of_pieces_add_up_one_after_the_other():
    model, params, state = built("resnet(widths=(4, 8), blocks=1, classes=5)")
    whole = batch()
    _, new = jax.jit(lambda: microbatched(model, 2).apply(params, state, whole, train=True, key=KEY))()
    one_by_one = state
    for piece in (0, 1):
        rows = jax.tree.map(lambda x, first=piece: x[first::2], whole)
        _, one_by_one = compiled("resnet(widths=(4, 8), blocks=1, classes=5)", True)(params, one_by_one, rows)
    assert_close(new, one_by_one)


def test_a_factored_head_in_pieces_keeps_one_kernel():
    def apply(params, state, rows, *, train, key):
        features = rows["image"].reshape(len(rows["mask"]), -1)
        return Outputs(Factored(features, params["kernel"], None)), state

    params = {"kernel": jnp.ones((64, 3))}
    model = Model(lambda key, rows: (params, {}), apply)
    out, _ = microbatched(model, 4).apply(params, {}, batch(), train=True, key=KEY)
    assert_same(out.logits, model.apply(params, {}, batch(), train=True, key=KEY)[0].logits)


# A flax module of the user


class Own(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.linear = nnx.Linear(64, 5, rngs=rngs)
        self.norm = nnx.BatchNorm(5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, train):
        self.norm.use_running_average = not train
        self.dropout.deterministic = not train
        return self.dropout(self.norm(self.linear(x.reshape(len(x), -1))))


def test_any_flax_module_is_a_model_and_its_dropout_is_drawn_from_the_key_of_each_call():
    model = from_nnx(
        lambda rngs, rows: Own(rngs), lambda module, rows, train, key: Outputs(module(rows["image"], train))
    )
    params, state = jax.jit(model.init)(KEY, batch())
    assert set(params) == {"linear/kernel", "linear/bias", "norm/scale", "norm/bias"} and set(state) == {
        "norm/mean",
        "norm/var",
    }
    apply = jax.jit(model.apply, static_argnames="train")
    once, new = apply(params, state, batch(), train=True, key=KEY)
    assert_same(apply(params, state, batch(), train=True, key=KEY)[0], once)
    assert not np.array_equal(apply(params, state, batch(), train=True, key=jax.random.key(1))[0].logits, once.logits)
    assert not np.array_equal(new["norm/mean"], state["norm/mean"])
    used, same = apply(params, new, batch(), train=False, key=KEY)
    assert_same(same, new)
    by_hand = batch()["image"].reshape(ROWS, -1) @ params["linear/kernel"]
    by_hand = (by_hand - new["norm/mean"]) / jnp.sqrt(new["norm/var"] + 1e-5)
    assert_close(used.logits, by_hand, rtol=1e-4, atol=1e-5)
    assert_close(replace(used, logits=jnp.zeros(())), Outputs(jnp.zeros(())))


def test_one_model_serves_batches_of_unlike_fields_and_sizes():
    model, params, state = built("mlp(widths=(12, 8), classes=5)")
    small = {name: batch()[name][:3] for name in ("image", "mask")}
    out, _ = model.apply(params, state, small, train=False, key=KEY)
    assert_close(out.logits, model.apply(params, state, batch(), train=False, key=KEY)[0].logits[:3])


@pytest.mark.sampled("mlp*")
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    "spec",
    [
        "mlp(widths=(64, 64), classes=10)",
        "resnet(widths=(32, 64, 128), blocks=1, classes=10)",  # wide enough for the sums that XLA miscompiled
        "vit(patch=7, width=32, depth=2, heads=2, classes=10)",
    ],
)
def test_a_family_in_bfloat16_is_close_to_itself_in_float32(spec, train):
    """Check compiled models: XLA on CPU returned 1e36 for a bfloat16 residual sum that was right when run eagerly."""
    model = registry.models.build(spec, "")
    draw = np.random.default_rng(0)
    rows = {"image": draw.integers(0, 255, (64, 28, 28, 1), dtype=np.uint8), "mask": np.ones(64, np.float32)}
    values = model.init(KEY, rows)

    def logits(model, values):
        return model.apply(*values, rows, train=train, key=KEY)[0].logits.astype(jnp.float32)

    want = jax.jit(lambda v: logits(model, v))(values)
    found = jax.jit(lambda v: logits(in_dtype(model, "bfloat16"), v))(values)
    assert float(jnp.abs(found - want).max()) < 0.1 * float(jnp.abs(want).max())


@pytest.mark.parametrize("spec", ["mlp(widths=(12, 8), classes=5)", MODELS["decoder"][0].spec])
def test_a_teacher_of_other_classes_speaks_of_ours(spec):
    """Check that a teacher's classes 2 and 4 become our 0 and 1, and that a class it lacks gets the logit -inf.

    A factored head stays factored.
    """
    model, params, state = built(spec)
    rows = batch(INPUTS[spec])
    say = lambda model: model.apply(params, state, rows, train=False, key=KEY)[0].logits
    theirs, ours = say(model), say(remap_classes(model, (2, 4, -1)))
    assert type(ours) is type(theirs)
    dense = lambda logits: np.asarray(logits.dense() if isinstance(logits, Factored) else logits)
    assert_close(dense(ours)[..., :2], dense(theirs)[..., [2, 4]])
    assert (dense(ours)[..., 2] == -np.inf).all()
    with pytest.raises(ValueError, match="classes names class 5, but the model has only classes 0 to 4"):
        say(remap_classes(model, (5, 0)))
