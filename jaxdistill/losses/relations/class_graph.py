"""Class graph: the class vectors of related classes lie near each other, so that a class without examples is placed.

The smoothness of the head over a given graph of classes, such as an ontology. With the class vectors w_c of the
student's head, scaled to unit norm, and the weights A of the edges, whose rows W sum to 1:

    sum_c d_c ||w_c - sum_j W_cj w_j||^2 / sum_c d_c,    d_c = 1 if the class c has an edge, else 0

Kampffmeyer et al., Rethinking Knowledge Graph Propagation for Zero-Shot Learning, CVPR 2019 (arxiv.org/abs/1805.11724),
predict w_c from the graph by a network; here the head itself is smoothed. The losses `graph` and `related_labels` move
examples, and cannot move a class that has none. Such a class needs a head that compares directions, as `cosine_head`
has it: otherwise its vector keeps a small norm, and it never wins.

Config: objective.class_graph.term = "class_graph(edges='FOLDER/edges.json')"; student.model = "cosine_head(...)"
When: some classes have no examples and no teacher that knows them, and an ontology relates them to others.
Checked: by hand; by loops over the classes in float64; against the quadratic form of the normalised graph.
Experiment: `experiments/ontology` (recall at 10 of classes without examples: 76 %, without the graph 0 %).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.relations.edges import Edges, GraphSpec, check_classes, parse_edges
from jaxdistill.losses.term import precise, stateless, unit


def roughness(vectors: Float[Array, "classes width"], edges: Edges) -> Float[Array, ""]:
    """Compute the mean squared distance of unit class vectors from the weighted mean of their neighbours' vectors.

    The mean is over the classes that have an edge to another class.

    Args:
        vectors: a vector for each class, of any norm.
        edges: weighted edges between the classes; an edge of a class with itself is ignored.
    """
    classes, other = len(vectors), edges.source != edges.target
    source, target, weight = edges.source[other], edges.target[other], edges.weight[other]
    total = np.bincount(source, weight, minlength=classes)
    shares = jnp.asarray(weight / total[source], precise(vectors).dtype)
    units = unit(vectors)
    means = jax.ops.segment_sum(shares[:, None] * units[target], source, classes)
    distances = jnp.sum((units - means) ** 2, axis=-1)
    return jnp.sum(jnp.where(total > 0, distances, 0.0)) / max(int(np.count_nonzero(total)), 1)


@losses.register
def class_graph(edges: GraphSpec, kernel: str = "cosine/kernel") -> Term:
    """Build the loss term sum_c d_c ||w_c - sum_j W_cj w_j||^2 / sum_c d_c, which smooths the head over a class graph.

    w_c is the class vector of class c, which is a column of the kernel of the student's head, scaled to unit norm. W_cj
    is the weight of the edge from c to j, divided by the sum over j; d_c is 1 if class c has an edge, else 0. An edge
    of a class with itself is ignored. No teacher is needed.

    Args:
        edges: pairs of classes such as ((0, 1), (3, 7)), optionally with a weight, as in (0, 1, 0.5); or the name of a
            file that `python -m jaxdistill.data.builders.class_hierarchy` or `jaxdistill graph` writes.
        kernel: name of the kernel of the student's head, `[width, classes]`: that of `cosine_head` by default, and
            `head/kernel` in most families.

    Raises:
        ValueError: the graph has no edge between two classes; or, when the loss is computed, the student has no such
            kernel, or the graph names a class that the student does not have.
    """
    graph = parse_edges(edges)
    if not (graph.source != graph.target).any():
        raise ValueError("the graph joins no class with another one; give edges such as ((0, 1), (3, 7))")

    def values(signals: Signals) -> Array:
        params, classes = signals.params["student"], signals.student.logits.shape[-1]
        fits = [name for name, x in params.items() if x.ndim == 2 and x.shape[-1] == classes]
        if kernel not in fits:
            cure = f"name one of {', '.join(fits)}" if fits else "choose a head that has one, such as cosine_head(...)"
            raise ValueError(f"kernel={kernel!r} is no kernel [width, {classes}] of the student; {cure}")
        check_classes(graph, classes)
        return roughness(params[kernel].T, graph)

    return stateless(values, local=False)
