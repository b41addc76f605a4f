"""A metric is a pytree of SUMS plus `compute()`: batches, devices and hosts are joined by adding.

The functions return the sums of the rows they are given: local to the device under pmap, where the caller `psum`s the
tree. They compute in float32 whatever the logits are; `mask` SELECTS rows, because NaN * 0 is NaN. Top-1 agreement and
CKA hardly tell a distilled student from one trained on labels; `agreement_on_errors` and `rank_correlation` do.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32, Integer

from jaxdistill.core import collectives
from jaxdistill.core.sums import Mask, Mean, Total, mean_of, of_label, ratio, selected
from jaxdistill.core.types import Array, struct


@struct
class Perplexity(Mean):
    """A mean of nats; computed, the number of equally likely tokens that would surprise as much."""

    def compute(self) -> Total:
        """`exp(mean)`; with count 0 as `Mean`: nan on the host."""
        return np.e ** super().compute()  # of numpy and JAX alike


@struct
class Calibration:
    """Rows sorted by confidence into bins of equal width `(low, high]`; all fields `[bins]`.

    Args:
        count: rows per bin
        confidence: sum of the probabilities of the predicted class
        correct: rows whose predicted class is the label

    References:
        Guo et al., "On Calibration of Modern Neural Networks", 2017, https://arxiv.org/abs/1706.04599
    """

    count: Total
    confidence: Total
    correct: Total

    def compute(self) -> Total:
        """The expected calibration error: |confidence - accuracy| of each bin, averaged over rows."""
        return ratio(abs(self.confidence - self.correct).sum(), self.count.sum())

    def curve(self) -> tuple[Total, Total, Total]:
        """Confidence, accuracy and count of each bin, `[bins]`: a reliability diagram. Empty bins as in `Mean`."""
        return ratio(self.confidence, self.count), ratio(self.correct, self.count), self.count


@struct
class Alignment:
    """Centred kernel alignment from minibatches: sums of unbiased HSIC estimates, scalars.

    The estimates are added first and divided last: a mean of the batches' own ratios depends on the batch size.

    Args:
        xy, xx, yy: HSIC of the two representations with each other and with themselves

    References:
        Kornblith et al., "Similarity of Neural Network Representations Revisited", 2019, https://arxiv.org/abs/1905.00414
        Nguyen et al., "Do Wide and Deep Networks Learn the Same Things?", 2021, https://arxiv.org/abs/2010.15327
    """

    xy: Total
    xx: Total
    yy: Total

    def compute(self) -> Total:
        """`xy / sqrt(xx yy)`: 1 for the same representation up to rotation and scale, about 0 for unrelated ones."""
        return ratio(self.xy, self.xx**0.5 * self.yy**0.5)


def accuracy(logits: Float[Array, "*batch classes"], labels: Integer[Array, "*batch"], mask: Mask) -> Mean:
    """Share of rows whose largest logit is the label."""
    return mean_of(logits.argmax(-1) == labels, mask)


def nll(logits: Float[Array, "*batch classes"], labels: Integer[Array, "*batch"], mask: Mask) -> Mean:
    """Negative log-likelihood of the labels in nats; NaN if one of a row that counts is no class."""
    logp = jax.nn.log_softmax(logits.astype(jnp.float32))
    return mean_of(-of_label(logp, labels), mask)


def perplexity(logits: Float[Array, "*batch classes"], labels: Integer[Array, "*batch"], mask: Mask) -> Perplexity:
    """The exponential of `nll`: of a language model, per token."""
    surprise = nll(logits, labels, mask)
    return Perplexity(surprise.sum, surprise.count)


def calibration(
    logits: Float[Array, "*batch classes"], labels: Integer[Array, "*batch"], mask: Mask, bins: int = 15
) -> Calibration:
    """Confidence beside accuracy, in bins."""
    confidence = jax.nn.softmax(logits.astype(jnp.float32)).max(-1)
    correct = (logits.argmax(-1) == labels).ravel()
    valid = selected(mask, confidence.shape).ravel()
    confidence = confidence.ravel()
    which = jnp.searchsorted(jnp.arange(1, bins) / bins, confidence, side="left")  # a row on an edge: the lower bin
    inside = (which[:, None] == jnp.arange(bins)) & valid[:, None]
    count, correct = (jnp.sum(x, 0, dtype=jnp.float32) for x in (inside, inside & correct[:, None]))
    return Calibration(count, jnp.where(inside, confidence[:, None], 0.0).sum(0), correct)


def agreement(student: Float[Array, "*batch classes"], teacher: Float[Array, "*batch classes"], mask: Mask) -> Mean:
    """Share of rows with the same top-1.

    References:
        Stanton et al., "Does Knowledge Distillation Really Work?", 2021, https://arxiv.org/abs/2106.05945
    """
    return mean_of(student.argmax(-1) == teacher.argmax(-1), mask)


def agreement_on_errors(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"],
    mask: Mask,
) -> Mean:
    """`agreement` where the teacher's top-1 is wrong: what only the teacher can have taught."""
    top = teacher.argmax(-1)
    return mean_of(student.argmax(-1) == top, selected(mask, top.shape) & (top != labels))


