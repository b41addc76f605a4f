"""Load weights from a checkpoint into a model, and export them again, by the rules of a model family (`family.Rule`).

`map_weights` matches every array of the model with arrays of the checkpoint and checks names and shapes; no weights are
read.
`load` then reads each array shard by shard: for a shard, the slices of the model's array are translated to slices of
the stored array (the rule says how the dimensions are permuted), so that a device reads only its own part of the file.
An array that is narrowed is read whole, because the units that are kept or averaged may lie anywhere.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdistill.core.errors import WeightsError
from jaxdistill.core.types import Array, Variables
from jaxdistill.models.hub.family import PERMUTATIONS, Family, Rule, find_rule
from jaxdistill.models.hub.slice import Selection, narrow, shape_before_narrowing
from jaxdistill.models.hub.source import Source

FLOATS = ("float64", "float32", "float16", "bfloat16")
Index = tuple[slice, ...]
MAX_PROBLEMS = 12  # in one error message


class ArrayPlan(NamedTuple):
    """The plan for loading one array of a model from a checkpoint.

    rule: the rule that maps the name and layout of the model's array to the checkpoint
    stored_names: name of the array in the checkpoint; one name per layer if `stacked`
    stacked: the model's array stacks the stored arrays of all layers along a leading axis
    """

    rule: Rule
    stored_names: tuple[str, ...]
    stacked: bool


class WeightMapping(NamedTuple):
    """The plan for loading all arrays of a model from a checkpoint, with names and shapes checked.

    arrays: one plan per array that is loaded, by the name of the array in the model
    fresh: names of arrays that keep their initial values, because the checkpoint lacks them or has another number of
        classes
    selections: for each axis on which the model is smaller than the checkpoint, by name (such as "width"), the stored
        units that each unit of the model replaces
    """

    arrays: dict[str, ArrayPlan]
    fresh: tuple[str, ...]
    selections: Mapping[str, Selection]


def map_weights(
    source: Source,
    family: Family,
    arguments: Mapping[str, Any],
    shapes: Variables,
    layers: tuple[int, ...] = (),
    selections: Mapping[str, Selection] | None = None,
) -> WeightMapping:
    """Match every array of a model with arrays of a checkpoint, without reading any values.

    If the model has another number of classes than the checkpoint, the head is not loaded.

    Args:
        source: the checkpoint.
        family: the model's family.
        arguments: arguments of the family's factory, with which the model was built.
        shapes: the model's variables, with a `jax.ShapeDtypeStruct` in place of each array.
        layers: numbers of the checkpoint's layers that the model keeps, in order; an empty tuple means all layers.
        selections: for each axis on which the model is smaller than the checkpoint, by name (such as "width"), the
            stored units that each unit of the model replaces; None means that there is no such axis.

    Raises:
        WeightsError: arrays of the model are missing in the checkpoint or have another shape there, or the checkpoint
            has arrays that the model does not use; the message lists the arrays.
    """
    rules, selections = family.rules(arguments), selections or {}
    other_classes = family.arguments(source.config).get("classes") != arguments.get("classes")
    arrays: dict[str, ArrayPlan] = {}
    fresh, problems, used = [], [], set[str]()
    for name, leaf in {**shapes.params, **shapes.state}.items():
        array = _plan_array(family, rules, name, leaf.shape, layers, bare=_is_base_model(source, family))
        used.update(array.stored_names)
        absent = [stored_name for stored_name in array.stored_names if stored_name not in source.arrays]
        misshapen = [] if absent else _misshapen(source, name, array, leaf.shape, selections)
        if re.fullmatch(family.fresh, name) and (absent or (misshapen and other_classes)):
            fresh.append(name)
            continue
        arrays[name] = array
        problems += [f"{stored_name} is missing (for {name} {list(leaf.shape)})" for stored_name in absent] + misshapen
    problems += _surplus(source, family, rules, used, layers)
    if problems:
        rest = f"; and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
        raise WeightsError(f"{source.path} does not fit the model: {'; '.join(problems[:MAX_PROBLEMS])}{rest}")
    return WeightMapping(arrays, tuple(fresh), selections)


def _without_prefix(family: Family, name: str) -> str:
    return re.sub(f"^(?:{family.prefix})", "", name)


def _is_base_model(source: Source, family: Family) -> bool:
    """Return True if the checkpoint holds a base model without a head: no name has the family's prefix."""
    return not any(re.match(family.prefix, name) for name in source.arrays)


