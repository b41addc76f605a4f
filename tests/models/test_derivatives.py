"""Tests of `with_gradients`: input and hidden-state gradients of every family, microbatches, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import BATCHES
from checks import assert_close, assert_same
from examples import MODELS, every, slow
from flax import nnx

from jaxdistill import nudged
from jaxdistill.core import registry
from jaxdistill.core.types import Outputs
from jaxdistill.models.combinators import in_dtype
from jaxdistill.models.derivatives import with_gradients
from jaxdistill.models.layers import pixels
from jaxdistill.models.nnx import from_nnx

KEY = jax.random.key(3)
INPUT, STATES = frozenset({"input_gradients"}), frozenset({"state_gradients"})
MLP = "mlp(widths=(64, 64), classes=5)"  # wide: few active units would not determine a direction
BERT = "bert(vocabulary=13, width=8, depth=2, heads=2, ffn=16, classes=5)"
DECODER = "decoder(vocabulary=5, width=8, depth=2, heads=2, kv_heads=1, head_size=4, ffn=12)"
VIT = "vit(patch=4, width=8, depth=2, heads=2, classes=5)"


def world(spec: str, inputs: str = "image"):
    model, batch = registry.models.build(spec, ""), BATCHES[inputs]()
    return model, batch, jax.jit(model.init)(jax.random.key(0), batch)


def said(model, variables, batch, train=False) -> Outputs:
    return jax.jit(lambda v, b: model.apply(*v, b, train=train, key=KEY)[0].dense())(variables, batch)


@pytest.mark.sampled("mlp*", "resnet(*")
@every(MODELS)
def test_gradients_with_respect_to_hidden_states_are_those_of_what_follows(example):
    """Check that the gradient predicts the change of the loss when a vector (a nudge) is added to a hidden state."""
    model, batch, variables = world(example.spec, example.inputs)
    if "image" in batch:
        batch["image"] = (64 * batch["image"] + 128).astype(jnp.uint8)
    plain, out = said(model, variables, batch), said(with_gradients(model, INPUT | STATES), variables, batch)
    assert_close((out.logits, out.hidden_states), (plain.logits, plain.hidden_states), rtol=1e-4, atol=1e-5)
    assert out.input_gradients.shape == (batch.get("image", out.hidden_states[0])).shape
    assert [x.shape for x in out.state_gradients] == [x.shape for x in out.hidden_states]
    draw, none = np.random.default_rng(1), {f"nudge/{n}": jnp.zeros(x.shape) for n, x in enumerate(out.hidden_states)}

    def loss(nudges):
        found = model.apply(*variables, batch | nudges, train=False, key=KEY)[0].dense()
        own = -jnp.take_along_axis(jax.nn.log_softmax(found.logits), batch["label"][..., None], -1)[..., 0]
        return jnp.sum(own * batch["mask"]), found.hidden_states

    moved = jax.jit(lambda along: jax.jvp(loss, (none,), (none | along,)))
    for layer in (0, len(out.hidden_states) - 1):
        along = jnp.asarray(draw.normal(size=out.hidden_states[layer].shape), jnp.float32)
        _, (change, states) = moved({f"nudge/{layer}": along})
        assert_close(states[layer], along)
        np.testing.assert_allclose(change, jnp.vdot(out.state_gradients[layer], along), rtol=1e-3, atol=1e-5)
    real = np.asarray(batch["mask"]).reshape(8, -1).any(1)
    for gradient in (out.input_gradients, *out.state_gradients):
        assert not np.asarray(gradient)[~real].any() and np.asarray(gradient)[real].any()


def test_input_gradients_are_the_jacobian_times_one_direction_for_each_row():
    model, batch, variables = world(MLP)
    batch["mask"] = jnp.ones(8)
    out = said(with_gradients(model, INPUT), variables, batch)
    image = pixels(batch["image"], jnp.dtype("float32"))
    one = lambda x: model.apply(*variables, {"image": x[None]}, train=False, key=KEY)[0].logits[0]
    jacobian = jax.vmap(jax.jacrev(one))(image).reshape(8, 5, -1)
    assert out.input_gradients.shape == image.shape
    gradients = out.input_gradients.reshape(8, -1)
    v, *_ = jax.vmap(jnp.linalg.lstsq)(jnp.swapaxes(jacobian, 1, 2), gradients)
    assert_close(jnp.einsum("bc,bcx->bx", v, jacobian), gradients, rtol=1e-3, atol=1e-5)
    assert_close(jnp.linalg.norm(v, axis=-1), np.ones(8), rtol=1e-3)
    assert np.abs(v - v[:1]).max() > 0.1  # each row has its own direction


@pytest.mark.slow
def test_in_pieces_a_student_is_asked_along_the_same_directions_as_its_teacher():
    """Check that the random direction of a row depends on the step's key and the row, not on its microbatch."""
    model, batch, variables = world(VIT)
    whole, pieces = (said(with_gradients(model, INPUT | STATES, n), variables, batch, train=True) for n in (1, 2))
    assert_close(pieces, whole, rtol=1e-4, atol=1e-6)
    assert np.abs(whole.input_gradients).max() > 1e-3


