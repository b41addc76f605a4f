"""Sigmoid loss of image-text pairs (SigLIP): for each image and each text, do they belong together?

Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023 (arxiv.org/abs/2303.15343). With the unit embeddings i
and t of the B pairs of the global batch, the student's scale a and bias b, and z = 1 for j = k and -1 elsewhere:

    - 1 / B sum_jk log sigmoid(z_jk (a i_j . t_k + b))

It is divided by B and not by B^2: almost all pairs are negative, which the bias, about -10 at the start, makes up for.
It needs no teacher.

Config: objective.sigmoid.term = "sigmoid"; task.sigmoid = {}
When: instead of `contrastive`, with a student that has a bias (`siglip`), above all with small batches.
Checked: against published code (open_clip's SigLipLoss), in value and gradient; by loops.
"""

import jax
import jax.numpy as jnp

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.pairs.towers import candidates, counted_rows, own_columns, to_mask_shape
from jaxdistill.losses.term import precise, stateless


@losses.register
def sigmoid() -> Term:
    """Build the sigmoid loss term of SigLIP, -sum_k log sigmoid(z_jk (a i_j . t_k + b)), per image-text pair j.

    i_j and t_k are the student's embeddings of image j and text k of the global batch, scaled to unit norm. z_jk is 1
    for the text that belongs to the image (k = j), and -1 for all other texts. a and b are the student's learned scale
    and bias. No teacher is needed.

    Raises:
        ValueError: when the loss is computed, if the student has no bias.
    """

    def values(signals: Signals) -> Array:
        if signals.student.bias is None:
            raise ValueError("the student has no bias, which this loss starts from; use siglip(...), or contrastive")
        seen = candidates(signals.student, signals, "student")
        bias = jnp.where(counted_rows(signals), precise(signals.student.bias), 0)
        logits = seen.scale[:, None] * (seen.images @ seen.all_texts.T) + bias[:, None]
        is_own = own_columns(signals)[:, None] == jnp.arange(logits.shape[-1])
        agreement = jax.nn.log_sigmoid(jnp.where(is_own, logits, -logits))
        return to_mask_shape(-jnp.sum(jnp.where(seen.valid, agreement, 0), axis=-1), signals)

    return stateless(values, local=False)
