"""Projectors from the student's width to the teacher's, trained with the student and discarded afterwards.

    linear   h W
    mlp      relu(h U + b) V + c, with the teacher's width inside
    conv     h * W over 3 positions along each axis of the extent, with strides where the teacher's extent is smaller
    none     h

A convolution sees neighbouring positions, as FitNets' regressor does (Romero et al., 2015, arxiv.org/abs/1412.6550),
and reduces a larger extent to the teacher's. The other projectors act on each position separately.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxdistill.core.collectives import by_rows
from jaxdistill.core.types import Array
from jaxdistill.losses.hidden.convolution import convolve, init_kernel

ProjectorKind = Literal["linear", "mlp", "conv", "none"]
Params = Mapping[str, Array]


class Projector(NamedTuple):
    """A small network on hidden states `[*batch, *extent, width]`.

    init: `(key, student, target, batch_dims) -> params`; uses only the shapes of the states
    apply: `(params, student, target) ->` the student's state with the target's width
    """

    init: Callable[[Array, Array, Array, int], dict[str, Array]]
    apply: Callable[[Params, Array, Array], Array]


def _linear_init(key: Array, student: Array, target: Array, batch_dims: int) -> dict[str, Array]:
    return {"kernel": init_kernel(key, student.shape[-1], target.shape[-1])}


def _linear(params: Params, student: Array, target: Array) -> Array:
    return convolve(student, params["kernel"])


def _mlp_init(key: Array, student: Array, target: Array, batch_dims: int) -> dict[str, Array]:
    up_key, down_key = jax.random.split(key)
    width = target.shape[-1]
    return {
        "up/kernel": init_kernel(up_key, student.shape[-1], width),
        "up/bias": jnp.zeros(width),
        "down/kernel": init_kernel(down_key, width, width),
        "down/bias": jnp.zeros(width),
    }


def _mlp(params: Params, student: Array, target: Array) -> Array:
    bias = lambda name: params[f"{name}/bias"].astype(student.dtype)
    inner = by_rows(jax.nn.relu(convolve(student, params["up/kernel"]) + bias("up")))
    return by_rows(convolve(inner, params["down/kernel"]) + bias("down"))


def _conv_init(key: Array, student: Array, target: Array, batch_dims: int) -> dict[str, Array]:
    axes = student.ndim - batch_dims - 1
    if not axes:
        raise ValueError("projector='conv' needs hidden states with an extent; use projector='linear'")
    return {"kernel": init_kernel(key, *(3,) * axes, student.shape[-1], target.shape[-1])}


def _conv(params: Params, student: Array, target: Array) -> Array:
    axes = params["kernel"].ndim - 2
    student_extent, target_extent = student.shape[-axes - 1 : -1], target.shape[-axes - 1 : -1]
    if student.ndim != target.ndim or any(n % m for n, m in zip(student_extent, target_extent, strict=True)):
        extents = f"student {list(student_extent)}, teacher {list(target_extent)}"
        problem = f"projector='conv' needs a teacher's extent that divides the student's ({extents})"
        raise ValueError(f"{problem}; use projector='linear', which averages over extents that differ")
    strides = tuple(n // m for n, m in zip(student_extent, target_extent, strict=True))
    return convolve(student, params["kernel"], strides)


PROJECTORS: Mapping[str, Projector] = {
    "linear": Projector(_linear_init, _linear),
    "mlp": Projector(_mlp_init, _mlp),
    "conv": Projector(_conv_init, _conv),
    "none": Projector(lambda key, student, target, batch_dims: {}, lambda params, student, target: student),
}


Pairs = Sequence[tuple[Array, Array]]  # hidden states of student and teacher


def init_each(kind: ProjectorKind, key: Array, pairs: Pairs, batch_dims: int) -> dict[str, Array]:
    """Draw the parameters of one projector for each pair, `{"0/kernel": ..., "1/kernel": ...}`."""
    drawn = [PROJECTORS[kind].init(jax.random.fold_in(key, n), *pair, batch_dims) for n, pair in enumerate(pairs)]
    return {f"{number}/{name}": x for number, params in enumerate(drawn) for name, x in params.items()}


def project_each(kind: ProjectorKind, params: Params, pairs: Pairs) -> list[tuple[Array, Array]]:
    """Return the pairs with the student's states projected."""
    pair_params = lambda n: {name.removeprefix(f"{n}/"): x for name, x in params.items() if name.startswith(f"{n}/")}
    return [(project(kind, pair_params(number), *pair), pair[1]) for number, pair in enumerate(pairs)]


def project(kind: ProjectorKind, params: Params, student: Array, target: Array) -> Array:
    """Project a student's state to the width of its target.

    Raises:
        ValueError: the widths differ and the projector is "none".
    """
    projected = PROJECTORS[kind].apply(params, student, target)
    if projected.shape[-1] != target.shape[-1]:
        widths = f"student {projected.shape[-1]}, teacher {target.shape[-1]}"
        raise ValueError(f"widths differ ({widths}) and projector='none'; use projector='linear'")
    return projected
