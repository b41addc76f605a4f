"""TinyBERT's transformer distillation: attention scores, hidden states and the embedding, over a layer map.

Jiao et al., TinyBERT: Distilling BERT for Natural Language Understanding, 2020 (arxiv.org/abs/1909.10351).

    sum over layer pairs of mean (S_s - S_t)^2  +  sum over layer pairs and the embedding of mean (h_s W - h_t)^2

S = Q K' / sqrt d are the scores BEFORE the softmax, with which the paper found training quicker and better than with
distributions. One W serves all layers and the embedding, as in the published code; the paper's embedding has one of its
own. Layers count from 1 here, and student layer m learns from teacher layer m k in both parts; the published code
counts attentions from 0, where that pair is i and i k + k - 1.

Where we differ, on purpose: the published mean is over all pairs of positions, with scores of padded keys set to 0, so
that the loss shrinks as padding grows. Ours is over the pairs of real tokens of a text, and then over the texts; where
no text is padded both are equal. The published W has a bias, the paper's and ours has none. In a decoder a score counts
where its key may be seen.

It is the first of two phases. The second is soft targets, `kd(temperature=1.0)`; each has a weight such as
"phases(values=(1.0, 0.0), at=(0.7,))".

Config: objective.tinybert.term = "tinybert"
When: a shallow transformer has as many heads as its teacher, and a first phase without labels to learn in.
Checked: against the published reduction, restated in float64, where nothing is padded; by hand where something is.
"""

from typing import Literal

import jax.numpy as jnp

from jaxdistill.core.registry import losses
from jaxdistill.core.types import Term
from jaxdistill.losses.attention.self_attention import (
    over_queries,
    pairs_of_heads,
    products,
    require_equal_heads,
    score_distance,
    visible_keys,
)
from jaxdistill.losses.hidden.hidden import squared_distance
from jaxdistill.losses.hidden.layers import LayerMap, check_layers, paired_states
from jaxdistill.losses.hidden.projectors import PROJECTORS, project
from jaxdistill.losses.term import extent_mean

EMBEDDING = ((0, 0),)


@losses.register
def tinybert(layers: LayerMap = "uniform", projector: Literal["linear", "none"] = "linear", teacher: int = 0) -> Term:
    """Attention scores, hidden states and the embedding, summed.

    Args:
        layers: the layer map, see `losses/layers.py`.
        projector: "linear" learns one kernel for all layers; "none" compares as they are and needs equal widths.
        teacher: which teacher.
    """
    check_layers(layers)

    def init(key, signals):
        (embeddings,) = paired_states(signals, EMBEDDING, teacher)
        return PROJECTORS[projector].init(key, *embeddings, signals.mask.ndim), {}

    def apply(params, state, signals, *, key):
        values = []
        for ours, theirs in pairs_of_heads(layers, signals, teacher):
            require_equal_heads(ours, theirs)
            student, target = (products(side.query, side.key) for side in (ours, theirs))
            values.append(over_queries(score_distance(student, target, visible_keys(ours, signals)), signals))
        for map_ in (EMBEDDING, layers):
            for student, target in paired_states(signals, map_, teacher):
                distance = squared_distance(project(projector, params, student, target), target)
                values.append(extent_mean(distance, signals.batch, signals.mask.ndim))
        return jnp.sum(jnp.stack(values), axis=0), state

    return Term(init, apply, local=False, needs=frozenset({"teacher"}))
