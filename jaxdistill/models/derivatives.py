"""Make a model return its own gradients, for losses that match derivatives.

A loss lists the gradients that it needs in `Term.needs`; the student and the live teachers are then wrapped by
`with_gradients`. A cached teacher has no gradients.

Gradients are vector-Jacobian products (`jax.vjp`): one forward pass, and one backward pass for each kind of gradient.
The Jacobian, `[classes, inputs]`, is never formed. To differentiate with respect to a hidden state, a tensor of zeros
(a nudge) is added to that state, and the gradient with respect to the nudge is taken (`layers.nudged`).

If a model normalises over its batch, the rows interact: a row's gradient then includes the effect of its input on the
logits of other rows, as in automatic differentiation of the whole batch. The backward pass has the rounding of the
model's dtype. bfloat16 has the range of float32, so gradients do not underflow or overflow, and losses cast what they
compare to float32.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill.core.collectives import by_rows, row_keys
from jaxdistill.core.interfaces import Model
from jaxdistill.core.jaxpr import mentioned_inputs
from jaxdistill.core.types import Array, Outputs
from jaxdistill.losses.task.cross_entropy import softmax_cross_entropy
from jaxdistill.models.combinators import microbatched
from jaxdistill.models.layers import pixels

GRADIENTS = frozenset({"input_gradients", "state_gradients"})
DIRECTION_KEY = 0x6A61636F  # folded into the key, so that other random values of the step do not change

Inputs = Mapping[str, Array]  # the batch fields with respect to which gradients are taken
Forward = Callable[[Inputs], tuple[Array, Any]]  # inputs -> (logits, (outputs, new state))


def with_gradients(model: Model, needs: frozenset[str], microbatches: int = 1) -> Model:
    """Make a model return the gradients that losses need, and run it in microbatches (`microbatched`).

    `input_gradients`: `J^T v` for each row. J is the Jacobian of the logits with respect to the row's input, and v is a
    random direction, uniform on the unit sphere over the classes. Each row (token) has its own direction in each step,
    which is the same for all models that are called with the same key. The input is `image` with values from -1 to 1,
    so a user's own module must pass the image through `pixels` or read such values. For a text, the input is the
    embedding.

    `state_gradients`: for each hidden state, the gradient of the row's cross-entropy with its `label`. The loss is
    summed, not averaged, so that a row's gradient does not depend on the size of the batch.

    Both are 0 for rows that the mask excludes.

    Args:
        model: a model that is not yet split into microbatches. Each microbatch computes its own gradients; otherwise
            the backward pass would keep the activations that microbatches are meant to save.
        needs: `Term.needs` of all losses; entries that are not in `GRADIENTS` are ignored.
        microbatches: number of microbatches.
    """
    wanted = needs & GRADIENTS
    wrapped = _differentiate(model, wanted) if wanted else model
    wrapped = microbatched(wrapped, microbatches) if microbatches > 1 else wrapped
    return _with_direction_keys(wrapped) if "input_gradients" in wanted else wrapped


def _with_direction_keys(model: Model) -> Model:
    """Add a key for the random direction of each row to the batch.

    The keys are made before the batch is split, so that microbatches use the directions of the whole batch.
    """

    def apply(params, state, batch, *, train, key):
        keys = row_keys(jax.random.fold_in(key, DIRECTION_KEY), batch["mask"].shape[0])
        return model.apply(params, state, {**batch, "direction": keys}, train=train, key=key)

    return model._replace(apply=apply)


def _differentiate(model: Model, wanted: frozenset[str]) -> Model:
    """Wrap a model so that its outputs include the wanted gradients."""

    def apply(params, state, batch, *, train, key):
        rows = {name: x for name, x in batch.items() if name != "direction"}

        def forward(inputs: Inputs) -> tuple[Array, Any]:
            out, new_state = model.apply(params, state, {**rows, **inputs}, train=train, key=key)
            return _dense_logits(out), (out, new_state)

        input_name, inputs = _differentiable_inputs(forward, rows, wanted)
        logits, backward, (out, state) = jax.vjp(forward, inputs, has_aux=True)
        if "input_gradients" in wanted:
            (gradients,) = backward(_directions(batch["direction"], logits, rows["mask"]))
            out = replace(out, input_gradients=gradients[input_name])
        if "state_gradients" in wanted:
            (gradients,) = backward(_loss_gradients(logits, rows))
            out = replace(out, state_gradients=tuple(gradients[_nudge(n)] for n in range(len(out.hidden_states))))
        return out, state

    return model._replace(apply=apply)


def _differentiable_inputs(
    forward: Forward, rows: Mapping[str, Array], wanted: frozenset[str]
) -> tuple[str, dict[str, Array]]:
    """Return the name of the input field, and all fields with respect to which gradients are taken.

    Raises:
        ValueError: the model has no differentiable input, or its logits do not depend on one of the fields, so that
            its gradient would silently be zero.
    """
    states = jax.eval_shape(forward, {})[1][0].hidden_states
    nudges = {_nudge(n): jnp.zeros(x.shape, jnp.float32) for n, x in enumerate(states)}
    inputs, input_name = dict(nudges) if "state_gradients" in wanted else {}, ""
    if "input_gradients" in wanted:
        image = {"image": pixels(rows["image"], jnp.dtype("float32"))} if "image" in rows else {}
        input_name = "image" if image and not _unused(forward, image) else _nudge(0)
        if input_name not in image | nudges:
            raise ValueError("input gradients need an image or an embedding, and the model has neither")
        inputs[input_name] = (image | nudges)[input_name]
    if unused := _unused(forward, inputs):
        cure = "pass each hidden state through jaxdistill.nudged, in the order in which they are returned"
        raise ValueError(f"the model does not read {', '.join(unused)}, so hidden states have no gradient; {cure}")
    return input_name, inputs


def _unused(forward: Forward, inputs: Inputs) -> list[str]:
    """List the inputs that do not occur in the model's program (its jaxpr)."""
    (used,) = mentioned_inputs(lambda inputs: forward(inputs)[0], dict(inputs))
    return [name for name in sorted(inputs) if not used[name]]


