"""Relational distillation along a given graph: match distances or similarities of related examples only.

After Park et al., Relational Knowledge Distillation, 2019 (arxiv.org/abs/1904.05068), and Tung and Mori,
Similarity-Preserving Knowledge Distillation, 2019 (arxiv.org/abs/1907.09682). On a complete graph, in which every node
is also joined with itself, this loss equals those of the two papers (`rkd` and `similarity`).

    distance:    sum_ij w_ij huber(d_ij / mu - D_ij / M) / sum_ij w_ij
    similarity:  sum_ij (g_ij - G_ij)^2 / sum_ij w_ij,    g = unit rows of w * (s s')

w_ij is the weight of the edge between the nodes of i and j, and 0 without an edge. s are the student's embeddings, d_ij
their distances and mu the mean distance along edges; capitals are the teacher's. A graph may join classes that an
ontology relates, or examples that cite each other. With `level="records"`, i and j are the examples of the global
batch; a field of the batch names the node of each. With `level="classes"`, i and j are the nodes, each represented by
the mean of its examples. Examples of one class are related only if the graph joins their node with itself, as in (3,
3).

A batch may have few related pairs: 128 examples of 1,000 classes, each related to ten, have about 160 of 16,384.

Config: objective.graph.term = "graph(edges='FOLDER/edges.json')", a file that
    `python -m jaxdistill.data.builders.class_hierarchy` writes
When: the classes have a known structure, the batch is large, and the geometry within related classes matters most.
Checked: equal to rkd and similarity on a complete graph; against float64 loops; examples without an edge get no
    gradient.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer

from jaxdistill.core.collectives import gather
from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Outputs, Signals
from jaxdistill.losses.relations.edges import Edges, GraphSpec, check_classes, parse_edges
from jaxdistill.losses.relations.relations import LayerPair, gather_representations, valid_pairs
from jaxdistill.losses.relations.rkd import distance_difference
from jaxdistill.losses.relations.similarity import gram_difference
from jaxdistill.losses.term import stateless

RELATIONS = {"distance": distance_difference, "similarity": gram_difference}


def edge_weights(nodes: Integer[Array, " rows"], edges: Edges) -> Float[Array, "rows rows"]:
    """Return the matrix of the weights of the edges between the nodes of all pairs of rows; 0 where there is no edge.

    The edges are found by binary search, without a `[nodes, nodes]` matrix.

    Args:
        nodes: the node of each row (example); a node outside the graph has no edges.
        edges: the edges of the graph.
    """
    encode = lambda source, target: source.astype(np.uint32) * np.uint32(edges.nodes) + target.astype(np.uint32)
    edge_codes = jnp.asarray(encode(edges.source, edges.target))  # in rising order, since the edges are sorted
    inside = (nodes >= 0) & (nodes < edges.nodes)  # a record may name a node without edges
    pair_codes = encode(jnp.where(inside, nodes, 0)[:, None], jnp.where(inside, nodes, 0)[None, :])
    place = jnp.minimum(jnp.searchsorted(edge_codes, pair_codes), len(edge_codes) - 1)
    return jnp.where((edge_codes[place] == pair_codes) & valid_pairs(inside), jnp.asarray(edges.weight)[place], 0)


def means_by_node(
    rows: Float[Array, "rows width"], nodes: Integer[Array, " rows"], count: int
) -> Float[Array, "nodes width"]:
    """Compute, for each node of a graph, the mean of the rows that belong to it; zeros for a node without rows.

    Args:
        rows: the embedding of each example.
        nodes: the node of each row; rows with a negative node are ignored.
        count: number of nodes.
    """
    segments = jnp.where(nodes < 0, count, nodes)  # out of range: dropped
    sums, counts = (jax.ops.segment_sum(x, segments, count) for x in (rows, jnp.ones(len(rows), rows.dtype)))
    return sums / jnp.maximum(counts, 1)[:, None]


def _classes(student: Outputs) -> int:
    """Return the number of classes of a student, or 0 for a model of embeddings (one encoder or two towers)."""
    embedding, logits = student.embedding, student.logits
    if student.text_embedding is not None or (embedding is not None and embedding.shape == logits.shape):
        return 0
    return logits.shape[-1]


@losses.register
def graph(
    edges: GraphSpec,
    relation: Literal["distance", "similarity"] = "distance",
    level: Literal["records", "classes"] = "records",
    node: str = "label",
    layers: LayerPair = None,
    teacher: int = 0,
) -> Term:
    """Build a loss term on the relations (distances or similarities) of embeddings, along the edges of a given graph.

        distance:    sum_ij w_ij huber(d_ij - D_ij) / sum_ij w_ij
        similarity:  sum_ij (g_ij - G_ij)^2 / sum_ij w_ij

    w_ij is the weight of the edge between the nodes of the examples i and j, and 0 if there is none. d_ij is the
    Euclidean distance of two student embeddings, divided by the mean distance along edges. g is the matrix of
    w_ij s_i . s_j for the student's embeddings s, with each row divided by its norm. D and G are the same for the
    teacher.

    Args:
        edges: pairs of nodes such as ((0, 1), (3, 7)), optionally with a weight, as in (0, 1, 0.5); or the name of a
            graph file.
        relation: which of the two formulas to use.
        level: "records": i and j are examples; "classes": i and j are nodes, each with the mean embedding of its
            examples.
        node: the field of the batch that holds each example's node: `label` if the nodes are classes, `index` if they
            are the examples of the training set.
        layers: pair (student layer, teacher layer) whose hidden states are compared, each averaged over its positions
            (tokens or pixels); negative numbers count from the end; None compares the models' embeddings.
        teacher: index of the teacher, in the order of the config.

    Raises:
        ValueError: the graph has no edges or malformed ones; when the loss is computed, the batch lacks the field that
            `node` names, or the field does not hold one integer for each example, or the nodes are labels and the graph
            names classes that the student does not have.
    """
    parsed = parse_edges(edges)

    def values(signals: Signals) -> Array:
        local_nodes = signals.batch.get(node)
        if local_nodes is None or local_nodes.ndim != 1 or not jnp.issubdtype(local_nodes.dtype, jnp.integer):
            fields = ", ".join(name for name, x in sorted(signals.batch.items()) if x.ndim == 1)
            raise ValueError(f"node={node!r} is not a field with one integer for each row. Such fields: {fields}")
        if node == "label" and (classes := _classes(signals.student)):
            check_classes(parsed, classes)
        student, target, valid = gather_representations(signals, layers, teacher)
        nodes = jnp.where(valid, gather(local_nodes), -1)
        if level == "classes":
            student, target = (means_by_node(x, nodes, parsed.nodes) for x in (student, target))
            present = jnp.any(nodes[:, None] == jnp.arange(parsed.nodes), axis=0)
            nodes = jnp.where(present, jnp.arange(parsed.nodes), -1)
        return RELATIONS[relation](student, target, edge_weights(nodes, parsed))

    return stateless(values, local=False, needs=frozenset({"teacher"}))
