"""Metrics as pytrees of SUMS with a method `compute()`: results of batches, devices and hosts are combined by addition.

The functions return the sums over their rows. Under pmap these are the rows of one device, and the caller applies
`psum` to the tree. All functions compute in float32 for any dtype of logits. `mask` SELECTS rows and is not multiplied,
because NaN * 0 is NaN. Top-1 agreement and CKA hardly distinguish a distilled student from one trained on labels;
`agreement_on_errors` and `rank_correlation` do.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32, Integer

from jaxdistill.core import collectives
from jaxdistill.core.sums import Mask, Mean, Total, broadcast_mask, masked_mean, ratio, values_at_labels
from jaxdistill.core.types import Array, struct


@struct
class Perplexity(Mean):
    """A mean of nats, whose exponential is the perplexity: the number of equally likely tokens with the same NLL."""

    def compute(self) -> Total:
        """Return `exp(mean)`; NaN on the host if the count is 0, as in `Mean`."""
        return np.e ** super().compute()  # works for NumPy and JAX arrays


@struct
class Calibration:
    """Sums over rows by confidence, in bins of equal width `(low, high]`; all fields are `[bins]`.

    Args:
        count: number of rows
        confidence: sum of the probabilities of the predicted class
        correct: number of rows whose predicted class is the label

    References:
        Guo et al., "On Calibration of Modern Neural Networks", 2017, https://arxiv.org/abs/1706.04599
    """

    count: Total
    confidence: Total
    correct: Total

    def compute(self) -> Total:
        """Return the expected calibration error: |confidence - accuracy| of each bin, averaged over rows."""
        return ratio(abs(self.confidence - self.correct).sum(), self.count.sum())

    def curve(self) -> tuple[Total, Total, Total]:
        """Return a reliability diagram: confidence, accuracy and count, `[bins]`; empty bins as in `Mean`."""
        return ratio(self.confidence, self.count), ratio(self.correct, self.count), self.count


@struct
class Alignment:
    """Centred kernel alignment (CKA) from minibatches: sums of unbiased HSIC estimates, scalars.

    The estimates are added first and divided last, because the mean of ratios of batches depends on the batch size.

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
        """Return `xy / sqrt(xx yy)`: 1 for equal representations up to rotation and scale, about 0 for unrelated."""
        return ratio(self.xy, self.xx**0.5 * self.yy**0.5)


def accuracy(logits: Float[Array, "*batch classes"], labels: Integer[Array, "*batch"], mask: Mask) -> Mean:
    """Compute the share of rows whose largest logit is the label."""
    return masked_mean(logits.argmax(-1) == labels, mask)


def nll(logits: Float[Array, "*batch classes"], labels: Integer[Array, "*batch"], mask: Mask) -> Mean:
    """Compute the negative log-likelihood of the labels in nats; NaN if a label of a selected row is not a class."""
    logp = jax.nn.log_softmax(logits.astype(jnp.float32))
    return masked_mean(-values_at_labels(logp, labels), mask)


def perplexity(logits: Float[Array, "*batch classes"], labels: Integer[Array, "*batch"], mask: Mask) -> Perplexity:
    """Compute the perplexity of a language model: the exponential of `nll` per token."""
    mean = nll(logits, labels, mask)
    return Perplexity(mean.sum, mean.count)


def calibration(
    logits: Float[Array, "*batch classes"], labels: Integer[Array, "*batch"], mask: Mask, bins: int = 15
) -> Calibration:
    """Compute confidence and accuracy in bins of confidence."""
    confidence = jax.nn.softmax(logits.astype(jnp.float32)).max(-1)
    correct = (logits.argmax(-1) == labels).ravel()
    valid = broadcast_mask(mask, confidence.shape).ravel()
    confidence = confidence.ravel()
    index = jnp.searchsorted(jnp.arange(1, bins) / bins, confidence, side="left")  # a row on an edge: the lower bin
    inside = (index[:, None] == jnp.arange(bins)) & valid[:, None]
    count, correct = (jnp.sum(x, 0, dtype=jnp.float32) for x in (inside, inside & correct[:, None]))
    return Calibration(count, jnp.where(inside, confidence[:, None], 0.0).sum(0), correct)


def agreement(student: Float[Array, "*batch classes"], teacher: Float[Array, "*batch classes"], mask: Mask) -> Mean:
    """Compute the share of rows with the same top-1 class.

    References:
        Stanton et al., "Does Knowledge Distillation Really Work?", 2021, https://arxiv.org/abs/2106.05945
    """
    return masked_mean(student.argmax(-1) == teacher.argmax(-1), mask)