def _nudge(layer: int) -> str:
    return f"nudge/{layer}"


def _dense_logits(out: Outputs) -> Array:
    """Return the logits as one array in float32 or more, `[*batch, classes]`."""
    logits: Any = out.dense().logits
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def _directions(keys: Array, logits: Array, mask: Array) -> Array:
    """Sample a random direction per row or token, uniform on the unit sphere, `[*batch, classes]`; 0 where masked.

    Args:
        keys: one key per row, `[batch]`.
        logits: `[*batch, classes]`, for shape and dtype.
        mask: `[batch]` or `[*batch]`.
    """
    normal = by_rows(jax.vmap(lambda key: jax.random.normal(key, logits.shape[1:], logits.dtype))(keys))
    unmasked = mask.reshape(mask.shape + (1,) * (logits.ndim - mask.ndim)) != 0
    return jnp.where(unmasked, normal / jnp.linalg.norm(normal, axis=-1, keepdims=True), 0.0)


def _loss_gradients(logits: Array, rows: Mapping[str, Array]) -> Array:
    """Compute the gradient of each row's cross-entropy in its logits, `[*batch, classes]`; 0 where masked."""
    if "label" not in rows:
        raise ValueError(f"gradients of the task loss need the field label; the batch has {', '.join(sorted(rows))}")
    losses, backward = jax.vjp(lambda logits: softmax_cross_entropy(logits, rows["label"]), logits)
    # A label outside the classes gives a loss of NaN, but a finite gradient: make the gradient NaN too
    gradients = jnp.where(jnp.isnan(losses)[..., None], jnp.nan, backward(jnp.ones_like(losses))[0])
    return jnp.where(rows["mask"][..., None] != 0, gradients, 0.0)
