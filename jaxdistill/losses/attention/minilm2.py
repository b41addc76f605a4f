"""MiniLMv2: match relations between queries, between keys and between values, for any numbers of heads.

Wang et al., MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained Transformers, 2021
(arxiv.org/abs/2012.15828).

    sum over X in (Q, K, V) of weight_X mean over relation heads and tokens of KL(R_t || R_s)
    R = softmax(X X' / sqrt d)

The vectors of all heads are concatenated and split again into `relation_heads` of width d, so student and teacher may
have different numbers of heads. More relation heads transfer more of the teacher: the paper uses 48 for a teacher of
base size and 64 for a large one. It matches the student's last layer with the last layer of a base teacher, or with an
upper middle layer of a large teacher (21 of 24 for BERT): `layers=((-1, 21),)`.

A trap: relations do not change when their vectors are rotated. A student may match the relations of the queries and
those of the keys and still attend to other tokens than its teacher. To match attention itself, use `minilm`.

Padding and decoders are treated as in `minilm`. In grouped-query attention, keys and values are not repeated. With
rotary positions, queries and keys are compared after the rotation.

Config: objective.minilm2.term = "minilm2(relation_heads=48)"
When: as for `minilm`, but the numbers of heads differ, or the teacher is large.
Checked: against the formula in plain float64 numpy (no code was published); with as many relation heads as heads, the
value relations equal those of `minilm`.
"""

import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.attention.self_attention import (
    head_divergence,
    mean_over_queries,
    paired_attentions,
    scaled_dot_products,
    visible_keys,
)
from jaxdistill.losses.hidden.layers import LayerMap, check_layers
from jaxdistill.losses.term import stateless

KINDS = ("query", "key", "value")


def relations(
    x: Float[Array, "rows tokens heads size"], relation_heads: int
) -> Float[Array, "rows relation_heads tokens tokens"]:
    """Compute the scaled dot products `x x' / sqrt(d)` of all pairs of tokens, for each relation head of width d.

    Args:
        x: queries, keys or values of one layer. The vectors of all attention heads are concatenated, then split into
            `relation_heads` relation heads of width d = heads * size / relation_heads.
        relation_heads: number of relation heads.

    Raises:
        ValueError: `relation_heads` does not divide `heads * size`.
    """
    rows, tokens, heads, size = x.shape
    if heads * size % relation_heads:
        raise ValueError(f"{relation_heads} relation_heads do not divide a width of {heads * size} ({heads} x {size})")
    x = x.reshape(rows, tokens, relation_heads, -1)
    return scaled_dot_products(x, x)


@losses.register
def minilm2(
    relation_heads: int,
    layers: LayerMap = "last",
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
    teacher: int = 0,
) -> Term:
    """Build the MiniLMv2 loss term: sum over X in (Q, K, V) of weight_X * KL(R_teacher || R_student).

    R = softmax(X X' / sqrt(d)) are the relations between all pairs of tokens. Q, K and V are the queries, keys and
    values of one layer, split into `relation_heads` heads of width d. The loss is the mean over layer pairs, heads and
    tokens.

    Args:
        relation_heads: number of heads into which the concatenated attention heads are split again; must divide the
            widths of queries, keys and values of both models.
        layers: which student layer learns from which teacher layer: "uniform", "skip", "last", a range of teacher
            layers such as "6-9", or pairs such as ((1, 2), (2, 4)); see `layer_pairs`.
        weights: weight_X of the relations of queries, of keys and of values, in this order.
        teacher: index of the teacher, in the order of the config.

    Raises:
        ValueError: `layers` has none of these forms, `relation_heads` is below 1, or weights are negative or all 0.
    """
    check_layers(layers)
    if relation_heads < 1:
        raise ValueError(f"relation_heads must be at least 1; got {relation_heads}")
    if min(weights) < 0 or not any(weights):
        raise ValueError(f"weights must be at least 0, and not all 0; got {weights}")

    def values(signals: Signals) -> Array:
        pairs, divergences = paired_attentions(layers, signals, teacher), []
        for pair in pairs:
            visible = visible_keys(pair[0], signals)
            for kind, weight in zip(KINDS, weights, strict=True):
                if weight:
                    student, target = (relations(getattr(model, kind), relation_heads) for model in pair)
                    divergences.append(weight * head_divergence(student, target, visible))
        return mean_over_queries(sum(divergences, jnp.zeros(())) / len(pairs), signals)

    return stateless(values, local=False, needs=frozenset({"teacher"}))
