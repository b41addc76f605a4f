"""Graphs of related classes or records, from a config: a tuple of edges, or a file written by `write_graph`."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

GraphSpec = str | tuple[tuple[float, ...], ...]  # path of a file, or edges (node, node) or (node, node, weight)
MAX_NODES = 65535  # a pair of nodes is encoded as one number of 32 bits


class Edges(NamedTuple):
    """Directed edges, sorted by source and target, each pair once; a relation has an edge in both directions.

    source, target: `[edges]`, numbers of nodes
    weight: `[edges]`, float32, above 0
    nodes: number of nodes, the largest node number plus 1
    """

    source: np.ndarray
    target: np.ndarray
    weight: np.ndarray
    nodes: int


def parse_edges(spec: GraphSpec) -> Edges:
    """Read the edges of a config; the default weight is 1.

    Raises:
        ValueError: the file does not exist or is not a graph, there are no edges, or an edge is malformed.
    """
    edges = read_graph(Path(spec).expanduser()).edges if isinstance(spec, str) else spec
    if not edges:
        raise ValueError("the graph has no edges; give some, such as ((0, 1), (3, 7)), or the path of a graph file")
    weights: dict[tuple[int, int], float] = {}
    for edge in edges:
        a, b, weight = (*edge, 1.0)[:3] if len(edge) in (2, 3) else (-1, -1, 0)
        if min(a, b) < 0 or a != int(a) or b != int(b) or not weight > 0:
            raise ValueError(f"{edge} is not an edge; give two node numbers from 0, and optionally a weight above 0")
        if weights.setdefault((int(a), int(b)), weight) != weight or weights.get((b, a), weight) != weight:
            raise ValueError(f"the edge between {a:g} and {b:g} is given twice, with different weights; give it once")
    both_directions = weights | {(b, a): weight for (a, b), weight in weights.items()}
    source, target = np.array(sorted(both_directions), np.int64).T
    nodes = int(source.max()) + 1
    if nodes > MAX_NODES:
        raise ValueError(f"node {nodes - 1} is above {MAX_NODES - 1}; renumber the nodes that your records use, from 0")
    weight_array = np.array([both_directions[pair] for pair in sorted(both_directions)], np.float32)
    return Edges(source, target, weight_array, nodes)


Edge = tuple[int, int, float]


class Graph(NamedTuple):
    """Relations of classes, as in a graph file.

    names: of the classes, in the order of their numbers
    edges: (class, class, weight); each relation once, in either direction
    """

    names: tuple[str, ...]
    edges: tuple[Edge, ...]


def write_graph(file: Path, graph: Graph) -> None:
    """Write a graph as JSON, `{"names": [...], "edges": [[0, 3, 0.5], ...]}`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(graph._asdict(), indent=None) + "\n")


def read_graph(file: Path) -> Graph:
    """Read a graph from a file.

    Raises:
        ValueError: the file does not exist, or is not a graph.
    """
    try:
        content = json.loads(file.read_text())
        edges = tuple((int(a), int(b), float(weight)) for a, b, weight in content["edges"])
        return Graph(tuple(content["names"]), edges)
    except FileNotFoundError:
        raise ValueError(
            f"there is no file {str(file)!r}; python -m jaxdistill.data.builders.class_hierarchy writes one"
        ) from None
    except (ValueError, TypeError, KeyError, OSError) as error:
        expected = 'Expected JSON: {"names": ["cat", "dog"], "edges": [[0, 1, 0.5]]}'
        raise ValueError(f"{str(file)!r} is not a graph file ({type(error).__name__}: {error}). {expected}") from None
