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
    """A reduction of a token's values over the classes, such as a sum, computed tile by tile.

    A tile is a range of adjacent classes; a row is one token.

    neutral: the value that leaves the result unchanged, such as 0 for a sum
    partial: `(block [rows, tile]) -> result of one tile`, a tuple of arrays `[rows, 1]`
    combine: `(result, result) -> result`; joins the results of two tiles
    """

    neutral: float
    partial: Callable[[Array], tuple[Array, ...]]
    combine: Callable[..., tuple[Array, ...]]


def _partial_exponentials(x: Array) -> tuple[Array, Array]:
    """Return the maximum of each row and the sum of `exp(x - maximum)`, `[rows, 1]` each; finite if all x are -inf."""
    top = jnp.maximum(jnp.max(x, axis=-1, keepdims=True), jnp.finfo(x.dtype).min)
    return top, jnp.sum(jnp.exp(x - top), axis=-1, keepdims=True)


def _combine_exponentials(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    top = jnp.maximum(a[0], b[0])
    return top, a[1] * jnp.exp(a[0] - top) + b[1] * jnp.exp(b[0] - top)


SUM = Reduction(0.0, lambda x: (jnp.sum(x, axis=-1, keepdims=True),), lambda a, b: (a[0] + b[0],))
MAX = Reduction(-jnp.inf, lambda x: (jnp.max(x, axis=-1, keepdims=True),), lambda a, b: (jnp.maximum(a[0], b[0]),))
MIN = Reduction(jnp.inf, lambda x: (jnp.min(x, axis=-1, keepdims=True),), lambda a, b: (jnp.minimum(a[0], b[0]),))
# the normaliser of a softmax needs no earlier pass for the maximum
ONLINE = Reduction(-jnp.inf, _partial_exponentials, _combine_exponentials)

_numbers = itertools.count()


class Node:
    """A value that a kernel computes: one number for each row (token), or one number for each class of each row.

    The kernel computes a node as a block `[rows, 1]`, or tile by tile (range of adjacent classes) as blocks
    `[rows, tile]`.

    Args:
        name: name of the operation; "input" (read from an input array) and "classes" (the class numbers 0, 1, ...) are
            not computed.
        inputs: the nodes that this node is computed from.
        function: `(*blocks of the inputs) -> block`; None for a reduction and for a node that is not computed.
        per_class: True if the node has a number for each class.
        dtype: dtype of the numbers.
        reduction: how the only input is reduced over the classes; None for a node that is not a reduction.
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
        self.number = next(_numbers)  # numbered after the inputs
        # numbers of earlier passes
        self.level: int = max((node.level for node in inputs), default=0) + (reduction is not None)


class Tile(NamedTuple):
    """A range of adjacent classes; the kernel computes one tile at a time.

    index: the Pallas slice that selects the classes of the tile from a row
    classes: the numbers of the classes of the tile, `[1, tile]`
    """

    index: Any
    classes: Array


class Tiles(NamedTuple):
    """Functions that loop over the tiles (ranges of adjacent classes) of a block of rows, and read and write one tile.

    rows: the number of rows (tokens) of the block
    loop: `(body, first carry) -> last carry`; calls `body(tile, carry) -> carry` for every tile
    read: `(node, tile) -> block [rows, tile]`; reads the values of an input node
    write: `(number of the output, tile, block) -> None`; writes a block to an output array
    """

    rows: int
    loop: Callable[[Callable[[Tile, Any], Any], Any], Any]
    read: Callable[[Node, Tile], Array]
    write: Callable[[int, Tile, Array], None]


def ancestors(roots: Sequence[Node], among: Callable[[Node], bool] = lambda node: True) -> list[Node]:
    """Return nodes of a computation graph and all nodes that they depend on, in order of computation.

    Args:
        roots: the nodes at which the search begins.
        among: `(node) -> bool`; if False, the node is left out, and the search does not go on to its inputs.
    """
    reached, stack = set(), [node for node in roots if among(node)]
    while stack:
        node = stack.pop()
        if node not in reached:
            reached.add(node)
            stack += [other for other in node.inputs if among(other)]
    return sorted(reached, key=lambda node: node.number)


def pass_count(outputs: Sequence[Node], per_class: Sequence[bool]) -> int:
    """Return how many passes over the classes a kernel needs to compute its output nodes.

    A node (symbol for a value that the kernel computes) needs as many passes as reductions must be finished one after
    the other. An output with a number for each class needs one pass more, in which it is written.

    Args:
        outputs: the nodes to compute.
        per_class: for each output, whether it is written with a number for each class.
    """
    return max(node.level + is_per_class for node, is_per_class in zip(outputs, per_class, strict=True))


def run_passes(
    outputs: Sequence[Node], per_class: Sequence[bool], inputs: Mapping[Node, Array], tiles: Tiles
) -> dict[Node, Array]:
    """Compute nodes (values of a kernel, given as symbols) for a block of rows (tokens), in passes over the classes.

    An output with a number for each class is written tile by tile (a tile is a range of adjacent classes).

    Args:
        outputs: the nodes to compute.
        per_class: for each output, whether a number for each class is written; a node with one number per row is then
            broadcast.
        inputs: the values of the input nodes that have one number per row, `[rows, 1]` or `[1, 1]`.
        tiles: functions that loop over the tiles, and read and write one tile.

    Returns:
        The values of all nodes with one number per row, `[rows, 1]` or `[1, 1]`.
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
    """Run one pass over all tiles of a block of rows.

    Args:
        reductions: the reductions that this pass finishes.
        written: the per-class outputs that this pass writes, by number of the output.
        values: the values that are known before the pass, of nodes with one number per row.
        tiles: loops over the tiles, reads per-class inputs and writes per-class outputs.

    Returns:
        The values of the reductions.
    """
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
