"""Hints (FitNets): match hidden states of selected layers through a learned projector.

Romero et al., FitNets: Hints for Thin Deep Nets, 2015 (arxiv.org/abs/1412.6550), for any number of layers at once.

    weighted mean over layer pairs of mean (projector(h_s) - h_t)^2, or of 1 - cos(projector(h_s), h_t)

h_s and h_t are the hidden states of a student layer and of the teacher layer that it learns from. The projector
(`losses/hidden/projectors.py`) is trained with the student and discarded afterwards. Hints hurt some pairs of networks,
so tune the weight. FitNets uses one pair in the middle (`layers=((2, 3),)`), a convolution as projector, and half the
sum of squares where this loss takes the mean. It matches hints in a separate first phase of training only; a loss
weight of "phases(values=(1.0, 0.0), at=(0.3,))" ends this loss after 30 % of the steps.

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

from jaxdistill.core.interfaces import Term, Values
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Key, Params, Signals, State
from jaxdistill.losses.hidden.layers import LayerMap, average_if_extents_differ, check_layers, paired_states
from jaxdistill.losses.hidden.projectors import ProjectorKind, init_each, project_each
from jaxdistill.losses.term import mean_over_positions, precise, unit


def mean_squared_distance(
    student: Float[Array, "*rows width"], teacher: Float[Array, "*rows width"]
) -> Float[Array, "*rows"]:
    """Compute `mean((student - teacher)**2)` over the width, the last axis."""
    return jnp.mean((precise(student) - precise(teacher)) ** 2, axis=-1)


def cosine_distance(
    student: Float[Array, "*rows width"], teacher: Float[Array, "*rows width"]
) -> Float[Array, "*rows"]:
    """Compute 1 - cos(student, teacher) over the width, the last axis.

    If a vector is zero, the value is 1 and the gradient 0.
    """
    return 1 - jnp.sum(unit(student) * unit(teacher), axis=-1)


DISTANCES = {"mse": mean_squared_distance, "cosine": cosine_distance}


@losses.register
def hidden(
    layers: LayerMap = "uniform",
    projector: ProjectorKind = "linear",
    distance: Literal["mse", "cosine"] = "mse",
    teacher: int = 0,
    weights: tuple[float, ...] = (),
) -> Term:
    """Build the loss term d(P(h_s), h_t), which compares hidden states of student and teacher (hints, FitNets).

    h_s is the hidden state of a student layer, h_t that of the teacher layer paired with it, and d a distance. The
    projector P maps h_s to the width of h_t. If student and teacher differ in image size or sequence length, each
    hidden state is first averaged over its positions. With the projector "conv", P reduces the student's positions to
    the teacher's instead. Padding tokens are ignored.

    Args:
        layers: which student layer learns from which teacher layer: "uniform", "skip", "last", a range of teacher
            layers such as "6-9", or pairs such as ((1, 2), (2, 4)); see `layer_pairs`.
        projector: "linear", "mlp" or "conv" learns P for each layer pair; "none" leaves P out and needs equal widths.
        distance: d(a, b): "mse" is `mean((a - b)**2)` over the width, "cosine" is 1 - cos(a, b).
        teacher: index of the teacher, in the order of the config. Only one teacher is used, because the channels of
            different teachers do not correspond and cannot be averaged.
        weights: weight of each layer pair in the mean over the pairs; an empty tuple means equal weights.

    Raises:
        ValueError: `layers` has none of these forms, or weights are negative or all 0; when the loss is computed, the
            number of weights is not the number of layer pairs.
    """
    check_layers(layers)
    if weights and (min(weights) < 0 or not any(weights)):
        raise ValueError(f"weights must be at least 0, and not all 0; got {weights}")

    def pairs(signals: Signals) -> list[tuple[Array, Array]]:
        states = paired_states(signals, layers, teacher)
        return states if projector == "conv" else [average_if_extents_differ(*pair, signals) for pair in states]

    def init(key: Key, signals: Signals) -> tuple[Params, State]:
        return init_each(projector, key, pairs(signals), signals.mask.ndim), {}

    def apply(params: Params, state: State, signals: Signals, *, key: Key) -> tuple[Values, State]:
        distances = [DISTANCES[distance](*pair) for pair in project_each(projector, params, pairs(signals))]
        values = [mean_over_positions(value, signals.batch, signals.mask.ndim) for value in distances]
        if len(weights) not in (0, len(values)):
            raise ValueError(f"{len(weights)} weights for {len(values)} pairs of layers; give one for each pair")
        return jnp.average(jnp.stack(values), axis=0, weights=jnp.asarray(weights) if weights else None), state

    return Term(init, apply, needs=frozenset({"teacher"}))
