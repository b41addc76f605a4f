"""Tests of the losses that read a graph: `graph` compares rows along edges, `related_labels` smooths over classes."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import at_nodes, signals
from checks import assert_close
from terms import build_loss
from terms import loss_values as values

from jaxdistill.core.errors import ConfigError
from jaxdistill.losses.relations.edges import MAX_NODES, parse_edges
from jaxdistill.losses.relations.graph import edge_weights
from jaxdistill.losses.relations.related_labels import label_shares

KEY = jax.random.key(0)


# Relations along a graph


def table(edges, nodes: int) -> np.ndarray:
    """Return the weights of a graph as a symmetric matrix."""
    found = np.zeros((nodes, nodes))
    for one, other, *weight in edges:
        found[one, other] = found[other, one] = weight[0] if weight else 1
    return found


GRAPHS = {
    "one edge": ((0, 1),),
    "weights": ((0, 1, 0.5), (2, 0, 2.0), (3, 3), (1, 0, 0.5)),
    "the largest number": (
        (MAX_NODES - 1, 0),
        (MAX_NODES - 2, MAX_NODES - 1, 0.25),
        (MAX_NODES - 1, MAX_NODES - 1, 0.125),
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_the_weight_between_two_rows_is_that_of_their_nodes(name):
    edges = GRAPHS[name]
    nodes = np.array([0, 1, 2, 3, 0, 3, MAX_NODES - 1, MAX_NODES - 2, -1, MAX_NODES, 2**31 - 1])
    by_table = {frozenset(edge[:2]): (*edge, 1.0)[2] for edge in edges}
    expected = [[by_table.get(frozenset((i, j)), 0.0) for j in nodes] for i in nodes]
    found = jax.jit(lambda nodes: edge_weights(nodes, parse_edges(edges)))(nodes.astype(np.int32))
    assert_close(found, np.array(expected))


COMPLETE = tuple((i, j) for i in range(6) for j in range(i, 6))


def test_along_a_complete_graph_it_is_the_relation_of_the_batch():
    seen = at_nodes([3, 1, 0, 5, 2, 4])
    assert_close(values(f"graph(edges={COMPLETE})", seen), values("rkd(distance=1.0, angle=0.0)", seen))
    assert_close(values(f"graph(edges={COMPLETE}, relation='similarity')", seen), values("similarity", seen))
    without = tuple(edge for edge in COMPLETE if edge != (0, 5))
    assert abs(values(f"graph(edges={without})", seen) - values("rkd(distance=1.0, angle=0.0)", seen)) > 1e-4


def huber(x):
    return np.where(np.abs(x) < 1, x**2 / 2, np.abs(x) - 0.5)


def by_loops(relation: str, student, teacher, w) -> float:
    if relation == "similarity":
        rows = lambda x: np.array([r / (np.linalg.norm(r) or 1) for r in w * (x @ x.T)])
        return ((rows(student) - rows(teacher)) ** 2).sum() / w.sum()

    def relative(x):
        d = np.linalg.norm(x[:, None] - x[None], axis=-1)
        return d / ((w * d).sum() / w[d > 0].sum())

    return (w * huber(relative(student) - relative(teacher))).sum() / w.sum()


EDGES = ((0, 1), (1, 2, 0.5), (2, 4, 3.0), (0, 0))
NODES = [0, 1, 2, 2, 0, 3, 4, 9]  # 3 and 9 have no edges


@pytest.mark.parametrize("relation", ["distance", "similarity"])
@pytest.mark.parametrize("level", ["records", "classes"])
def test_relations_along_a_graph_by_loops(relation, level):
    seen = at_nodes(NODES)
    seen = replace(seen, mask=np.float32([1, 1, 1, 1, 1, 1, 0, 1]))  # the only example of node 4 does not count
    rows = [np.asarray(x.embedding, np.float64) for x in (seen.student, seen.teachers[0])]
    counts, nodes, w = np.asarray(seen.mask) > 0, np.array(NODES), table(EDGES, 10)
    if level == "records":
        rows, w = [x[counts] for x in rows], w[nodes[counts]][:, nodes[counts]]
    else:
        present = np.unique(nodes[counts])
        rows = [np.stack([x[counts & (nodes == node)].mean(0) for node in present]) for x in rows]
        w = w[present][:, present]
    found = values(f"graph(edges={EDGES}, relation={relation!r}, level={level!r})", seen)
    assert_close(found, by_loops(relation, *rows, w), rtol=1e-5)


@pytest.mark.parametrize("relation", ["distance", "similarity"])
def test_examples_without_an_edge_do_not_move(relation):
    seen = at_nodes(NODES)
    term = build_loss(f"graph(edges={EDGES}, relation={relation!r})")

    def loss(embedding):
        return term.apply({}, {}, replace(seen, student=replace(seen.student, embedding=embedding)), key=KEY)[0]

    slope = np.abs(jax.jit(jax.grad(loss))(seen.student.embedding)).max(1)
    assert (slope > 0).tolist() == [True, True, True, True, True, False, True, False]


def test_a_batch_without_an_edge_is_no_loss():
    for relation, level in itertools.product(("distance", "similarity"), ("records", "classes")):
        assert values(f"graph(edges={EDGES}, relation={relation!r}, level={level!r})", at_nodes([1, 1, 3, 7])) == 0


def test_nodes_come_from_the_field_that_the_config_names():
    seen = at_nodes([0, 0, 0, 0, 0, 0])
    assert values("graph(edges=((0, 1), (1, 2)))", seen) == 0
    assert values("graph(edges=((0, 1), (1, 2)), node='index')", seen) > 0
    for node in ("domain", "label_probs"):
        with pytest.raises(ValueError, match=rf"node='{node}' is not a field .* Such fields: index, label"):
            values(f"graph(edges=((0, 1),), node='{node}')", seen)


# Labels smoothed over related classes


def test_related_labels_by_hand():
    logits = np.log(np.float32([[0.5, 0.25, 0.15, 0.1]] * 3))
    seen = replace(signals(batch=(3,)), student=replace(signals().student, logits=logits))
    seen = replace(seen, batch={"label": np.int32([0, 1, 3])})
    log = np.log
    by_hand = [-0.6 * log(0.5) - 0.3 * log(0.25) - 0.1 * log(0.15), -0.6 * log(0.25) - 0.4 * log(0.5), -log(0.1)]
    assert_close(values("related_labels(edges=((0, 1, 0.75), (2, 0, 0.25)), share=0.4)", seen), by_hand)


@pytest.mark.parametrize("batch", [(6,), (2, 3)])
def test_on_a_complete_graph_it_is_label_smoothing_and_without_a_share_the_hard_label(batch):
    seen, complete = signals(batch=batch), tuple((i, j) for i in range(5) for j in range(i, 5))
    for share in (0.0, 0.1, 1.0):
        smoothed = share if share < 1 else 1 - 1e-7
        expected = values(f"cross_entropy(label_smoothing={smoothed})", seen)
        assert_close(values(f"related_labels(edges={complete}, share={share})", seen), expected)


def test_it_is_cross_entropy_with_the_smoothed_distribution():
    seen, edges = signals(batch=(40,)), ((0, 1, 0.2), (1, 2), (1, 4, 3.0), (2, 2, 0.5))
    w = table(edges, 5)
    total = w.sum(1, keepdims=True)
    smoothed = np.where(total > 0, 0.7 * np.eye(5) + 0.3 * w / np.where(total > 0, total, 1), np.eye(5))
    target = np.float32(smoothed[np.asarray(seen.batch["label"])])
    expected = values("cross_entropy(target='smooth')", replace(seen, batch=seen.batch | {"smooth": target}))
    assert_close(values(f"related_labels(edges={edges}, share=0.3)", seen), expected)
    related, shares = label_shares(parse_edges(edges), 0.3, 5)
    assert related.shape == (5, 4)  # class 1 has the most related classes: itself and three
    assert_close(np.sum(shares, 1), np.ones(5))


def test_a_class_that_is_not_related_adds_nothing_whatever_its_logit():
    seen = signals(batch=(2,), classes=3)
    seen = replace(seen, batch={"label": jnp.asarray(np.int32([0, 1]))})
    term = build_loss("related_labels(edges=((0, 1),), share=0.5)")

    def loss(logits):
        masked = jnp.where(jnp.arange(3) < 2, logits, -jnp.inf)
        return term.apply({}, {}, replace(seen, student=replace(seen.student, logits=masked)), key=KEY)[0].sum()

    value, slope = jax.jit(jax.value_and_grad(loss))(jnp.zeros((2, 3)))
    assert_close((value, slope), (2 * np.log(2), np.zeros((2, 3))))


def test_a_label_without_a_share_of_its_own_adds_nothing_either():
    """Check share=1, where the related class gets all of the probability and the label's own logit may be -inf."""
    logits = np.float32([[-np.inf, 1.0, 2.0]])
    seen = replace(signals(batch=(1,), classes=3), batch={"label": np.int32([0])})
    seen = replace(seen, student=replace(seen.student, logits=logits))
    expected = np.log(np.exp(1.0) + np.exp(2.0)) - 1.0
    assert_close(values("related_labels(edges=((0, 1),), share=1.0)", seen), [expected])


def test_labels_that_do_not_fit_are_told_with_the_cure():
    towers = signals()
    seen = replace(towers, student=replace(towers.student, text_embedding=None))
    for spec in ("related_labels(edges=((0, 5),))", "graph(edges=((0, 5),))"):
        with pytest.raises(ValueError, match="the graph names class 5, but the student has 5"):
            values(spec, seen)
    assert np.isfinite(values("graph(edges=((0, 4),))", seen))
    embeds = replace(seen.student, logits=seen.student.embedding)  # these logits are an embedding, not classes
    for student in (embeds, towers.student):
        assert np.isfinite(values("graph(edges=((0, 9),))", replace(seen, student=student)))
    index = replace(seen, batch={"index": seen.batch["label"]})
    assert np.isfinite(values("graph(edges=((0, 5),), node='index')", index))
    with pytest.raises(ValueError, match="target='labels' is not a field"):
        values("related_labels(edges=((0, 1),), target='labels')", seen)
    with pytest.raises(ConfigError, match="share must be between 0 and 1"):
        build_loss("related_labels(edges=((0, 1),), share=1.5)")
