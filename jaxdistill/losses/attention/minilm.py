"""MiniLM: match attention distributions and value relations of the last layer; needs equal numbers of heads.

Wang et al., MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers, 2020
(arxiv.org/abs/2002.10957).

    mean over heads and tokens of KL(A_t || A_s) + KL(R_t || R_s)
    A = softmax(Q K' / sqrt d),  R = softmax(V V' / sqrt d)

Q, K and V are the queries, keys and values of one head of width d. A (attention) and R (value relations) are matrices
of tokens by tokens, so widths, depths and head sizes may differ, but not the number of heads. Only the last layer is
matched, which leaves the student's other layers free. With a large teacher, the student learns more from an assistant
of intermediate size. The paper does not treat padding: here padded keys are excluded from every softmax, and the value
of a text is the mean over its tokens without padding. In a decoder, R, like A, relates a token only to itself and to
earlier tokens.

In grouped-query attention, keys and values are repeated for the query heads that share them.

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
    """Compute KL(A_t || A_s) + KL(R_t || R_s) for one layer of the teacher t and one layer of the student s.

    A = softmax(Q K' / sqrt(d)) are the attention probabilities and R = softmax(V V' / sqrt(d)) the value relations, for
    queries Q, keys K and values V of heads of size d.

    Args:
        student, teacher: queries, keys and values of one layer of each model.
        visible: True where a query may attend to a key, `[rows, 1, queries, keys]`.

    Returns:
        The sum for each query, averaged over the heads, `[rows, queries]`.
    """
    attention = lambda model: scaled_dot_products(model.query, model.key)
    value_relations = lambda model: scaled_dot_products(*[repeat_grouped_heads(model.value, model.query.shape[2])] * 2)
    divergence = lambda scores: head_divergence(scores(student), scores(teacher), visible)
    return divergence(attention) + divergence(value_relations)


@losses.register
def minilm(layers: LayerMap = "last", teacher: int = 0) -> Term:
    """Build the MiniLM loss term KL(A_t || A_s) + KL(R_t || R_s) between layers of teacher t and student s.

    A = softmax(Q K' / sqrt(d)) are the attention probabilities and R = softmax(V V' / sqrt(d)) the value relations, for
    queries Q, keys K and values V of heads of size d. The loss is the mean over layer pairs, heads and tokens.

    Args:
        layers: which student layer learns from which teacher layer: "uniform", "skip", "last", a range of teacher
            layers such as "6-9", or pairs such as ((1, 2), (2, 4)); see `layer_pairs`. The paper uses "last".
        teacher: index of the teacher, in the order of the config.
    """
    check_layers(layers)

    def values(signals: Signals) -> Array:
        pairs = paired_attentions(layers, signals, teacher)
        for pair in pairs:
            require_equal_heads(*pair)
        divergences = [attention_and_value_divergence(*pair, visible_keys(pair[0], signals)) for pair in pairs]
        return mean_over_queries(sum(divergences, jnp.zeros(())) / len(divergences), signals)

    return stateless(values, local=False, needs=frozenset({"teacher"}))
