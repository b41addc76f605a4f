"""Projectors from the student's width to the teacher's, trained with the student and discarded afterwards.

    linear   h W
    mlp      relu(h U + b) V + c, with a hidden layer of the teacher's width
    conv     h * W, a convolution over 3 positions along each spatial or sequence axis, with strides where the
             teacher has fewer positions
    none     h

h is a hidden state of the student. "conv" sees neighbouring positions, like the regressor of FitNets (Romero et al.,
2015, arxiv.org/abs/1412.6550), and reduces the student's positions to the teacher's. The other projectors act on each
position separately.
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
    """A small network that maps a student's hidden state `[*batch, *extent, width]` to the teacher's width.

    `*extent` are the spatial or sequence axes. `student` and `target` are hidden states of student and teacher; only
    the shape of `target` is used.

    init: `(key, student, target, batch_dims) -> params`; draws the parameters from the shapes of the states;
        `batch_dims` is the number of axes `*batch`
    apply: `(params, student, target) -> projected student state`
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
    """Draw the parameters of a projector, which maps a student state to the teacher's width, for each layer pair.

    Args:
        kind: name of the projector, the same for all pairs.
        key: PRNG key.
        pairs: hidden states (student, teacher) of each layer pair, `[*batch, *extent, width]`; `*extent` are the
            spatial or sequence axes.
        batch_dims: number of axes `*batch`.

    Returns:
        The parameters, by the number of the pair and the name in the projector: `{"0/kernel": ..., "1/kernel": ...}`.
    """
    drawn = [PROJECTORS[kind].init(jax.random.fold_in(key, n), *pair, batch_dims) for n, pair in enumerate(pairs)]
    return {f"{number}/{name}": x for number, params in enumerate(drawn) for name, x in params.items()}


def project_each(kind: ProjectorKind, params: Params, pairs: Pairs) -> list[tuple[Array, Array]]:
    """Project the student state of each layer pair to the teacher's width.

    Args:
        kind: name of the projector, the same for all pairs.
        params: the parameters that `init_each` returned.
        pairs: hidden states (student, teacher) of each layer pair.

    Returns:
        A pair (projected student state, unchanged teacher state) for each layer pair.
    """
    pair_params = lambda n: {name.removeprefix(f"{n}/"): x for name, x in params.items() if name.startswith(f"{n}/")}
    return [(project(kind, pair_params(number), *pair), pair[1]) for number, pair in enumerate(pairs)]


def project(kind: ProjectorKind, params: Params, student: Array, target: Array) -> Array:
    """Project a student's hidden state to the width of a teacher's hidden state, the target.

    Args:
        kind: name of the projector.
        params: the parameters that `Projector.init` returned.
        student: `[*batch, *extent, width]`; `*extent` are the spatial or sequence axes.
        target: the teacher's hidden state; only its shape is used.

    Raises:
        ValueError: the widths differ and the projector is "none", or "conv" cannot reduce the student's spatial or
            sequence axes to the target's.
    """
    projected = PROJECTORS[kind].apply(params, student, target)
    if projected.shape[-1] != target.shape[-1]:
        widths = f"student {projected.shape[-1]}, teacher {target.shape[-1]}"
        raise ValueError(f"widths differ ({widths}) and projector='none'; use projector='linear'")
    return projected
