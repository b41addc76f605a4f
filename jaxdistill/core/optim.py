"""Optimisers: directions by name, and how rate, clipping and roles are put together.

A registered factory gives the DIRECTION of a step, without a rate: the rate is a schedule of its own, so that it is
one key of a config and one axis of a sweep.
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
    """Decoupled decay of matrices only: scales and biases have no reason to be small.

    They are told by name: of a stack of layers, a scale has two dimensions as well.
    """

    def matrices(params: PyTree) -> PyTree:
        def each(path: tuple, x: Array) -> bool:
            return x.ndim > 1 and not re.search(r"(scale|bias)$", path_name(path))

        return jax.tree_util.tree_map_with_path(each, params)

    return optax.add_decayed_weights(weight_decay, matrices) if weight_decay else optax.identity()


@optimizers.register
def sgd(momentum: float = 0.9, nesterov: bool = False, weight_decay: float = 0.0) -> optax.GradientTransformation:
    """Stochastic gradient descent with momentum; L2 decay is added to the gradient, as vision recipes mean it."""
    return optax.chain(_decay(weight_decay), optax.trace(momentum, nesterov) if momentum else optax.identity())


@optimizers.register
def adamw(
    weight_decay: float = 0.0, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arxiv.org/abs/1711.05101)."""
    return optax.chain(optax.scale_by_adam(b1, b2, eps), _decay(weight_decay))


@optimizers.register
def lion(weight_decay: float = 0.0, b1: float = 0.9, b2: float = 0.99) -> optax.GradientTransformation:
    """The sign of a momentum (Chen et al. 2023, arxiv.org/abs/2302.06675)."""
    return optax.chain(optax.scale_by_lion(b1, b2), _decay(weight_decay))


def optimizer(
    direction: optax.GradientTransformation,
    rate: Scalar,
    clip_norm: float = 0.0,
    roles: Mapping[str, tuple[optax.GradientTransformation, Scalar]] | None = None,
) -> optax.GradientTransformation:
    """The whole optimiser of a train state.

    Args:
        direction: for every role that is not named in `roles`.
        rate: its learning rate, a number or a schedule.
        clip_norm: greatest norm of each role's gradient; 0 leaves it as it is. Each for itself, so that what moves the
            student does not depend on who learns beside it.
        roles: role of `TrainState.params` (`student`, `fusion`, `terms`, ...) -> its own direction and rate.
    """

    def scaled(direction: optax.GradientTransformation, rate: Scalar) -> optax.GradientTransformation:
        return optax.chain(direction, optax.scale_by_learning_rate(as_schedule(rate)))

    whole = scaled(direction, rate)
    if roles:
        parts = {"others": whole, **{role: scaled(*own) for role, own in roles.items()}}

        def labels(params: Mapping[str, PyTree]) -> Mapping[str, PyTree]:
            return {r: jax.tree.map(lambda _, r=r: r if r in roles else "others", tree) for r, tree in params.items()}

        whole = optax.partition(parts, labels)
    return optax.chain(_clipped(clip_norm), whole) if clip_norm else whole


def _clipped(norm: float) -> optax.GradientTransformation:
    def one(tree: PyTree) -> PyTree:
        found = optax.tree.norm(tree)
        share = jnp.where(found < norm, 1.0, norm / found)
        # one factor for all: optax divides each array first, which XLA on CPU writes and reads again, twice the time
        return jax.tree.map(lambda x: x * share.astype(x.dtype), tree)

    def update(gradient: Mapping[str, PyTree], state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        return {role: one(tree) for role, tree in gradient.items()}, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
