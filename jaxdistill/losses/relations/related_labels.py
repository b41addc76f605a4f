"""Hard labels that say which mistakes are small: smoothed over the classes that a graph relates.

Bertinetto et al., Making Better Mistakes: Leveraging Class Hierarchies with Deep Networks, 2020
(arxiv.org/abs/1912.09393), whose soft labels fall off with the distance in a hierarchy.

    -sum_c p_c log q_c,    p = (1 - share) onehot(y) + share w_y / sum w_y

with w_yc the weight of the edge between the classes y and c. A class without edges keeps its hard label. On a graph
that joins every class with every class and itself it is label smoothing. It needs no teacher: it is the control for
what soft targets say of related classes. Theirs, over a whole tree, is a graph with weights exp(-beta distance) and
edges from each class to itself, and a share of 1.

Config: objective.related_labels.term = "related_labels(edges='FOLDER/edges.json', share=0.2)"
When: mistakes have unlike costs (diagnoses, species) and an ontology knows them; without a teacher, or beside one.
Checked: by hand; equal to label smoothing on a complete graph, and to cross-entropy with the smoothed distribution.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer

from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals, Term
from jaxdistill.losses.relations.class_graph import Edges, Spelt, edges_of
from jaxdistill.losses.term import precise, stateless


def related_cross_entropy(
    logits: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"],
    related: Integer[Array, "classes some"],
    shares: Float[Array, "classes some"],
) -> Float[Array, "*batch"]:
    """Cross-entropy with each label's shares of its related classes; a share of 0 adds nothing, whatever its logit.

    NaN for a label that is no class.
    """
    log_q = jax.nn.log_softmax(precise(logits))
    share = shares[labels]
    chosen = jnp.take_along_axis(log_q, related[labels], axis=-1)
    # selected BEFORE the product: 0 * (-inf) is NaN, in the value and in its gradient
    values = -jnp.sum(share * jnp.where(share > 0, chosen, 0.0), axis=-1)
    return jnp.where(labels < 0, jnp.nan, values)  # -1 would silently be the last class; beyond it a share is NaN


def shares_of(edges: Edges, share: float, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """What each class's label says: numbers of classes and their shares, `[classes, 1 + most edges of a class]`.

    Lists of neighbours, and no table of all pairs: a vocabulary of 100,000 would not have one.
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
def related_labels(edges: Spelt, share: float = 0.1, target: str = "label") -> Term:
    """Cross-entropy with labels that are smoothed over related classes.

    Args:
        edges: pairs of classes such as ((0, 1), (3, 7)), perhaps with a weight, (0, 1, 0.5); or the file of a graph.
        share: what a label gives to related classes, from 0 to 1.
        target: the field of the batch with classes `[*batch]`.

    Raises:
        ValueError: the edges are none, or `share` is out of range; when it is applied, the graph names classes that the
            student has not, or the batch has no such field.
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share lies between 0 and 1; got {share}")
    known = edges_of(edges)

    def values(signals: Signals) -> Array:
        logits, labels = signals.student.logits, signals.batch.get(target)
        if labels is None or labels.shape != logits.shape[:-1]:
            raise ValueError(f"target={target!r} is no field of the batch with a class for each row or token")
        classes = logits.shape[-1]
        if known.nodes > classes:
            raise ValueError(f"the graph names class {known.nodes - 1}, the student has {classes}, counted from 0")
        related, shares = shares_of(known, share, classes)
        return related_cross_entropy(logits, labels, jnp.asarray(related), jnp.asarray(shares))

    return stateless(values)
