"""MiniLM: attention distributions and value relations of the last layer, for equal numbers of heads.

Wang et al., MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers, 2020
(arxiv.org/abs/2002.10957).

    mean over heads and tokens of KL(A_t || A_s) + KL(R_t || R_s)
    A = softmax(Q K' / sqrt d),  R = softmax(V V' / sqrt d)

Widths, depths and head sizes may differ, since both are matrices of tokens by tokens; numbers of heads may not. The
last layer alone is matched, so that the student's other layers stay free; with a large teacher the student learns more
from an assistant in between. Of padding the paper says nothing: here no padded key is in a softmax, and a text's value
is the mean over its own tokens. In a decoder a token's relations, too, are to itself and to what came before it.

Where keys and values are grouped, they are repeated for the heads that share them.

Config: objective.minilm.term = "minilm"
When: a smaller transformer inherits a larger one's reading of texts, before or beside a task's own terms; heads equal.
Checked: against the formula in plain float64 numpy (no code was published), and by what a tiny student learns.
"""

import jax.numpy as jnp

from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, AttentionHeads, Signals, Term
from jaxdistill.losses.attention.self_attention import (
    each_head,
    head_divergence,
    over_queries,
    pairs_of_heads,
    products,
    require_equal_heads,
    visible_keys,
)
from jaxdistill.losses.hidden.layers import LayerMap, check_layers
from jaxdistill.losses.term import stateless


def attention_and_value_divergence(student: AttentionHeads, teacher: AttentionHeads, visible: Array) -> Array:
    """KL of attention distributions plus KL of value relations, `[rows, queries]`."""
    attention = lambda side: products(side.query, side.key)
    relations = lambda side: products(*[each_head(side.value, side.query.shape[2])] * 2)
    apart = lambda form: head_divergence(form(student), form(teacher), visible)
    return apart(attention) + apart(relations)


@losses.register
def minilm(layers: LayerMap = "last", teacher: int = 0) -> Term:
    """Attention distributions and value relations.

    Args:
        layers: the layer map, see `losses/layers.py`; the paper's is "last". Of several pairs it is the mean.
        teacher: which teacher.
    """
    check_layers(layers)

    def values(signals: Signals) -> Array:
        pairs = pairs_of_heads(layers, signals, teacher)
        for pair in pairs:
            require_equal_heads(*pair)
        found = [attention_and_value_divergence(*pair, visible_keys(pair[0], signals)) for pair in pairs]
        return over_queries(sum(found, jnp.zeros(())) / len(found), signals)

    return stateless(values, local=False, needs=frozenset({"teacher"}))
