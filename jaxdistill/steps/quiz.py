"""Functions of the steps with a quiz: trained teachers, the loss on the quiz, and updates of single roles."""

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
    """Return the initial params of the role `teachers`, as copies: the train state is donated, the teachers are not.

    Raises:
        ValueError: no teacher has params.
    """
    if not jax.tree.leaves([values.params for values in frozen]):
        raise ValueError("no teacher has parameters to train; use one that is neither cached nor on a sub-mesh")
    return tuple(jax.tree.map(jnp.copy, values.params) for values in frozen)


def current_teachers(params: Mapping[str, PyTree], frozen: Sequence[Variables]) -> tuple[Variables, ...]:
    """Return the teachers' variables with the trained params of the role `teachers`, if there is this role.

    Args:
        params: by role.
        frozen: the teachers that the step gets; their state, such as running statistics, does not change.
    """
    by_teacher = params.get("teachers", [values.params for values in frozen])
    return tuple(Variables(trained, values.state) for trained, values in zip(by_teacher, frozen, strict=True))


def cross_entropy_of_rows(model: Model, values: Variables, rows: Mapping[str, Array], key: Array) -> Array:
    """Compute a model's cross-entropy on each labelled row, `[*batch]`, in evaluation mode."""
    out, _ = model.apply(*values, rows, train=False, key=key)
    raw: Any = out.dense().logits
    # select before the loss: a NaN in a masked row would make the gradient NaN
    logits = jnp.where(rows["mask"][..., None] != 0, raw, 0)
    return softmax_cross_entropy(logits, rows["label"])


def quiz_loss(model: Model, values: Variables, rows: Mapping[str, Array], key: Array) -> tuple[Array, Mean]:
    """Compute a model's mean cross-entropy on labelled rows.

    Returns:
        This device's share of the mean, for differentiation, and the mean over all devices.
    """
    return shared_mean(cross_entropy_of_rows(model, values, rows, key), rows["mask"])


def update_roles(parts: Learner, ts: TrainState, gradient: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Update the roles in `gradient` by one step of their optimisers, and return their new params."""
    updated = parts.descend(ts, optax.tree.zeros_like(ts.params) | gradient, {}).params
    return {role: updated[role] for role in gradient}