@pytest.mark.slow
def test_pieces_save_memory_where_a_term_learns_from_gradients_too():
    """Check that 8 microbatches need less temporary memory; gradients of the whole batch would keep all activations."""
    model = registry.models.build("vit(patch=4, width=16, depth=1, heads=2, classes=5)", "")
    batch = {"image": jnp.zeros((32, 16, 16, 1)), "mask": jnp.ones(32)}
    params, state = jax.eval_shape(model.init, KEY, batch)

    def temporaries(pieces: int) -> int:
        asked = with_gradients(model, INPUT, pieces)
        loss = lambda p: jnp.sum(asked.apply(p, state, batch, train=True, key=KEY)[0].input_gradients ** 2)
        return jax.jit(jax.grad(loss)).lower(params).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(8) < 0.3 * temporaries(1)


def test_of_a_text_the_input_is_its_embedding_whatever_else_the_batch_holds():
    model, batch, variables = world(BERT, "text")
    out = said(with_gradients(model, INPUT), variables, batch)
    assert out.input_gradients.shape == out.hidden_states[0].shape
    real = np.asarray(batch["attention_mask"] * batch["mask"][:, None]) > 0
    assert not np.asarray(out.input_gradients)[~real].any() and np.asarray(out.input_gradients)[real].any()
    beside = said(with_gradients(model, INPUT), variables, batch | {"image": jnp.ones((8, 4, 4, 1))})
    assert_same(beside, out)


@pytest.mark.slow
def test_both_kinds_of_gradient_at_once_are_each_of_them_alone():
    """Check that asking for both kinds changes neither; for a text, both are taken with respect to the embedding."""
    model, batch, variables = world(BERT, "text")
    both, inputs, states = (said(with_gradients(model, n), variables, batch) for n in (INPUT | STATES, INPUT, STATES))
    assert_close(both.input_gradients, inputs.input_gradients)
    assert_close(both.state_gradients, states.state_gradients)
    assert all(np.asarray(x).any() for x in states.state_gradients)


def test_what_tokens_that_do_not_count_hold_changes_no_gradient_of_those_before_them():
    """Check that masked tokens of a decoder, which attend to earlier real tokens, do not change their gradients."""
    model, batch, variables = world(DECODER, "tokens")
    counts = batch["mask"] > 0
    other = batch | {"input_ids": jnp.where(counts, batch["input_ids"], (batch["input_ids"] + 1) % 5)}
    asked = with_gradients(model, INPUT | STATES)
    found, changed = (said(asked, variables, rows) for rows in (batch, other))
    assert_close(changed.input_gradients, found.input_gradients)
    assert_close(changed.state_gradients, found.state_gradients)
    assert np.abs(found.logits - changed.logits).max() > 0.1


def test_padding_changes_no_gradient_where_a_model_normalises_by_its_batch():
    model, batch, variables = world("resnet(widths=(4, 8), blocks=1, classes=5)")
    other = batch | {"image": jnp.where(batch["mask"].reshape(-1, 1, 1, 1) > 0, batch["image"], 7.0)}
    found, changed = (said(with_gradients(model, INPUT), variables, rows, train=True) for rows in (batch, other))
    assert_close(changed.input_gradients, found.input_gradients)


