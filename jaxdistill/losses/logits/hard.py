"""Hard examples: another loss, weighed by how hard its rows are, of the hardest alone, or of ever more of them.

    sum_i w_i loss_i / sum_i w_i, with w_i = h_i^power for the rows within the share, and 0 for the others

h is the hardness of a row: the entropy of the fused teacher, 1 less its margin, how much the teachers disagree, all at
the inner loss's temperature; or the inner loss itself, by which the student chooses. It is held constant: else a
student, or a teacher that learns, would lower the loss by calling rows easy. Weights are of the whole batch, on all
devices.

    hard(loss=kd(), by='entropy')                                     weights
    hard(loss=kd(), by='loss', share=0.25, power=0.0)                 the hardest quarter of each batch
    hard(loss=kd(), share=linear(start=0.2, end=1.0), first='easiest', power=0.0)     a curriculum

Shrivastava, Gupta and Girshick, Training region-based object detectors with online hard example mining, 2016
(arxiv.org/abs/1604.03540): the share, by the student's loss. Li et al., Dynamic knowledge distillation for pre-trained
language models, 2021 (arxiv.org/abs/2109.11295): by uncertainty. Bengio et al., Curriculum learning, 2009.

Config: objective.kd.term = "hard(loss=kd(temperature=4.0), by='entropy')"
When: many rows are learned already. What is wrong in the data is hard, too: look at a selection before it is trusted.
Checked: by hand. To choose once, before a run, see `data.select`.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jaxdistill.core import hardness
from jaxdistill.core.collectives import gather, psum
from jaxdistill.core.registry import losses
from jaxdistill.core.schedules import Scalar, as_schedule, require_positive
from jaxdistill.core.types import Array, Signals, Term
from jaxdistill.losses.term import precise

MEASURES = {"entropy": hardness.entropy, "margin": hardness.margin}


def weights(
    hard: Float[Array, "*batch"], counts: Bool[Array, "*batch"], share: Array | float, power: float, easiest: bool
) -> Float[Array, "*batch"]:
    """What each row weighs, with a mean of 1 over the rows of the global batch that count; 0 for those that do not.

    Rows as hard as the last one within the share are within it, too. Where all rows within it weigh 0, they weigh the
    same.

    Args:
        hard: 0 or more.
        counts: which rows count.
        share: of the rows that count, at least one of them; 1: all.
        power: of the hardness; 0 weighs what is within the share alike.
        easiest: the share holds the easiest rows, not the hardest.
    """
    first = jnp.where(counts, -hard if easiest else hard, -jnp.inf)
    count = psum(jnp.sum(counts))
    place = jnp.maximum(jnp.round(share * count), 1).astype(jnp.int32) - 1
    within = counts & (first >= jnp.sort(gather(first).ravel(), descending=True)[place])
    wanted = jnp.where(within, hard**power, 0)
    wanted = jnp.where(psum(jnp.sum(wanted)) == 0, within, wanted)
    return wanted * count / jnp.maximum(psum(jnp.sum(wanted)), jnp.finfo(wanted.dtype).tiny)


@losses.register
def hard(
    loss: Term,
    by: Literal["entropy", "margin", "disagreement", "loss"] = "entropy",
    share: Scalar = 1.0,
    first: Literal["hardest", "easiest"] = "hardest",
    power: float = 1.0,
) -> Term:
    """Another loss, of hard rows above all. It ranks the whole batch: a factored head is multiplied out for it.

    Args:
        loss: such as `kd(temperature=4.0)`; it gives a value for each row (or token).
        by: what makes a row hard; `loss`: its value.
        share: of the rows (or tokens) of a batch that are learned from, above 0 and at most 1; a number or a schedule.
        first: which of them, when the share is below 1.
        power: 0 or more; rows weigh their hardness to this power.

    Raises:
        ValueError: a number is out of range. When it is applied: the teachers are fewer than two who could disagree,
            or the inner loss gives other values than one for each row.
    """
    curve = require_positive("share", as_schedule(share))
    if curve.high > 1:
        raise ValueError(f"share is at most 1, but it reaches {curve.high:g}")
    if power < 0:
        raise ValueError(f"power is 0 or more; got {power}")

    def of_rows(signals: Signals, values: Array) -> Array:
        said = lambda logits: jax.nn.softmax(precise(logits) / signals.temperature)
        if by == "loss":
            return jnp.maximum(values, 0)
        if by != "disagreement":
            return MEASURES[by](said(signals.teacher.logits))
        if len(signals.teachers) < 2:
            raise ValueError(f"by='disagreement' needs two teachers or more; there are {len(signals.teachers)}")
        return hardness.disagreement(jnp.stack([said(teacher.logits) for teacher in signals.teachers]))

    def apply(params, state, signals, *, key):
        out, state = loss.apply(params, state, signals, key=key)
        values, mask = out if isinstance(out, tuple) else (out, signals.mask)
        found = jax.lax.stop_gradient(of_rows(signals, values))
        if values.ndim == 0 or found.shape != values.shape:
            shapes = f"values {list(values.shape)} where rows are {list(signals.mask.shape)}"
            raise ValueError(f"hard weighs what has a value for each row; this loss gives {shapes}")
        found = jnp.where(jnp.isnan(found), jnp.inf, found)  # so that its row is not left out, and stops the run
        counts = jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim)) != 0, values.shape)
        weighed = values * weights(found, counts, curve(signals.step), power, first == "easiest")
        return ((weighed, mask) if isinstance(out, tuple) else weighed), state

    needs = loss.needs if by == "loss" else loss.needs | {"teacher"}
    return loss._replace(apply=apply, local=False, needs=needs, linear=False)
