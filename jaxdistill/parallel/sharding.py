"""Sharding rules: a table of (path regex, mesh axes) per model, of which the first match wins.

The axes of a rule belong to the array's LAST dimensions, so that one rule serves a matrix, a convolution and a stack of
layers. An axis that does not divide its dimension is left out. The array is then replicated along this axis, which is
right and only costs memory.
"""

import re
from collections.abc import Sequence

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdistill.core.tree import path_name
from jaxdistill.core.types import PyTree

Rules = Sequence[tuple[str, tuple[str | None, ...]]]

DEFAULT_RULES: Rules = (
    (r"(down|out)/kernel$", ("tensor", "fsdp")),  # second matrix of a pair: its input is already split by tensor
    (r"kernel$", ("fsdp", "tensor")),
    (r"embedding$", ("tensor", "fsdp")),
    (r"bank", ("data", None)),  # a memory bank: one row per example
)


def spec_for(name: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules) -> PartitionSpec:
    """Return the partition of one array by the first rule that matches its name; replicated if none does."""
    axes = next((axes for pattern, axes in rules if re.search(pattern, name)), ())
    if len(axes) > len(shape):
        return PartitionSpec()
    aligned = (None,) * (len(shape) - len(axes)) + tuple(axes)
    divisible = [
        axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(aligned, shape, strict=True)
    ]
    return PartitionSpec(*divisible)


def shardings(tree: PyTree, mesh: Mesh, rules: Rules = DEFAULT_RULES) -> PyTree:
    """Return a sharding for each leaf of a tree. Optimiser moments have the name and the layout of their parameter."""

    def sharding(path, leaf):
        return NamedSharding(mesh, spec_for(path_name(path), leaf.shape, mesh, rules))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def with_shardings(tree: PyTree, layout: PyTree) -> PyTree:
    """Return the shapes of a tree with a sharding for each leaf, without allocating arrays."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, layout)
