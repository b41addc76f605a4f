"""Relations along the edges of a graph from outside, instead of those between all examples of a batch.

After Park et al., Relational Knowledge Distillation, 2019 (arxiv.org/abs/1904.05068), and Tung and Mori,
Similarity-Preserving Knowledge Distillation, 2019 (arxiv.org/abs/1907.09682), whose losses these are when the graph
joins every node with every node and itself.

    distance:    sum_ij w_ij huber(d_ij / mu - D_ij / M) / sum_ij w_ij
    similarity:  sum_ij (g_ij - G_ij)^2 / sum_ij w_ij,    g = unit rows of w * (s s')

w_ij is the weight of the edge between the nodes of i and j, 0 without one: classes that an ontology relates, or
records that cite each other. i and j are the examples of the global batch (`level="records"`), each at the node that a
field of the batch names, or the nodes themselves (`level="classes"`), each standing for the mean of its examples.
Examples of one class are related if the graph joins its node with itself, as in (3, 3).

Few pairs of a batch may be edges: 128 examples of 1,000 classes, each related to ten, have about 160 of 16,384.

Config: objective.graph.term = "graph(edges='FOLDER/edges.json')", a file that
    `python -m jaxdistill.data.builders.class_hierarchy` writes
When: classes have a known structure and the batch is large; the geometry within related classes matters most.
Checked: equal to rkd and similarity on a complete graph; against float64 loops; examples without an edge do not move.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer

from jaxdistill.core.collectives import gather
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals, Term
from jaxdistill.losses.relations.class_graph import Edges, Spelt, edges_of
from jaxdistill.losses.relations.relations import Layers, compared, pairs_of
from jaxdistill.losses.relations.rkd import distance_difference
from jaxdistill.losses.relations.similarity import gram_difference
from jaxdistill.losses.term import stateless

RELATIONS = {"distance": distance_difference, "similarity": gram_difference}


def edge_weights(nodes: Integer[Array, " rows"], edges: Edges) -> Float[Array, "rows rows"]:
    """The weight of the edge between the nodes of each pair of rows; 0 where there is none."""
    number = lambda source, target: source.astype(np.uint32) * np.uint32(edges.nodes) + target.astype(np.uint32)
    known = jnp.asarray(number(edges.source, edges.target))  # sorted, as the edges are
    inside = (nodes >= 0) & (nodes < edges.nodes)  # a record may name a node without edges
    wanted = number(jnp.where(inside, nodes, 0)[:, None], jnp.where(inside, nodes, 0)[None, :])
    place = jnp.minimum(jnp.searchsorted(known, wanted), len(known) - 1)
    return jnp.where((known[place] == wanted) & pairs_of(inside), jnp.asarray(edges.weight)[place], 0)


def means_by_node(
    rows: Float[Array, "rows width"], nodes: Integer[Array, " rows"], count: int
) -> Float[Array, "nodes width"]:
    """The mean of each node's rows; zeros for a node without any. Negative nodes count nowhere."""
    at = jnp.where(nodes < 0, count, nodes)  # beyond the last: dropped
    sums, often = (jax.ops.segment_sum(x, at, count) for x in (rows, jnp.ones(len(rows), rows.dtype)))
    return sums / jnp.maximum(often, 1)[:, None]


@losses.register
def graph(
    edges: Spelt,
    relation: Literal["distance", "similarity"] = "distance",
    level: Literal["records", "classes"] = "records",
    node: str = "label",
    layers: Layers = None,
    teacher: int = 0,
) -> Term:
    """Distances or similarities along the edges of a given graph.

    Args:
        edges: pairs of nodes such as ((0, 1), (3, 7)), perhaps with a weight, (0, 1, 0.5); or the file of a graph.
        relation: "distance" as in `rkd`, or "similarity".
        level: between examples, or between the means of each node's examples.
        node: the field of the batch that names each example's node: `label`, or `index` for a graph of records.
        layers: (student layer, teacher layer) whose hidden states are compared, averaged over their positions; None:
            embeddings.
        teacher: which teacher.

    Raises:
        ValueError: the edges are none; when it is applied, the batch has no such field, or not one number for a row.
    """
    known = edges_of(edges)

    def values(signals: Signals) -> Array:
        found = signals.batch.get(node)
        if found is None or found.ndim != 1 or not jnp.issubdtype(found.dtype, jnp.integer):
            fields = ", ".join(name for name, x in sorted(signals.batch.items()) if x.ndim == 1)
            raise ValueError(f"node={node!r} is no field with one whole number for each row. Such fields: {fields}")
        student, target, counts = compared(signals, layers, teacher)
        nodes = jnp.where(counts, gather(found), -1)
        if level == "classes":
            student, target = (means_by_node(x, nodes, known.nodes) for x in (student, target))
            seen = jnp.any(nodes[:, None] == jnp.arange(known.nodes), axis=0)
            nodes = jnp.where(seen, jnp.arange(known.nodes), -1)
        return RELATIONS[relation](student, target, edge_weights(nodes, known))

    return stateless(values, local=False, needs=frozenset({"teacher"}))
