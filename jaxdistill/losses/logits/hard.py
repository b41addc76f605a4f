"""Hard example mining and curricula: weight or select the rows of another loss by their hardness.

    sum_i w_i loss_i / sum_i w_i, with w_i = h_i^power for the selected rows, and 0 for the others

h is the hardness of a row, chosen by `by`: the entropy of the fused teacher, 1 minus the margin between its two
likeliest classes, or the disagreement of the teachers, all at the inner loss's temperature; or the value of the inner
loss, which depends on the student. h is held constant: otherwise the student, or a teacher that is trained, could lower
the loss by making rows easy. Weights are normalised over the whole batch, on all devices.

    hard(loss=kd(), by='entropy')                                     weights
    hard(loss=kd(), by='loss', share=0.25, power=0.0)                 the hardest quarter of each batch
    hard(loss=kd(), share=linear(start=0.2, end=1.0), first='easiest', power=0.0)     a curriculum

Shrivastava, Gupta and Girshick, Training region-based object detectors with online hard example mining, 2016
(arxiv.org/abs/1604.03540): a share of the rows, by the student's loss. Li et al., Dynamic knowledge distillation for
pre-trained language models, 2021 (arxiv.org/abs/2109.11295): by uncertainty. Bengio et al., Curriculum learning, 2009.

Config: objective.kd.term = "hard(loss=kd(temperature=4.0), by='entropy')"
When: the student has already learned many rows. Errors in the data are hard too: inspect a selection before you trust
it. To select records once, before a run, use `data.select`.
Checked: by hand.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jaxdistill.core import hardness
from jaxdistill.core.collectives import gather, psum
from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.schedules import Scalar, as_schedule, require_positive
from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.term import precise

MEASURES = {"entropy": hardness.entropy, "margin": hardness.margin}


def hardness_weights(
    scores: Float[Array, "*batch"], valid: Bool[Array, "*batch"], share: Array | float, power: float, easiest: bool
) -> Float[Array, "*batch"]:
    """Compute a weight for each row, with a mean of 1 over the valid rows of the global batch; 0 for masked rows.

    Rows that tie with the last selected row are selected too. If all selected rows have weight 0, they get equal
    weights.

    Args:
        scores: hardness, 0 or more.
        valid: False for masked rows.
        share: fraction of the valid rows to select, at least one row; 1: all.
        power: exponent of the hardness; 0 gives all selected rows the same weight.
        easiest: select the easiest rows, not the hardest.
    """
    priority = jnp.where(valid, -scores if easiest else scores, -jnp.inf)
    count = psum(jnp.sum(valid))
    last = jnp.maximum(jnp.round(share * count), 1).astype(jnp.int32) - 1  # rank of the last selected row
    selected = valid & (priority >= jnp.sort(gather(priority).ravel(), descending=True)[last])
    weights = jnp.where(selected, scores**power, 0)
    weights = jnp.where(psum(jnp.sum(weights)) == 0, selected, weights)
    return weights * count / jnp.maximum(psum(jnp.sum(weights)), jnp.finfo(weights.dtype).tiny)


@losses.register
def hard(
    loss: Term,
    by: Literal["entropy", "margin", "disagreement", "loss"] = "entropy",
    share: Scalar = 1.0,
    first: Literal["hardest", "easiest"] = "hardest",
    power: float = 1.0,
) -> Term:
    """Weight another loss by the hardness of its rows, or apply it to the hardest or easiest rows only.

    Rows are ranked over the whole batch, so the logits of a factored head are computed in full, not in chunks.

    Args:
        loss: such as `kd(temperature=4.0)`; it must give one value per row (or token).
        by: the measure of hardness; "loss" is the value of the inner loss.
        share: fraction of the rows (or tokens) of a batch to learn from, above 0 and at most 1; number or schedule.
        first: which rows to select if the share is below 1.
        power: weights are the hardness to this power, 0 or more.

    Raises:
        ValueError: a number is out of range. When applied: `by` is "disagreement" with fewer than two teachers, or the
            inner loss does not give one value per row.
    """
    share_schedule = require_positive("share", as_schedule(share))
    if share_schedule.high > 1:
        raise ValueError(f"share must be at most 1, but it reaches {share_schedule.high:g}")
    if power < 0:
        raise ValueError(f"power must be 0 or more; got {power}")

    def hardness_of(signals: Signals, values: Array) -> Array:
        probabilities = lambda logits: jax.nn.softmax(precise(logits) / signals.temperature)
        if by == "loss":
            return jnp.maximum(values, 0)
        if by != "disagreement":
            return MEASURES[by](probabilities(signals.teacher.logits))
        if len(signals.teachers) < 2:
            raise ValueError(f"by='disagreement' needs two teachers or more; there are {len(signals.teachers)}")
        return hardness.disagreement(jnp.stack([probabilities(teacher.logits) for teacher in signals.teachers]))

    def apply(params, state, signals, *, key):
        out, state = loss.apply(params, state, signals, key=key)
        values, mask = out if isinstance(out, tuple) else (out, signals.mask)
        scores = jax.lax.stop_gradient(hardness_of(signals, values))
        if values.ndim == 0 or scores.shape != values.shape:
            shapes = f"shape {list(values.shape)} for rows of shape {list(signals.mask.shape)}"
            raise ValueError(f"hard needs a loss with one value per row; this loss gives values of {shapes}")
        scores = jnp.where(jnp.isnan(scores), jnp.inf, scores)  # keeps the row, so that its NaN stops the run
        valid = jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim)) != 0, values.shape)
        weighted = values * hardness_weights(scores, valid, share_schedule(signals.step), power, first == "easiest")
        return ((weighted, mask) if isinstance(out, tuple) else weighted), state

    needs = loss.needs if by == "loss" else loss.needs | {"teacher"}
    return loss._replace(apply=apply, local=False, needs=needs, linear=False)
