"""Run a graph of nodes (see `passes.py`) as a Pallas kernel on a TPU, block by block of rows, tile by tile of classes.

The grid goes over blocks of 16 or 8 rows, each with all its classes. Pallas copies the next block into VMEM while the
kernel works on the current one, so every logit crosses HBM once, however many passes (`passes.py`) the graph takes.
Within a block the kernel loops over tiles of 1,024 classes, and then over the classes that remain. Rows are independent
of each other, so a last block with fewer rows needs no mask: what is computed for the missing rows is not written. The
cost is VMEM: a block holds whole rows, so 8 rows of all inputs and outputs must fit twice, or the kernel is refused.

There is no such kernel for GPUs: JAX deprecated the Triton backend of Pallas in 0.11, and a row of a large vocabulary
does not fit a GPU's shared memory. There XLA computes the terms chunk by chunk.
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

from jaxdistill.core.kernels.passes import Node, Tile, Tiles, run_passes
from jaxdistill.core.kernels.trace import Unsupported
from jaxdistill.core.types import Array

TILE = 1024  # classes that are computed at a time
BLOCK_BYTES = 48 * 2**20  # bytes for blocks in VMEM, which has 64 MiB (v5p) or 128 MiB (v5e, v6e) and also holds tiles


class Operand(NamedTuple):
    """An input array of the Pallas kernel, and the graph nodes (symbols in the traced function) that stand for it.

    array: `[rows, classes]`, `[rows, columns]` with few columns, or `[1, 1]`; a row is one token
    nodes: one node if the array has a number for each class, else one node for each column
    """

    array: Array
    nodes: tuple[Node, ...]


class Output(NamedTuple):
    """An output array of the Pallas kernel.

    node: the node of the computation graph whose values are written to the array
    per_class: True for an array `[rows, classes]`, False for an array `[rows, 1]`; a row is one token
    dtype: dtype of the array
    """

    node: Node
    per_class: bool
    dtype: Any


class Target(NamedTuple):
    """The options with which Pallas compiles the kernel for one platform.

    params: Pallas compiler parameters of the platform
    interpret: run the kernel in Pallas's interpreter, without a compiler
    """

    params: Any
    interpret: bool = False


TPU = Target(pltpu.CompilerParams(vmem_limit_bytes=60 * 2**20))
INTERPRETED: Target | None = None  # for platforms without a compiler; None: they cannot run the kernel. Tests set it


def launch_kernel(operands: Sequence[Operand], outputs: Sequence[Output], count: int, classes: int) -> Sequence[Array]:
    """Compute graph nodes (symbols of a traced function) for all rows (tokens) with one Pallas kernel.

    Args:
        operands: the input arrays, with the nodes that stand for their values.
        outputs: the nodes to compute, with shape and dtype of the output arrays.
        count: the number of rows.
        classes: the number of classes.

    Returns:
        The output arrays, `[rows, classes]` or `[rows, 1]`.

    Raises:
        Unsupported: a block of 8 rows does not fit the memory of a TPU core (VMEM).
    """
    arrays = [x.array.astype(jnp.int32) if x.array.dtype == bool else x.array for x in operands]
    targets = {"tpu": TPU} | ({"default": INTERPRETED} if INTERPRETED else {})
    kernels = {
        name: functools.partial(_launch_on, target, operands, outputs, count, classes)
        for name, target in targets.items()
    }
    by_platform = lambda *arrays: lax.platform_dependent(*arrays, **kernels)
    return _on_device_arrays(_without_derivative(by_platform), arrays)


def _without_derivative(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that differentiating it is an error, because its results contain a gradient already."""
    guarded = jax.custom_jvp(function)

    def refuse(*_: Any) -> Any:
        raise Unsupported("this takes a second derivative")

    guarded.defjvp(refuse)
    return guarded


def _on_device_arrays(function: Callable[..., Any], arrays: Sequence[Array]) -> Any:
    """Run a function on replicated arrays inside `shard_map`, because XLA cannot partition a Pallas kernel.

    The `shard_map` is over all mesh axes that are not manual yet.
    """
    mesh = jax.sharding.get_abstract_mesh()
    automatic_axes = set(mesh.axis_names) - set(mesh.manual_axes)
    if not automatic_axes:
        return function(*arrays)
    replicated = PartitionSpec()
    mapped = jax.shard_map(
        function, in_specs=replicated, out_specs=replicated, axis_names=automatic_axes, check_vma=False
    )
    return mapped(*arrays)


