"""Launch a kernel of nodes with Pallas: blocks of rows lie in a TPU's VMEM, and tiles of classes are formed in turn.

GPUs have no such kernel: JAX deprecated the Triton backend of Pallas in 0.11, and a row of a large vocabulary does not
fit a GPU's shared memory. There XLA computes the terms chunk by chunk.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from jaxdistill.core.kernels.passes import Node, Tile, Tiles, run
from jaxdistill.core.kernels.trace import Unsupported
from jaxdistill.core.types import Array

TILE = 1024  # classes that are formed at a time
BLOCKS = 48 * 2**20  # bytes of blocks in VMEM, of which there are 64 MiB (v5p) or 128 (v5e, v6e); tiles take some too


class Operand(NamedTuple):
    """array: `[rows, classes]`, `[rows, few]` or `[1, 1]`. nodes: of its columns; one of all classes."""

    array: Array
    nodes: tuple[Node, ...]


class Output(NamedTuple):
    """What is formed for each row: `[rows, classes]` where it is wide, else `[rows, 1]`."""

    node: Node
    wide: bool
    dtype: Any


class Target(NamedTuple):
    """How a platform runs the kernel.

    params: of its compiler
    interpret: without a compiler, by JAX itself
    """

    params: Any
    interpret: bool = False


TPU = Target(pltpu.CompilerParams(vmem_limit_bytes=60 * 2**20))
INTERPRETED: Target | None = None  # for platforms without a compiler for it; None: they do not run it. Tests set it


def call(operands: Sequence[Operand], outputs: Sequence[Output], count: int, classes: int) -> list[Array]:
    """The outputs of all rows.

    Raises:
        Unsupported: no block of rows fits.
    """
    arrays = [x.array.astype(jnp.int32) if x.array.dtype == bool else x.array for x in operands]
    targets = {"tpu": TPU} | ({"default": INTERPRETED} if INTERPRETED else {})
    calls = {name: functools.partial(on, target, operands, outputs, count, classes) for name, target in targets.items()}
    by_platform = lambda *arrays: lax.platform_dependent(*arrays, **calls)
    return _on_whole_rows(_once(by_platform), arrays)


def _once(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is not differentiated: its results hold a gradient already."""
    guarded = jax.custom_jvp(function)

    def refuse(*_: Any) -> Any:
        raise Unsupported("this takes a second derivative")

    guarded.defjvp(refuse)
    return guarded


def _on_whole_rows(function: Callable[..., Any], arrays: Sequence[Array]) -> Any:
    """Inside a mesh, on what each device has of the rows: no partitioner sees into a kernel."""
    mesh = jax.sharding.get_abstract_mesh()
    left = set(mesh.axis_names) - set(mesh.manual_axes)
    if not left:
        return function(*arrays)
    whole = PartitionSpec()
    return jax.shard_map(function, in_specs=whole, out_specs=whole, axis_names=left, check_vma=False)(*arrays)


def on(
    target: Target, operands: Sequence[Operand], outputs: Sequence[Output], count: int, classes: int, *arrays: Array
) -> Any:
    """Launches the kernel on one platform."""
    kinds = [jax.ShapeDtypeStruct((count, classes if x.wide else 1), x.dtype) for x in outputs]
    shapes: list[Any] = [*arrays, *kinds]
    rows = _fitting([x for x in shapes if x.shape[1] == classes])
    block = lambda x: pl.BlockSpec((rows, x.shape[1]), lambda i: (i, 0))
    size = lambda of: sum(x.size * x.dtype.itemsize for x in of)
    return pl.pallas_call(
        functools.partial(_kernel, operands, outputs, rows, classes),
        grid=(pl.cdiv(count, rows),),
        in_specs=[pl.BlockSpec((1, 1), lambda i: (0, 0)) if x.shape == (1, 1) else block(x) for x in arrays],
        out_specs=list(map(block, kinds)),
        out_shape=kinds,
        interpret=target.interpret,
        compiler_params=target.params,
        cost_estimate=pl.CostEstimate(flops=0, transcendentals=0, bytes_accessed=size(arrays) + size(kinds)),
    )(*arrays)


def _fitting(wide: Sequence[Any]) -> int:
    """Rows of a block: 16, of which a tile of bfloat16 has as many, or 8. Blocks are there twice, to come and to go."""
    for rows in (16, 8):
        if 2 * rows * sum(x.shape[1] * x.dtype.itemsize for x in wide) <= BLOCKS:
            return rows
    raise Unsupported(f"8 rows of {len(wide)} arrays of {wide[0].shape[1]} classes do not fit a TPU's VMEM")


def _kernel(operands: Sequence[Operand], outputs: Sequence[Output], rows: int, classes: int, *refs: Any) -> None:
    given, results = refs[: len(operands)], refs[len(operands) :]
    wide = {x.nodes[0]: ref for x, ref in zip(operands, given, strict=True) if x.nodes[0].wide}
    narrow = {
        node: _typed(ref[:, column : column + 1], node)
        for x, ref in zip(operands, given, strict=True)
        for column, node in enumerate(x.nodes)
        if not node.wide
    }

    def read(node: Node, tile: Tile) -> Array:
        return _typed(wide[node][:, tile.at], node)

    def write(number: int, tile: Tile, block: Array) -> None:
        results[number][:, tile.at] = block.astype(results[number].dtype)

    tiles = Tiles(rows, functools.partial(_over_tiles, classes), read, write)
    found = run([x.node for x in outputs], [x.wide for x in outputs], narrow, tiles)
    for x, ref in zip(outputs, results, strict=True):
        if not x.wide:
            ref[...] = jnp.broadcast_to(found[x.node], (rows, 1)).astype(x.dtype)


def _typed(block: Array, node: Node) -> Array:
    return block != 0 if node.dtype == bool else block.astype(node.dtype)


def _over_tiles(classes: int, body: Callable[[Tile, Any], Any], carry: Any) -> Any:
    """Runs `body(tile, carry)` over all tiles of a row."""
    whole, rest = divmod(classes, TILE)

    def tile(first: Any, size: int) -> Tile:
        numbers = first + lax.broadcasted_iota(jnp.int32, (1, size), 1)
        return Tile(pl.ds(first, size), numbers)

    turn = lambda i, carry: body(tile(pl.multiple_of(i * TILE, TILE), TILE), carry)
    if whole:
        carry = lax.fori_loop(0, whole, turn, carry)
    return body(tile(whole * TILE, rest), carry) if rest else carry
