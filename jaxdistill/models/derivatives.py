"""Make a model return gradients of its logits or of its task loss, for losses that match derivatives.

A loss lists the gradients that it needs in `Term.needs`. The student and the teachers that run during training are then
wrapped by `with_gradients`. A teacher whose outputs come from a cache has no gradients.

Gradients are vector-Jacobian products (`jax.vjp`): one forward pass, and one backward pass for each kind of gradient.
The Jacobian, `[classes, inputs]`, is never formed. To differentiate with respect to a hidden state, a tensor of zeros
(a nudge) is added to that state, and the gradient with respect to the nudge is taken (`layers.nudged`).

If a model normalises over its batch, the examples interact: the gradient of an example then includes the effect of its
input on the logits of the other examples. The backward pass is rounded to the model's dtype. The gradients do not
underflow or overflow in bfloat16, which has the range of float32. Losses cast them to float32.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill.core.collectives import by_rows, row_keys
from jaxdistill.core.interfaces import Model
from jaxdistill.core.jaxpr import mentioned_inputs
from jaxdistill.core.types import Array, Key, Outputs, Params, RowsLike, State
from jaxdistill.losses.task.cross_entropy import softmax_cross_entropy
from jaxdistill.models.combinators import microbatched
from jaxdistill.models.layers import pixels

GRADIENTS = frozenset({"input_gradients", "state_gradients"})
DIRECTION_KEY = 0x6A61636F  # folded into the key, so that other random values of the step do not change

Inputs = Mapping[str, Array]  # the batch fields with respect to which gradients are taken
Forward = Callable[[Inputs], tuple[Array, Any]]  # inputs -> (logits, (outputs, new state))


def with_gradients(model: Model, needs: frozenset[str], microbatches: int = 1) -> Model:
    """Make a model also return the gradients that losses need, and run it in microbatches.

    `Outputs.input_gradients` is `J^T v` for each example, where J is the Jacobian of the logits with respect to the
    input of the model, and v a random unit vector over the classes. Each example (or token) has a new v in each step;
    models that are called with the same random key use the same v. The input is the batch field `image` in float32,
    with uint8 images scaled to -1..1, so your own module must accept such images. If the model reads no image, the
    input is the first hidden state, which is the token embedding of a text model.

    `Outputs.state_gradients` has, for each hidden state, the gradient of the cross-entropy with the field `label`. The
    cross-entropy is summed over the batch, so that the gradient of an example does not depend on the batch size.

    Both gradients are 0 for examples (or tokens) that the batch field `mask` excludes.

    Args:
        model: a model that is not split into microbatches yet. The gradients are computed in each microbatch, so that
            the activations of only one microbatch are in memory.
        needs: names of required outputs, the union of `Term.needs` of all loss terms; names other than
            `input_gradients` and `state_gradients` are ignored.
        microbatches: number of microbatches.
    """
    wanted = needs & GRADIENTS
    wrapped = _differentiate(model, wanted) if wanted else model
    wrapped = microbatched(wrapped, microbatches) if microbatches > 1 else wrapped
    return _with_direction_keys(wrapped) if "input_gradients" in wanted else wrapped


def _with_direction_keys(model: Model) -> Model:
    """Make a model draw one random key per example, which selects the random direction of its input gradient.

    The keys are added to the batch as the field `direction`. This happens before the batch is split into microbatches,
    so that the directions do not depend on the number of microbatches.
    """

    def apply(params: Params, state: State, batch: RowsLike, *, train: bool, key: Key) -> tuple[Outputs[Any], State]:
        keys = row_keys(jax.random.fold_in(key, DIRECTION_KEY), batch["mask"].shape[0])
        return model.apply(params, state, {**batch, "direction": keys}, train=train, key=key)

    return model._replace(apply=apply)


def _differentiate(model: Model, wanted: frozenset[str]) -> Model:
    """Make a model also return the wanted gradients; `wanted` is a subset of `GRADIENTS`."""

    def apply(params: Params, state: State, batch: RowsLike, *, train: bool, key: Key) -> tuple[Outputs[Any], State]:
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
    """Select the fields to differentiate with respect to: the image, and the nudges (zeros added to hidden states).

    Args:
        forward: the model's forward pass as a function of such fields.
        rows: the batch.
        wanted: the wanted gradients, a subset of `GRADIENTS`.

    Returns:
        The name of the field for `input_gradients` ("" if not wanted), and the values of all selected fields by name.

    Raises:
        ValueError: the model has no differentiable input, or it does not read a selected field, whose gradient would
            then be zero without notice.
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
    """List the names of inputs that no equation of the forward pass (its jaxpr) reads."""
    (used,) = mentioned_inputs(lambda inputs: forward(inputs)[0], dict(inputs))
    return [name for name in sorted(inputs) if not used[name]]


def _nudge(layer: int) -> str:
    return f"nudge/{layer}"


def _dense_logits(out: Outputs) -> Array:
    """Return the logits as one array in float32 or higher precision, `[*batch, classes]`."""
    logits: Any = out.dense().logits
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def _directions(keys: Array, logits: Array, mask: Array) -> Array:
    """Sample a unit vector over the classes for each example or token, `[*batch, classes]`; 0 where `mask` is 0.

    Args:
        keys: one random key per example, `[batch]`.
        logits: the logits, `[*batch, classes]`, of which only shape and dtype are used.
        mask: 0 for excluded examples, `[batch]`, or tokens, `[*batch]`.
    """
    normal = by_rows(jax.vmap(lambda key: jax.random.normal(key, logits.shape[1:], logits.dtype))(keys))
    unmasked = mask.reshape(mask.shape + (1,) * (logits.ndim - mask.ndim)) != 0
    return jnp.where(unmasked, normal / jnp.linalg.norm(normal, axis=-1, keepdims=True), 0.0)


def _loss_gradients(logits: Array, rows: Mapping[str, Array]) -> Array:
    """Compute the gradient of the cross-entropy with `rows["label"]` with respect to the logits, `[*batch, classes]`.

    The gradient is 0 where `rows["mask"]` is 0.
    """
    if "label" not in rows:
        raise ValueError(f"gradients of the task loss need the field label; the batch has {', '.join(sorted(rows))}")
    losses, backward = jax.vjp(lambda logits: softmax_cross_entropy(logits, rows["label"]), logits)
    # A label outside the classes gives a loss of NaN, but a finite gradient: make the gradient NaN too
    gradients = jnp.where(jnp.isnan(losses)[..., None], jnp.nan, backward(jnp.ones_like(losses))[0])
    return jnp.where(rows["mask"][..., None] != 0, gradients, 0.0)
