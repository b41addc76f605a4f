"""Read and write graphs whose nodes are classes, or examples of a data set, and whose edges join related nodes.

A config gives a graph as a tuple of edges, or as the path of a JSON file that `write_graph` wrote.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdistill.core import seal
from jaxdistill.core.errors import DamageError

GraphSpec = str | tuple[tuple[float, ...], ...]  # path of a file, or edges (node, node) or (node, node, weight)
MAX_NODES = 65535  # a pair of nodes is encoded as one number of 32 bits


class Edges(NamedTuple):
    """The edges of a graph as arrays. Each edge is listed in both directions, sorted by source and then by target.

    source, target: `[edges]`, int64, the numbers of the two nodes that an edge joins
    weight: `[edges]`, above 0
    nodes: number of nodes, the largest node number plus 1
    """

    source: np.ndarray
    target: np.ndarray
    weight: np.ndarray
    nodes: int


def parse_edges(spec: GraphSpec) -> Edges:
    """Convert a graph to arrays of edges.

    Args:
        spec: the graph as the config gives it: a tuple of edges (node, node) or (node, node, weight), or the file name
            of a graph that `write_graph` wrote. The weight is 1 if it is not given.

    Raises:
        ValueError: the file does not exist or is not a graph, there are no edges, an edge is malformed or given twice
            with different weights, or a node number is too large.
    """
    edges = read_graph(Path(spec).expanduser()).edges if isinstance(spec, str) else spec
    if not edges:
        raise ValueError("the graph has no edges; give some, such as ((0, 1), (3, 7)), or the path of a graph file")
    weights: dict[tuple[int, int], float] = {}
    for edge in edges:
        a, b, weight = (*edge, 1.0)[:3] if len(edge) in (2, 3) else (-1, -1, 0)
        finite = all(isinstance(x, int | float) and math.isfinite(x) for x in (a, b, weight))
        if not finite or min(a, b) < 0 or a != int(a) or b != int(b) or not weight > 0:
            raise ValueError(f"{edge} is not an edge; give two node numbers from 0, and optionally a weight above 0")
        if weights.setdefault((int(a), int(b)), weight) != weight or weights.get((b, a), weight) != weight:
            raise ValueError(f"the edge between {a:g} and {b:g} is given twice, with different weights; give it once")
    both_directions = weights | {(b, a): weight for (a, b), weight in weights.items()}
    source, target = np.array(sorted(both_directions), np.int64).T
    nodes = int(source.max()) + 1
    if nodes > MAX_NODES:
        raise ValueError(f"node {nodes - 1} is above {MAX_NODES - 1}; renumber the nodes that your records use, from 0")
    weight_array = np.array([both_directions[pair] for pair in sorted(both_directions)])
    return Edges(source, target, weight_array, nodes)


def check_classes(edges: Edges, classes: int) -> None:
    """Require that the nodes of a graph are classes of the student.

    Raises:
        ValueError: the graph names a class that the student does not have.
    """
    if edges.nodes > classes:
        last = f"the graph names class {edges.nodes - 1}"
        raise ValueError(f"{last}, but the student has {classes} classes, counted from 0; use a graph of these")


Edge = tuple[int, int, float]


class Graph(NamedTuple):
    """The content of a graph file: classes, and weighted edges between related classes.

    names: names of the classes; the position of a name is the number of its class
    edges: (class number, class number, weight); each edge once, in either direction
    """

    names: tuple[str, ...]
    edges: tuple[Edge, ...]


def write_graph(file: Path, graph: Graph) -> None:
    """Write a graph as JSON, `{"names": [...], "edges": [[0, 3, 0.5], ...], "seal": ...}`; the seal is a checksum."""
    seal.write(file, graph._asdict())


def read_graph(file: Path) -> Graph:
    """Read a graph from a JSON file that `write_graph` wrote, or from a JSON file without a seal (checksum).

    Raises:
        ValueError: the file does not exist, or is not a graph.
        DamageError: the file has changed since it was written.
    """
    try:
        if file.exists() and not file.is_file():  # reading a pipe never ends
            raise ValueError("it is no regular file")
        content = json.loads(file.read_text(encoding="utf-8"))
        if seal.SEAL in content:
            content = seal.read(file, {})
        graph = Graph(tuple(content["names"]), tuple((a, b, float(weight)) for a, b, weight in content["edges"]))
        if not all(type(node) is int for edge in graph.edges for node in edge[:2]):
            raise ValueError("a node is no whole number")
        if not (isinstance(content["names"], list) and all(isinstance(name, str) for name in graph.names)):
            raise ValueError("'names' is no list of texts")
        last = max((node for edge in graph.edges for node in edge[:2]), default=-1)
        if graph.names and last >= len(graph.names):
            raise ValueError(f"an edge has the node {last}, and there are {len(graph.names)} names, counted from 0")
        return graph
    except DamageError as error:
        raise DamageError(f"{error}. Write it again, or if the change is meant, delete its key 'seal'") from None
    except FileNotFoundError:
        raise ValueError(
            f"there is no file {str(file)!r}; python -m jaxdistill.data.builders.class_hierarchy writes one"
        ) from None
    except (ValueError, TypeError, KeyError, OSError, OverflowError, RecursionError) as error:
        expected = 'Expected JSON: {"names": ["cat", "dog"], "edges": [[0, 1, 0.5]]}'
        raise ValueError(f"{str(file)!r} is not a graph file ({type(error).__name__}: {error}). {expected}") from None
