"""Attention scores, divergences between heads, and masks, shared by the losses over self-attention.

Models return queries, keys and values; these functions compute scores from them in float32 or higher. Keys that a query
must not see (padding, a later token in a decoder, another document) are excluded from every softmax and mean. Queries
that are padding are excluded from the mean.
"""

import jax.numpy as jnp
from jaxtyping import Bool, Float

from jaxdistill.core.types import Array, AttentionHeads, Signals
from jaxdistill.losses.hidden.layers import LayerMap, layer_pairs
from jaxdistill.losses.logits.kd import kl_divergence
from jaxdistill.losses.term import mask_padding, mean_over_positions, precise, real_tokens, select_teacher


def scaled_dot_products(
    query: Float[Array, "rows queries heads size"], key: Float[Array, "rows keys groups size"]
) -> Float[Array, "rows heads queries keys"]:
    """Compute the unmasked scores before the softmax, `q k / sqrt(size)`; grouped keys are repeated for their heads."""
    query, key = precise(query), precise(repeat_grouped_heads(key, query.shape[2]))
    return jnp.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5


def repeat_grouped_heads(x: Float[Array, "rows keys groups size"], heads: int) -> Float[Array, "rows keys heads size"]:
    """Repeat grouped keys or values for the heads that share them."""
    return x if x.shape[2] == heads else jnp.repeat(x, heads // x.shape[2], axis=2)


def head_divergence(
    student: Float[Array, "rows heads queries keys"],
    teacher: Float[Array, "rows heads queries keys"],
    visible: Bool[Array, "rows 1 queries keys"],
) -> Float[Array, "rows queries"]:
    """Compute KL(teacher || student) of the attention distributions from scores, a mean over the heads."""
    # finite, not -inf: a text without any token has no visible key
    masked = lambda scores: jnp.where(visible, scores, jnp.finfo(scores.dtype).min)
    return jnp.mean(kl_divergence(masked(student), masked(teacher)), axis=1)


def score_distance(
    student: Float[Array, "rows heads queries keys"],
    teacher: Float[Array, "rows heads queries keys"],
    visible: Bool[Array, "rows 1 queries keys"],
) -> Float[Array, "rows queries"]:
    """Compute the squared difference of scores, a mean over the heads and over the keys that a query sees."""
    square = jnp.mean(jnp.where(visible, student - teacher, 0) ** 2, axis=1)
    return jnp.sum(square, axis=-1) / jnp.maximum(jnp.sum(visible[:, 0], axis=-1), 1)


def get_attentions(signals: Signals, teacher: int) -> tuple[tuple[AttentionHeads, ...], tuple[AttentionHeads, ...]]:
    """Return the attention heads of each layer of the student and of the teacher.

    Raises:
        ValueError: the student or the teacher returns no attention heads.
    """
    students, teachers = signals.student.attentions, select_teacher(signals.teachers, teacher).attentions
    if not students:
        raise ValueError("the student returns no attention heads; use a transformer")
    if not teachers:
        raise ValueError("the teacher returns no attention heads; use a live transformer, because caches hold none")
    return students, teachers


def paired_attentions(layers: LayerMap, signals: Signals, teacher: int) -> list[tuple[AttentionHeads, AttentionHeads]]:
    """Return the attention heads (student, teacher) of each layer pair; padding tokens are set to 0.

    Raises:
        ValueError: a model returns no attention heads, a layer does not exist, or the numbers of tokens differ.
    """
    students, teachers = get_attentions(signals, teacher)
    indices = layer_pairs(layers, len(students) + 1, len(teachers) + 1)
    if any(0 in pair for pair in indices):
        raise ValueError(f"layers={layers!r} names layer 0, the embedding, which has no heads; layers count from 1")
    pairs = [(students[i - 1], teachers[j - 1]) for i, j in indices]
    for student, target in pairs:
        if student.key.shape[1] != target.key.shape[1]:
            counts = f"student {student.key.shape[1]}, teacher {target.key.shape[1]}"
            problem = f"numbers of tokens differ ({counts}), but attention is compared token by token"
            raise ValueError(f"{problem}; match hidden states instead")
    return [(_mask_padding(student, signals), _mask_padding(target, signals)) for student, target in pairs]


def require_equal_heads(student: AttentionHeads, teacher: AttentionHeads) -> None:
    """Check that student and teacher have the same number of heads.

    Raises:
        ValueError: the numbers differ.
    """
    student_heads, teacher_heads = student.query.shape[2], teacher.query.shape[2]
    if student_heads != teacher_heads:
        counts = f"student {student_heads}, teacher {teacher_heads}"
        raise ValueError(f"numbers of heads differ ({counts}); use minilm2, which allows this")


def _mask_padding(heads: AttentionHeads, signals: Signals) -> AttentionHeads:
    """Set queries, keys and values of padding tokens to 0, so that their contents, such as NaN, do not spread."""
    return AttentionHeads(*(mask_padding(x, signals.batch) for x in (heads.query, heads.key, heads.value)))


def visible_keys(heads: AttentionHeads, signals: Signals) -> Bool[Array, "rows 1 queries keys"]:
    """Compute which keys each query sees: no padding, no other document, and in running text no later token."""
    rows, length = heads.key.shape[:2]
    visible, real = jnp.ones((rows, 1, length, length), bool), real_tokens(signals.batch, (rows, length))
    if real is not None:
        visible &= real[:, None, None, :]
    segments = signals.batch.get("segment_ids")
    if segments is not None and segments.shape == (rows, length):
        visible &= (segments[:, :, None] == segments[:, None, :])[:, None]
    return visible & jnp.tri(length, dtype=bool) if signals.mask.ndim == 2 else visible


def mean_over_queries(values: Float[Array, "rows queries"], signals: Signals) -> Float[Array, "..."]:
    """Average over the real tokens of each row, `[rows]`; in running text, return one value per token unchanged."""
    return mean_over_positions(values, signals.batch, signals.mask.ndim)
