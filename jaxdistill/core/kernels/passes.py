"""A function of a row of logits as nodes, and the passes over tiles of that row in which they are formed.

A node is a number of the row or one for each class of it. As many passes are made as folds (sums and maxima over the
classes) wait for each other; in each of them what is needed of a tile is formed anew, and folds alone are kept.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxdistill.core.types import Array


class Fold(NamedTuple):
    """How the tiles of a row become a number of it.

    neutral: what stands for a class that is not there
    part: `[rows, tile]` to what is kept of it, a tuple of `[rows, 1]`
    join: two of these to one
    """

    neutral: float
    part: Callable[[Array], tuple[Array, ...]]
    join: Callable[..., tuple[Array, ...]]


def _exponentials(x: Array) -> tuple[Array, Array]:
    """The largest x, and the sum of `exp(x - largest)`; finite where every x is -inf."""
    top = jnp.maximum(jnp.max(x, axis=-1, keepdims=True), jnp.finfo(x.dtype).min)
    return top, jnp.sum(jnp.exp(x - top), axis=-1, keepdims=True)


def _of_both(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    top = jnp.maximum(a[0], b[0])
    return top, a[1] * jnp.exp(a[0] - top) + b[1] * jnp.exp(b[0] - top)


SUM = Fold(0.0, lambda x: (jnp.sum(x, axis=-1, keepdims=True),), lambda a, b: (a[0] + b[0],))
MAX = Fold(-jnp.inf, lambda x: (jnp.max(x, axis=-1, keepdims=True),), lambda a, b: (jnp.maximum(a[0], b[0]),))
MIN = Fold(jnp.inf, lambda x: (jnp.min(x, axis=-1, keepdims=True),), lambda a, b: (jnp.minimum(a[0], b[0]),))
ONLINE = Fold(-jnp.inf, _exponentials, _of_both)  # a softmax's normaliser needs no pass for the maximum before it

_numbers = itertools.count()


class Node:
    """A number of every row, `[rows, 1]`, or one for every class of it, `[rows, tile]`.

    Args:
        name: of the operation; "given" or "classes" (0, 1, ...) where it is not computed.
        of: the nodes that it is formed of.
        call: blocks of these to its block.
        wide: it has a number for every class.
        dtype: of these.
        fold: over the classes of the one node that it is formed of.
    """

    def __init__(self, name: str, of: Sequence["Node"], call: Any, wide: bool, dtype: Any, fold: Fold | None = None):
        self.name, self.of, self.call, self.wide, self.dtype, self.fold = name, tuple(of), call, wide, dtype, fold
        self.number = next(_numbers)  # it is formed after those that it is formed of
        self.level: int = max((node.level for node in of), default=0) + (fold is not None)  # passes that come before it


class Tile(NamedTuple):
    """Some classes of a row.

    at: where they lie in the row
    classes: their numbers, `[1, tile]`
    """

    at: Any
    classes: Array


class Tiles(NamedTuple):
    """The tiles of some rows.

    rows: how many
    over: `(body, start) -> end`, by `body(tile, carry) -> carry`
    read: `(node, tile) -> block` of what is given
    write: `(number of the output, tile, block)`
    """

    rows: int
    over: Callable[[Callable[[Tile, Any], Any], Any], Any]
    read: Callable[[Node, Tile], Array]
    write: Callable[[int, Tile, Array], None]


def needed(roots: Sequence[Node], among: Callable[[Node], bool] = lambda node: True) -> list[Node]:
    """All nodes of a kind that some are formed of, in order; nothing is looked for behind another kind."""
    found, left = set(), [node for node in roots if among(node)]
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left += [other for other in node.of if among(other)]
    return sorted(found, key=lambda node: node.number)


def passes(outputs: Sequence[Node], wide: Sequence[bool]) -> int:
    """How many passes over a row its outputs take, `wide` ones being written in one of them."""
    return max(node.level + is_wide for node, is_wide in zip(outputs, wide, strict=True))


def run(outputs: Sequence[Node], wide: Sequence[bool], values: Mapping[Node, Array], tiles: Tiles) -> dict[Node, Array]:
    """Forms outputs: wide ones are written tile by tile, the others are among the values that it returns.

    Args:
        outputs: nodes.
        wide: whether an output has a number for every class, which one node may stand for.
        values: of the given numbers of the rows, `[rows, 1]` or `[1, 1]`.
        tiles: where wide ones are read and written.
    """
    every, found = needed(outputs), dict(values)
    for level in range(passes(outputs, wide) + 1):
        for node in every:
            if not node.wide and node.level <= level and node.fold is None and node not in found:
                found[node] = node.call(*(found[other] for other in node.of))
        folds = [node for node in every if node.fold is not None and node.level == level + 1]
        written = {i: node for i, node in enumerate(outputs) if wide[i] and node.level == level}
        if folds or written:
            found |= _pass(folds, written, found, tiles)
    return found


def _pass(folds: list[Node], written: dict[int, Node], known: Mapping[Node, Any], tiles: Tiles) -> dict[Node, Any]:
    """One pass over all tiles: the values of its folds."""
    wide = needed([*(node.of[0] for node in folds), *written.values()], lambda node: node.wide)

    def body(tile: Tile, carry: list[Any]) -> list[Any]:
        formed: dict[Node, Any] = {}
        block = lambda node: formed[node] if node in formed else known[node]
        for node in wide:
            if node.name == "given":
                formed[node] = tiles.read(node, tile)
            else:
                formed[node] = tile.classes if node.name == "classes" else node.call(*map(block, node.of))
        for number, node in written.items():
            tiles.write(number, tile, jnp.broadcast_to(block(node), (tiles.rows, tile.classes.shape[1])))
        parts = [_part(node, block(node.of[0]), tile) for node in folds]
        return [_fold(node).join(*both) for node, *both in zip(folds, carry, parts, strict=True)]

    nothing = lambda node: jnp.full((tiles.rows, 1), _fold(node).neutral, node.dtype)
    ended = tiles.over(body, [_fold(node).part(nothing(node)) for node in folds])
    return {node: end if len(end) > 1 else end[0] for node, end in zip(folds, ended, strict=True)}


def _fold(node: Node) -> Fold:
    assert node.fold is not None
    return node.fold


def _part(node: Node, block: Array, tile: Tile) -> tuple[Array, ...]:
    fold, block = _fold(node), jnp.broadcast_to(block, (block.shape[0], tile.classes.shape[1]))
    return fold.part(block)
