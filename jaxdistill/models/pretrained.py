"""Load a pretrained Hugging Face model, whole or as a smaller student made of its layers and units.

The architecture is read from the checkpoint's config.

    pretrained('google-bert/bert-base-uncased', classes=2)      a teacher for fine-tuning, with a new head
    pretrained('runs/teacher/teachers/bert/hub')                an unchanged teacher
    pretrained('...', layers=(0, 3, 7, 11))                     a student with four of the teacher's layers
    pretrained('...', cut=(('ffn', 'evenly', 768),))            a student with a narrower perceptron

Initialising a student from its teacher's layers: DistilBERT, Sanh et al. 2019 (arxiv.org/abs/1910.01108).
"""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxdistill.core.errors import ConfigError, WeightsError
from jaxdistill.core.interfaces import Model, Pretrained
from jaxdistill.core.registry import Spec, models, parse
from jaxdistill.core.types import Variables
from jaxdistill.models.hub import family as hub_family
from jaxdistill.models.hub.kept_tokens import read_kept_tokens
from jaxdistill.models.hub.locate import CheckpointConfig, open_config, open_source
from jaxdistill.models.hub.slice import Selection, average_neighbours, heads_to_units, keep_evenly, keep_units
from jaxdistill.models.hub.source import Source
from jaxdistill.models.hub.weights import load, plan

CUTS = {"evenly": keep_evenly, "average": average_neighbours}
AXES = ("width", "ffn", "heads", "kv_heads")
Cut = tuple[tuple[str, str, int], ...]  # (axis, key of `CUTS`, new size)
Layers = tuple[int, ...] | tuple[str, int]  # layer numbers, or ("uniform" | "first" | "last", number of layers)


class Architecture(NamedTuple):
    """A model made from a checkpoint.

    family: name of the model family
    arguments: arguments of the family's factory
    layers: numbers of the layers that are kept; empty: all
    selections: units that are kept or averaged, by axis
    """

    family: str
    arguments: dict[str, Any]
    layers: tuple[int, ...]
    selections: Mapping[str, Selection]


@models.register
def pretrained(source: str, layers: Layers = (), cut: Cut = (), keep: str = "", **options: Any) -> Model:
    """Build the model of a checkpoint, with its weights.

    Args:
        source: a Hugging Face folder, a hub id, or a GGUF file.
        layers: layers of the checkpoint that the model keeps: numbers in order, or ("uniform", 3), ("first", 3),
            ("last", 3); empty: all.
        cut: (axis, "evenly" or "average", new size) for each axis to narrow: width, ffn, heads or kv_heads.
        keep: folder of a reduced vocabulary, written by `jaxdistill vocabulary`. Only the embedding rows of its tokens
            are kept, and texts must be tokenised by its tokenizer. A teacher with the same reduced vocabulary names the
            same folder.
        options: arguments of the family's factory, such as `classes=2` or `dropout=0.1`. If `classes` differs from the
            checkpoint, the head is new and must be trained.
    """
    architecture = architecture_of(open_config(source), layers, cut, keep, options)
    model = models.build(Spec(architecture.family, (), architecture.arguments), "")

    def prepare(shapes: Variables) -> Pretrained:
        family, checkpoint = hub_family.families[architecture.family], open_source(source)
        selections = architecture.selections
        loading = plan(checkpoint, family, architecture.arguments, shapes, architecture.layers, selections)
        return Pretrained(loading.fresh, lambda: load(checkpoint, loading, shapes))

    return model._replace(load=prepare)


def architecture_of_spec(spec: str, path: str = "") -> Architecture | None:
    """Return the architecture of a model spec; None for a model without a Hugging Face format.

    Args:
        spec: spec string of a model.
        path: the config path of the spec, for error messages.

    Raises:
        ConfigError: the spec names no model, or a checkpoint that does not exist.
    """
    parsed = parse(spec, path)
    if parsed.name not in {"pretrained", *hub_family.families}:
        return None
    bound = inspect.signature(models[parsed.name]).bind(*parsed.args, **parsed.kwargs)
    bound.apply_defaults()
    if parsed.name != "pretrained":
        return Architecture(parsed.name, dict(bound.arguments), (), {})
    source, layers, cut, keep = bound.args
    try:
        architecture = architecture_of(open_config(source), layers, cut, keep, bound.kwargs)
    except WeightsError as error:
        raise ConfigError(path, f"{error}.") from None
    arguments = hub_family.with_defaults(models[architecture.family], architecture.arguments)
    return architecture._replace(arguments=arguments)


def architecture_of(
    source: CheckpointConfig | Source, layers: Layers, cut: Cut, keep: str, options: Mapping[str, Any]
) -> Architecture:
    """Return the architecture that `pretrained` builds from a checkpoint.

    Args:
        source: the checkpoint.
        layers: see `pretrained`.
        cut: see `pretrained`.
        keep: see `pretrained`.
        options: arguments of the family's factory.

    Raises:
        WeightsError: an unknown architecture, an unsupported setting, or an impossible cut.
    """
    name = hub_family.family_name(source.config)
    arguments = hub_family.families[name].arguments(source.config)
    if layers and "depth" not in arguments:
        raise WeightsError(f"{source.path} is a {name}, which is not a single stack of layers; remove layers={layers}")
    numbers = _layer_numbers(layers, arguments["depth"], source.path) if layers else ()
    selections: dict[str, Selection] = {}
    sizes: dict[str, Any] = {"depth": len(numbers)} if layers else {}
    for axis, method, size in cut:
        if method not in CUTS or axis not in AXES or axis not in arguments:
            known = ", ".join(key for key in AXES if key in arguments)
            form = f"(AXIS, {' or '.join(CUTS)}, SIZE)"
            raise WeightsError(f"cut {(axis, method, size)} is not of the form {form}; axes: {known}")
        selections[axis], sizes[axis] = CUTS[method](arguments[axis], size), size
    if keep:
        ids, full_size = read_kept_tokens(keep)
        vocabulary = arguments.get("vocabulary")
        if full_size != vocabulary:
            raise WeightsError(f"{keep} was cut from {full_size} tokens, but {source.path} has {vocabulary}")
        selections["vocabulary"], sizes["vocabulary"] = keep_units(ids), len(ids)
    for axis in ("heads", "kv_heads"):
        if axis in selections:
            selections[axis] = heads_to_units(selections[axis], _head_size(arguments))
    return Architecture(name, {**arguments, **sizes, **options}, numbers, selections)


def _layer_numbers(layers: Layers, depth: int, path: str) -> tuple[int, ...]:
    """Resolve `layers` to layer numbers; `path` names the checkpoint in error messages."""
    match layers:
        case ("uniform" | "first" | "last" as method, int(count)):
            if not 1 <= count <= depth:
                raise WeightsError(f"{count} layers cannot be selected; {path} has {depth}")
            numbers = {"uniform": [i * depth // count for i in range(count)], "first": range(count)}
            return tuple(numbers.get(method, range(depth - count, depth)))
    for layer in layers:
        if not isinstance(layer, int) or not 0 <= layer < depth:
            cure = "or write ('uniform', 3)"
            raise WeightsError(f"there is no layer {layer!r}; {path} has layers 0 to {depth - 1}, {cure}")
    return tuple(layer for layer in layers if isinstance(layer, int))


def _head_size(arguments: Mapping[str, Any]) -> int:
    return arguments.get("head_size") or arguments["width"] // arguments["heads"]