def divergence(student: Float[Array, "*batch classes"], teacher: Float[Array, "*batch classes"], mask: Mask) -> Mean:
    """KL(teacher || student) at temperature 1, in nats.

    Classes to which the teacher gives no probability (a logit of -inf) add nothing: 0 log 0 = 0.
    """
    log_p, log_q = (jax.nn.log_softmax(z.astype(jnp.float32)) for z in (teacher, student))
    p = jnp.exp(log_p)
    # `p == 0` and not `p > 0`: a NaN of the teacher must show, not count as a class without probability
    return mean_of(jnp.where(p == 0, 0.0, p * (log_p - log_q)).sum(-1), mask)


def rank_correlation(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"],
    mask: Mask,
) -> Mean:
    """Spearman's rank correlation over the classes that are not the label, averaged over rows.

    `1 - 6 sum d^2 / (n (n^2 - 1))` with d the difference of ranks among the n = classes - 1 others. Ties are ranked by
    class index, in student and teacher alike: classes that are tied in BOTH count as agreeing, so a block of equal
    logits (a masked vocabulary) raises the number. Fewer than 3 classes have no order to compare: count 0.
    """
    others = student.shape[-1] - 1
    if others < 2:
        return mean_of(jnp.zeros(labels.shape), jnp.zeros(labels.shape))

    def ranks(logits: Float[Array, "*batch classes"]) -> Integer[Array, "*batch classes"]:
        rank = logits.argsort(-1).argsort(-1)
        target = jnp.take_along_axis(rank, labels[..., None], -1)
        return rank - (rank > target)  # the ranks above the label's close the gap that it leaves

    # Float before the square: 46,341 classes overflow int32. The label's own d is taken out by `where`.
    d = (ranks(student) - ranks(teacher)).astype(jnp.float32)
    d = jnp.where(labels[..., None] == jnp.arange(others + 1), 0.0, d)
    return mean_of(1.0 - 6.0 * (d**2).sum(-1) / (others * (others**2 - 1.0)), mask)


def _u_centred(features: Float[Array, "rows width"], valid: Bool[Array, " rows"]) -> Float32[Array, "rows rows"]:
    """Gram matrix without its diagonal whose rows sum to zero."""
    n = jnp.maximum(valid.sum(dtype=jnp.float32), 4.0)
    x = jnp.where(valid[:, None], features.astype(jnp.float32), 0.0)
    # The result does not depend on the mean, float32 does: features after a ReLU would cancel in the sums below.
    x = jnp.where(valid[:, None], x - x.sum(0) / n, 0.0)
    pairs = valid[:, None] & valid & ~jnp.eye(len(valid), dtype=bool)
    gram = jnp.where(pairs, jnp.matmul(x, x.T, precision="highest"), 0.0)  # "highest": TPUs multiply in bfloat16
    row = gram.sum(1) / (n - 2.0)
    return jnp.where(pairs, gram - row[:, None] - row + gram.sum() / ((n - 1.0) * (n - 2.0)), 0.0)


def cka(x: Float[Array, "rows ..."], y: Float[Array, "rows ..."], mask: Mask) -> Alignment:
    """Unbiased HSIC of one batch; the biased one gives 0.76 for noise (20 rows, width 64).

    Written as the inner product of U-centred Gram matrices over n(n - 3) (Szekely & Rizzo 2014), which equals eq. 5 of
    Song et al. and keeps `xx` and `yy` from going negative by rounding. Fewer than 4 rows have no estimate: they add 0.

    Args:
        x: the student's features, flattened to one vector per row of the mask
        y: the teacher's; the width may differ
        mask: `[rows]`; `[batch, length]` makes every token a row. Rows with 0 are left out, and n with them

    Returns:
        The sums. Rows are gathered under pmap and each device returns its share, so that `psum` is right here too.

    References:
        Song et al., "Feature Selection via Dependence Maximization", 2012, https://jmlr.org/papers/v13/song12a.html
        Szekely & Rizzo, "Partial distance correlation", 2014, https://arxiv.org/abs/1310.2926
    """
    mask = jnp.asarray(mask)
    x, y, mask = collectives.gather((x.reshape(mask.size, -1), y.reshape(mask.size, -1), mask.ravel()))
    rows = (mask != 0).sum(dtype=jnp.float32)
    n = jnp.maximum(rows, 4.0)
    scale = (rows >= 4) / (n * (n - 3.0)) / collectives.psum(1.0)
    k, m = (_u_centred(z, mask != 0) for z in (x, y))
    return Alignment(*((a * b).sum() * scale for a, b in ((k, m), (k, k), (m, m))))
