"""Narrow the weights of a model along an axis to make a smaller student: keep some units, or average groups of units.

If the units of a group are equal, averaging does not change the function that the model computes. For this, the weights
that produce a unit are averaged over the group, and the weights that read the unit are summed.
"""

from collections.abc import Mapping

import numpy as np

from jaxdistill.models.hub.family import Rule

Selection = tuple[tuple[int, ...], ...]  # for each new unit, the old units that it replaces


def keep_units(units: tuple[int, ...]) -> Selection:
    """Return the selection that keeps the given units of a layer, `((unit,) for unit in units)`.

    A selection lists, for each new unit, the old units that it replaces; here, this is one unit.
    """
    return tuple((unit,) for unit in units)


def average_neighbours(old: int, new: int) -> Selection:
    """Return the selection that replaces `old` units of a layer by `new` averages of `old / new` neighbouring units.

    A selection lists, for each new unit, the old units that it replaces.

    Raises:
        ValueError: `new` does not divide `old`.
    """
    if new < 1 or old % new:
        raise ValueError(f"{old} units cannot be split into {new} groups of equal size; choose a divisor")
    group = old // new
    return tuple(tuple(range(first, first + group)) for first in range(0, old, group))


def keep_evenly(old: int, new: int) -> Selection:
    """Return the selection that keeps `new` of `old` units of a layer, at equal distances: `floor(i * old / new)`.

    A selection lists, for each new unit, the old units that it replaces; here, this is one unit.

    Raises:
        ValueError: `new` is not between 1 and `old`.
    """
    if not 1 <= new <= old:
        raise ValueError(f"{new} of {old} units cannot be kept")
    return keep_units(tuple(int(unit) for unit in np.floor(np.arange(new) * old / new)))


def heads_to_units(selection: Selection, head_size: int) -> Selection:
    """Convert a selection of attention heads to the selection of their units; each head has `head_size` units.

    A selection lists, for each new head (or unit), the old heads (or units) that it replaces.
    """
    return tuple(tuple(head * head_size + i for head in group) for group in selection for i in range(head_size))


def narrow(array: np.ndarray, rule: Rule, selections: Mapping[str, Selection]) -> np.ndarray:
    """Make an array smaller along each axis in `selections`: keep some units (structured pruning) or average groups.

    A group of units is summed along the input axis of a kernel, and averaged along any other axis.

    Args:
        array: the array, with its dimensions in the order of the model.
        rule: the rule that names the axes of the array.
        selections: for each axis to reduce, by name: a tuple that lists, for each new unit, the old units that it
            replaces.
    """
    for dim, axis in enumerate(rule.axes):
        if axis in selections:
            is_input = rule.layout in ("linear", "conv") and dim == array.ndim - 2
            parts = [array.take(group, dim) for group in selections[axis]]
            array = np.stack([part.sum(dim) if is_input else part.mean(dim) for part in parts], dim)
    return array


def shape_before_narrowing(
    shape: tuple[int, ...], axes: tuple[str, ...], selections: Mapping[str, Selection]
) -> tuple[int | None, ...]:
    """Return the shape that an array must have so that `narrow` can reduce it to `shape`.

    Args:
        shape: shape of the reduced array.
        axes: name of the axis of each dimension; an empty tuple means that no axis has a name.
        selections: for each axis to reduce, by name: a tuple that lists, for each new unit, the old units that it
            replaces.

    Returns:
        One size per dimension; None for a dimension that is reduced, because any size fits.
    """
    named = axes or ("",) * len(shape)
    return tuple(None if axis in selections else size for size, axis in zip(shape, named, strict=True))
