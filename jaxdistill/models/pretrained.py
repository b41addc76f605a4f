"""A network of the world with its weights: the architecture is read from the checkpoint's own config.

    pretrained('google-bert/bert-base-uncased', classes=2)      a teacher to be fine-tuned: its head is new
    pretrained('runs/teacher/teachers/bert/hub')                a teacher as it is
    pretrained('...', layers=(0, 3, 7, 11))                     a student of four of its layers
    pretrained('...', cut=(('ffn', 'evenly', 768),))            a narrower one

Students made of their teacher's layers: Sanh et al., DistilBERT, 2019 (arxiv.org/abs/1910.01108).
"""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxdistill.core.errors import ConfigError, WeightsError
from jaxdistill.core.registry import Spec, models, parse
from jaxdistill.core.types import Model, Pretrained, Variables
from jaxdistill.models.hub import family as families
from jaxdistill.models.hub.kept_tokens import read
from jaxdistill.models.hub.locate import Shape, open_shape, open_source
from jaxdistill.models.hub.slice import Selection, averaged, blocks_of, evenly
from jaxdistill.models.hub.slice import chosen as one_by_one
from jaxdistill.models.hub.source import Source
from jaxdistill.models.hub.weights import load, plan

CUTS = {"evenly": evenly, "average": averaged}
AXES = ("width", "ffn", "heads", "kv_heads")
Cut = tuple[tuple[str, str, int], ...]
Layers = tuple[int, ...] | tuple[str, int]  # numbers, or how many are taken from where


class Form(NamedTuple):
    """What a checkpoint becomes: a family's network with arguments, and what of the checkpoint is kept."""

    family: str
    arguments: dict[str, Any]
    layers: tuple[int, ...]
    selections: Mapping[str, Selection]


@models.register
def pretrained(source: str, layers: Layers = (), cut: Cut = (), keep: str = "", **options: Any) -> Model:
    """The network of a checkpoint, with its weights.

    Args:
        source: a Hugging Face folder, a hub id, or a GGUF file.
        layers: which of its layers make up this network: numbers in order, or ("uniform", 3), ("first", 3),
            ("last", 3); empty: all.
        cut: (axis, "evenly" or "average", how many are left) for what shall be narrower: width, ffn, heads.
        keep: folder of a vocabulary that was cut to a corpus, by `jaxdistill vocabulary`. The rows of its
            tokens are kept, and texts must be tokenised by its tokenizer; a teacher that is cut alike says the same.
        options: arguments of the family's own factory, such as `classes=2` or `dropout=0.1`. With other classes than
            the checkpoint's its head is new, and has to be trained.
    """
    form = form_of(open_shape(source), layers, cut, keep, options)
    network = models.build(Spec(form.family, (), form.arguments), "")

    def find(shapes: Variables) -> Pretrained:
        family, opened = families.families[form.family], open_source(source)
        found = plan(opened, family, form.arguments, shapes, form.layers, form.selections)
        return Pretrained(found.fresh, lambda: load(opened, found, shapes))

    return network._replace(load=find)


def form_of_spec(spec: str, path: str = "") -> Form | None:
    """The form of whatever a config names as a model; None for a network that the world has no format for.

    Raises:
        ConfigError: at `path`, for a spec that names no model, or a checkpoint that is not there.
    """
    named = parse(spec, path)
    if named.name not in {"pretrained", *families.families}:
        return None
    given = inspect.signature(models[named.name]).bind(*named.args, **named.kwargs)
    given.apply_defaults()
    if named.name != "pretrained":
        return Form(named.name, dict(given.arguments), (), {})
    source, layers, cut, keep = given.args
    try:
        found = form_of(open_shape(source), layers, cut, keep, given.kwargs)
    except WeightsError as error:
        raise ConfigError(path, f"{error}.") from None
    return found._replace(arguments=families.complete(models[found.family], found.arguments))


def form_of(source: Shape | Source, layers: Layers, cut: Cut, keep: str, options: Mapping[str, Any]) -> Form:
    """What `pretrained` makes of a checkpoint.

    Raises:
        WeightsError: an unknown architecture, a setting that the network does not have, an impossible cut.
    """
    name = families.of_config(source.config)
    arguments = families.families[name].arguments(source.config)
    if layers and "depth" not in arguments:
        raise WeightsError(f"{source.where} is a {name}, whose layers are no single stack; leave out layers={layers}")
    chosen = _numbers(layers, arguments["depth"], source.where) if layers else ()
    selections: dict[str, Selection] = {}
    smaller: dict[str, Any] = {"depth": len(chosen)} if layers else {}
    for axis, how, left in cut:
        if how not in CUTS or axis not in AXES or axis not in arguments:
            known = ", ".join(key for key in AXES if key in arguments)
            raise WeightsError(f"cut {(axis, how, left)} is none of (AXIS, {' or '.join(CUTS)}, N); axes: {known}")
        selections[axis], smaller[axis] = CUTS[how](arguments[axis], left), left
    if keep:
        ids, size = read(keep)
        if size != arguments.get("vocabulary"):
            raise WeightsError(f"{keep} was cut from {size} tokens; {source.where} has {arguments.get('vocabulary')}")
        selections["vocabulary"], smaller["vocabulary"] = one_by_one(ids), len(ids)
    for axis in ("heads", "kv_heads"):
        if axis in selections:
            selections[axis] = blocks_of(selections[axis], _head_size(arguments))
    return Form(name, {**arguments, **smaller, **options}, chosen, selections)


def _numbers(layers: Layers, depth: int, where: str) -> tuple[int, ...]:
    """The numbers of the chosen layers."""
    match layers:
        case ("uniform" | "first" | "last" as how, int(count)):
            if not 1 <= count <= depth:
                raise WeightsError(f"{count} layers cannot be chosen; {where} has {depth}")
            rows = {"uniform": [i * depth // count for i in range(count)], "first": range(count)}
            return tuple(rows.get(how, range(depth - count, depth)))
    for layer in layers:
        if not isinstance(layer, int) or not 0 <= layer < depth:
            raise WeightsError(f"there is no layer {layer!r}; {where} has 0 to {depth - 1}, or say ('uniform', 3)")
    return tuple(layer for layer in layers if isinstance(layer, int))


def _head_size(arguments: Mapping[str, Any]) -> int:
    return arguments.get("head_size") or arguments["width"] // arguments["heads"]
