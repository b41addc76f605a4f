"""Cut the weights of a model along an axis to make a smaller student: keep some units, or average groups of units.

Averaging does not change the function if the units of a group are equal. To achieve this, weights that produce a unit
are averaged over the group, and weights that read the unit are summed.
"""

from collections.abc import Mapping

import numpy as np

from jaxdistill.models.hub.family import Rule

Selection = tuple[tuple[int, ...], ...]  # for each new unit, the old units that it replaces


def keep_units(units: tuple[int, ...]) -> Selection:
    """Select single units."""
    return tuple((unit,) for unit in units)


def average_neighbours(old: int, new: int) -> Selection:
    """Select groups of neighbouring units to average, so that `old` units become `new`.

    Raises:
        ValueError: `new` does not divide `old`.
    """
    if new < 1 or old % new:
        raise ValueError(f"{old} units cannot be split into {new} groups of equal size; choose a divisor")
    group = old // new
    return tuple(tuple(range(first, first + group)) for first in range(0, old, group))


def keep_evenly(old: int, new: int) -> Selection:
    """Select `new` of `old` units at equal distances.

    Raises:
        ValueError: `new` is not between 1 and `old`.
    """
    if not 1 <= new <= old:
        raise ValueError(f"{new} of {old} units cannot be kept")
    return keep_units(tuple(int(unit) for unit in np.floor(np.arange(new) * old / new)))


def heads_to_units(selection: Selection, size: int) -> Selection:
    """Convert a selection of heads to a selection of their units, with `size` units per head."""
    return tuple(tuple(unit * size + i for unit in group) for group in selection for i in range(size))


def cut(array: np.ndarray, rule: Rule, selections: Mapping[str, Selection]) -> np.ndarray:
    """Cut an array of the model along its named axes. The input axis of a kernel is summed, other axes are averaged.

    Args:
        array: in the layout of the model.
        rule: its rule, which names its axes.
        selections: the selection of each axis that is cut, by name.
    """
    for dim, axis in enumerate(rule.axes):
        if axis in selections:
            is_input = rule.layout in ("linear", "conv") and dim == array.ndim - 2
            parts = [array.take(group, dim) for group in selections[axis]]
            array = np.stack([part.sum(dim) if is_input else part.mean(dim) for part in parts], dim)
    return array


def uncut_shape(
    shape: tuple[int, ...], axes: tuple[str, ...], selections: Mapping[str, Selection]
) -> tuple[int | None, ...]:
    """Return the shape that an array must have before it is cut to `shape`; None along an axis that is cut."""
    named = axes or ("",) * len(shape)
    return tuple(None if axis in selections else size for size, axis in zip(shape, named, strict=True))
