"""What terms over self-attention share: scores of heads, their distributions, and who sees which token.

Models return queries, keys and values alone; whatever a term compares is formed from them here, in float32 at least.
A key that no query may see (padding, a later token of a decoder, another document) is out of the softmax and of every
mean; a query that is padding is out of the mean.
"""

import jax.numpy as jnp
from jaxtyping import Bool, Float

from jaxdistill.core.types import Array, AttentionHeads, Signals
from jaxdistill.losses.hidden.layers import LayerMap, layer_pairs
from jaxdistill.losses.logits.kd import kl_divergence
from jaxdistill.losses.term import extent_mean, one_of, precise, real_tokens, without_padding


def products(
    query: Float[Array, "rows queries heads size"], key: Float[Array, "rows keys groups size"]
) -> Float[Array, "rows heads queries keys"]:
    """Scores before the softmax, `q k / sqrt(size)`, with nothing masked; grouped keys are repeated for their heads."""
    query, key = precise(query), precise(each_head(key, query.shape[2]))
    return jnp.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5


def each_head(x: Float[Array, "rows keys groups size"], heads: int) -> Float[Array, "rows keys heads size"]:
    """Grouped keys or values, repeated for the heads that share them."""
    return x if x.shape[2] == heads else jnp.repeat(x, heads // x.shape[2], axis=2)


def head_divergence(
    student: Float[Array, "rows heads queries keys"],
    teacher: Float[Array, "rows heads queries keys"],
    visible: Bool[Array, "rows 1 queries keys"],
) -> Float[Array, "rows queries"]:
    """KL(teacher || student) of what each query attends to, mean over the heads; from scores."""
    # finite, not -inf: a text without any token has no key to see
    hidden = lambda scores: jnp.where(visible, scores, jnp.finfo(scores.dtype).min)
    return jnp.mean(kl_divergence(hidden(student), hidden(teacher)), axis=1)


def score_distance(
    student: Float[Array, "rows heads queries keys"],
    teacher: Float[Array, "rows heads queries keys"],
    visible: Bool[Array, "rows 1 queries keys"],
) -> Float[Array, "rows queries"]:
    """Mean over the heads and over the keys that a query sees of the squared difference of scores."""
    square = jnp.mean(jnp.where(visible, student - teacher, 0) ** 2, axis=1)
    return jnp.sum(square, axis=-1) / jnp.maximum(jnp.sum(visible[:, 0], axis=-1), 1)


def attentions_of(signals: Signals, teacher: int) -> tuple[tuple[AttentionHeads, ...], tuple[AttentionHeads, ...]]:
    """What each layer attends with, the student's and the teacher's.

    Raises:
        ValueError: one of them returns nothing of the kind.
    """
    students, teachers = signals.student.attentions, one_of(signals.teachers, teacher).attentions
    if not students:
        raise ValueError("the student returns no attention heads; take a transformer")
    if not teachers:
        raise ValueError("the teacher returns no attention heads; take a transformer that runs here: caches hold none")
    return students, teachers


def pairs_of_heads(layers: LayerMap, signals: Signals, teacher: int) -> list[tuple[AttentionHeads, AttentionHeads]]:
    """What the layers of a map attend with, the student's and the teacher's; padding holds zeros.

    Raises:
        ValueError: one of them returns nothing of the kind, has no such layer, or reads other tokens.
    """
    students, teachers = attentions_of(signals, teacher)
    chosen = layer_pairs(layers, len(students) + 1, len(teachers) + 1)
    if any(0 in pair for pair in chosen):
        raise ValueError(f"layer 0 is the embedding, which has no heads; layers count from 1, and the map is {layers}")
    pairs = [(students[i - 1], teachers[j - 1]) for i, j in chosen]
    for ours, theirs in pairs:
        if ours.key.shape[1] != theirs.key.shape[1]:
            counts = f"student {ours.key.shape[1]}, teacher {theirs.key.shape[1]}"
            raise ValueError(f"tokens differ ({counts}), and attention is matched token by token; match hidden states")
    return [(_without_padding(ours, signals), _without_padding(theirs, signals)) for ours, theirs in pairs]


def require_equal_heads(student: AttentionHeads, teacher: AttentionHeads) -> None:
    """Refuses layers whose heads cannot be paired.

    Raises:
        ValueError: their counts differ.
    """
    ours, theirs = student.query.shape[2], teacher.query.shape[2]
    if ours != theirs:
        raise ValueError(f"heads differ (student {ours}, teacher {theirs}); use minilm2, which splits them anew")


def _without_padding(heads: AttentionHeads, signals: Signals) -> AttentionHeads:
    """The same with zeros where there is no token, so that nothing that stands there leaks."""
    return AttentionHeads(*(without_padding(x, signals.batch) for x in (heads.query, heads.key, heads.value)))


def visible_keys(heads: AttentionHeads, signals: Signals) -> Bool[Array, "rows 1 queries keys"]:
    """Which keys each query sees: no padding, no other document, and of running text no later token."""
    rows, length = heads.key.shape[:2]
    seen, real = jnp.ones((rows, 1, length, length), bool), real_tokens(signals.batch, (rows, length))
    if real is not None:
        seen &= real[:, None, None, :]
    segments = signals.batch.get("segment_ids")
    if segments is not None and segments.shape == (rows, length):
        seen &= (segments[:, :, None] == segments[:, None, :])[:, None]
    return seen & jnp.tri(length, dtype=bool) if signals.mask.ndim == 2 else seen


def over_queries(values: Float[Array, "rows queries"], signals: Signals) -> Float[Array, "..."]:
    """One value per row, the mean over its tokens; of running text one per token, as it is."""
    return extent_mean(values, signals.batch, signals.mask.ndim)
