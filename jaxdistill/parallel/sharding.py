"""Which array lies where: a table of (path regex, axes) per model, first match wins.

The axes of an entry are those of the array's LAST dimensions, so that one line serves a matrix, a convolution and a
stack of layers. An axis that does not divide its dimension is left out: the array is then whole along it, which is
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
    (r"(down|out)/kernel$", ("tensor", "fsdp")),  # the second of a pair: its input is already split by tensor
    (r"kernel$", ("fsdp", "tensor")),
    (r"embedding$", ("tensor", "fsdp")),
    (r"bank", ("data", None)),  # a memory bank: one row per example
)


def spec_for(name: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules) -> PartitionSpec:
    """The partition of one array by the first rule that matches its name; whole on every device if none does."""
    axes = next((axes for pattern, axes in rules if re.search(pattern, name)), ())
    if len(axes) > len(shape):
        return PartitionSpec()
    aligned = (None,) * (len(shape) - len(axes)) + tuple(axes)
    fits = [axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(aligned, shape, strict=True)]
    return PartitionSpec(*fits)


def shardings(tree: PyTree, mesh: Mesh, rules: Rules = DEFAULT_RULES) -> PyTree:
    """A sharding for each leaf of a tree. Optimiser moments carry their parameter's name and follow it."""

    def each(path, leaf):
        return NamedSharding(mesh, spec_for(path_name(path), leaf.shape, mesh, rules))

    return jax.tree_util.tree_map_with_path(each, tree)


def laid_out(tree: PyTree, layout: PyTree) -> PyTree:
    """The shapes of a tree with a sharding for each leaf: nothing is made."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, layout)
