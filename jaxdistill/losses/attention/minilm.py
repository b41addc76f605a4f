"""MiniLM: match attention distributions and value relations of the last layer; needs equal numbers of heads.

Wang et al., MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers, 2020
(arxiv.org/abs/2002.10957).

    mean over heads and tokens of KL(A_t || A_s) + KL(R_t || R_s)
    A = softmax(Q K' / sqrt d),  R = softmax(V V' / sqrt d)

Both A and R are matrices of tokens by tokens, so widths, depths and head sizes may differ, but not the number of heads.
Only the last layer is matched, which leaves the student's other layers free. With a large teacher, the student learns
more from an assistant of intermediate size. The paper does not treat padding: here padded keys are excluded from every
softmax, and the value of a text is the mean over its real tokens. In a decoder, a token's value relations too are only
to itself and to earlier tokens.

Grouped keys and values are repeated for the heads that share them.

Config: objective.minilm.term = "minilm"
When: a smaller transformer learns from a larger one with as many heads, before or beside the task's own loss.
Checked: against the formula in plain float64 numpy (no code was published), and by training a tiny student.
"""

import jax.numpy as jnp

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, AttentionHeads, Signals
from jaxdistill.losses.attention.self_attention import (
    head_divergence,
    mean_over_queries,
    paired_attentions,
    repeat_grouped_heads,
    require_equal_heads,
    scaled_dot_products,
    visible_keys,
)
from jaxdistill.losses.hidden.layers import LayerMap, check_layers
from jaxdistill.losses.term import stateless


def attention_and_value_divergence(student: AttentionHeads, teacher: AttentionHeads, visible: Array) -> Array:
    """Compute the KL of attention distributions plus the KL of value relations, `[rows, queries]`."""
    attention = lambda model: scaled_dot_products(model.query, model.key)
    value_relations = lambda model: scaled_dot_products(*[repeat_grouped_heads(model.value, model.query.shape[2])] * 2)
    divergence = lambda scores: head_divergence(scores(student), scores(teacher), visible)
    return divergence(attention) + divergence(value_relations)


@losses.register
def minilm(layers: LayerMap = "last", teacher: int = 0) -> Term:
    """Compare attention distributions and value relations.

    Args:
        layers: the layer map; "last" is the paper's. The loss is the mean over its pairs. See
            `losses/hidden/layers.py`.
        teacher: index of the teacher.
    """
    check_layers(layers)

    def values(signals: Signals) -> Array:
        pairs = paired_attentions(layers, signals, teacher)
        for pair in pairs:
            require_equal_heads(*pair)
        divergences = [attention_and_value_divergence(*pair, visible_keys(pair[0], signals)) for pair in pairs]
        return mean_over_queries(sum(divergences, jnp.zeros(())) / len(divergences), signals)

    return stateless(values, local=False, needs=frozenset({"teacher"}))