def _plan_array(
    family: Family, rules: tuple[Rule, ...], name: str, shape: tuple[int, ...], layers: tuple[int, ...], bare: bool
) -> ArrayPlan:
    """Build the plan for loading one array of the model: its rule, and its names in the checkpoint.

    Args:
        family: the model's family.
        rules: the rules of the family.
        name: name of the array in the model.
        shape: shape of the array in the model.
        layers: numbers of the checkpoint's layers that the model keeps; an empty tuple means all layers.
        bare: True if the names in the checkpoint lack the family's prefix.

    Raises:
        WeightsError: no rule matches the name.
    """
    match = find_rule(rules, name)
    if match is None:
        raise WeightsError(f"the family {family.factory.__name__!r} has no rule for {name!r}; add one to its file")
    rule, groups = match
    stacked = "{layer}" in rule.stored_name
    if layers and name.startswith("blocks/") and groups:
        groups = (str(layers[int(groups[0])]), *groups[1:])
    numbers = (layers or range(shape[0])) if stacked else (0,)
    stored_names = tuple(rule.stored_name.format(*groups, layer=number) for number in numbers)
    if bare:
        stored_names = tuple(_without_prefix(family, stored_name) for stored_name in stored_names)
    return ArrayPlan(rule, stored_names, stacked)


def _surplus(
    source: Source, family: Family, rules: tuple[Rule, ...], used: set[str], layers: tuple[int, ...]
) -> list[str]:
    """Return a list of error messages, one for each array of the checkpoint that is neither used nor ignored.

    If the model keeps only some layers, the arrays of all other layers are ignored. The arrays of a head are ignored if
    the architecture in the checkpoint's config has this head.

    Args:
        source: the checkpoint.
        family: the model's family, whose `ignored` lists names that are ignored.
        rules: the rules of the family.
        used: names of the checkpoint's arrays that the model uses.
        layers: numbers of the layers that the model keeps; an empty tuple means all layers.
    """
    escaped = (re.escape(_without_prefix(family, rule.stored_name)) for rule in rules if layers)
    other_layers = [re.sub(r"\\\{\w+\\\}", r"\\d+", pattern) for pattern in escaped]
    heads = [family.heads[head] for head in family.heads_of(source.config)]
    ignored = re.compile("|".join([f"(?:{family.prefix})?(?:{p})" for p in [*other_layers, *heads, family.ignored]]))
    surplus = {name: info for name, info in source.arrays.items() if name not in used and not ignored.fullmatch(name)}
    return [f"{name} {list(info.shape)} is surplus" for name, info in surplus.items()]


def _misshapen(
    source: Source, name: str, array: ArrayPlan, shape: tuple[int, ...], selections: Mapping[str, Selection]
) -> list[str]:
    """Return a list of error messages, one for each stored array whose shape or dtype does not fit the model's array.

    Args:
        source: the checkpoint.
        name: name of the array in the model.
        array: the plan for loading the array.
        shape: shape of the array in the model.
        selections: for each axis that is narrowed, by name, the units that are kept or averaged.
    """
    model_shape = shape[1:] if array.stacked else shape
    required = shape_before_narrowing(model_shape, array.rule.axes, selections)
    problems = []
    for stored_name in array.stored_names:
        info = source.arrays[stored_name]
        stored = tuple(info.shape[axis] for axis in _permutation(array.rule, len(info.shape)))
        if info.dtype not in FLOATS:
            problems.append(f"{stored_name} is {info.dtype}, not a float")
        elif len(stored) != len(required) or any(
            size not in (None, stored_size) for size, stored_size in zip(required, stored, strict=True)
        ):
            problems.append(f"{stored_name} is {list(stored)} in the model's axis order, {name} is {list(model_shape)}")
    return problems


