"""MiniLMv2: relations between queries, between keys and between values, over any number of relation heads.

Wang et al., MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained Transformers, 2021
(arxiv.org/abs/2012.15828).

    sum over X in (Q, K, V) of weight_X mean over relation heads and tokens of KL(R_t || R_s)
    R = softmax(X X' / sqrt d)

where the vectors of all heads stand side by side and are split anew into `relation_heads` of width d, so that student
and teacher may have unlike numbers of heads. More relation heads say more of the teacher: the paper takes 48 for a
teacher of base size and 64 for a large one, and matches the student's last layer with the last layer of a base
teacher, or with an upper middle one of a large teacher (21 of 24 for BERT): `layers=((-1, 21),)`.

A trap: relations do not see a rotation of what they relate. A student may match those of queries and those of keys
and still look elsewhere than its teacher; where attention itself shall be matched, `minilm` does.

Of padding and of decoders, as `minilm` has it. Grouped keys are related as they are, unrepeated; under rotary positions
queries and keys are compared turned, as a decoder compares them.

Config: objective.minilm2.term = "minilm2(relation_heads=48)"
When: as `minilm`, where the numbers of heads differ, or where the teacher is large.
Checked: against the formula in plain float64 numpy (no code was published); with as many relation heads as heads, its
value relations are those of `minilm`.
"""

import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals, Term
from jaxdistill.losses.attention.self_attention import (
    head_divergence,
    over_queries,
    pairs_of_heads,
    products,
    visible_keys,
)
from jaxdistill.losses.hidden.layers import LayerMap, check_layers
from jaxdistill.losses.term import stateless

KINDS = ("query", "key", "value")


def relations(
    x: Float[Array, "rows tokens heads size"], relation_heads: int
) -> Float[Array, "rows relation_heads tokens tokens"]:
    """Scores of all tokens with each other, the heads side by side and split anew."""
    rows, tokens, heads, size = x.shape
    if heads * size % relation_heads:
        raise ValueError(f"{relation_heads} relation_heads do not divide a width of {heads * size} ({heads} x {size})")
    x = x.reshape(rows, tokens, relation_heads, -1)
    return products(x, x)


@losses.register
def minilm2(
    relation_heads: int,
    layers: LayerMap = "last",
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
    teacher: int = 0,
) -> Term:
    """Self-attention relations.

    Args:
        relation_heads: how many heads the relations are formed over; it divides the widths of queries, keys and values
            of both networks.
        layers: the layer map, see `losses/layers.py`. Of several pairs it is the mean.
        weights: of the relations of queries, of keys and of values.
        teacher: which teacher.

    Raises:
        ValueError: fewer than one relation head, or weights that are negative or all 0.
    """
    check_layers(layers)
    if relation_heads < 1:
        raise ValueError(f"relation_heads must be at least 1; got {relation_heads}")
    if min(weights) < 0 or not any(weights):
        raise ValueError(f"weights must be at least 0, and not all 0; got {weights}")

    def values(signals: Signals) -> Array:
        pairs, found = pairs_of_heads(layers, signals, teacher), []
        for student, target in pairs:
            visible = visible_keys(student, signals)
            for kind, weight in zip(KINDS, weights, strict=True):
                if weight:
                    ours, theirs = (relations(getattr(side, kind), relation_heads) for side in (student, target))
                    found.append(weight * head_divergence(ours, theirs, visible))
        return over_queries(sum(found, jnp.zeros(())) / len(pairs), signals)

    return stateless(values, local=False, needs=frozenset({"teacher"}))