def _launch_on(
    target: Target, operands: Sequence[Operand], outputs: Sequence[Output], count: int, classes: int, *arrays: Array
) -> Any:
    """Call the Pallas kernel with the options in `target`; each program of the grid computes one block of rows."""
    out_shapes = [jax.ShapeDtypeStruct((count, classes if x.per_class else 1), x.dtype) for x in outputs]
    all_arrays: list[Any] = [*arrays, *out_shapes]
    rows = _rows_per_block([x for x in all_arrays if x.shape[1] == classes])
    block = lambda x: pl.BlockSpec((rows, x.shape[1]), lambda i: (i, 0))
    size = lambda arrays: sum(x.size * x.dtype.itemsize for x in arrays)
    return pl.pallas_call(
        functools.partial(_kernel, operands, outputs, rows, classes),
        grid=(pl.cdiv(count, rows),),
        in_specs=[pl.BlockSpec((1, 1), lambda i: (0, 0)) if x.shape == (1, 1) else block(x) for x in arrays],
        out_specs=list(map(block, out_shapes)),
        out_shape=out_shapes,
        interpret=target.interpret,
        compiler_params=target.params,
        cost_estimate=pl.CostEstimate(flops=0, transcendentals=0, bytes_accessed=size(arrays) + size(out_shapes)),
    )(*arrays)


def _rows_per_block(per_class: Sequence[Any]) -> int:
    """Return the number of rows of a block: 16, the sublanes of a bfloat16 tile, or 8 if 16 do not fit.

    VMEM must hold two blocks, because one is being copied while the other is computed.

    Args:
        per_class: all inputs and outputs of the kernel that have a number for each class.

    Raises:
        Unsupported: 8 rows do not fit the VMEM of a TPU core.
    """
    for rows in (16, 8):
        if 2 * rows * sum(x.shape[1] * x.dtype.itemsize for x in per_class) <= BLOCK_BYTES:
            return rows
    raise Unsupported(f"8 rows of {len(per_class)} arrays of {per_class[0].shape[1]} classes do not fit a TPU's VMEM")


def _kernel(operands: Sequence[Operand], outputs: Sequence[Output], rows: int, classes: int, *refs: Any) -> None:
    """Compute the outputs of one block of rows: the body of the Pallas kernel."""
    input_refs, output_refs = refs[: len(operands)], refs[len(operands) :]
    per_class = {x.nodes[0]: ref for x, ref in zip(operands, input_refs, strict=True) if x.nodes[0].per_class}
    numbers = {
        node: _cast(ref[:, column : column + 1], node)
        for x, ref in zip(operands, input_refs, strict=True)
        for column, node in enumerate(x.nodes)
        if not node.per_class
    }

    def read(node: Node, tile: Tile) -> Array:
        return _cast(per_class[node][:, tile.index], node)

    def write(number: int, tile: Tile, block: Array) -> None:
        output_refs[number][:, tile.index] = block.astype(output_refs[number].dtype)

    tiles = Tiles(rows, functools.partial(_loop_over_tiles, classes), read, write)
    values = run_passes([x.node for x in outputs], [x.per_class for x in outputs], numbers, tiles)
    for x, ref in zip(outputs, output_refs, strict=True):
        if not x.per_class:
            ref[...] = jnp.broadcast_to(values[x.node], (rows, 1)).astype(x.dtype)


def _cast(block: Array, node: Node) -> Array:
    return block != 0 if node.dtype == bool else block.astype(node.dtype)


def _loop_over_tiles(classes: int, body: Callable[[Tile, Any], Any], carry: Any) -> Any:
    """Run `body(tile, carry) -> carry` for all tiles of `TILE` classes and for the rest; return the last carry."""
    full_tiles, rest = divmod(classes, TILE)

    def tile(first: Any, size: int) -> Tile:
        numbers = first + lax.broadcasted_iota(jnp.int32, (1, size), 1)
        return Tile(pl.ds(first, size), numbers)

    iteration = lambda i, carry: body(tile(pl.multiple_of(i * TILE, TILE), TILE), carry)
    if full_tiles:
        carry = lax.fori_loop(0, full_tiles, iteration, carry)
    return body(tile(full_tiles * TILE, rest), carry) if rest else carry
