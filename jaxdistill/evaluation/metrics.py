"""Metrics as pytrees of SUMS with a method `compute()`: results of batches, devices and hosts are combined by addition.

Each function returns the sums over the rows (examples, or tokens of texts) that it receives. Under pmap these are the
rows of one device, and the caller applies `psum` to the sums. All functions compute in float32 for any dtype of logits.
`mask` SELECTS rows and is not multiplied, because NaN * 0 is NaN. Top-1 agreement and CKA hardly distinguish a
distilled student from one trained on labels; `agreement_on_errors` and `rank_correlation` do.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32, Integer

from jaxdistill.core import collectives
from jaxdistill.core.sums import Mask, Mean, PerRow, Total, broadcast_mask, masked_mean, ratio, values_at_labels
from jaxdistill.core.types import Array, struct


@struct
class Perplexity(Mean):
    """The sum and the count of negative log-likelihoods in nats, for the perplexity `exp(sum / count)`."""

    def compute(self) -> Total:
        """Return the perplexity, `exp(sum / count)`; if the count is 0, return 1 for JAX arrays and NaN for NumPy."""
        return np.e ** super().compute()  # works for NumPy and JAX arrays


@struct
class Calibration:
    """The sums from which the expected calibration error (ECE) is computed, for each bin of confidence.

    The confidence of a row (an example or a token) is the probability of its predicted class. Each bin `(low, high]`
    holds the rows with a confidence in this range, and all bins have equal widths. All fields have the shape `[bins]`.

    Args:
        count: number of rows in the bin
        confidence: sum of the confidences of the rows in the bin
        correct: number of rows in the bin whose predicted class is the label

    References:
        Guo et al., "On Calibration of Modern Neural Networks", 2017, https://arxiv.org/abs/1706.04599
    """

    count: Total
    confidence: Total
    correct: Total

    def compute(self) -> Total:
        """Return the expected calibration error, `sum_b |confidence_b - correct_b| / sum_b count_b` over the bins b.

        It is the mean over bins of |mean confidence - accuracy|, where each bin counts by its number of rows.
        """
        return ratio(abs(self.confidence - self.correct).sum(), self.count.sum())

    def curve(self) -> tuple[Total, Total, Total]:
        """Return the reliability diagram: mean confidence, accuracy and count of each bin, all `[bins]`.

        In an empty bin, mean confidence and accuracy are NaN for NumPy values, and 0 for JAX arrays.
        """
        return ratio(self.confidence, self.count), ratio(self.correct, self.count), self.count


@struct
class Ranking(PerRow):
    """The score and the label of each row, from which the area under the ROC curve of two classes is computed.

    The area is the probability that a row of class 1 has a higher score than a row of class 0, where equal scores count
    half (Hanley and McNeil, "The Meaning and Use of the Area under a ROC Curve", 1982). It is computed exactly, from
    the ranks of all rows. It therefore cannot be added up over batches, and the rows are kept.
    """

    def compute(self) -> Total:
        """Return the area under the ROC curve, from 0 to 1, or NaN if one of the two classes has no row."""
        return roc_auc(np.asarray(self.values["score"]), np.asarray(self.values["label"]))


def roc_auc(score: np.ndarray, label: np.ndarray) -> float:
    """Compute the area under the ROC curve of two classes from midranks; NaN if one of the classes has no row.

    Args:
        score: `[rows]`, higher for class 1.
        label: `[rows]`, 0 or 1.
    """
    positive, negative = int((label == 1).sum()), int((label != 1).sum())
    if not positive or not negative:
        return float("nan")
    from scipy import stats  # here, because it is slow to import

    ranks = stats.rankdata(score)[label == 1].sum()
    return float((ranks - positive * (positive + 1) / 2) / (positive * negative))


@struct
class Alignment:
    """The sums from which the centred kernel alignment (CKA) of two representations is computed, `xy / sqrt(xx yy)`.

    Each field is a sum over batches of an unbiased estimate of HSIC, the Hilbert-Schmidt independence criterion. The
    estimates are summed before the division, because a mean of the CKA of each batch would depend on the batch size.

    Args:
        xy: HSIC of the two representations x and y
        xx, yy: HSIC of x with itself, and of y with itself

    References:
        Kornblith et al., "Similarity of Neural Network Representations Revisited", 2019, https://arxiv.org/abs/1905.00414
        Nguyen et al., "Do Wide and Deep Networks Learn the Same Things?", 2021, https://arxiv.org/abs/2010.15327
    """

    xy: Total
    xx: Total
    yy: Total

    def compute(self) -> Total:
        """Return the centred kernel alignment, `xy / sqrt(xx yy)`.

        It is 1 for representations that are equal up to rotation and scale, and about 0 for unrelated ones.
        """
        return ratio(self.xy, self.xx**0.5 * self.yy**0.5)


def accuracy(logits: Float[Array, "*batch classes"], labels: Integer[Array, "*batch"], mask: Mask) -> Mean:
    """Compute the top-1 accuracy: the share of rows (examples or tokens) whose largest logit is that of the label.

    The result is a sum and a count (`Mean`), so that batches can be added up.
    """
    return masked_mean(logits.argmax(-1) == labels, mask)


def nll(logits: Float[Array, "*batch classes"], labels: Integer[Array, "*batch"], mask: Mask) -> Mean:
    """Compute the mean negative log-likelihood, `-log softmax(logits)[label]`, in nats.

    The mean is over the rows (examples or tokens) whose mask is not 0. It is NaN if the label of such a row is not a
    class number, for example -1.
    """
    logp = jax.nn.log_softmax(logits.astype(jnp.float32))
    return masked_mean(-values_at_labels(logp, labels), mask)


def perplexity(logits: Float[Array, "*batch classes"], labels: Integer[Array, "*batch"], mask: Mask) -> Perplexity:
    """Compute the sum and the count for the perplexity of a language model, `exp(mean negative log-likelihood)`."""
    mean = nll(logits, labels, mask)
    return Perplexity(mean.sum, mean.count)


def calibration(
    logits: Float[Array, "*batch classes"], labels: Integer[Array, "*batch"], mask: Mask, bins: int = 15
) -> Calibration:
    """Compute the sums for the expected calibration error: count, confidences and correct predictions of each bin.

    Each row (an example or a token) is in the bin of its confidence, the probability of its predicted class.

    Args:
        logits: the model's logits.
        labels: class numbers.
        mask: nonzero for rows that count.
        bins: number of bins of equal width between 0 and 1.
    """
    confidence = jax.nn.softmax(logits.astype(jnp.float32)).max(-1)
    correct = (logits.argmax(-1) == labels).ravel()
    valid = broadcast_mask(mask, confidence.shape).ravel()
    confidence = confidence.ravel()
    # a confidence on an edge belongs to the lower bin
    index = jnp.searchsorted(jnp.arange(1, bins) / bins, confidence, side="left")
    inside = (index[:, None] == jnp.arange(bins)) & valid[:, None]
    count, correct = (jnp.sum(x, 0, dtype=jnp.float32) for x in (inside, inside & correct[:, None]))
    return Calibration(count, jnp.where(inside, confidence[:, None], 0.0).sum(0), correct)


def agreement(student: Float[Array, "*batch classes"], teacher: Float[Array, "*batch classes"], mask: Mask) -> Mean:
    """Compute the top-1 agreement: the share of rows (examples or tokens) where both models predict the same class.

    The result is a sum and a count (`Mean`), so that batches can be added up.

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
    """Compute the top-1 agreement of student and teacher on the rows (examples or tokens) where the teacher is wrong.

    The labels contradict these predictions of the teacher, so a student cannot learn this agreement from labels. The
    result is a sum and a count (`Mean`), so that batches can be added up.
    """
    top = teacher.argmax(-1)
    return masked_mean(student.argmax(-1) == top, broadcast_mask(mask, top.shape) & (top != labels))