@pytest.mark.slow
def test_gradients_of_a_bfloat16_model_are_those_of_the_float32_one_up_to_its_rounding():
    model, batch, variables = world(VIT)
    whole = said(with_gradients(model, INPUT | STATES), variables, batch)
    halves = said(with_gradients(in_dtype(model, "bfloat16"), INPUT | STATES), variables, batch)
    assert halves.logits.dtype == jnp.bfloat16
    for x, y in zip(
        (halves.input_gradients, *halves.state_gradients), (whole.input_gradients, *whole.state_gradients), strict=True
    ):
        assert x.dtype == jnp.float32
        assert np.abs(x - y).max() < 0.05 * np.abs(y).max()


@pytest.mark.parametrize("needs", [INPUT, slow(STATES)])
def test_what_a_term_needs_is_learned_from(needs):
    """Check the gradient of a loss on gradients, with respect to the parameters, against finite differences."""
    model, batch, variables = world(VIT)
    wrapped = with_gradients(model, needs)

    def loss(params):
        out = wrapped.apply(params, variables[1], batch, train=True, key=KEY)[0]
        found = out.input_gradients if out.input_gradients is not None else out.state_gradients
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(found))

    slope = jax.jit(jax.grad(loss))(variables[0])
    draw = np.random.default_rng(0)
    along = {name: jnp.asarray(draw.normal(size=x.shape), jnp.float32) for name, x in variables[0].items()}
    moved = lambda size: jax.jit(loss)(jax.tree.map(lambda x, d: x + size * d, variables[0], along))
    expected = (moved(1e-3) - moved(-1e-3)) / 2e-3
    np.testing.assert_allclose(sum(jnp.vdot(slope[n], along[n]) for n in along), expected, rtol=2e-2)
    assert with_gradients(model, frozenset({"teacher"})) is model


class Own(nnx.Module):
    """A user's flax module; `nudge` says whether its hidden state is passed through `nudged`."""

    def __init__(self, rngs, nudge: bool):
        self.first, self.second, self.nudge = nnx.Linear(64, 6, rngs=rngs), nnx.Linear(6, 5, rngs=rngs), nudge

    def __call__(self, batch):
        x = jax.nn.tanh(self.first(batch["image"].reshape(-1, 64)))
        x = nudged(x, batch, 0) if self.nudge else x
        return Outputs(self.second(x), (x,))


def test_a_model_whose_hidden_states_have_no_gradient_is_refused():
    """Check that models without nudges or images are refused, as their gradients would be 0 and teach nothing."""
    batch = BATCHES["image"]()
    for nudge in (True, False):
        model = from_nnx(lambda rngs, batch, n=nudge: Own(rngs, n), lambda m, batch, train, key: m(batch))
        variables = jax.jit(model.init)(KEY, batch)
        asked = with_gradients(model, STATES)
        if nudge:
            assert np.asarray(said(asked, variables, batch).state_gradients[0]).any()
        else:
            with pytest.raises(ValueError, match=r"does not read nudge/0.*jaxdistill\.nudged"):
                said(asked, variables, batch)
    call = lambda m, batch, train, key: Outputs(m(batch | {"image": batch["pixels"]}).logits)
    blind = from_nnx(lambda rngs, batch: Own(rngs, True), call)
    with pytest.raises(ValueError, match="need an image or an embedding"):
        said(with_gradients(blind, INPUT), variables, {"pixels": batch["image"], "mask": batch["mask"]})


def test_a_label_that_is_no_class_makes_the_gradients_of_its_row_nan():
    """Check that label -1, which would index the last class, gives NaN, but 0 where the row is padding."""
    model, batch, variables = world(MLP)
    batch["label"] = jnp.asarray([-1, *batch["label"][1:-1], -1])
    last = said(with_gradients(model, STATES), variables, batch).state_gradients[-1]
    assert np.isnan(last[0]).all() and np.isfinite(last[1:]).all() and not np.asarray(last[-1]).any()


def test_gradients_of_the_task_need_its_label():
    model, batch, variables = world(MLP)
    del batch["label"]
    with pytest.raises(ValueError, match="need the field label; the batch has image, mask"):
        said(with_gradients(model, STATES), variables, batch)
