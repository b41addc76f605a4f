"""Smaller students from larger networks: of each named axis some units are kept, or groups of units are averaged.

An average keeps the function where the units of a group agree: what produces a group's unit is averaged, what reads it
is added up.
"""

from collections.abc import Mapping

import numpy as np

from jaxdistill.models.hub.family import Rule

Selection = tuple[tuple[int, ...], ...]  # for each new unit, the old ones that it stands for


def chosen(units: tuple[int, ...]) -> Selection:
    """Keeps these units."""
    return tuple((unit,) for unit in units)


def averaged(old: int, new: int) -> Selection:
    """Averages neighbours, `old` units becoming `new`.

    Raises:
        ValueError: they do not divide.
    """
    if new < 1 or old % new:
        raise ValueError(f"{old} units do not make {new} groups of equal size")
    group = old // new
    return tuple(tuple(range(first, first + group)) for first in range(0, old, group))


def evenly(old: int, new: int) -> Selection:
    """Keeps `new` units at even distances.

    Raises:
        ValueError: there are fewer.
    """
    if not 1 <= new <= old:
        raise ValueError(f"{new} of {old} units cannot be kept")
    return chosen(tuple(int(unit) for unit in np.floor(np.arange(new) * old / new)))


def blocks_of(selection: Selection, size: int) -> Selection:
    """A selection of heads as one of their units, `size` to a head."""
    return tuple(tuple(unit * size + i for unit in group) for group in selection for i in range(size))


def cut(array: np.ndarray, rule: Rule, selections: Mapping[str, Selection]) -> np.ndarray:
    """An array of ours with its named axes cut. The inputs of a kernel are added up, all else is averaged."""
    for dim, axis in enumerate(rule.axes):
        if axis in selections:
            reads = rule.layout in ("linear", "conv") and dim == array.ndim - 2
            parts = [array.take(group, dim) for group in selections[axis]]
            array = np.stack([part.sum(dim) if reads else part.mean(dim) for part in parts], dim)
    return array


def uncut(shape: tuple[int, ...], axes: tuple[str, ...], selections: Mapping[str, Selection]) -> tuple[int | None, ...]:
    """The shape that the whole array must have: None along an axis that is cut."""
    named = axes or ("",) * len(shape)
    return tuple(None if axis in selections else size for size, axis in zip(shape, named, strict=True))