def _permutation(rule: Rule, dims: int) -> tuple[int, ...]:
    """Return a tuple that has, for each dimension of the model's array, the index of the stored dimension."""
    return PERMUTATIONS.get(rule.layout, tuple(range(dims))) if dims > 1 else tuple(range(dims))


def load(source: Source, plan: WeightMapping, abstract: Variables) -> Variables:
    """Read every array of a plan from the checkpoint, shard by shard, directly to the devices that hold the shards.

    Args:
        source: the checkpoint.
        plan: the plan that `map_weights()` made for this checkpoint.
        abstract: the model's variables, with a `jax.ShapeDtypeStruct` (shape, dtype, sharding) in place of each array.

    Returns:
        The loaded variables, without the arrays in `WeightMapping.fresh`.
    """

    def load_array(name: str, leaf: jax.ShapeDtypeStruct) -> Array:
        array = plan.arrays[name]
        sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        read = lambda index: _read(source, array, leaf.shape, index, plan.selections).astype(leaf.dtype, copy=False)
        return jax.make_array_from_callback(leaf.shape, sharding, read)

    def load_arrays(leaves: Mapping[str, Any]) -> dict[str, Array]:
        # Largest first: the temporary memory of reading a large array is needed while few arrays are loaded
        largest_first = sorted(leaves.items(), key=lambda item: -item[1].size)
        return {name: load_array(name, leaf) for name, leaf in largest_first if name in plan.arrays}

    return Variables(load_arrays(abstract.params), load_arrays(abstract.state))


def _read(
    source: Source, array: ArrayPlan, shape: tuple[int, ...], index: Index, selections: Mapping[str, Selection]
) -> np.ndarray:
    """Read a part of one array of the model: read the stored arrays, transpose and narrow (prune) each, stack them.

    Args:
        source: the checkpoint.
        array: the plan for loading the array.
        shape: shape of the whole array in the model.
        index: the part, one slice per dimension of the model's array.
        selections: for each axis that is narrowed, by name, the units that are kept or averaged.
    """
    names, index = (array.stored_names[index[0]], index[1:]) if array.stacked else (array.stored_names, index)
    layers = [_read_one(source, array.rule, name, index, selections) for name in names]
    return np.stack(layers) if array.stacked else layers[0]


def _read_one(source: Source, rule: Rule, name: str, index: Index, selections: Mapping[str, Selection]) -> np.ndarray:
    """Read one stored array, and return the part `index`, with the dimensions in the order of the model."""
    permutation = _permutation(rule, len(source.arrays[name].shape))
    if any(axis in selections for axis in rule.axes):  # averaged or selected units may lie anywhere
        full = source.read(name, (slice(None),) * len(permutation)).transpose(permutation)
        return narrow(np.asarray(full, np.float32), rule, selections)[index]
    stored_index = [slice(None)] * len(permutation)
    for dim, stored_dim in enumerate(permutation):
        stored_index[stored_dim] = index[dim]
    return source.read(name, tuple(stored_index)).transpose(permutation)


def export_arrays(family: Family, arguments: Mapping[str, Any], variables: Variables) -> dict[str, np.ndarray]:
    """Convert a model's arrays to the names and layouts of the Hugging Face checkpoint; the inverse of `load`.

    Args:
        family: the model's family.
        arguments: arguments of the family's factory, with which the model was built.
        variables: the model's variables.

    Returns:
        The arrays by their name in the checkpoint, with unchanged dtypes. Nothing is written.
    """
    rules, stored_arrays = family.rules(arguments), {}
    for name, value in {**variables.params, **variables.state}.items():
        array = _plan_array(family, rules, name, value.shape, (), bare=False)
        layers = np.asarray(value) if array.stacked else np.asarray(value)[None]
        for stored_name, layer in zip(array.stored_names, layers, strict=True):
            inverse = np.argsort(_permutation(array.rule, layer.ndim))
            stored_arrays[stored_name] = np.asarray(layer.transpose(inverse), order="C")
    return stored_arrays
