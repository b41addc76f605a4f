"""Optimisers: registered update rules, and their combination with learning rates and gradient clipping.

A registered factory returns an optax transformation WITHOUT a learning rate. The rate is a separate schedule, so that
it is one key of a config and one axis of a sweep. Each role (a top-level key of the trained params: `student`,
`fusion`, `terms`, ...) may have its own update rule and rate.
"""

import math
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from jaxdistill.core.registry import optimizers
from jaxdistill.core.schedules import Scalar, as_schedule
from jaxdistill.core.tree import path_name
from jaxdistill.core.types import Array, PyTree


def _check_means(**coefficients: float) -> None:
    """Raise a ValueError if a coefficient of a running mean, such as `momentum`, is not in [0, 1)."""
    for name, value in coefficients.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be at least 0 and below 1; got {value}")


def _check_not_negative(**values: float) -> None:
    for name, value in values.items():
        if value < 0:
            raise ValueError(f"{name} must be at least 0; got {value}")


def _decay(weight_decay: float) -> optax.GradientTransformation:
    """Build the optax transformation that adds weight decay to the updates of matrices, but not of scales and biases.

    Scales and biases are recognised by name, because in stacked layers they have two dimensions as well.

    Raises:
        ValueError: `weight_decay` is negative.
    """
    _check_not_negative(weight_decay=weight_decay)

    def matrices(params: PyTree) -> PyTree:
        def is_matrix(path: tuple, x: Array) -> bool:
            return x.ndim > 1 and not re.search(r"(scale|bias)$", path_name(path))

        return jax.tree_util.tree_map_with_path(is_matrix, params)

    return optax.add_decayed_weights(weight_decay, matrices) if weight_decay else optax.identity()


@optimizers.register
def sgd(momentum: float = 0.9, nesterov: bool = False, weight_decay: float = 0.0) -> optax.GradientTransformation:
    """Build SGD with momentum: the update is `-rate * m`, with `m = momentum * m + gradient + weight_decay * param`.

    With `nesterov`, the update is `-rate * (gradient + weight_decay * param + momentum * m)`. Scales and biases get no
    weight decay.

    Raises:
        ValueError: `momentum` is not in [0, 1), or `weight_decay` is negative.
    """
    _check_means(momentum=momentum)
    return optax.chain(_decay(weight_decay), optax.trace(momentum, nesterov) if momentum else optax.identity())


