"""Models that return gradients of themselves: against JAX's own, for every family, and the same on every layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import BATCHES, MODELS, assert_close, every, quick_jit

from jaxdistill import registry
from jaxdistill.models.combinators import microbatched
from jaxdistill.models.derivatives import with_input_gradients, with_needed, with_state_gradients
from jaxdistill.models.layers import pixels
from jaxdistill.types import Outputs

KEY = jax.random.key(3)


def world(spec: str, inputs: str = "image"):
    model, batch = registry.models.build(spec, ""), BATCHES[inputs]()
    return model, batch, quick_jit(model.init)(jax.random.key(0), batch)


def said(model, variables, batch, train=False) -> Outputs:
    return quick_jit(lambda v, b: model.apply(*v, b, train=train, key=KEY)[0].dense())(variables, batch)


@every(MODELS)
def test_gradients_with_respect_to_hidden_states_are_those_of_what_follows(example):
    """What a nudge adds to a hidden state is read on, and moves the loss by the gradient's share of it."""
    model, batch, variables = world(example.spec, example.inputs)
    plain, out = said(model, variables, batch), said(with_state_gradients(model), variables, batch)
    assert_close((out.logits, out.hidden_states), (plain.logits, plain.hidden_states), rtol=1e-4, atol=1e-5)
    assert [x.shape for x in out.state_gradients] == [x.shape for x in out.hidden_states]
    draw, none = np.random.default_rng(1), {f"nudge/{n}": jnp.zeros(x.shape) for n, x in enumerate(out.hidden_states)}

    def loss(nudges):
        found = model.apply(*variables, batch | nudges, train=False, key=KEY)[0].dense()
        own = -jnp.take_along_axis(jax.nn.log_softmax(found.logits), batch["label"][..., None], -1)[..., 0]
        return jnp.sum(own * batch["mask"]), found.hidden_states

    moved = quick_jit(lambda along: jax.jvp(loss, (none,), (none | along,)))
    for layer in (0, len(out.hidden_states) - 1):
        along = jnp.asarray(draw.normal(size=out.hidden_states[layer].shape), jnp.float32)
        _, (change, states) = moved({f"nudge/{layer}": along})
        assert_close(states[layer], along)
        np.testing.assert_allclose(change, jnp.vdot(out.state_gradients[layer], along), rtol=1e-3, atol=1e-5)
    real = np.asarray(batch["mask"]) != 0
    for gradient in out.state_gradients:
        padding = np.asarray(gradient)[~real.reshape(len(real), -1).any(1)]
        assert not padding.any() and np.asarray(gradient).any()


def test_input_gradients_are_the_jacobian_times_one_direction_for_each_row():
    model, batch, variables = world("mlp(widths=(64, 64), classes=5)")  # wide: with few live units v is not determined
    out = said(with_input_gradients(model), variables, batch)
    image = pixels(batch["image"], jnp.dtype("float32"))
    one = lambda x: model.apply(*variables, {"image": x[None]}, train=False, key=KEY)[0].logits[0]
    jacobian = jax.vmap(jax.jacrev(one))(image).reshape(8, 5, -1)
    assert out.input_gradients.shape == image.shape
    gradients = out.input_gradients.reshape(8, -1)
    v, *_ = jax.vmap(jnp.linalg.lstsq)(jnp.swapaxes(jacobian, 1, 2), gradients)
    assert_close(jnp.einsum("bc,bcx->bx", v, jacobian), gradients, rtol=1e-3, atol=1e-5)
    assert_close(jnp.linalg.norm(v, axis=-1), np.ones(8), rtol=1e-3)
    assert np.abs(v - v[:1]).max() > 0.1  # a direction for each row


def test_student_and_teacher_are_asked_along_the_same_direction():
    """Of a network and its double in pieces, equal gradients: the direction depends on the step's key and the row."""
    model, batch, variables = world("vit(patch=4, width=8, depth=2, heads=2, classes=5)")
    whole, pieces = (
        said(with_input_gradients(m), variables, batch, train=True) for m in (model, microbatched(model, 2))
    )
    assert_close(pieces.input_gradients, whole.input_gradients, rtol=1e-4, atol=1e-6)
    assert np.abs(whole.input_gradients).max() > 1e-3


def test_of_a_text_the_input_is_its_embedding():
    spec = "bert(vocabulary=13, width=8, depth=2, heads=2, ffn=16, classes=5)"
    model, batch, variables = world(spec, "text")
    out = said(with_input_gradients(model), variables, batch)
    assert out.input_gradients.shape == out.hidden_states[0].shape
    real = np.asarray(batch["attention_mask"]) > 0
    assert not np.asarray(out.input_gradients)[~real].any() and np.asarray(out.input_gradients)[real].any()


@pytest.mark.parametrize("needs", [frozenset({"input_gradients"}), frozenset({"state_gradients"})])
def test_what_a_term_needs_is_learned_from(needs):
    """The student's parameters have a gradient through its own gradients."""
    model, batch, variables = world("mlp(widths=(12, 8), classes=5)")
    wrapped = with_needed(model, needs)

    def loss(params):
        out = wrapped.apply(params, variables[1], batch, train=True, key=KEY)[0]
        found = out.input_gradients if out.input_gradients is not None else out.state_gradients
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(found))

    slope = quick_jit(jax.grad(loss))(variables[0])
    assert all(np.isfinite(x).all() for x in slope.values()) and slope["layers/0/kernel"].any()
    assert with_needed(model, frozenset({"teacher"})) is model
