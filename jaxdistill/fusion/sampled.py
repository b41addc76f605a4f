"""Teacher sampling: draw one random teacher for each row at every step.

Fukuda et al., Efficient Knowledge Distillation from an Ensemble of Teachers, 2017
(doi.org/10.21437/Interspeech.2017-614).

In expectation over the draws, the forward KL to the drawn teacher equals the forward KL to the mixture of teachers, up
to a constant. The student sees the diversity of the teachers that an average hides, with a noisier gradient.

Config: fusion = "sampled()"
When: there are many teachers, and their average is too smooth.
Checked: how often each teacher is drawn; chunks and 8 devices equal one; common tests of fusions.
"""

import jax
import jax.numpy as jnp

from jaxdistill.core.collectives import row_keys
from jaxdistill.core.interfaces import Fusion
from jaxdistill.core.registry import fusions
from jaxdistill.core.types import Key, Outputs, Params, Signals, State
from jaxdistill.fusion.mixture import fixed_weights, mix, normalise_weights, present_mask


@fusions.register
def sampled(weights: tuple[float, ...] = ()) -> Fusion:
    """Draw one teacher at random for each example and training step, and use its predictions alone.

    The batch field `present` may exclude teachers for an example or token; only the others are drawn. All tokens of a
    text have the same teacher, if none of them excludes it.

    Args:
        weights: probability of each teacher, normalised to sum to 1; an empty tuple means equal probabilities.

    Raises:
        ValueError: weights are negative, all 0, or their number is not that of the teachers.
    """
    weigh = fixed_weights(weights)

    def apply(params: Params, state: State, signals: Signals, *, key: Key) -> tuple[Outputs, State]:
        is_present = present_mask(signals)
        prior = weigh(signals).reshape(-1, *[1] * (is_present.ndim - 1))
        log_probs = jnp.log(normalise_weights(jnp.broadcast_to(prior, is_present.shape), is_present))
        # Gumbel noise per row and teacher, the same for all tokens: they get one teacher, if it is present for all
        draw = lambda row_key: jax.random.gumbel(row_key, (len(is_present),))
        noise = jax.vmap(draw)(row_keys(key, is_present.shape[1]))
        chosen = jnp.argmax(log_probs + noise.T.reshape(*is_present.shape[:2], *[1] * (is_present.ndim - 2)), axis=0)
        return mix(signals, jax.nn.one_hot(chosen, len(is_present), axis=0)), state

    return Fusion(lambda key, signals: ({}, {}), apply)
