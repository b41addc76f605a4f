"""Functions shared by the losses on self-attention: attention scores, distances between heads, and masks.

Models return queries, keys and values; these functions compute attention scores from them in float32 or wider. Keys
that a query must not attend to (padding, a later token in a decoder, another document) are excluded from every softmax
and mean. Queries that are padding are excluded from the mean over queries.
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
    """Compute the attention scores `q k / sqrt(size)` of all pairs of a query and a key, before mask and softmax.

    In grouped-query attention there are fewer key heads (`groups`) than query heads. Each key head is then repeated for
    the query heads that share it.
    """
    query, key = precise(query), precise(repeat_grouped_heads(key, query.shape[2]))
    return jnp.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5


def repeat_grouped_heads(x: Float[Array, "rows keys groups size"], heads: int) -> Float[Array, "rows keys heads size"]:
    """Repeat the keys or values of grouped-query attention, so that each of `heads` query heads has its own copy."""
    return x if x.shape[2] == heads else jnp.repeat(x, heads // x.shape[2], axis=2)


def head_divergence(
    student: Float[Array, "rows heads queries keys"],
    teacher: Float[Array, "rows heads queries keys"],
    visible: Bool[Array, "rows 1 queries keys"],
) -> Float[Array, "rows queries"]:
    """Compute KL(softmax(teacher) || softmax(student)) over the keys, averaged over the heads.

    Args:
        student, teacher: attention scores before the softmax.
        visible: True where a query may attend to a key; other keys get probability 0.
    """
    # finite, not -inf: a text without any token has no visible key
    masked = lambda scores: jnp.where(visible, scores, jnp.finfo(scores.dtype).min)
    return jnp.mean(kl_divergence(masked(student), masked(teacher)), axis=1)


def score_distance(
    student: Float[Array, "rows heads queries keys"],
    teacher: Float[Array, "rows heads queries keys"],
    visible: Bool[Array, "rows 1 queries keys"],
) -> Float[Array, "rows queries"]:
    """Compute `mean((student - teacher)**2)` of attention scores, over the heads and the visible keys.

    Args:
        student, teacher: attention scores before the softmax.
        visible: True where a query may attend to a key; other keys are left out of the mean.
    """
    square = jnp.mean(jnp.where(visible, student - teacher, 0) ** 2, axis=1)
    return jnp.sum(square, axis=-1) / jnp.maximum(jnp.sum(visible[:, 0], axis=-1), 1)


def get_attentions(signals: Signals, teacher: int) -> tuple[tuple[AttentionHeads, ...], tuple[AttentionHeads, ...]]:
    """Return the queries, keys and values of all attention layers of the student, and those of one teacher.

    Args:
        signals: the inputs of a loss term: outputs of student and teachers, the batch and its mask.
        teacher: index of the teacher, in the order of the config.

    Raises:
        ValueError: the outputs of the student or of the teacher hold no queries, keys and values.
    """
    students, teachers = signals.student.attentions, select_teacher(signals.teachers, teacher).attentions
    if not students:
        raise ValueError("the student returns no attention heads; use a transformer")
    if not teachers:
        raise ValueError("the teacher returns no attention heads; use a live transformer, because caches hold none")
    return students, teachers


def paired_attentions(layers: LayerMap, signals: Signals, teacher: int) -> list[tuple[AttentionHeads, AttentionHeads]]:
    """Return the queries, keys and values of the student layer and of the teacher layer of each layer pair.

    Queries, keys and values of padding tokens are set to 0.

    Args:
        layers: which student layer learns from which teacher layer: "uniform", "skip", "last", a range of teacher
            layers such as "6-9", or pairs such as ((1, 2), (2, 4)); see `layer_pairs`. Layers count from 1.
        signals: the inputs of a loss term: outputs of student and teachers, the batch and its mask.
        teacher: index of the teacher, in the order of the config.

    Raises:
        ValueError: the outputs of a model hold no queries, keys and values, a layer does not exist, or student and
            teacher have different numbers of tokens.
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
    """Require that a layer of the student and a layer of the teacher have the same number of attention heads.

    Raises:
        ValueError: the numbers of heads differ.
    """
    student_heads, teacher_heads = student.query.shape[2], teacher.query.shape[2]
    if student_heads != teacher_heads:
        counts = f"student {student_heads}, teacher {teacher_heads}"
        raise ValueError(f"numbers of heads differ ({counts}); use minilm2, which allows this")


def _mask_padding(heads: AttentionHeads, signals: Signals) -> AttentionHeads:
    """Set queries, keys and values of padding tokens to 0, so that a NaN in padding does not reach other tokens."""
    return AttentionHeads(*(mask_padding(x, signals.batch) for x in (heads.query, heads.key, heads.value)))


def visible_keys(heads: AttentionHeads, signals: Signals) -> Bool[Array, "rows 1 queries keys"]:
    """Compute the attention mask, which is True where a query may attend to a key.

    Keys that are padding, or that belong to another document than the query (`segment_ids`), are never visible. In
    causal language modelling, where the batch's mask is `[rows, tokens]`, later keys are not visible either.

    Args:
        heads: queries, keys and values of one layer; only their shapes are used.
        signals: the inputs of a loss term: outputs of student and teachers, the batch and its mask.
    """
    rows, length = heads.key.shape[:2]
    visible, real = jnp.ones((rows, 1, length, length), bool), real_tokens(signals.batch, (rows, length))
    if real is not None:
        visible &= real[:, None, None, :]
    segments = signals.batch.get("segment_ids")
    if segments is not None and segments.shape == (rows, length):
        visible &= (segments[:, :, None] == segments[:, None, :])[:, None]
    return visible & jnp.tri(length, dtype=bool) if signals.mask.ndim == 2 else visible


def mean_over_queries(values: Float[Array, "rows queries"], signals: Signals) -> Float[Array, "..."]:
    """Average loss values over the tokens of each text, without padding: `[rows, queries] -> [rows]`.

    In causal language modelling, where the batch's mask is `[rows, tokens]`, every token has a loss of its own. The
    values are then returned unchanged.

    Args:
        values: one loss value for each token (query).
        signals: the inputs of a loss term: outputs of student and teachers, the batch and its mask.
    """
    return mean_over_positions(values, signals.batch, signals.mask.ndim)
