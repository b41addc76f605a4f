"""Helpers of the steps with a quiz (held-out labelled examples): trained teachers, the quiz loss, partial updates."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdistill.core.interfaces import Model
from jaxdistill.core.sums import Mean, shared_mean
from jaxdistill.core.types import Array, PyTree, TrainState, Variables
from jaxdistill.losses.task.cross_entropy import softmax_cross_entropy
from jaxdistill.steps.learner import Learner


def init_teacher_params(frozen: Sequence[Variables]) -> tuple[PyTree, ...]:
    """Return copies of the teachers' params, the initial value of `TrainState.params["teachers"]`.

    A training step donates (overwrites) the arrays of the train state, so they must not be those of the frozen
    teachers.

    Raises:
        ValueError: no teacher has params.
    """
    if not jax.tree.leaves([values.params for values in frozen]):
        raise ValueError("no teacher has parameters to train; use one that is neither cached nor on a sub-mesh")
    return tuple(jax.tree.map(jnp.copy, values.params) for values in frozen)


def current_teachers(params: Mapping[str, PyTree], frozen: Sequence[Variables]) -> tuple[Variables, ...]:
    """Return the variables of each teacher, with the current params if teachers are trained, else the frozen params.

    Args:
        params: params of the train state; if teachers are trained, `params["teachers"]` has the params of each teacher.
        frozen: the teachers' initial variables. Their state, such as running statistics, never changes.
    """
    by_teacher = params.get("teachers", [values.params for values in frozen])
    return tuple(Variables(trained, values.state) for trained, values in zip(by_teacher, frozen, strict=True))


def cross_entropy_of_rows(model: Model, values: Variables, rows: Mapping[str, Array], key: Array) -> Array:
    """Compute a model's cross-entropy with the label of each example (or token), `[*batch]`, in evaluation mode.

    Args:
        model: the student or a teacher.
        values: the model's variables.
        rows: the arrays of a batch, with `label` and `mask`.
        key: PRNG key of the model.
    """
    out, _ = model.apply(*values, rows, train=False, key=key)
    raw: Any = out.dense().logits
    # select before the loss: a NaN in a masked row would make the gradient NaN
    logits = jnp.where(rows["mask"][..., None] != 0, raw, 0)
    return softmax_cross_entropy(logits, rows["label"])


def quiz_loss(model: Model, values: Variables, rows: Mapping[str, Array], key: Array) -> tuple[Array, Mean]:
    """Compute a model's mean cross-entropy on a batch of labelled examples, in evaluation mode.

    Args:
        model: the student or a teacher.
        values: the model's variables.
        rows: the arrays of the batch, with `label` and `mask`.
        key: PRNG key of the model.

    Returns:
        A tuple of this device's share of the mean, to be differentiated (the sum of its cross-entropies, divided by the
        number of unmasked examples on all devices); and the mean over all devices.
    """
    return shared_mean(cross_entropy_of_rows(model, values, rows, key), rows["mask"])


def update_roles(parts: Learner, ts: TrainState, gradient: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Apply one optimiser update to some entries of `TrainState.params`, and return these entries as a dict.

    Args:
        parts: the functions of the training step, which include the optimiser.
        ts: the train state before the update.
        gradient: gradients of the entries to update, such as `{"student": ...}`. Entries without a gradient are neither
            updated nor returned.
    """
    updated = parts.descend(ts, optax.tree.zeros_like(ts.params) | gradient, {}).params
    return {role: updated[role] for role in gradient}
