"""Relations from outside, as a config gives them: edges written out, or a file that `jaxdistill.data.graphs` wrote."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdistill.data.graphs import read

Spelt = str | tuple[tuple[float, ...], ...]  # a file, or edges (node, node) or (node, node, weight)
MOST = 65535  # nodes: a pair of them is one number of 32 bits


class Edges(NamedTuple):
    """A relation in both directions, sorted by source and target, each pair once.

    source, target: `[edges]`, numbers of nodes
    weight: `[edges]`, float32, above 0
    nodes: one more than the greatest number
    """

    source: np.ndarray
    target: np.ndarray
    weight: np.ndarray
    nodes: int


def edges_of(spelt: Spelt) -> Edges:
    """The edges of a config; one without a weight has 1.

    Raises:
        ValueError: no such file, no edges, or one that is none.
    """
    given = read(Path(spelt).expanduser()).edges if isinstance(spelt, str) else spelt
    if not given:
        raise ValueError("there are no edges; write ((0, 1), (3, 7)), or the name of a file with a graph")
    weights: dict[tuple[int, int], float] = {}
    for edge in given:
        one, other, weight = (*edge, 1.0)[:3] if len(edge) in (2, 3) else (-1, -1, 0)
        if min(one, other) < 0 or one != int(one) or other != int(other) or not weight > 0:
            raise ValueError(f"{edge} is no edge: two numbers of nodes, from 0, and perhaps a weight above 0")
        if weights.setdefault((int(one), int(other)), weight) != weight or weights.get((other, one), weight) != weight:
            raise ValueError(f"the edge between {one:g} and {other:g} is given twice, with unlike weights")
    both = weights | {(other, one): weight for (one, other), weight in weights.items()}
    source, target = np.array(sorted(both), np.int64).T
    nodes = int(source.max()) + 1
    if nodes > MOST:
        raise ValueError(f"node {nodes - 1} is beyond {MOST - 1}; number the nodes that your records name")
    return Edges(source, target, np.array([both[pair] for pair in sorted(both)], np.float32), nodes)
