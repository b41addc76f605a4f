"""Models: pure functions over flat dictionaries, blind to padding, the same in pieces and almost in bfloat16."""

import functools
from dataclasses import replace

import examples
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from examples import MODELS, all_finite, assert_close, assert_same, every, slow
from flax import nnx

from jaxdistill.core import registry
from jaxdistill.core.collectives import PMAP_AXIS
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.interfaces import Model
from jaxdistill.core.types import Factored, Outputs
from jaxdistill.models.combinators import in_dtype, microbatched, remap_classes
from jaxdistill.models.layers import BatchNorm, dropout, pixels
from jaxdistill.models.nnx import from_nnx

KEY = jax.random.key(0)
ROWS, CLASSES = 8, 5

# Compiling a family is what a law costs: one of each kind of layer is fast.
FAMILIES = pytest.mark.sampled("*mlp*", "*resnet(*", "*decoder*", "*bert*")
ROW_BY_ROW = {name: [e for e in table if e.inputs != "pairs"] for name, table in MODELS.items()}
INPUTS = {example.spec: example.inputs for table in MODELS.values() for example in table}


@functools.cache
def batch(inputs: str = "image"):
    return examples.BATCHES[inputs](rows=ROWS, classes=CLASSES)  # the last 2 rows are padding


def counted_rows(rows):
    return jnp.any(rows["mask"].reshape(ROWS, -1) > 0, axis=1)


@functools.cache
def built(spec: str):
    """A model and its variables."""
    model = registry.models.build(spec, "student.model")
    return model, *jax.jit(model.init)(KEY, batch(INPUTS.get(spec, "image")))


@functools.cache
def compiled(spec: str, train: bool):
    model, *_ = built(spec)

    def dense(params, state, batch):
        out, state = model.apply(params, state, batch, train=train, key=KEY)
        return out.dense(), state

    return jax.jit(dense)


def loss_of(model: Model, state, batch, train: bool = True):
    """A number that depends on everything which the model returns for the rows that count."""

    def loss(params):
        out = model.apply(params, state, batch, train=train, key=KEY)[0].dense()
        counts = lambda x: counted_rows(batch).reshape(-1, *[1] * (x.ndim - 1))
        parts = jax.tree.map(lambda x: jnp.mean(jnp.where(counts(x), jnp.sin(x.astype(jnp.float32)), 0)), out)
        return sum(jax.tree.leaves(parts))

    return loss


@functools.cache
def gradient_of(spec: str):
    """The number and its gradient."""
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
    padding, rows = np.asarray(~counted_rows(rows)), jax.device_get(rows)
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
    odd = jax.tree.map(lambda x: x + 1e-4, state)  # lost in bfloat16
    assert_same(jax.jit(lambda s: half.apply(params, s, batch(example.inputs), train=False, key=KEY)[1])(odd), odd)


@FAMILIES
@every(MODELS)
def test_only_models_with_statistics_have_state(example):
    assert bool(built(example.spec)[2]) == example.statistics


@pytest.mark.sampled("2-mlp*")
@every(ROW_BY_ROW, statistics=False)  # others are those of a piece, and so are pairs
@pytest.mark.parametrize("parts", [2, slow(4)])
def test_a_batch_in_pieces_is_the_whole_batch(example, parts):
    model, params, state = built(example.spec)
    pieces = microbatched(model, parts)
    out, _ = jax.jit(lambda p: pieces.apply(p, state, batch(example.inputs), train=True, key=KEY))(params)
    assert_close(out.dense(), compiled(example.spec, True)(params, state, batch(example.inputs))[0])
    got = jax.jit(jax.value_and_grad(loss_of(pieces, state, batch(example.inputs))))(params)
    assert_close(got, gradient_of(example.spec))


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


# Dropout


def test_dropout_drops_a_share_and_keeps_the_mean():
    x = jnp.ones((64, 1000))
    y = dropout(x, 0.25, train=True, key=KEY)
    assert set(np.unique(y)) == {0.0, np.float32(4 / 3)}
    assert abs((y == 0).mean() - 0.25) < 0.01 and abs(y.mean() - 1) < 0.01
    assert_same(dropout(x, 0.25, train=False, key=KEY), x)
    assert_same(dropout(x, 0.0, train=True, key=KEY), x)
    assert dropout(x.astype(jnp.bfloat16), 0.25, train=True, key=KEY).dtype == jnp.bfloat16


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
    """With kernels of 0 and biases of 1, what a branch adds is its dropout: 0 or 2."""

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
    assert set(np.unique(first)) == set(np.unique(second)) == {0, 2, 4}  # 2: one branch of a block, not both


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
    mask = jnp.asarray([1, 1, 1, 0, 1, 0, 0, 0], jnp.float32)  # the last device has none
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
    assert 270_000 < sum(x.size for x in params.values()) < 276_000  # ours projects its two shortcuts


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
        ("mlp(widths=(0,), classes=5)", "widths must have at least one entry, all positive"),
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


# A module of one's own


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
    """Compiled: XLA on CPU made 1e36 of a residual sum in bfloat16 that was right when run eagerly."""
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
    """Its class 2 is our class 0, its 4 our 1; of our class 2 it knows nothing. The head may stay factored."""
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