def cosine_similarity(student: Float[Array, "rows width"], teacher: Float[Array, "rows width"], mask: Mask) -> Mean:
    """Compute the cosine similarity of the embeddings of student and teacher, from -1 to 1, as a `Mean` over rows."""
    x, y = (z.astype(jnp.float32) for z in (student, teacher))
    x, y = (z / jnp.maximum(jnp.linalg.norm(z, axis=-1, keepdims=True), 1e-12) for z in (x, y))
    return masked_mean((x * y).sum(-1), mask)


def divergence(student: Float[Array, "*batch classes"], teacher: Float[Array, "*batch classes"], mask: Mask) -> Mean:
    """Compute the Kullback-Leibler divergence `KL(teacher || student) = sum_c p_c log(p_c / q_c)`, in nats.

    p is softmax(teacher), and q is softmax(student), both at temperature 1. Classes with p_c = 0 (a teacher logit of
    -inf) add 0. The result is the mean over rows, as a sum and a count (`Mean`).
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
    """Compute the mean over rows of Spearman's rank correlation of the two models' logits, without the label's class.

    The correlation of a row (an example or a token) is `1 - 6 sum d^2 / (n (n^2 - 1))`, where d is the difference of
    the ranks of a class in student and teacher, and n = classes - 1. Equal logits are ranked by class index in both
    models. So classes whose logits are equal in both models, such as a masked part of the vocabulary, raise the result.
    With fewer than 3 classes, no row is counted.
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
    """Compute the U-centred Gram matrix of the valid rows: its diagonal is zero, and its rows sum to zero."""
    n = jnp.maximum(valid.sum(dtype=jnp.float32), 4.0)
    x = jnp.where(valid[:, None], features.astype(jnp.float32), 0.0)
    # The exact result does not depend on the mean, but in float32 large means (after a ReLU) would cancel badly below.
    x = jnp.where(valid[:, None], x - x.sum(0) / n, 0.0)
    pairs = valid[:, None] & valid & ~jnp.eye(len(valid), dtype=bool)
    gram = jnp.where(pairs, jnp.matmul(x, x.T, precision="highest"), 0.0)  # the default precision of TPUs is bfloat16
    row = gram.sum(1) / (n - 2.0)
    return jnp.where(pairs, gram - row[:, None] - row + gram.sum() / ((n - 1.0) * (n - 2.0)), 0.0)


def cka(x: Float[Array, "rows ..."], y: Float[Array, "rows ..."], mask: Mask) -> Alignment:
    """Compute the sums for the centred kernel alignment (CKA) of student and teacher features, from one batch.

    The sums are unbiased estimates of HSIC, the Hilbert-Schmidt independence criterion: `sum(K * L) / (n (n - 3))`,
    where K and L are the U-centred Gram matrices of x and y, and n is the number of rows (Szekely & Rizzo). This equals
    eq. 5 of Song et al., but rounding cannot make `xx` and `yy` negative. The biased estimate would give noise (20
    rows, width 64) a CKA of 0.76. A batch with fewer than 4 rows adds 0.

    Args:
        x: the student's features, flattened to one vector per row of the mask.
        y: the teacher's features; the width may differ.
        mask: `[rows]`, or `[batch, length]`, which makes every token a row. Rows with 0 are left out and not counted.

    Returns:
        The sums. Under pmap, every device returns its share of the sums over the rows of all devices; `psum` adds them
        up.

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
