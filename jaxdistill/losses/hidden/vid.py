"""Variational information distillation (VID): maximise a lower bound of the mutual information of hidden states.

Ahn, Hu, Damianou, Lawrence and Dai, Variational Information Distillation for Knowledge Transfer, CVPR 2019
(arxiv.org/abs/1904.05835).

    -log N(h_t; mu(h_s), sigma^2) = 0.5 ((mu(h_s) - h_t)^2 / sigma_c^2 + log sigma_c^2) + constant
    averaged over channels, positions and layer pairs

mu is a regressor of three dense layers at each position with ReLU in between. sigma_c^2 = softplus(a_c) + minimum is a
variance for each channel c of the teacher, with a learned a_c. Regressor and variances are learned: a channel that the
student cannot predict gets a large variance and so a small weight, unlike in the loss `hidden`. Hidden states may have
any number of spatial or sequence axes, or none. The larger of two maps is average-pooled to the size of the smaller
one, sequences must have equal lengths, and padding is ignored.

Traps: the loss is a negative log-density and may fall below 0. The variances belong to CHANNELS and must not be
averaged. A channel that is constant in the teacher is predicted perfectly: its variance tends to the minimum and its
gradient grows with 1 / variance. Raise `minimum` if the loss diverges. The published code ADDS the layer pairs, with
weight 1; here they are averaged, so its 1 for 3 pairs is 3 here.

Config: objective.vid.term = "vid(layers='uniform')"; objective.vid.weight = 3.0
When: the widths differ and the student cannot reproduce parts of the teacher, so that hints with a linear projector
    hurt.
Checked: value and the gradient of all parameters equal those of the published code (golden/layer_losses.npz).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdistill.core.interfaces import Term, Values
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Key, Params, Signals, State
from jaxdistill.losses.hidden.convolution import convolve, init_kernel
from jaxdistill.losses.hidden.extent import pool_to_same_extent
from jaxdistill.losses.hidden.layers import LayerMap, check_layers, paired_states
from jaxdistill.losses.term import mean_over_positions, precise

REGRESSOR_LAYERS = 3


def negative_log_likelihood(
    predicted: Float[Array, "*rows width"], teacher: Float[Array, "*rows width"], variance: Float[Array, " width"]
) -> Float[Array, "*rows"]:
    """Compute `0.5 * mean((predicted - teacher)**2 / variance + log(variance))` over the channels.

    This is the Gaussian negative log-likelihood of the teacher's hidden state, without the constant 0.5 log(2 pi).

    Args:
        predicted: mean of the Gaussian, predicted from the student's hidden state.
        teacher: the teacher's hidden state.
        variance: variance of each channel.
    """
    square = (precise(predicted) - precise(teacher)) ** 2
    return 0.5 * jnp.mean(square / variance + jnp.log(variance), axis=-1)


@losses.register
def vid(layers: LayerMap = "uniform", variance: float = 5.0, minimum: float = 1e-5, teacher: int = 0) -> Term:
    """Build the VID loss term: the Gaussian negative log-likelihood of teacher states, given student states.

        0.5 * mean((mu(h_s) - h_t)**2 / variance + log(variance))

    h_s is the hidden state of a student layer, h_t that of the teacher layer paired with it. The regressor mu and the
    variance of each channel are learned. The mean is over channels, positions and layer pairs.

    Args:
        layers: which student layer learns from which teacher layer: "uniform", "skip", "last", a range of teacher
            layers such as "6-9", or pairs such as ((1, 2), (2, 4)); see `layer_pairs`.
        variance: initial value of the variances.
        minimum: lower bound of the variances.
        teacher: index of the teacher, in the order of the config. Only one teacher is used, because the channels of
            different teachers do not correspond and cannot be averaged.

    Raises:
        ValueError: `layers` has none of these forms, or 0 < minimum < variance does not hold; when the loss is
            computed, the spatial or sequence axes of student and teacher cannot be pooled to the same size.
    """
    check_layers(layers)
    if not 0 < minimum < variance:
        raise ValueError(f"vid needs 0 < minimum < variance; got minimum={minimum}, variance={variance}")

    def pairs(signals: Signals) -> list[tuple[Array, Array]]:
        return [pool_to_same_extent(*pair, signals.mask.ndim) for pair in paired_states(signals, layers, teacher)]

    def init(key: Key, signals: Signals) -> tuple[Params, State]:
        params = {}
        for number, (student, target) in enumerate(pairs(signals)):
            width = target.shape[-1]
            keys = jax.random.split(jax.random.fold_in(key, number), REGRESSOR_LAYERS)
            for layer, inputs in enumerate((student.shape[-1], width, width)):
                params[f"{number}/{layer}/kernel"] = init_kernel(keys[layer], inputs, width)
            params[f"{number}/variance"] = jnp.full(width, _inverse_softplus(variance - minimum), float)
        return params, {}

    def apply(params: Params, state: State, signals: Signals, *, key: Key) -> tuple[Values, State]:
        values = []
        for number, (x, target) in enumerate(pairs(signals)):
            for layer in range(REGRESSOR_LAYERS):
                x = convolve(jax.nn.relu(x) if layer else x, params[f"{number}/{layer}/kernel"])
            variances = jax.nn.softplus(precise(params[f"{number}/variance"])) + minimum
            value = negative_log_likelihood(x, target, variances)
            values.append(mean_over_positions(value, signals.batch, signals.mask.ndim))
        return jnp.mean(jnp.stack(values), axis=0), state

    return Term(init, apply, needs=frozenset({"teacher"}))


def _inverse_softplus(x: float) -> float:
    return x + float(np.log(-np.expm1(-x)))
