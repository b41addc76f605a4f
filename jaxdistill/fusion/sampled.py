"""One teacher for each row, drawn anew at every step: Fukuda et al., Efficient Knowledge Distillation, 2017.

Efficient Knowledge Distillation from an Ensemble of Teachers (doi.org/10.21437/Interspeech.2017-614).

In expectation over the draws a forward KL is that to the mixture, up to a constant: the student sees the diversity that
an average hides, at more noise.

Config: fusion = "sampled()"
When: many teachers, of whom an average is too smooth.
Checked: how often each is drawn; in pieces and on 8 devices as in one; by law.
"""

import jax
import jax.numpy as jnp

from jaxdistill.core.collectives import row_keys
from jaxdistill.core.registry import fusions
from jaxdistill.core.types import Fusion
from jaxdistill.fusion.mixture import fixed, mixed, present, shares


@fusions.register
def sampled(weights: tuple[float, ...] = ()) -> Fusion:
    """A random teacher for each row (of text, for each sequence) and step, of those that are present.

    Args:
        weights: how often each teacher is drawn, one for each; equally often if empty.

    Raises:
        ValueError: as of `fixed`.
    """
    often = fixed(weights)

    def apply(params, state, signals, *, key):
        there = present(signals)
        each = often(signals).reshape(-1, *[1] * (there.ndim - 1))
        log_share = jnp.log(shares(jnp.broadcast_to(each, there.shape), there))
        # Gumbel noise of a row and teacher, the same for all tokens: these hear one teacher, as far as it is present
        noise = jax.vmap(lambda own: jax.random.gumbel(own, (len(there),)))(row_keys(key, there.shape[1]))
        chosen = jnp.argmax(log_share + noise.T.reshape(*there.shape[:2], *[1] * (there.ndim - 2)), axis=0)
        return mixed(signals, jax.nn.one_hot(chosen, len(there), axis=0)), state

    return Fusion(lambda key, signals: ({}, {}), apply)
