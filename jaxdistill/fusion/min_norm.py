"""AE-KD: weight teachers by the min-norm combination of their gradients in the student's logits.

Du et al., Agree to Disagree: Adaptive Ensemble Knowledge Distillation in Gradient Space, NeurIPS 2020
(proceedings.neurips.cc/paper/2020/hash/91c77393975889bd08f301c9e13a44b7-Abstract.html)

    g_k = softmax(s / T) - softmax(t_k / T)                       # gradient of teacher k's loss in the student's logits
    w   = argmin || sum_k w_k g_k / ||g_k|| ||    over the simplex, with g_k over all rows of the batch

s are the student's logits, t_k those of teacher k, and T is the temperature. The shortest combination follows no
teacher at the cost of another: a teacher that contradicts the rest has a large weight until the others agree without
it. The weights are for the whole batch, or for each row, and are constants of the loss, as in the paper. The paper also
bounds the weights by a constant C, a hyperparameter; here they have no bound.

Traps: without normalisation, the min-norm point favours SHORT gradients: a teacher that the student matches already, or
one that knows nothing yet. With a factored head (logits computed in chunks of the sequence), each chunk has its own
weights.

Config: fusion = "min_norm()"
When: teachers contradict each other, and there are no labels that tell which of them to trust.
Checked: closed form for two teachers; a solver for more (tests/fusion/test_fusion.py, tests/steps/test_weighing.py); 8
    devices equal one, also with the rows split by `shard_map`.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from jaxdistill.core.collectives import psum
from jaxdistill.core.interfaces import Fusion
from jaxdistill.core.registry import fusions
from jaxdistill.core.types import Array, Signals
from jaxdistill.fusion.mixture import MixtureSpace, mixture_fusion, present_mask, teacher_logits
from jaxdistill.losses.term import precise

# Weights, size of the last step, and number of iterations of a search
Carry = tuple[Float[Array, " vectors"], Float[Array, ""], Int[Array, ""]]


def min_norm_weights(products: Float[Array, "vectors vectors"], iterations: int = 250) -> Float[Array, " vectors"]:
    """Compute `argmin_w ||sum_k w_k v_k||` over the simplex (w_k >= 0, `sum_k w_k = 1`), for vectors v_k.

    The algorithm is Frank-Wolfe with exact line search; for two vectors, its first iteration is exact. Vectors of
    length 0 get the weight 0.

    Args:
        products: inner products of all pairs of vectors, `products[j, k] = v_j . v_k`.
        iterations: maximum number of iterations; the search stops earlier when the weights no longer change.
    """
    nonzero = jnp.diagonal(products) > 0
    products = products / jnp.maximum(jnp.max(jnp.diagonal(products)), jnp.finfo(products.dtype).tiny)
    start = jnp.where(nonzero, 1.0, 0.0) / jnp.maximum(jnp.sum(nonzero), 1)

    def improve(carry: Carry) -> Carry:
        weights, _, number = carry
        slope = jnp.sum(products * weights, axis=1)  # a sum, because a matrix product is bfloat16 on a TPU
        best = jnp.argmin(jnp.where(nonzero, slope, jnp.inf))
        direction = jnp.where(jnp.arange(len(weights)) == best, 1 - weights, -weights)
        curvature = jnp.sum(products * jnp.outer(direction, direction))
        step_size = jnp.where(
            curvature > 0, -jnp.sum(direction * slope) / jnp.where(curvature > 0, curvature, 1.0), 0.0
        )
        step_size = jnp.clip(step_size, 0.0, 1.0)  # minimises ||weights + step_size * direction||
        return weights + step_size * direction, step_size, number + 1

    moves = lambda carry: (carry[1] > 1e-6) & (carry[2] < iterations)
    return jax.lax.while_loop(moves, improve, (start, jnp.ones_like(start[0]), jnp.zeros((), jnp.int32)))[0]


def logit_gradients(signals: Signals) -> Float[Array, "teachers *batch classes"]:
    """Compute `softmax(s / T) - softmax(t_k / T)` for each teacher k, with student logits s and teacher logits t_k.

    This is the gradient of KL(teacher || student) at temperature T with respect to s / T. It is 0 for masked rows and
    absent teachers. The result is a constant: no gradient flows through it.

    Args:
        signals: outputs of student and teachers, and the temperature T.
    """
    soften = lambda logits: jax.nn.softmax(precise(logits) / signals.temperature)
    gradients = soften(signals.student.logits) - soften(teacher_logits(signals))
    counts = present_mask(signals) & (signals.mask != 0)
    return jax.lax.stop_gradient(jnp.where(counts[..., None], gradients, 0.0))


@fusions.register
def min_norm(
    of: MixtureSpace = "probabilities", each: Literal["batch", "row"] = "batch", normalize: bool = True
) -> Fusion:
    """Average the teachers with the weights w_k that minimise the norm `||sum_k w_k g_k / ||g_k|| ||`.

    g_k is the gradient of KL(teacher k || student) with respect to the student's logits; w_k >= 0 and `sum_k w_k = 1`.

    Args:
        of: the space of the average. "probabilities" gives `sum_k w_k softmax(t_k / T)`, with logits t_k of teacher k
            and temperature T; "logits" gives `sum_k w_k t_k`.
        each: "batch" computes one set of weights for the batch, as in the paper; "row" computes one for each row
            (example or token).
        normalize: True divides each gradient by its length `||g_k||`; False uses g_k itself.
    """

    def weigh(signals: Signals) -> Array:
        gradients = logit_gradients(signals)
        pairs = jnp.sum(gradients[:, None] * gradients[None], axis=-1)  # [teachers, teachers, *batch]
        if each == "batch":
            return min_norm_weights(_normalised(psum(jnp.sum(pairs, axis=tuple(range(2, pairs.ndim))))))
        rows = jnp.moveaxis(pairs.reshape(*pairs.shape[:2], -1), -1, 0)
        weights = jax.vmap(lambda products: min_norm_weights(_normalised(products)))(rows)
        return jnp.moveaxis(weights, 0, -1).reshape(len(gradients), *signals.mask.shape)

    def _normalised(products: Array) -> Array:
        if not normalize:
            return products
        length = jnp.sqrt(jnp.diagonal(products))
        return products / jnp.maximum(jnp.outer(length, length), jnp.finfo(products.dtype).tiny)

    return mixture_fusion(weigh, of)
