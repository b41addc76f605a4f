"""Hints (FitNets): match hidden states of selected layers through a learned projector.

Romero et al., FitNets: Hints for Thin Deep Nets, 2015 (arxiv.org/abs/1412.6550), for any number of layers at once.

    weighted mean over layer pairs of mean (projector(h_s) - h_t)^2, or of 1 - cos(projector(h_s), h_t)

The projector (`losses/hidden/projectors.py`) is trained with the student and discarded afterwards. Hints hurt some
pairs of networks, so tune the weight. FitNets uses one pair in the middle (`layers=((2, 3),)`), a convolution, half the
sum of squares where this loss takes the mean, and a separate first phase: a weight of
"phases(values=(1.0, 0.0), at=(0.3,))".

Config: objective.hidden.term = "hidden(layers='uniform', projector='mlp', weights=(1, 2, 1))"
When: student and teacher have similar architectures, so that their layers represent similar things; most useful with
    few labels.
Checked: distances, layer maps, weights and padding against plain float64 numpy; projectors by the transformations that
    they learn to invert.
Experiment: `experiments/jacobian`.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.hidden.layers import LayerMap, average_if_extents_differ, check_layers, paired_states
from jaxdistill.losses.hidden.projectors import ProjectorKind, init_each, project_each
from jaxdistill.losses.term import mean_over_positions, precise, unit


def squared_distance(
    student: Float[Array, "*rows width"], teacher: Float[Array, "*rows width"]
) -> Float[Array, "*rows"]:
    """Compute the mean squared difference over the width."""
    return jnp.mean((precise(student) - precise(teacher)) ** 2, axis=-1)


def cosine_distance(
    student: Float[Array, "*rows width"], teacher: Float[Array, "*rows width"]
) -> Float[Array, "*rows"]:
    """Compute 1 - cosine; for a zero vector the value is 1 and the gradient 0."""
    return 1 - jnp.sum(unit(student) * unit(teacher), axis=-1)


DISTANCES = {"mse": squared_distance, "cosine": cosine_distance}


@losses.register
def hidden(
    layers: LayerMap = "uniform",
    projector: ProjectorKind = "linear",
    distance: Literal["mse", "cosine"] = "mse",
    teacher: int = 0,
    weights: tuple[float, ...] = (),
) -> Term:
    """Compare hidden states of selected layers, through a projector where widths differ.

    If student and teacher differ in extent (image size or sequence length), both are averaged over it first; only the
    projector "conv" brings the student's extent to the teacher's instead. Padding is ignored.

    Args:
        layers: the layer map; see `losses/hidden/layers.py`.
        projector: "linear", "mlp" or "conv", learned for each pair; "none" compares the states directly and needs equal
            widths.
        distance: "mse" or "cosine".
        teacher: index of the teacher. Hidden states of different teachers have no common mean, so one is selected.
        weights: one for each pair, for the weighted mean over the pairs; (): equal weights.

    Raises:
        ValueError: weights are negative or all 0; when the term is applied, there is not one weight for each pair.
    """
    check_layers(layers)
    if weights and (min(weights) < 0 or not any(weights)):
        raise ValueError(f"weights must be at least 0, and not all 0; got {weights}")

    def pairs(signals: Signals) -> list[tuple[Array, Array]]:
        states = paired_states(signals, layers, teacher)
        return states if projector == "conv" else [average_if_extents_differ(*pair, signals) for pair in states]

    def init(key, signals):
        return init_each(projector, key, pairs(signals), signals.mask.ndim), {}

    def apply(params, state, signals, *, key):
        distances = [DISTANCES[distance](*pair) for pair in project_each(projector, params, pairs(signals))]
        values = [mean_over_positions(value, signals.batch, signals.mask.ndim) for value in distances]
        if len(weights) not in (0, len(values)):
            raise ValueError(f"{len(weights)} weights for {len(values)} pairs of layers; give one for each pair")
        return jnp.average(jnp.stack(values), axis=0, weights=jnp.asarray(weights) if weights else None), state

    return Term(init, apply, needs=frozenset({"teacher"}))
