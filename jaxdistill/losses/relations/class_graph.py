"""Relations from outside, as a config gives them: edges written out, or a file that `jaxdistill.data.graphs` wrote."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

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
    given = read_graph(Path(spelt).expanduser()).edges if isinstance(spelt, str) else spelt
    if not given:
        raise ValueError("there are no edges; write_graph ((0, 1), (3, 7)), or the name of a file with a graph")
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


Edge = tuple[int, int, float]


class Graph(NamedTuple):
    """Relations of classes.

    names: of the classes, in the order of their numbers
    edges: (class, class, weight); a relation stands once, in either order
    """

    names: tuple[str, ...]
    edges: tuple[Edge, ...]


def write_graph(file: Path, graph: Graph) -> None:
    """Writes a graph as JSON, `{"names": [...], "edges": [[0, 3, 0.5], ...]}`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(graph._asdict(), indent=None) + "\n")


def read_graph(file: Path) -> Graph:
    """A graph from a file.

    Raises:
        ValueError: there is no such file, or it holds no graph.
    """
    try:
        content = json.loads(file.read_text())
        edges = tuple((int(one), int(other), float(weight)) for one, other, weight in content["edges"])
        return Graph(tuple(content["names"]), edges)
    except FileNotFoundError:
        raise ValueError(
            f"there is no file {str(file)!r}; python -m jaxdistill.data.builders.class_hierarchy writes one"
        ) from None
    except (ValueError, TypeError, KeyError, OSError) as error:
        wanted = 'It is JSON: {"names": ["cat", "dog"], "edges": [[0, 1, 0.5]]}'
        raise ValueError(f"{str(file)!r} holds no graph ({type(error).__name__}: {error}). {wanted}") from None
