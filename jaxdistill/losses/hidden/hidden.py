"""Hints: hidden states of chosen layers.

Romero et al., FitNets: Hints for Thin Deep Nets, 2015 (arxiv.org/abs/1412.6550), for any number of layers at once.

    weighted mean over layer pairs of mean (projector(h_s) - h_t)^2, or of 1 - cos(projector(h_s), h_t)

The projector belongs to training only (`losses/projectors.py`); it learns with the student and is thrown away
afterwards. Hints hurt some pairs of networks, so the weight deserves a sweep. FitNets takes one pair in the middle
(`layers=((2, 3),)`), a convolution, half the sum of squares where this is a mean, and a first phase of its own: a
weight of "phases(values=(1.0, 0.0), at=(0.3,))".

Config: objective.hidden.term = "hidden(layers='uniform', projector='mlp', weights=(1, 2, 1))"
When: student and teacher are alike in kind, so that their layers mean similar things; with few labels most of all.
Checked: against plain float64 numpy, distances, maps, weights and padding; projectors by what they can learn to undo.
Experiment: `experiments/jacobian`.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals, Term
from jaxdistill.losses.hidden.layers import LayerMap, aligned, check_layers, paired_states
from jaxdistill.losses.hidden.projectors import Kind, init_each, project_each
from jaxdistill.losses.term import extent_mean, precise, unit


def squared_distance(
    student: Float[Array, "*rows width"], teacher: Float[Array, "*rows width"]
) -> Float[Array, "*rows"]:
    """Mean over the width of the squared difference."""
    return jnp.mean((precise(student) - precise(teacher)) ** 2, axis=-1)


def cosine_distance(
    student: Float[Array, "*rows width"], teacher: Float[Array, "*rows width"]
) -> Float[Array, "*rows"]:
    """1 - cosine; 1 with a gradient of 0 for a zero vector."""
    return 1 - jnp.sum(unit(student) * unit(teacher), axis=-1)


DISTANCES = {"mse": squared_distance, "cosine": cosine_distance}


@losses.register
def hidden(
    layers: LayerMap = "uniform",
    projector: Kind = "linear",
    distance: Literal["mse", "cosine"] = "mse",
    teacher: int = 0,
    weights: tuple[float, ...] = (),
) -> Term:
    """Hidden states of chosen layers, through a projector where widths differ.

    Where the states' extents (positions, tokens) differ, both are averaged over them first, but for a convolution,
    which brings one to the other. Padding counts nothing.

    Args:
        layers: the layer map, see `losses/layers.py`.
        projector: "linear", "mlp" or "conv" learn for each pair; "none" compares as they are and needs equal widths.
        distance: "mse" or "cosine".
        teacher: which teacher. Hidden states of unlike teachers have no mean, so one is chosen.
        weights: of the pairs, one for each, of which the values are the weighted mean; (): all alike.

    Raises:
        ValueError: weights that are negative or all 0.
    """
    check_layers(layers)
    if weights and (min(weights) < 0 or not any(weights)):
        raise ValueError(f"weights must be at least 0, and not all 0; got {weights}")

    def pairs(signals: Signals) -> list[tuple[Array, Array]]:
        found = paired_states(signals, layers, teacher)
        return found if projector == "conv" else [aligned(*pair, signals) for pair in found]

    def init(key, signals):
        return init_each(projector, key, pairs(signals), signals.mask.ndim), {}

    def apply(params, state, signals, *, key):
        found = [DISTANCES[distance](*pair) for pair in project_each(projector, params, pairs(signals))]
        values = [extent_mean(value, signals.batch, signals.mask.ndim) for value in found]
        if len(weights) not in (0, len(values)):
            raise ValueError(f"{len(weights)} weights for {len(values)} pairs of layers; give one for each pair")
        return jnp.average(jnp.stack(values), axis=0, weights=jnp.asarray(weights) if weights else None), state

    return Term(init, apply, needs=frozenset({"teacher"}))
