"""What steps with a quiz share: teachers that learn, what the quiz says of a model, and who moves first."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdistill.core.sums import Mean, shared_mean
from jaxdistill.core.types import Array, Model, PyTree, TrainState, Variables
from jaxdistill.losses.task.cross_entropy import softmax_cross_entropy
from jaxdistill.steps.learner import Learner


def begun(frozen: Sequence[Variables]) -> tuple[PyTree, ...]:
    """The first params of the role `teachers`: copies, for the train state is donated and its teachers are not.

    Raises:
        ValueError: no teacher has params.
    """
    if not jax.tree.leaves([values.params for values in frozen]):
        raise ValueError(
            "no teacher has parameters that could learn; name one that is neither cached nor on a sub-mesh"
        )
    return tuple(jax.tree.map(jnp.copy, values.params) for values in frozen)


def evolved(params: Mapping[str, PyTree], frozen: Sequence[Variables]) -> tuple[Variables, ...]:
    """The teachers as they are by now; where the step keeps none, as they were. They run as in evaluation.

    Args:
        params: by role.
        frozen: the teachers that the step was given; their state, such as running statistics, stays.
    """
    kept = params.get("teachers", [values.params for values in frozen])
    return tuple(Variables(own, values.state) for own, values in zip(kept, frozen, strict=True))


def surprise(model: Model, values: Variables, rows: Mapping[str, Array], key: Array) -> Array:
    """A model's cross-entropy on each labelled row, `[*batch]`, as in evaluation."""
    out, _ = model.apply(*values, rows, train=False, key=key)
    said: Any = out.dense().logits
    # selected first: the gradient of a NaN in a row that does not count would be one
    logits = jnp.where(rows["mask"][..., None] != 0, said, 0)
    return softmax_cross_entropy(logits, rows["label"])


def examined(model: Model, values: Variables, rows: Mapping[str, Array], key: Array) -> tuple[Array, Mean]:
    """A model's cross-entropy on labelled rows: this device's share of it, to be differentiated, and the whole mean."""
    return shared_mean(surprise(model, values, rows, key), rows["mask"])


def ahead(parts: Learner, ts: TrainState, gradient: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """The roles that `gradient` names, one step of their own optimiser further, while all others wait."""
    moved = parts.descend(ts, optax.tree.zeros_like(ts.params) | gradient, {}).params
    return {role: moved[role] for role in gradient}
