"""Name the axes of a model's arrays, so that structured pruning can remove a head, neuron or channel in all arrays.

Families with a Hugging Face format name the axes in their rules for weights. The other families have rules here.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxdistill.models.hub.family import Rule, families, find_rule

Arguments = Mapping[str, Any]
VOCABULARY = "vocabulary"  # axis of an embedding table: its rows
BLOCK = re.compile(r"blocks/(\d+)/")


class ArrayAxes(NamedTuple):
    """The names of an array's axes.

    names: a name for each axis, such as ("width", "ffn/3"), where "ffn/3" are the neurons of layer 3; "" for an axis
        that is never pruned
    stacked: True if the array stacks the layers along its first axis, which has no entry in `names`; "{layer}" then
        stands for the number of the layer, as in "ffn/{layer}"
    """

    names: tuple[str, ...]
    stacked: bool = False

    def of_layer(self, number: int) -> tuple[str, ...]:
        """Return the names of the axes in one layer of a stacked array, such as ("width", "ffn/3")."""
        return tuple(name.replace("{layer}", str(number)) for name in self.names)


class Sizes(NamedTuple):
    """The numbers of layers and units of a model, before or after structured pruning.

    layers: number of layers that can be removed; 0 if layers of this family cannot be removed
    units: number of units of each axis, by name: "width", "ffn/0", "ffn/1", ..., "heads/0", ...
    head_size: number of units of an attention head; 0 for a model without attention
    groups: number of query heads that share keys and values
    """

    layers: int
    units: dict[str, int]
    head_size: int = 0
    groups: int = 1


class Cuttable(NamedTuple):
    """A model family whose models can be made smaller by structured pruning.

    rules: `(arguments) -> rules`, which name the axes of a model's arrays
    sizes: `(arguments) -> Sizes`, the numbers of layers and units of a model with these arguments
    arguments: `(arguments, sizes after pruning) -> arguments` of the pruned model
    layered: names of the axes whose units each layer has separately, such as "ffn"
    """

    rules: Callable[[Arguments], tuple[Rule, ...]]
    sizes: Callable[[Arguments], Sizes]
    arguments: Callable[[Arguments, Sizes], dict[str, Any]]
    layered: tuple[str, ...]


def array_axes(cuttable: Cuttable, arguments: Arguments, name: str) -> ArrayAxes | None:
    """Return the names of an array's axes, or None if no axis of the array can be pruned.

    Args:
        cuttable: the model family.
        arguments: arguments of the model.
        name: name of the array, such as "blocks/3/up/kernel".
    """
    match = find_rule(cuttable.rules(arguments), name)
    if match is None or not match[0].axes:
        return None
    rule, groups = match
    stacked = "{layer}" in rule.stored_name
    layer = "{layer}" if stacked else groups[0] if BLOCK.match(name) and groups else ""
    numbered = lambda axis: f"{axis}/{layer}" if axis in cuttable.layered and layer else axis
    return ArrayAxes(tuple(map(numbered, rule.axes)), stacked)


def _transformer_sizes(arguments: Arguments) -> Sizes:
    heads, depth = arguments["heads"], arguments["depth"]
    head_size = arguments.get("head_size") or arguments["width"] // heads
    shared = arguments.get("kv_heads") or heads
    ffn = arguments.get("ffn") or 4 * arguments["width"]
    units = {"width": arguments["width"]}
    units |= {f"heads/{n}": shared for n in range(depth)} | {f"ffn/{n}": ffn for n in range(depth)}
    return Sizes(depth, units, head_size, heads // shared)


def _transformer_arguments(arguments: Arguments, sizes: Sizes) -> dict[str, Any]:
    heads, changed = sizes.units["heads/0"], {}
    was = _transformer_sizes(arguments)
    if "kv_heads" in arguments:
        changed = {"kv_heads": heads}
    elif (heads, sizes.units["width"]) != (was.units["heads/0"], was.units["width"]):
        changed = {"head_size": sizes.head_size}
    return {
        **arguments,
        **changed,
        "depth": sizes.layers,
        "width": sizes.units["width"],
        "heads": heads * sizes.groups,
        "ffn": sizes.units["ffn/0"],
    }


def _mlp_rules(arguments: Arguments) -> tuple[Rule, ...]:
    count = len(arguments["widths"])
    before = lambda number: f"ffn/{number - 1}" if number else ""
    layers = [
        rule
        for n in range(count)
        for rule in (
            Rule(f"layers/{n}/kernel", "", axes=(before(n), f"ffn/{n}")),
            Rule(f"layers/{n}/bias", "", axes=(f"ffn/{n}",)),
        )
    ]
    return (*layers, Rule("head/kernel", "", axes=(before(count), "")))


def _resnet_rules(arguments: Arguments) -> tuple[Rule, ...]:
    return (
        Rule(r"blocks/(\d+)/first/kernel", "", axes=("", "", "", "channels")),
        Rule(r"blocks/(\d+)/first_norm/\w+", "", axes=("channels",)),
        Rule(r"blocks/(\d+)/second/kernel", "", axes=("", "", "channels", "")),
    )


def _inner_channels(arguments: Arguments) -> tuple[int, ...]:
    return arguments["inner"] or tuple(w for w in arguments["widths"] for _ in range(arguments["blocks"]))


def _numbered(axis: str, sizes: tuple[int, ...]) -> Sizes:
    return Sizes(0, {f"{axis}/{n}": size for n, size in enumerate(sizes)})


def _in_order(axis: str, sizes: Sizes) -> tuple[int, ...]:
    return tuple(sizes.units[f"{axis}/{n}"] for n in range(len(sizes.units)))


def _of_family(name: str) -> Cuttable:
    rules = lambda arguments: families[name].rules(arguments)
    return Cuttable(rules, _transformer_sizes, _transformer_arguments, ("ffn", "heads", "kv_heads"))


def _encoder_sizes(arguments: Arguments) -> Sizes:
    sizes = _transformer_sizes(arguments)
    return sizes._replace(units={**sizes.units, VOCABULARY: arguments["vocabulary"]})


def _encoder_arguments(arguments: Arguments, sizes: Sizes) -> dict[str, Any]:
    rows, tokens = sizes.units[VOCABULARY], arguments.get("tokens") or arguments["vocabulary"]
    shared = {"vocabulary": rows, "tokens": tokens} if rows < tokens else {}
    return {**_transformer_arguments(arguments, sizes), **shared}


CUTTABLE: Mapping[str, Cuttable] = {
    **{name: _of_family(name) for name in ("decoder", "deit", "vit")},
    "bert": _of_family("bert")._replace(sizes=_encoder_sizes, arguments=_encoder_arguments),
    "mlp": Cuttable(
        _mlp_rules,
        lambda arguments: _numbered("ffn", arguments["widths"]),
        lambda arguments, sizes: {**arguments, "widths": _in_order("ffn", sizes)},
        (),
    ),
    "resnet": Cuttable(
        _resnet_rules,
        lambda arguments: _numbered("channels", _inner_channels(arguments)),
        lambda arguments, sizes: {**arguments, "inner": _in_order("channels", sizes)},
        ("channels",),
    ),
}