def agreement_on_errors(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"],
    mask: Mask,
) -> Mean:
    """Compute `agreement` on the rows where the teacher's top-1 is wrong, which labels cannot have taught."""
    top = teacher.argmax(-1)
    return masked_mean(student.argmax(-1) == top, broadcast_mask(mask, top.shape) & (top != labels))


def divergence(student: Float[Array, "*batch classes"], teacher: Float[Array, "*batch classes"], mask: Mask) -> Mean:
    """Compute KL(teacher || student) at temperature 1, in nats.

    Classes with teacher probability 0 (a logit of -inf) add nothing: 0 log 0 = 0.
    """
    log_p, log_q = (jax.nn.log_softmax(z.astype(jnp.float32)) for z in (teacher, student))
    p = jnp.exp(log_p)
    # `p == 0` and not `p > 0`: a NaN of the teacher must stay NaN, and not count as probability 0
    return masked_mean(jnp.where(p == 0, 0.0, p * (log_p - log_q)).sum(-1), mask)


def rank_correlation(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"],
    mask: Mask,
) -> Mean:
    """Compute Spearman's rank correlation over the classes that are not the label, averaged over rows.

    The formula is `1 - 6 sum d^2 / (n (n^2 - 1))`, where d is the difference of ranks among the n = classes - 1 others.
    Ties are ranked by class index in student and teacher. Classes that are tied in BOTH therefore count as agreeing,
    and a block of equal logits (a masked vocabulary) raises the result. With fewer than 3 classes the count is 0.
    """
    others = student.shape[-1] - 1
    if others < 2:
        return masked_mean(jnp.zeros(labels.shape), jnp.zeros(labels.shape))

    def ranks(logits: Float[Array, "*batch classes"]) -> Integer[Array, "*batch classes"]:
        rank = logits.argsort(-1).argsort(-1)
        target = jnp.take_along_axis(rank, labels[..., None], -1)
        return rank - (rank > target)  # ranks above that of the label move down by one

    # Convert to float before squaring: 46,341 classes overflow int32. `where` removes the label's d.
    d = (ranks(student) - ranks(teacher)).astype(jnp.float32)
    d = jnp.where(labels[..., None] == jnp.arange(others + 1), 0.0, d)
    return masked_mean(1.0 - 6.0 * (d**2).sum(-1) / (others * (others**2 - 1.0)), mask)


def _u_centred(features: Float[Array, "rows width"], valid: Bool[Array, " rows"]) -> Float32[Array, "rows rows"]:
    """Compute the U-centred Gram matrix: zero diagonal, and rows that sum to zero."""
    n = jnp.maximum(valid.sum(dtype=jnp.float32), 4.0)
    x = jnp.where(valid[:, None], features.astype(jnp.float32), 0.0)
    # The exact result does not depend on the mean, but in float32 large means (after a ReLU) would cancel badly below.
    x = jnp.where(valid[:, None], x - x.sum(0) / n, 0.0)
    pairs = valid[:, None] & valid & ~jnp.eye(len(valid), dtype=bool)
    gram = jnp.where(pairs, jnp.matmul(x, x.T, precision="highest"), 0.0)  # the default precision of TPUs is bfloat16
    row = gram.sum(1) / (n - 2.0)
    return jnp.where(pairs, gram - row[:, None] - row + gram.sum() / ((n - 1.0) * (n - 2.0)), 0.0)


def cka(x: Float[Array, "rows ..."], y: Float[Array, "rows ..."], mask: Mask) -> Alignment:
    """Compute the unbiased HSIC of one batch for CKA; the biased estimate gives 0.76 for noise (20 rows, width 64).

    The estimate is the inner product of U-centred Gram matrices over n(n - 3) (Szekely & Rizzo 2014). It equals eq. 5
    of Song et al., and rounding cannot make `xx` and `yy` negative. Fewer than 4 rows have no estimate and add 0.

    Args:
        x: the student's features, flattened to one vector per row of the mask
        y: the teacher's features; the width may differ
        mask: `[rows]`, or `[batch, length]`, which makes every token a row; rows with 0 are left out and not counted

    Returns:
        The sums. Under pmap all rows are gathered and each device returns its share, so that `psum` gives the sums.

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
