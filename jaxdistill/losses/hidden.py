"""Hints: hidden states of chosen layers.

Romero et al., FitNets, 2015 (arxiv.org/abs/1412.6550); layer by layer as in Sun et al., Patient KD, 2019
(arxiv.org/abs/1908.09355).

    mean over layer pairs of mean (projector(h_s) - h_t)^2, or of 1 - cos(projector(h_s), h_t)

The projector belongs to training only; it learns with the student and is thrown away afterwards. Hints hurt some
pairs of networks, so the weight deserves a sweep.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.losses.layers import LayerMap, aligned, paired_states, require_layer_map
from jaxdistill.losses.term import extent_mean, precise
from jaxdistill.parallel.collectives import by_rows
from jaxdistill.registry import losses
from jaxdistill.types import Array, Signals, Term


def squared_distance(
    student: Float[Array, "*rows width"], teacher: Float[Array, "*rows width"]
) -> Float[Array, "*rows"]:
    """Mean over the width of the squared difference."""
    return jnp.mean((precise(student) - precise(teacher)) ** 2, axis=-1)


def cosine_distance(
    student: Float[Array, "*rows width"], teacher: Float[Array, "*rows width"]
) -> Float[Array, "*rows"]:
    """1 - cosine; 1 with a gradient of 0 for a zero vector."""

    def unit(x: Array) -> Array:
        square = jnp.sum(x**2, axis=-1, keepdims=True)
        return x * jnp.where(square > 0, jax.lax.rsqrt(jnp.where(square > 0, square, 1.0)), 0.0)

    return 1 - jnp.sum(unit(precise(student)) * unit(precise(teacher)), axis=-1)


DISTANCES = {"mse": squared_distance, "cosine": cosine_distance}


@losses.register
def hidden(
    layers: LayerMap = "uniform",
    projector: Literal["linear", "none"] = "linear",
    distance: Literal["mse", "cosine"] = "mse",
    teacher: int = 0,
) -> Term:
    """Hidden states of chosen layers, through a projector where widths differ.

    Where the states' extents (positions, tokens) differ, both are averaged over them first. Padding counts nothing.

    Args:
        layers: the layer map, see `losses/layers.py`.
        projector: "linear" learns a kernel per pair; "none" compares as they are and needs equal widths.
        distance: "mse" or "cosine".
        teacher: which teacher. Hidden states of unlike teachers have no mean, so one is chosen.
    """
    require_layer_map(layers)

    def pairs(signals: Signals) -> list[tuple[Array, Array]]:
        return [aligned(*pair, signals) for pair in paired_states(signals, layers, teacher)]

    def init(key, signals):
        if projector == "none":
            return {}, {}
        params = {}
        for number, (student, target) in enumerate(pairs(signals)):
            shape = (student.shape[-1], target.shape[-1])
            kernel = jax.random.normal(jax.random.fold_in(key, number), shape) / shape[0] ** 0.5
            params[f"{number}/kernel"] = kernel
        return params, {}

    def apply(params, state, signals, *, key):
        values = []
        for number, (student, target) in enumerate(pairs(signals)):
            if projector == "linear":
                student = by_rows(student @ params[f"{number}/kernel"].astype(student.dtype))
            if student.shape[-1] != target.shape[-1]:
                widths = f"student {student.shape[-1]}, teacher {target.shape[-1]}"
                raise ValueError(f"widths differ ({widths}) and projector='none'; use projector='linear'")
            value = DISTANCES[distance](student, target)
            values.append(extent_mean(value, signals.batch, signals.mask.ndim))
        return jnp.mean(jnp.stack(values), axis=0), state

    return Term(init, apply, needs=frozenset({"teacher"}))
