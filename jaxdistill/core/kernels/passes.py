"""Evaluate a graph of nodes for rows of logits, in passes over tiles of the classes.

A node is one number of a row, or one number for each class of the row. A row is processed tile by tile. A reduction
over the classes (a sum or a maximum) is known only after the last tile, so what depends on it must wait for another
pass. The level of a node counts the passes that must end before: 0 for an input, else the greatest level of the node's
inputs, plus 1 for a reduction. Pass number k visits every tile once. In each tile it computes the per-class nodes that
are needed, adds the tile to every reduction of level k + 1, and writes every per-class output of level k. Before the
pass, the numbers of a row that depend on finished reductions alone are computed. This order is right because every node
depends on nodes of its own level or lower, and a reduction on lower ones alone. Only numbers of rows are kept between
passes. Per-class values are computed again in each pass, which costs arithmetic but no memory traffic: a pass reads the
logits from VMEM, not from HBM.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxdistill.core.types import Array


class Reduction(NamedTuple):
    """A reduction of the tiles of a row to one number.

    neutral: the value of a class that is not there
    partial: `[rows, tile]` to the partial result of a tile, a tuple of `[rows, 1]`
    combine: two partial results to one
    """

    neutral: float
    partial: Callable[[Array], tuple[Array, ...]]
    combine: Callable[..., tuple[Array, ...]]


def _partial_exponentials(x: Array) -> tuple[Array, Array]:
    """Return the largest x, and the sum of `exp(x - largest)`; finite if every x is -inf."""
    top = jnp.maximum(jnp.max(x, axis=-1, keepdims=True), jnp.finfo(x.dtype).min)
    return top, jnp.sum(jnp.exp(x - top), axis=-1, keepdims=True)


def _combine_exponentials(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    top = jnp.maximum(a[0], b[0])
    return top, a[1] * jnp.exp(a[0] - top) + b[1] * jnp.exp(b[0] - top)


SUM = Reduction(0.0, lambda x: (jnp.sum(x, axis=-1, keepdims=True),), lambda a, b: (a[0] + b[0],))
MAX = Reduction(-jnp.inf, lambda x: (jnp.max(x, axis=-1, keepdims=True),), lambda a, b: (jnp.maximum(a[0], b[0]),))
MIN = Reduction(jnp.inf, lambda x: (jnp.min(x, axis=-1, keepdims=True),), lambda a, b: (jnp.minimum(a[0], b[0]),))
# the normaliser of a softmax, without an earlier pass for the maximum
ONLINE = Reduction(-jnp.inf, _partial_exponentials, _combine_exponentials)

_numbers = itertools.count()


class Node:
    """One number for every row, `[rows, 1]`, or one for every class of every row, `[rows, tile]`.

    Args:
        name: of the operation; "input" or "classes" (0, 1, ...) for nodes that are not computed.
        inputs: the nodes that this node is computed from.
        function: blocks of the inputs to the block of this node.
        per_class: the node has a number for every class.
        dtype: of the numbers.
        reduction: over the classes of the only input.
    """

    def __init__(
        self,
        name: str,
        inputs: Sequence["Node"],
        function: Any,
        per_class: bool,
        dtype: Any,
        reduction: Reduction | None = None,
    ):
        self.name, self.inputs, self.function = name, tuple(inputs), function
        self.per_class, self.dtype, self.reduction = per_class, dtype, reduction
        self.number = next(_numbers)  # greater than the numbers of the inputs
        self.level: int = max((node.level for node in inputs), default=0) + (reduction is not None)  # earlier passes


class Tile(NamedTuple):
    """Some adjacent classes of a row.

    index: their place in the row
    classes: their numbers, `[1, tile]`
    """

    index: Any
    classes: Array


class Tiles(NamedTuple):
    """Access to all tiles of some rows.

    rows: the number of rows
    loop: `(body, start) -> end`, where `body(tile, carry) -> carry` runs for every tile
    read: `(node, tile) -> block` of an input node
    write: `(number of the output, tile, block)`
    """

    rows: int
    loop: Callable[[Callable[[Tile, Any], Any], Any], Any]
    read: Callable[[Node, Tile], Array]
    write: Callable[[int, Tile, Array], None]


def ancestors(roots: Sequence[Node], among: Callable[[Node], bool] = lambda node: True) -> list[Node]:
    """Return the roots and all nodes that they depend on, in order of computation.

    Args:
        roots: nodes.
        among: which nodes to return; a node for which this is False ends the search.
    """
    reached, stack = set(), [node for node in roots if among(node)]
    while stack:
        node = stack.pop()
        if node not in reached:
            reached.add(node)
            stack += [other for other in node.inputs if among(other)]
    return sorted(reached, key=lambda node: node.number)


def pass_count(outputs: Sequence[Node], per_class: Sequence[bool]) -> int:
    """Return the number of passes over a row; a per-class output is written during a pass, so it needs one more."""
    return max(node.level + is_per_class for node, is_per_class in zip(outputs, per_class, strict=True))


def run_passes(
    outputs: Sequence[Node], per_class: Sequence[bool], inputs: Mapping[Node, Array], tiles: Tiles
) -> dict[Node, Array]:
    """Compute outputs. Per-class outputs are written tile by tile; the result has the values of the others.

    Args:
        outputs: nodes.
        per_class: for each output: is it written for every class? A node with one number may be, too.
        inputs: values of the input nodes with one number, `[rows, 1]` or `[1, 1]`.
        tiles: reads and writes per-class nodes.
    """
    nodes, values = ancestors(outputs), dict(inputs)
    for level in range(pass_count(outputs, per_class) + 1):
        for node in nodes:
            if not node.per_class and node.level <= level and node.reduction is None and node not in values:
                values[node] = node.function(*(values[other] for other in node.inputs))
        reductions = [node for node in nodes if node.reduction is not None and node.level == level + 1]
        written = {i: node for i, node in enumerate(outputs) if per_class[i] and node.level == level}
        if reductions or written:
            values |= _run_pass(reductions, written, values, tiles)
    return values


def _run_pass(
    reductions: list[Node], written: dict[int, Node], values: Mapping[Node, Any], tiles: Tiles
) -> dict[Node, Any]:
    """Run one pass over all tiles; write the per-class outputs and return the values of the reductions."""
    roots = [*(node.inputs[0] for node in reductions), *written.values()]
    per_class_nodes = ancestors(roots, lambda node: node.per_class)

    def body(tile: Tile, carry: list[Any]) -> list[Any]:
        blocks: dict[Node, Any] = {}
        block = lambda node: blocks[node] if node in blocks else values[node]
        for node in per_class_nodes:
            if node.name == "input":
                blocks[node] = tiles.read(node, tile)
            else:
                blocks[node] = tile.classes if node.name == "classes" else node.function(*map(block, node.inputs))
        for number, node in written.items():
            tiles.write(number, tile, jnp.broadcast_to(block(node), (tiles.rows, tile.classes.shape[1])))
        partials = [_partial(node, block(node.inputs[0]), tile) for node in reductions]
        return [_reduction(node).combine(*pair) for node, *pair in zip(reductions, carry, partials, strict=True)]

    neutral = lambda node: jnp.full((tiles.rows, 1), _reduction(node).neutral, node.dtype)
    totals = tiles.loop(body, [_reduction(node).partial(neutral(node)) for node in reductions])
    return {node: total if len(total) > 1 else total[0] for node, total in zip(reductions, totals, strict=True)}


def _reduction(node: Node) -> Reduction:
    assert node.reduction is not None
    return node.reduction


def _partial(node: Node, block: Array, tile: Tile) -> tuple[Array, ...]:
    block = jnp.broadcast_to(block, (block.shape[0], tile.classes.shape[1]))
    return _reduction(node).partial(block)
