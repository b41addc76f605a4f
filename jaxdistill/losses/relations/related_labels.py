"""Cross-entropy with label smoothing over related classes, as given by a graph such as a class hierarchy.

Bertinetto et al., Making Better Mistakes: Leveraging Class Hierarchies with Deep Networks, 2020
(arxiv.org/abs/1912.09393), whose soft labels decrease with the distance in a hierarchy.

    -sum_c p_c log q_c,    p = (1 - share) onehot(y) + share w_y / sum w_y

w_yc is the weight of the edge between the classes y and c. A class without edges keeps its hard label. On a complete
graph, with an edge from each class to itself, this is label smoothing. No teacher is needed: the loss is a control for
what soft targets teach about related classes. The paper's soft labels over a whole tree are a graph with weights
exp(-beta distance), edges from each class to itself, and a share of 1.

Config: objective.related_labels.term = "related_labels(edges='FOLDER/edges.json', share=0.2)"
When: mistakes differ in cost (diagnoses, species) and an ontology relates the classes; with or without a teacher.
Checked: by hand; equal to label smoothing on a complete graph, and to cross-entropy with the smoothed distribution.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.relations.class_graph import Edges, GraphSpec, parse_edges
from jaxdistill.losses.term import precise, stateless


def related_cross_entropy(
    logits: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"],
    related: Integer[Array, "classes some"],
    shares: Float[Array, "classes some"],
) -> Float[Array, "*batch"]:
    """Compute the cross-entropy with each label smoothed over its related classes, from the output of `label_shares`.

    A class with share 0 adds nothing, whatever its logit. The value is NaN for a label out of range.
    """
    log_q = jax.nn.log_softmax(precise(logits))
    share = shares[labels]
    related_log_q = jnp.take_along_axis(log_q, related[labels], axis=-1)
    # selected BEFORE the product: 0 * (-inf) is NaN, in the value and in its gradient
    values = -jnp.sum(share * jnp.where(share > 0, related_log_q, 0.0), axis=-1)
    return jnp.where(labels < 0, jnp.nan, values)  # -1 would index the last class; above the range, a share is NaN


def label_shares(edges: Edges, share: float, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute the smoothed label of each class as a sparse distribution.

    The result grows with the number of edges. A dense `[classes, classes]` table would be too large for a vocabulary of
    100,000.

    Returns:
        Class numbers and their shares, each `[classes, 1 + largest number of edges of a class]`.
    """
    degree = np.bincount(edges.source, minlength=classes)
    related = np.zeros((classes, 1 + degree.max()), np.int32)
    shares = np.zeros(related.shape, np.float32)
    related[:, 0], shares[:, 0] = np.arange(classes), np.where(degree > 0, 1 - share, 1)
    first = np.cumsum(degree) - degree
    place = 1 + np.arange(len(edges.source)) - first[edges.source]  # edges are sorted by their source
    total = np.bincount(edges.source, edges.weight, minlength=classes)
    related[edges.source, place] = edges.target
    shares[edges.source, place] = share * edges.weight / total[edges.source]
    return related, shares


@losses.register
def related_labels(edges: GraphSpec, share: float = 0.1, target: str = "label") -> Term:
    """Compute the cross-entropy with labels smoothed over related classes.

    Args:
        edges: pairs of classes such as ((0, 1), (3, 7)), optionally with a weight, (0, 1, 0.5); or the path of a graph
            file.
        share: the probability that a label gives to its related classes, from 0 to 1.
        target: the field of the batch with the classes, `[*batch]`.

    Raises:
        ValueError: the graph has no edges or malformed ones, or `share` is out of range; when the term is applied, the
            graph names classes that the student does not have, or the batch has no such field.
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share must be between 0 and 1; got {share}")
    parsed = parse_edges(edges)

    def values(signals: Signals) -> Array:
        logits, labels = signals.student.logits, signals.batch.get(target)
        if labels is None or labels.shape != logits.shape[:-1]:
            raise ValueError(f"target={target!r} is not a field of the batch with a class for each row or token")
        classes = logits.shape[-1]
        if parsed.nodes > classes:
            last = f"the graph names class {parsed.nodes - 1}"
            raise ValueError(f"{last}, but the student has {classes} classes, counted from 0; use a graph of these")
        related, shares = label_shares(parsed, share, classes)
        return related_cross_entropy(logits, labels, jnp.asarray(related), jnp.asarray(shares))

    return stateless(values)
