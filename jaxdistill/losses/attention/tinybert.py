"""TinyBERT transformer distillation: match attention scores, hidden states and the embedding.

Jiao et al., TinyBERT: Distilling BERT for Natural Language Understanding, 2020 (arxiv.org/abs/1909.10351).

    sum over layer pairs of mean (S_s - S_t)^2  +  sum over layer pairs and the embedding of mean (h_s W - h_t)^2

S = Q K' / sqrt d are the attention scores BEFORE the softmax; the paper found that matching scores trains faster and
better than matching distributions. h are the hidden states. One projector W serves all layers and the embedding, as in
the published code; in the paper the embedding has its own. Layers count from 1 here. If the teacher has k times as many
layers, student layer m learns from teacher layer m k, in attention scores and in hidden states. The published code
counts attentions from 0: there student layer i learns from teacher layer i k + k - 1, which is the same pair.

Intended differences: the published mean is over all pairs of positions, with scores of padded keys set to 0, so the
loss shrinks as padding grows. Here the mean is over the pairs of tokens of a text without padding, then over the texts.
Without padding both means are equal. The published W has a bias; in the paper and here it has none. In a decoder, only
the scores of keys that a query may attend to enter the mean.

This loss is meant for the first of two training phases. The second phase uses soft targets, `kd(temperature=1.0)`. To
switch after 70 % of the steps, give this loss the weight "phases(values=(1.0, 0.0), at=(0.7,))" and `kd` the weight
"phases(values=(0.0, 1.0), at=(0.7,))".

Config: objective.tinybert.term = "tinybert"
When: a transformer with fewer layers has as many heads as its teacher, and a first phase without labels is possible.
Checked: against the published reduction, restated in float64, without padding; by hand with padding.
"""

from typing import Literal

import jax.numpy as jnp

from jaxdistill.core.interfaces import Term, Values
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Key, Params, Signals, State
from jaxdistill.losses.attention.self_attention import (
    mean_over_queries,
    paired_attentions,
    require_equal_heads,
    scaled_dot_products,
    score_distance,
    visible_keys,
)
from jaxdistill.losses.hidden.hidden import mean_squared_distance
from jaxdistill.losses.hidden.layers import LayerMap, check_layers, paired_states
from jaxdistill.losses.hidden.projectors import PROJECTORS, project
from jaxdistill.losses.term import mean_over_positions

EMBEDDING = ((0, 0),)


@losses.register
def tinybert(layers: LayerMap = "uniform", projector: Literal["linear", "none"] = "linear", teacher: int = 0) -> Term:
    """Build the TinyBERT loss term: squared differences of attention scores and of hidden states.

        sum over layer pairs of mean((S_s - S_t)**2) + sum over layer pairs and embedding of mean((h_s W - h_t)**2)

    S are the attention scores q k / sqrt(d) before the softmax, h are hidden states, and W is a learned kernel. The
    embedding of the student is compared with that of the teacher like a further layer pair.

    Args:
        layers: which student layer learns from which teacher layer: "uniform", "skip", "last", a range of teacher
            layers such as "6-9", or pairs such as ((1, 2), (2, 4)); see `layer_pairs`.
        projector: "linear" learns one W, from the student's width to the teacher's, for all layers and the embedding;
            "none" leaves W out and needs equal widths.
        teacher: index of the teacher, in the order of the config.
    """
    check_layers(layers)

    def init(key: Key, signals: Signals) -> tuple[Params, State]:
        (embeddings,) = paired_states(signals, EMBEDDING, teacher)
        return PROJECTORS[projector].init(key, *embeddings, signals.mask.ndim), {}

    def apply(params: Params, state: State, signals: Signals, *, key: Key) -> tuple[Values, State]:
        values = []
        for pair in paired_attentions(layers, signals, teacher):
            require_equal_heads(*pair)
            scores, targets = (scaled_dot_products(model.query, model.key) for model in pair)
            distance = score_distance(scores, targets, visible_keys(pair[0], signals))
            values.append(mean_over_queries(distance, signals))
        for layer_map in (EMBEDDING, layers):
            for student, target in paired_states(signals, layer_map, teacher):
                distance = mean_squared_distance(project(projector, params, student, target), target)
                values.append(mean_over_positions(distance, signals.batch, signals.mask.ndim))
        return jnp.sum(jnp.stack(values), axis=0), state

    return Term(init, apply, local=False, needs=frozenset({"teacher"}))
