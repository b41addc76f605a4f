"""Tests of the relations between classes that a network has learned: by hand, shared with a teacher, as a graph."""

import numpy as np
import pytest

from jaxdistill.evaluation.interpret.relations import edges, nearest, number_of, relations, share_kept
from jaxdistill.losses.relations.edges import parse_edges

# two records of class 0, one of class 1 and of class 2, none of class 3; probabilities at temperature 1
SOFT = np.array([[0.6, 0.3, 0.08, 0.02], [0.6, 0.1, 0.28, 0.02], [0.3, 0.5, 0.1, 0.1], [0.1, 0.2, 0.6, 0.1]])
LABELS = np.array([0, 0, 1, 2])


def test_relations_are_mean_probabilities_of_the_other_classes():
    found = relations(4 * np.log(SOFT) + 7, LABELS, temperature=4.0)
    expected = [[0, 0.2, 0.18, 0.02], [0.3, 0, 0.1, 0.1], [0.1, 0.2, 0, 0.1], [0, 0, 0, 0]]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert nearest(found, 2) == [[1, 2], [0, 2], [1, 0], []]


def test_the_temperature_tells_small_probabilities_apart():
    soft, hard = (relations(30 * np.log(SOFT), LABELS, temperature) for temperature in (30.0, 1.0))
    assert soft[0, 3] > 0.01 and hard[0, 3] < 1e-12


def test_a_share_is_of_the_teachers_relations():
    teacher = [[1, 2], [0, 2], [1, 0], []]
    assert share_kept(teacher, teacher) == 1.0
    assert share_kept(teacher, [[2, 1], [3, 0], [3, 3], [1]]) == pytest.approx(3 / 6)
    assert share_kept([[1, 2], [0]], [[1], [0]]) == pytest.approx(2 / 3)  # of relations, not of classes
    assert np.isnan(share_kept([[], []], teacher))


def test_at_most_half_of_the_other_classes_are_near():
    assert [number_of(classes) for classes in (2, 3, 4, 5, 6, 7, 8, 20)] == [1, 1, 1, 2, 2, 3, 3, 3]


def test_a_network_that_says_nothing_of_the_others_keeps_what_chance_keeps():
    draw, labels = np.random.default_rng(0), np.arange(4000) % 20
    teacher, other = (nearest(relations(draw.normal(size=(4000, 20)), labels)) for _ in range(2))
    assert share_kept(teacher, other) == pytest.approx(3 / 19, abs=0.08)


def test_a_graph_has_each_pair_once_with_the_geometric_mean():
    strengths = relations(np.log(SOFT), LABELS, temperature=1.0)
    assert edges(strengths, 1) == (
        (0, 1, pytest.approx((0.2 * 0.3) ** 0.5)),
        (1, 2, pytest.approx((0.1 * 0.2) ** 0.5)),
    )
    assert parse_edges(edges(strengths, 3)).nodes == 3  # the class without records has no edge
