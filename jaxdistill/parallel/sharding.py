"""Sharding rules: a table of (regex of an array's path, mesh axes), in which the first match wins.

A rule names the mesh axes of the array's LAST dimensions, so that one rule serves a matrix, a convolution and a stack
of layers. A mesh axis whose size does not divide the dimension is left out. The array is then replicated along this
axis, which is right and only costs memory.
"""

import re
from collections.abc import Sequence
from typing import Any

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
    """Return the `PartitionSpec` of an array, from the first sharding rule whose regex matches the array's name.

    The array is replicated if no rule matches, or if the rule has more axes than the array has dimensions. A mesh axis
    whose size does not divide a dimension is left out.

    Args:
        name: key path of the array in its tree, such as `params/student/blocks/0/mlp/up/kernel`.
        shape: shape of the array.
        mesh: the mesh to split the array over.
        rules: pairs `(regex, mesh axes of the array's last dimensions)`, such as `("kernel$", ("fsdp", "tensor"))`.
    """
    axes = next((axes for pattern, axes in rules if re.search(pattern, name)), ())
    if len(axes) > len(shape):
        return PartitionSpec()
    aligned = (None,) * (len(shape) - len(axes)) + tuple(axes)
    divisible = [
        axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(aligned, shape, strict=True)
    ]
    return PartitionSpec(*divisible)


def shardings(tree: PyTree, mesh: Mesh, rules: Rules = DEFAULT_RULES) -> PyTree:
    """Return a tree with the `NamedSharding` of each array, from the first rule whose regex matches its key path.

    An optimiser moment gets the same sharding as its parameter, because its key path ends with the parameter's name.

    Args:
        tree: a tree of arrays or of `jax.ShapeDtypeStruct`.
        mesh: the mesh to split the arrays over.
        rules: pairs `(regex, mesh axes of the array's last dimensions)`; see `spec_for`.
    """

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, spec_for(path_name(path), leaf.shape, mesh, rules))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def with_shardings(tree: PyTree, layout: PyTree) -> PyTree:
    """Return a tree of `jax.ShapeDtypeStruct` with the shapes and dtypes of `tree` and the shardings of `layout`."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, layout)
