"""Models that also return gradients of themselves, for terms that match derivatives: from Model to Model.

Both are one backward pass, by vjp: the Jacobian of classes times inputs is never formed. A term says in its `needs`
what it wants, and student and living teachers are wrapped; a cached teacher has no gradients.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill.models.layers import pixels
from jaxdistill.parallel.collectives import row_keys
from jaxdistill.types import Array, Factored, Model, Outputs, PyTree

DIRECTION = 0x6A61636F  # what the direction is keyed by: other draws of a step are not disturbed


def with_input_gradients(model: Model) -> Model:
    """Adds `input_gradients`: for each row `J^T v`, J being the logits' Jacobian in its input and v a random direction.

    `v` is uniform on the unit sphere over the classes, one for each row and step, and the same for every model that is
    called with the same key: over the steps, matching `J^T v` matches J (Czarnecki et al., Sobolev training, 2017,
    arxiv.org/abs/1706.04859). The input is `image`, as numbers from -1 to 1; of a text it is the embedding.
    """

    def apply(params, state, batch, *, train, key):
        read = lambda given: model.apply(params, state, batch | given, train=train, key=key)
        said, _ = jax.eval_shape(read, {})
        if "image" in batch:
            name, start = "image", pixels(batch["image"], jnp.dtype("float32"))
        else:
            embedding = said.hidden_states[0]
            name, start = "nudge/0", jnp.zeros(embedding.shape, embedding.dtype)
        direction = _directions(key, said.logits.shape)

        def mixture(x: Array) -> tuple[Array, Any]:
            out, new_state = read({name: x})
            return jnp.sum(direction * _logits(out)), (out, new_state)

        gradient, (out, state) = jax.grad(mixture, has_aux=True)(start)
        return replace(out, input_gradients=gradient), state

    return model._replace(apply=apply)


def _directions(key: Array, shape: tuple[int, ...]) -> Array:
    keys = row_keys(jax.random.fold_in(key, DIRECTION), shape[0])
    drawn = jax.vmap(lambda each: jax.random.normal(each, shape[1:]))(keys)
    return drawn / jnp.linalg.norm(drawn, axis=-1, keepdims=True)


def with_state_gradients(model: Model) -> Model:
    """Adds `state_gradients`: for each hidden state, the gradient of the row's own cross-entropy with its label.

    The loss is summed and not averaged, so that a row's gradient does not depend on the batch; rows that do not count
    have none.
    """

    def apply(params, state, batch, *, train, key):
        read = lambda nudges: model.apply(params, state, batch | _named(nudges), train=train, key=key)
        states = jax.eval_shape(lambda: model.apply(params, state, batch, train=train, key=key))[0].hidden_states

        def task(nudges: tuple[Array, ...]) -> tuple[Array, Any]:
            out, new_state = read(nudges)
            return _summed_loss(out, batch), (out, new_state)

        zeros = tuple(jnp.zeros(x.shape, x.dtype) for x in states)
        gradients, (out, state) = jax.grad(task, has_aux=True)(zeros)
        return replace(out, state_gradients=gradients), state

    return model._replace(apply=apply)


def _logits(out: Outputs) -> Array:
    logits = out.logits.dense() if isinstance(out.logits, Factored) else out.logits
    return logits.astype(jnp.float32)


def _named(nudges: tuple[Array, ...]) -> dict[str, Array]:
    return {f"nudge/{layer}": nudge for layer, nudge in enumerate(nudges)}


def _summed_loss(out: Outputs, batch: PyTree) -> Array:
    log_q = jax.nn.log_softmax(_logits(out))
    loss = -jnp.take_along_axis(log_q, batch["label"][..., None], axis=-1)[..., 0]
    return jnp.sum(jnp.where(batch["mask"] != 0, loss, 0.0))


NEEDED = {"input_gradients": with_input_gradients, "state_gradients": with_state_gradients}


def with_needed(model: Model, needs: frozenset[str]) -> Model:
    """The model with all gradients that terms need."""
    for need, wrap in NEEDED.items():
        model = wrap(model) if need in needs else model
    return model
