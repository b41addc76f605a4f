"""Tests of the loss `class_graph`: values by hand and by loops, gradients, and refused arguments."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import signals, single
from checks import assert_close, float64
from terms import build_loss, compiled_loss
from terms import loss_values as values

from jaxdistill.core.errors import ConfigError

GRAPH = "class_graph(edges=((0, 2), (1, 2)))"
EDGES = ((0, 1, 2.0), (1, 2, 1.0), (0, 4, 0.5), (3, 3, 9.0))


def with_vectors(vectors):
    """Build signals of a student whose class vectors are the rows of `vectors`."""
    seen = signals()
    params = seen.params["student"] | {"cosine/kernel": jnp.asarray(vectors, jnp.float32).T}
    return replace(seen, params=seen.params | {"student": params})


def by_loops(vectors, edges):
    """Compute the loss in numpy float64, class by class."""
    units = [v / np.linalg.norm(v) for v in float64(vectors)]
    terms = []
    for c in range(len(units)):
        near = [(b if a == c else a, w) for a, b, w in edges if c in (a, b) and a != b]
        if near:
            mean = sum(w * units[j] for j, w in near) / sum(w for _, w in near)
            terms.append(np.sum((units[c] - mean) ** 2))
    return np.mean(terms)


def test_by_hand():
    """Check two neighbours at a right angle, and a class between two others; classes without edges do not count."""
    seen = with_vectors([[3.0, 0], [0, 0.5], [1, 1], [1, 0], [2, 2]])
    assert_close(values("class_graph(edges=((0, 1),))", seen), 2.0)
    # the neighbours of class 2 have the mean (1/2, 1/2): (1 / sqrt 2 - 1/2)^2 twice; the only neighbour of 0 and 1 is 2
    middle = 2 * (np.sqrt(0.5) - 0.5) ** 2
    ends = (1 - np.sqrt(0.5)) ** 2 + 0.5
    assert_close(values("class_graph(edges=((0, 2), (1, 2)))", seen), (middle + 2 * ends) / 3)


def test_by_loops():
    vectors = np.random.default_rng(0).normal(size=(5, 4))
    assert_close(values(f"class_graph(edges={EDGES})", with_vectors(vectors)), by_loops(vectors, EDGES))


def test_it_is_blind_to_norms_and_sees_permuted_classes():
    vectors = np.random.default_rng(1).normal(size=(5, 4))
    value = lambda x: float(values(f"class_graph(edges={EDGES})", with_vectors(x)))
    assert value(vectors * np.array([[1], [9], [0.1], [2], [3]])) == pytest.approx(value(vectors), rel=1e-5)
    assert abs(value(vectors[[2, 1, 0, 3, 4]]) - value(vectors)) > 0.01


def test_a_class_without_examples_moves_to_its_neighbours():
    """Check that gradient descent on this loss alone turns a class vector to the mean of its neighbours."""
    vectors = np.array([[1.0, 0.2], [1.0, -0.2], [0.1, 1.0], [0, 1], [0, 1]])
    slope = jax.jit(jax.grad(lambda x: compiled_loss(GRAPH)(with_vectors(x), None)))
    for _ in range(200):
        vectors[2] -= 0.5 * np.asarray(slope(single(vectors)))[2]
    assert vectors[2, 0] / np.linalg.norm(vectors[2]) > 0.999
    assert float(values(GRAPH, with_vectors(vectors))) < 0.1


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            "class_graph(edges=((0, 1),), kernel='b/kernel')",
            r"no kernel \[width, 5\] of the student; name one of cosine/kernel, head/k",
        ),
        ("class_graph(edges=((1, 1),))", "joins no class with another one"),
        ("class_graph(edges=((0, 7),))", "the graph names class 7, but the student has 5 classes"),
    ],
)
def test_mistakes_are_named(spec, said):
    with pytest.raises((ValueError, ConfigError), match=said):
        values(spec, with_vectors(np.ones((5, 4))))


def test_it_is_computed_once_for_all_rows_and_not_in_chunks():
    assert not build_loss(GRAPH).local
