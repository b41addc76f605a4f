"""Optimisers: update directions by name, and their combination with a learning rate, clipping and roles.

A registered factory returns the DIRECTION of a step, without a learning rate. The rate is a separate schedule, so that
it is one key of a config and one axis of a sweep.
"""

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from jaxdistill.core.registry import optimizers
from jaxdistill.core.schedules import Scalar, as_schedule
from jaxdistill.core.tree import path_name
from jaxdistill.core.types import Array, PyTree


def _decay(weight_decay: float) -> optax.GradientTransformation:
    """Decay matrices only: scales and biases have no reason to be small.

    Scales and biases are recognised by name, because the scales of stacked layers have two dimensions as well.
    """

    def matrices(params: PyTree) -> PyTree:
        def is_matrix(path: tuple, x: Array) -> bool:
            return x.ndim > 1 and not re.search(r"(scale|bias)$", path_name(path))

        return jax.tree_util.tree_map_with_path(is_matrix, params)

    return optax.add_decayed_weights(weight_decay, matrices) if weight_decay else optax.identity()


@optimizers.register
def sgd(momentum: float = 0.9, nesterov: bool = False, weight_decay: float = 0.0) -> optax.GradientTransformation:
    """Return stochastic gradient descent with momentum; L2 decay is added to the gradient, as in vision recipes."""
    return optax.chain(_decay(weight_decay), optax.trace(momentum, nesterov) if momentum else optax.identity())


@optimizers.register
def adamw(
    weight_decay: float = 0.0, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Return Adam with decoupled weight decay (Loshchilov and Hutter 2019, arxiv.org/abs/1711.05101)."""
    return optax.chain(optax.scale_by_adam(b1, b2, eps), _decay(weight_decay))


@optimizers.register
def lion(weight_decay: float = 0.0, b1: float = 0.9, b2: float = 0.99) -> optax.GradientTransformation:
    """Return Lion, the sign of a momentum, with decoupled decay (Chen et al. 2023, arxiv.org/abs/2302.06675)."""
    return optax.chain(optax.scale_by_lion(b1, b2), _decay(weight_decay))


def optimizer(
    direction: optax.GradientTransformation,
    rate: Scalar,
    clip_norm: float = 0.0,
    roles: Mapping[str, tuple[optax.GradientTransformation, Scalar]] | None = None,
) -> optax.GradientTransformation:
    """Return the complete optimiser of a train state.

    Args:
        direction: for every role that is not named in `roles`.
        rate: its learning rate, a number or a schedule.
        clip_norm: greatest norm of each role's gradient; 0: no clipping. Each role is clipped separately, so that the
            student's update does not depend on the other trained roles.
        roles: role of `TrainState.params` (`student`, `fusion`, `terms`, ...) -> its direction and rate.
    """

    def scaled(direction: optax.GradientTransformation, rate: Scalar) -> optax.GradientTransformation:
        return optax.chain(direction, optax.scale_by_learning_rate(as_schedule(rate)))

    transformation = scaled(direction, rate)
    if roles:
        parts = {"others": transformation, **{role: scaled(*of_role) for role, of_role in roles.items()}}

        def labels(params: Mapping[str, PyTree]) -> Mapping[str, PyTree]:
            return {r: jax.tree.map(lambda _, r=r: r if r in roles else "others", tree) for r, tree in params.items()}

        transformation = optax.partition(parts, labels)
    return optax.chain(_clip_by_role(clip_norm), transformation) if clip_norm else transformation


def _clip_by_role(max_norm: float) -> optax.GradientTransformation:
    """Clip the gradient of each role to a norm."""

    def clip(tree: PyTree) -> PyTree:
        norm = optax.tree.norm(tree)
        factor = jnp.where(norm < max_norm, 1.0, max_norm / norm)
        # one factor for all: optax divides each array first, which XLA on CPU writes and reads again, twice the time
        return jax.tree.map(lambda x: x * factor.astype(x.dtype), tree)

    def update(gradient: Mapping[str, PyTree], state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        return {role: clip(tree) for role, tree in gradient.items()}, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
