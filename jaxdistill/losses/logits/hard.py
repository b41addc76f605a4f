"""Hard example mining and curricula: weight or select the examples of a batch by their hardness, for any other loss.

    sum_i w_i loss_i / sum_i w_i, with w_i = h_i^power for the selected rows, and 0 for the others

A row i is an example of the batch, or a token of a text. Its hardness h_i is chosen by `by`: the entropy of the fused
teacher's distribution, 1 minus the margin between its two likeliest classes, or the disagreement of the teachers, all
at the temperature of the other loss; or the value of the other loss, which depends on the student. h is held constant:
otherwise the student, or a teacher that is trained, could lower the loss by making rows easy. Weights are normalised
over the whole batch, on all devices.

    hard(loss=kd(), by='entropy')                                     all rows, weighted by the teacher's entropy
    hard(loss=kd(), by='loss', share=0.25, power=0.0)                 the hardest quarter of each batch
    hard(loss=kd(), share=linear(start=0.2, end=1.0), first='easiest', power=0.0)     a curriculum

Shrivastava, Gupta and Girshick, Training region-based object detectors with online hard example mining, 2016
(arxiv.org/abs/1604.03540): a share of the rows, by the student's loss. Li et al., Dynamic knowledge distillation for
pre-trained language models, 2021 (arxiv.org/abs/2109.11295): by uncertainty. Bengio et al., Curriculum learning, 2009.

Config: objective.kd.term = "hard(loss=kd(temperature=4.0), by='entropy')"
When: the student has already learned many rows. Errors in the data are hard too: inspect a selection before you trust
it. To select examples once, before a run, use `data.select`.
Checked: against values computed by hand.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jaxdistill.core import hardness
from jaxdistill.core.collectives import gather, psum
from jaxdistill.core.interfaces import Term, Values
from jaxdistill.core.registry import losses
from jaxdistill.core.schedules import Scalar, as_schedule, require_positive
from jaxdistill.core.types import Array, Key, Params, Signals, State
from jaxdistill.losses.term import precise

MEASURES = {"entropy": hardness.entropy, "margin": hardness.margin}


def hardness_weights(
    scores: Float[Array, "*batch"], valid: Bool[Array, "*batch"], share: Array | float, power: float, easiest: bool
) -> Float[Array, "*batch"]:
    """Compute the loss weight of each example (or token): `scores**power` for the selected ones, and 0 for the others.

    The weights are divided by their mean over the valid examples of the global batch. Examples that tie with the last
    selected one are selected too. If `scores**power` is 0 for all selected examples, these examples get equal weights.

    Args:
        scores: hardness of each example, 0 or more.
        valid: True for examples that count, False for masked ones, whose weight is 0.
        share: fraction of the valid examples to select, from 0 to 1; at least one example is selected.
        power: exponent of the hardness; 0 gives all selected examples the same weight.
        easiest: if True, select the examples of lowest hardness; if False, those of highest hardness.
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
    """Build a term that weights another loss by the hardness h_i of each example i: sum_i w_i loss_i / sum_i w_i.

    w_i is h_i^power for the selected examples, which are the hardest (or easiest) of the global batch, and 0 for the
    others. Because examples are ranked over the batch, logits are computed for the whole batch at once, not in chunks,
    even for a large vocabulary.

    Args:
        loss: the loss to weight, such as `kd(temperature=4.0)`; it must give one value per example (or token).
        by: h_i: "entropy", the entropy of the fused teacher's probabilities; "margin", 1 minus the difference of the
            fused teacher's two largest probabilities; "disagreement", the Jensen-Shannon divergence of the teachers;
            "loss", the value of the other loss.
        share: fraction of the examples (or tokens) to select, above 0 and at most 1; a number or a schedule.
        first: which examples are selected if the share is below 1.
        power: exponent of h_i, 0 or more; 0 gives all selected examples the same weight.

    Raises:
        ValueError: a number is out of range; when the loss is computed, `by` is "disagreement" with fewer than two
            teachers, or the other loss does not give one value per example.
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

    def apply(
        params: Params, state: State, signals: Signals, *, key: Key
    ) -> tuple[Values | tuple[Values, Array], State]:
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
