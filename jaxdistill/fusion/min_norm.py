"""Teachers weigh so that their gradients agree best: Du et al., Agree to Disagree, AE-KD, NeurIPS 2020.

proceedings.neurips.cc/paper/2020/hash/91c77393975889bd08f301c9e13a44b7-Abstract.html

    g_k = softmax(s / T) - softmax(t_k / T)                       # of the loss to teacher k in the student's logits
    w   = argmin || sum_k w_k g_k / ||g_k|| ||    over the simplex, g_k being that of all rows of the batch

The shortest combination pulls towards no teacher at the cost of another, so that one that contradicts the rest is
heard until the others agree without it. The weights are those of the batch, or of each row by itself, and constants of
the loss, as in the paper. The paper also bounds them by a constant C, a number to be searched; here they are not.

Trap: without normalisation the min-norm point favours SHORT gradients, which is the teacher that the student has
matched already, or that knows nothing yet. Of a factored head each piece of a sequence has its own weights.

Config: fusion = "min_norm()"
When: teachers that contradict each other, and no labels that tell which of them to trust.
Checked: for two teachers by closed form; beside a solver for more (tests/test_fusion.py, tests/test_steps.py); on 8
devices as on one, also where each goes over its own rows.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.collectives import psum
from jaxdistill.core.registry import fusions
from jaxdistill.core.types import Array, Fusion, Signals
from jaxdistill.fusion.mixture import Of, mixing, present, spoken
from jaxdistill.losses.term import precise


def min_norm_weights(products: Float[Array, "vectors vectors"], iterations: int = 250) -> Float[Array, " vectors"]:
    """The weights of the shortest convex combination of vectors, by Frank-Wolfe with exact line search.

    Vectors of length 0 take no part. For two vectors one iteration is exact.

    Args:
        products: their inner products.
        iterations: at most; it ends where the weights do not move any more.
    """
    takes_part = jnp.diagonal(products) > 0
    products = products / jnp.maximum(jnp.max(jnp.diagonal(products)), jnp.finfo(products.dtype).tiny)
    start = jnp.where(takes_part, 1.0, 0.0) / jnp.maximum(jnp.sum(takes_part), 1)

    def improve(carry):
        weights, _, number = carry
        slope = jnp.sum(products * weights, axis=1)  # sums: a matrix product is bfloat16 on a TPU
        best = jnp.argmin(jnp.where(takes_part, slope, jnp.inf))
        towards = jnp.where(jnp.arange(len(weights)) == best, 1 - weights, -weights)
        bend = jnp.sum(products * jnp.outer(towards, towards))
        share = jnp.where(bend > 0, -jnp.sum(towards * slope) / jnp.where(bend > 0, bend, 1.0), 0.0)
        share = jnp.clip(share, 0.0, 1.0)  # where ||weights + share * towards|| is least
        return weights + share * towards, share, number + 1

    moves = lambda carry: (carry[1] > 1e-6) & (carry[2] < iterations)
    return jax.lax.while_loop(moves, improve, (start, jnp.ones_like(start[0]), 0))[0]


def logit_gradients(signals: Signals) -> Float[Array, "teachers *batch classes"]:
    """Of the loss to each teacher in the student's softened logits; 0 of rows that do not count, or where it is absent.

    A step holds them constant, so no gradient comes back through them.
    """
    towards = lambda logits: jax.nn.softmax(precise(logits) / signals.temperature)
    slopes = towards(signals.student.logits) - towards(spoken(signals))
    counts = present(signals) & (signals.mask != 0)
    return jax.lax.stop_gradient(jnp.where(counts[..., None], slopes, 0.0))


@fusions.register
def min_norm(of: Of = "probabilities", each: Literal["batch", "row"] = "batch", normalize: bool = True) -> Fusion:
    """Teachers by the weights of the shortest combination of their gradients in the student's logits.

    Args:
        of: whether "probabilities" or "logits" are mixed.
        each: one set of weights for the "batch", as published, or one for each "row".
        normalize: take the gradients at length 1; else as they are.
    """

    def weigh(signals: Signals) -> Array:
        slopes = logit_gradients(signals)
        pairs = jnp.sum(slopes[:, None] * slopes[None], axis=-1)  # [teachers, teachers, *batch]
        if each == "batch":
            return min_norm_weights(_scaled(psum(jnp.sum(pairs, axis=tuple(range(2, pairs.ndim))))))
        rows = jnp.moveaxis(pairs.reshape(*pairs.shape[:2], -1), -1, 0)
        weights = jax.vmap(lambda products: min_norm_weights(_scaled(products)))(rows)
        return jnp.moveaxis(weights, 0, -1).reshape(len(slopes), *signals.mask.shape)

    def _scaled(products: Array) -> Array:
        if not normalize:
            return products
        length = jnp.sqrt(jnp.diagonal(products))
        return products / jnp.maximum(jnp.outer(length, length), jnp.finfo(products.dtype).tiny)

    return mixing(weigh, of)
