"""Weights from a checkpoint into our arrays and back, by the rules of a family."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdistill.core.errors import WeightsError
from jaxdistill.core.types import Array, Variables
from jaxdistill.models.hub.family import PERMUTATIONS, Family, Rule, find
from jaxdistill.models.hub.slice import Selection, cut, uncut
from jaxdistill.models.hub.source import Source

FLOATS = ("float64", "float32", "float16", "bfloat16")
Index = tuple[slice, ...]


class Part(NamedTuple):
    """Where one of our arrays comes from: the rule, and their name; of a stack, one name for each layer."""

    rule: Rule
    theirs: tuple[str, ...]
    stacked: bool


class Plan(NamedTuple):
    """Which array comes from where, checked against the file.

    parts: by our name
    fresh: our names that the file lacks, and may lack, or has for another number of classes
    selections: what is kept of an axis
    """

    parts: dict[str, Part]
    fresh: tuple[str, ...]
    selections: Mapping[str, Selection]


def plan(
    source: Source,
    family: Family,
    arguments: Mapping[str, Any],
    shapes: Variables,
    layers: tuple[int, ...] = (),
    selections: Mapping[str, Selection] | None = None,
) -> Plan:
    """Finds every array of a model in a checkpoint, without reading any.

    Where the model shall tell other classes apart than the checkpoint does, its head is new.

    Args:
        source: the checkpoint.
        family: of the model.
        arguments: of the family's factory.
        shapes: of the model's variables.
        layers: which of their layers become ours, in order; empty: all, as they are.
        selections: what is kept of an axis, by its name.

    Raises:
        WeightsError: with every missing, surplus and misshapen name.
    """
    rules, selections = family.rules(arguments), selections or {}
    retrained = family.arguments(source.config).get("classes") != arguments.get("classes")
    parts: dict[str, Part] = {}
    fresh, wrong, used = [], [], set[str]()
    for name, leaf in {**shapes.params, **shapes.state}.items():
        part = _part(family, rules, name, leaf.shape, layers, bare=_is_bare(source, family))
        used.update(part.theirs)
        absent = [theirs for theirs in part.theirs if theirs not in source.arrays]
        misshapen = [] if absent else _misshapen(source, name, part, leaf.shape, selections)
        if re.fullmatch(family.fresh, name) and (absent or (misshapen and retrained)):
            fresh.append(name)
            continue
        parts[name] = part
        wrong += [f"{theirs} is missing (our {name} {list(leaf.shape)})" for theirs in absent] + misshapen
    wrong += _surplus(source, family, rules, used, layers)
    if wrong:
        more = f"; and {len(wrong) - 12} more" if len(wrong) > 12 else ""
        raise WeightsError(f"{source.where} does not fit: {'; '.join(wrong[:12])}{more}")
    return Plan(parts, tuple(fresh), selections)


def _bare(family: Family, name: str) -> str:
    return re.sub(f"^(?:{family.prefix})", "", name)


def _is_bare(source: Source, family: Family) -> bool:
    return not any(re.match(family.prefix, name) for name in source.arrays)


def _part(
    family: Family, rules: tuple[Rule, ...], name: str, shape: tuple[int, ...], layers: tuple[int, ...], bare: bool
) -> Part:
    found = find(rules, name)
    if found is None:
        raise WeightsError(f"the family {family.factory.__name__!r} has no rule for {name!r}")
    rule, groups = found
    stacked = "{layer}" in rule.theirs
    if layers and name.startswith("blocks/") and groups:
        groups = (str(layers[int(groups[0])]), *groups[1:])
    numbers = (layers or range(shape[0])) if stacked else (0,)
    names = (rule.theirs.format(*groups, layer=number) for number in numbers)
    return Part(rule, tuple(_bare(family, each) if bare else each for each in names), stacked)


def _surplus(
    source: Source, family: Family, rules: tuple[Rule, ...], used: set[str], layers: tuple[int, ...]
) -> list[str]:
    """Their arrays that nobody reads; of a student with fewer layers, the other layers are left out on purpose."""
    escaped = (re.escape(_bare(family, rule.theirs)) for rule in rules if layers)
    other = [re.sub(r"\\\{\w+\\\}", r"\\d+", pattern) for pattern in escaped]
    known = re.compile("|".join([f"(?:{family.prefix})?(?:{p})" for p in [*other, family.ignored]]))
    left = {name: look for name, look in source.arrays.items() if name not in used and not known.fullmatch(name)}
    return [f"{name} {list(look.shape)} is surplus" for name, look in left.items()]


def _misshapen(
    source: Source, name: str, part: Part, shape: tuple[int, ...], selections: Mapping[str, Selection]
) -> list[str]:
    wanted = shape[1:] if part.stacked else shape
    full = uncut(wanted, part.rule.axes, selections)
    wrong = []
    for theirs in part.theirs:
        look = source.arrays[theirs]
        found = tuple(look.shape[axis] for axis in _permutation(part.rule, len(look.shape)))
        if look.dtype not in FLOATS:
            wrong.append(f"{theirs} is {look.dtype}, not a float")
        elif len(found) != len(full) or any(size not in (None, has) for size, has in zip(full, found, strict=True)):
            wrong.append(f"{theirs} is {list(found)} in our order of axes, our {name} is {list(wanted)}")
    return wrong


def _permutation(rule: Rule, dims: int) -> tuple[int, ...]:
    """Our dimension i is their dimension `permutation[i]`."""
    return PERMUTATIONS.get(rule.layout, tuple(range(dims))) if dims > 1 else tuple(range(dims))


def load(source: Source, plan: Plan, abstract: Variables) -> Variables:
    """Reads every planned array straight into its shards; what is fresh is left out.

    Args:
        source: the checkpoint.
        plan: for this source.
        abstract: the model's variables as `jax.ShapeDtypeStruct`, whose shardings say where they shall lie.
    """

    def each(name: str, leaf: jax.ShapeDtypeStruct) -> Array:
        part = plan.parts[name]
        here = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        read = lambda index: _read(source, part, leaf.shape, index, plan.selections).astype(leaf.dtype, copy=False)
        return jax.make_array_from_callback(leaf.shape, here, read)

    def every(leaves: Mapping[str, Any]) -> dict[str, Array]:
        # The largest first: what reading takes beside the array itself is taken while little else is held
        largest_first = sorted(leaves.items(), key=lambda item: -item[1].size)
        return {name: each(name, leaf) for name, leaf in largest_first if name in plan.parts}

    return Variables(every(abstract.params), every(abstract.state))


def _read(
    source: Source, part: Part, shape: tuple[int, ...], index: Index, selections: Mapping[str, Selection]
) -> np.ndarray:
    """A part of our array: the parts of theirs that it is made of, permuted, cut and stacked."""
    layers, index = (part.theirs[index[0]], index[1:]) if part.stacked else (part.theirs, index)
    found = [_read_one(source, part.rule, name, index, selections) for name in layers]
    return np.stack(found) if part.stacked else found[0]


def _read_one(source: Source, rule: Rule, name: str, index: Index, selections: Mapping[str, Selection]) -> np.ndarray:
    permutation = _permutation(rule, len(source.arrays[name].shape))
    if any(axis in selections for axis in rule.axes):  # what is averaged or chosen may lie anywhere
        whole = source.read(name, (slice(None),) * len(permutation)).transpose(permutation)
        return cut(np.asarray(whole, np.float32), rule, selections)[index]
    theirs = [slice(None)] * len(permutation)
    for ours, axis in enumerate(permutation):
        theirs[axis] = index[ours]
    return source.read(name, tuple(theirs)).transpose(permutation)


def dump(family: Family, arguments: Mapping[str, Any], variables: Variables) -> dict[str, np.ndarray]:
    """Our arrays under their names, in their layout and our dtype: the inverse of `load`."""
    rules, found = family.rules(arguments), {}
    for name, value in {**variables.params, **variables.state}.items():
        part = _part(family, rules, name, value.shape, (), bare=False)
        rows = np.asarray(value) if part.stacked else np.asarray(value)[None]
        for theirs, row in zip(part.theirs, rows, strict=True):
            found[theirs] = np.asarray(row.transpose(np.argsort(_permutation(part.rule, row.ndim))), order="C")
    return found