@optimizers.register
def adamw(
    weight_decay: float = 0.0, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Build AdamW: Adam with decoupled weight decay, that is, `weight_decay * param` is added to Adam's update.

    Scales and biases get no weight decay (Loshchilov and Hutter 2019, arxiv.org/abs/1711.05101).

    Raises:
        ValueError: `b1` or `b2` is not in [0, 1), or `weight_decay` or `eps` is negative.
    """
    _check_means(b1=b1, b2=b2)
    _check_not_negative(eps=eps)
    return optax.chain(optax.scale_by_adam(b1, b2, eps), _decay(weight_decay))


@optimizers.register
def lion(weight_decay: float = 0.0, b1: float = 0.9, b2: float = 0.99) -> optax.GradientTransformation:
    """Build Lion: the update is `sign(b1 * m + (1 - b1) * gradient)`, and then `m = b2 * m + (1 - b2) * gradient`.

    `m` is a running mean of the gradients. As in AdamW, `weight_decay * param` is added to the update, except for
    scales and biases (Chen et al. 2023, arxiv.org/abs/2302.06675).

    Raises:
        ValueError: `b1` or `b2` is not in [0, 1), or `weight_decay` is negative.
    """
    _check_means(b1=b1, b2=b2)
    return optax.chain(optax.scale_by_lion(b1, b2), _decay(weight_decay))


@optimizers.register
def adafactor(weight_decay: float = 0.0, decay: float = 0.8, clip: float = 1.0) -> optax.GradientTransformation:
    """Build Adafactor: like Adam without momentum, but with squared gradients stored only as means of rows and columns.

    So its state is small: one number for each row and each column of a matrix whose sides are both at least 128. Other
    params keep a full running mean of squared gradients. An update whose root mean square is above `clip` is scaled
    down to it. The learning rate is absolute, as for the other optimisers: it is not multiplied by the size of the
    params (Shazeer and Stern 2018, arxiv.org/abs/1804.04235).

    Args:
        weight_decay: weight decay of matrices, not of scales and biases.
        decay: at step t = 1, 2, ..., the running means are multiplied by `1 - t^-decay`.
        clip: largest root mean square of an update; 0 means no clipping.

    Raises:
        ValueError: `decay` is not in [0, 1), or a number is negative.
    """
    _check_means(decay=decay)
    _check_not_negative(clip=clip)
    clipping = optax.clip_by_block_rms(clip) if clip else optax.identity()
    return optax.chain(optax.scale_by_factored_rms(decay_rate=decay), clipping, _decay(weight_decay))


@optimizers.register
def muon(
    weight_decay: float = 0.0, momentum: float = 0.95, b1: float = 0.9, b2: float = 0.999, rms: float = 0.2
) -> optax.GradientTransformation:
    """Build Muon: the update of a matrix is its momentum, made orthogonal by the Newton-Schulz iteration.

    Muon updates kernels: in stacked layers, the kernel of each layer by itself; and the kernel of a convolution as a
    matrix `[inputs, outputs]`. All other params (embedding tables, heads, scales and biases) are updated by Adam
    (Jordan et al. 2024, kellerjordan.github.io/posts/muon). An update of a matrix is scaled to the root mean square
    `rms`, which is typical of Adam, so that a learning rate for AdamW suits Muon, too (Liu et al. 2025,
    arxiv.org/abs/2502.16982).

    Args:
        weight_decay: weight decay of matrices.
        momentum: momentum of the matrices (Nesterov's).
        b1, b2: coefficients of Adam.
        rms: root mean square of an update of a matrix.

    Raises:
        ValueError: `momentum`, `b1` or `b2` is not in [0, 1), or a number is negative.
    """
    from optax import contrib  # slow to import, and rarely needed

    _check_means(momentum=momentum, b1=b1, b2=b2)
    _check_not_negative(rms=rms)

    def sides(x: Array) -> tuple[tuple[int, ...], int]:  # axes of the inputs, and the axis of the outputs
        return (tuple(range(x.ndim - 1)) if x.ndim == 4 else (x.ndim - 2,)), x.ndim - 1  # 4: a convolution

    def labels(params: PyTree) -> PyTree:
        def label(path: tuple, x: Array) -> str:
            name = path_name(path)
            is_matrix = x.ndim > 1 and name.endswith("kernel") and not name.endswith("head/kernel")
            return "muon" if is_matrix else "adam"

        return jax.tree_util.tree_map_with_path(label, params)

    def numbers(params: PyTree) -> PyTree:
        return jax.tree.map(lambda x: contrib.MuonDimensionNumbers(sides(x)[0], (sides(x)[1],)), params)

    def to_rms(update: PyTree, params: PyTree = None) -> PyTree:  # of an orthogonal matrix it is 1 / sqrt(longer side)
        def scaled(x: Array) -> Array:
            inputs, outputs = sides(x)
            return x * rms * math.sqrt(max(math.prod(x.shape[axis] for axis in inputs), x.shape[outputs]))

        return jax.tree.map(scaled, update)

    orthogonal = optax.chain(
        contrib.scale_by_muon(beta=momentum, weight_dimension_numbers=numbers), optax.stateless(to_rms)
    )
    parts = {"muon": orthogonal, "adam": optax.scale_by_adam(b1, b2)}
    return optax.chain(optax.partition(parts, labels), _decay(weight_decay))


def optimizer(
    direction: optax.GradientTransformation,
    rate: Scalar,
    clip_norm: float = 0.0,
    roles: Mapping[str, tuple[optax.GradientTransformation, Scalar]] | None = None,
) -> optax.GradientTransformation:
    """Build the complete optimiser of all trained params: clip the gradient, apply an update rule, multiply by a rate.

    A role is a top-level key of the trained params: `student`, `fusion`, `terms` (the params of loss terms), ...

    Args:
        direction: the update rule without a learning rate, such as `adamw()`, for every role that is not in `roles`.
        rate: the learning rate of these roles, a number or a schedule.
        clip_norm: greatest norm of the gradient of one role, which becomes `gradient * min(1, clip_norm / norm)`; 0
            means no clipping. The norm is taken role by role, so that the student's update does not depend on the
            gradients of other roles.
        roles: `{role: (update rule, learning rate)}`, for roles that have their own.
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


def freeze(
    transformation: optax.GradientTransformation, role: str, prefixes: tuple[str, ...]
) -> optax.GradientTransformation:
    """Freeze params: wrap an optimiser so that it never changes the params of one role whose names have given prefixes.

    The frozen params get no weight decay either, and the optimiser stores no moments for them.

    Args:
        transformation: the optimiser of all other params, an optax transformation.
        role: the role (top-level key of the trained params), such as `student`.
        prefixes: prefixes of the names of the frozen params, such as `images/`. If there are none, `transformation` is
            returned unchanged.
    """
    if not prefixes:
        return transformation

    def labels(params: Mapping[str, PyTree]) -> Mapping[str, PyTree]:
        of_role = {name: "locked" if name.startswith(prefixes) else "trained" for name in params[role]}
        return {**jax.tree.map(lambda _: "trained", dict(params)), role: of_role}

    return optax.partition({"trained": transformation, "locked": optax.set_to_zero()}, labels)


def _clip_by_role(max_norm: float) -> optax.GradientTransformation:
    """Build the optax transformation that scales the gradient of each role down to a norm of at most `max_norm`."""

    def clip(tree: PyTree) -> PyTree:
        norm = optax.tree.norm(tree)
        factor = jnp.where(norm < max_norm, 1.0, max_norm / norm)
        # one factor for all: optax divides each array first, which XLA on CPU writes and reads again, twice the time
        return jax.tree.map(lambda x: x * factor.astype(x.dtype), tree)

    def update(gradient: Mapping[str, PyTree], state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        return {role: clip(tree) for role, tree in gradient.items()}, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
