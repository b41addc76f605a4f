"""Cross-entropy with label smoothing over related classes, which a graph such as a class hierarchy defines.

Bertinetto et al., Making Better Mistakes: Leveraging Class Hierarchies with Deep Networks, 2020
(arxiv.org/abs/1912.09393), whose soft labels decrease with the distance in a hierarchy.

    -sum_c p_c log q_c,    p = (1 - share) onehot(y) + share w_y / sum w_y

q are the student's probabilities, y is the label, and w_yc the weight of the edge between the classes y and c. A class
without edges keeps its hard label. On a complete graph, with an edge from each class to itself, this is label
smoothing. No teacher is needed: the loss is a control for what soft targets teach about related classes. The paper's
soft labels over a whole tree are a graph with weights exp(-beta distance), edges from each class to itself, and a share
of 1.

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
from jaxdistill.losses.relations.edges import Edges, GraphSpec, check_classes, parse_edges
from jaxdistill.losses.term import precise, stateless


def related_cross_entropy(
    logits: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"],
    related: Integer[Array, "classes some"],
    shares: Float[Array, "classes some"],
) -> Float[Array, "*batch"]:
    """Compute -sum_k shares[y, k] log q[related[y, k]], the cross-entropy with labels smoothed over related classes.

    y is the label and q = softmax(logits). A class with share 0 adds nothing, whatever its logit. The value is NaN for
    a label outside 0 to classes - 1.

    Args:
        logits: the student's logits.
        labels: class numbers.
        related: for each label, the classes among which its probability is divided, from `label_shares`.
        shares: for each label, the probabilities of these classes, from `label_shares`.
    """
    log_q = jax.nn.log_softmax(precise(logits))
    share = shares[labels]
    related_log_q = jnp.take_along_axis(log_q, related[labels], axis=-1)
    # selected BEFORE the product: 0 * (-inf) is NaN, in the value and in its gradient
    values = -jnp.sum(share * jnp.where(share > 0, related_log_q, 0.0), axis=-1)
    return jnp.where(labels < 0, jnp.nan, values)  # -1 would index the last class; above the range, a share is NaN


def label_shares(edges: Edges, share: float, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute the smoothed label of each class as a sparse distribution over the class itself and its related classes.

    Class y gets the probability 1 - share, and a related class c gets share * w_yc / sum_c w_yc, where w_yc is the
    weight of the edge between y and c. A class without edges keeps probability 1.

    Args:
        edges: weighted edges between related classes.
        share: the probability that a label gives to its related classes.
        classes: number of classes.

    Returns:
        Class numbers and their probabilities, each `[classes, 1 + largest number of edges of a class]`.
    """
    degree = np.bincount(edges.source, minlength=classes)
    related = np.zeros((classes, 1 + degree.max()), np.int32)
    shares = np.zeros(related.shape)  # JAX narrows it to its own float dtype
    related[:, 0], shares[:, 0] = np.arange(classes), np.where(degree > 0, 1 - share, 1)
    first = np.cumsum(degree) - degree
    place = 1 + np.arange(len(edges.source)) - first[edges.source]  # edges are sorted by their source
    total = np.bincount(edges.source, edges.weight, minlength=classes)
    related[edges.source, place] = edges.target
    shares[edges.source, place] = share * edges.weight / total[edges.source]
    return related, shares


@losses.register
def related_labels(edges: GraphSpec, share: float = 0.1, target: str = "label") -> Term:
    """Build the loss term -sum_c p_c log q_c, for labels p that are smoothed over the related classes of a graph.

    p is 1 - share for the label y, and share * w_yc / sum_c w_yc for each class c that an edge of weight w_yc joins
    with y. A class without edges keeps its label unsmoothed. q is the student's softmax(logits). No teacher is needed.

    Args:
        edges: pairs of classes such as ((0, 1), (3, 7)), optionally with a weight, as in (0, 1, 0.5); or the name of a
            graph file.
        share: the probability that a label gives to its related classes, from 0 to 1.
        target: the field of the batch with the class of each example (or token), `[*batch]`.

    Raises:
        ValueError: the graph has no edges or malformed ones, or `share` is out of range; when the loss is computed, the
            graph names classes that the student does not have, or the batch lacks the field that `target` names.
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share must be between 0 and 1; got {share}")
    parsed = parse_edges(edges)

    def values(signals: Signals) -> Array:
        logits, labels = signals.student.logits, signals.batch.get(target)
        if labels is None or labels.shape != logits.shape[:-1]:
            raise ValueError(f"target={target!r} is not a field of the batch with a class for each row or token")
        classes = logits.shape[-1]
        check_classes(parsed, classes)
        related, shares = label_shares(parsed, share, classes)
        return related_cross_entropy(logits, labels, jnp.asarray(related), jnp.asarray(shares))

    return stateless(values)
