"""Projectors: what makes a student's hidden state as wide as its teacher's. They learn with it and are thrown away.

    linear   h W
    mlp      relu(h U + b) V + c, inside as wide as the teacher
    conv     h * W over 3 positions along each axis of the extent, in strides where the teacher's extent is shorter

A convolution sees neighbours, as FitNets' regressor does (Romero et al., 2015, arxiv.org/abs/1412.6550), and brings a
longer extent to the teacher's; the others project each position by itself. "none" compares as it is.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxdistill.core.collectives import by_rows
from jaxdistill.core.types import Array
from jaxdistill.losses.hidden.convolution import convolved, kernel

Kind = Literal["linear", "mlp", "conv", "none"]
Params = Mapping[str, Array]


class Projector(NamedTuple):
    """A small network on hidden states `[*batch, *extent, width]`.

    init: `(key, student, target, batch_dims) -> params`; of the states it reads the shapes
    apply: `(params, student, target) ->` the student's state, as wide as the target
    """

    init: Callable[[Array, Array, Array, int], dict[str, Array]]
    apply: Callable[[Params, Array, Array], Array]


def _linear_init(key: Array, student: Array, target: Array, batch_dims: int) -> dict[str, Array]:
    return {"kernel": kernel(key, student.shape[-1], target.shape[-1])}


def _linear(params: Params, student: Array, target: Array) -> Array:
    return convolved(student, params["kernel"])


def _mlp_init(key: Array, student: Array, target: Array, batch_dims: int) -> dict[str, Array]:
    first, second = jax.random.split(key)
    width = target.shape[-1]
    return {
        "up/kernel": kernel(first, student.shape[-1], width),
        "up/bias": jnp.zeros(width),
        "down/kernel": kernel(second, width, width),
        "down/bias": jnp.zeros(width),
    }


def _mlp(params: Params, student: Array, target: Array) -> Array:
    bias = lambda name: params[f"{name}/bias"].astype(student.dtype)
    inside = by_rows(jax.nn.relu(convolved(student, params["up/kernel"]) + bias("up")))
    return by_rows(convolved(inside, params["down/kernel"]) + bias("down"))


def _conv_init(key: Array, student: Array, target: Array, batch_dims: int) -> dict[str, Array]:
    axes = student.ndim - batch_dims - 1
    if not axes:
        raise ValueError("projector='conv' needs hidden states with an extent; use projector='linear'")
    return {"kernel": kernel(key, *(3,) * axes, student.shape[-1], target.shape[-1])}


def _conv(params: Params, student: Array, target: Array) -> Array:
    axes = params["kernel"].ndim - 2
    ours, theirs = student.shape[-axes - 1 : -1], target.shape[-axes - 1 : -1]
    if student.ndim != target.ndim or any(n % m for n, m in zip(ours, theirs, strict=True)):
        extents = f"student {list(ours)}, teacher {list(theirs)}"
        cure = "use projector='linear', before which unlike extents are averaged"
        raise ValueError(f"projector='conv' brings an extent to a divisor of it, not these ({extents}); {cure}")
    return convolved(student, params["kernel"], tuple(n // m for n, m in zip(ours, theirs, strict=True)))


PROJECTORS: Mapping[str, Projector] = {
    "linear": Projector(_linear_init, _linear),
    "mlp": Projector(_mlp_init, _mlp),
    "conv": Projector(_conv_init, _conv),
    "none": Projector(lambda key, student, target, batch_dims: {}, lambda params, student, target: student),
}


Pairs = Sequence[tuple[Array, Array]]  # hidden states of student and teacher


def init_each(kind: Kind, key: Array, pairs: Pairs, batch_dims: int) -> dict[str, Array]:
    """Params of a projector for each pair, `{"0/kernel": ..., "1/kernel": ...}`."""
    each = [PROJECTORS[kind].init(jax.random.fold_in(key, n), *pair, batch_dims) for n, pair in enumerate(pairs)]
    return {f"{number}/{name}": x for number, own in enumerate(each) for name, x in own.items()}


def project_each(kind: Kind, params: Params, pairs: Pairs) -> list[tuple[Array, Array]]:
    """The pairs with their student's states projected."""
    own = lambda n: {name.removeprefix(f"{n}/"): x for name, x in params.items() if name.startswith(f"{n}/")}
    return [(project(kind, own(number), *pair), pair[1]) for number, pair in enumerate(pairs)]


def project(kind: Kind, params: Params, student: Array, target: Array) -> Array:
    """A student's state as wide as its target.

    Raises:
        ValueError: it is not, and "none" projects nothing.
    """
    out = PROJECTORS[kind].apply(params, student, target)
    if out.shape[-1] != target.shape[-1]:
        widths = f"student {out.shape[-1]}, teacher {target.shape[-1]}"
        raise ValueError(f"widths differ ({widths}) and projector='none'; use projector='linear'")
    return out
