"""Load a pretrained Hugging Face model, whole or as a smaller student with some of the layers and units.

The architecture is read from the checkpoint's config.

    pretrained('google-bert/bert-base-uncased', classes=2)      a teacher for fine-tuning, with a new head
    pretrained('runs/teacher/teachers/bert/hub')                an unchanged teacher
    pretrained('...', layers=(0, 3, 7, 11))                     a student with four of the teacher's layers
    pretrained('...', cut=(('ffn', 'evenly', 768),))            a student with 768 units in each perceptron

Initialising a student from its teacher's layers: DistilBERT, Sanh et al. 2019 (arxiv.org/abs/1910.01108).
"""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxdistill.core.errors import ConfigError, WeightsError, as_weights_error
from jaxdistill.core.interfaces import Model, Pretrained
from jaxdistill.core.registry import models
from jaxdistill.core.spec import Spec, nested_specs, parse
from jaxdistill.core.types import Variables
from jaxdistill.models.hub import family as hub_family
from jaxdistill.models.hub.kept_tokens import read_kept_tokens
from jaxdistill.models.hub.locate import CheckpointConfig, open_config, open_source
from jaxdistill.models.hub.slice import Selection, average_neighbours, heads_to_units, keep_evenly, keep_units
from jaxdistill.models.hub.source import Source
from jaxdistill.models.hub.weights import load, map_weights

CUTS = {"evenly": keep_evenly, "average": average_neighbours}
AXES = ("width", "ffn", "heads", "kv_heads")
Cut = tuple[tuple[str, str, int], ...]  # (axis, key of `CUTS`, new size)
Layers = tuple[int, ...] | tuple[str, int]  # layer numbers, or ("uniform" | "first" | "last", number of layers)


class Architecture(NamedTuple):
    """The architecture of a model, and which layers and units of a checkpoint the model keeps.

    family: name of the model family, such as "bert"
    arguments: arguments of the family's factory, by name
    layers: numbers of the checkpoint's layers that the model keeps; an empty tuple means all layers
    selections: for each axis on which the model is smaller than the checkpoint ("width", "ffn", ...), the stored units
        that each unit of the model replaces
    """

    family: str
    arguments: dict[str, Any]
    layers: tuple[int, ...]
    selections: Mapping[str, Selection]


@models.register
def pretrained(source: str, layers: Layers = (), cut: Cut = (), keep: str = "", **options: Any) -> Model:
    """Build the model of a pretrained checkpoint, whole or smaller, which starts with the checkpoint's weights.

    Args:
        source: the checkpoint: a Hugging Face folder, a hub id, or a GGUF file.
        layers: layers of the checkpoint that the model keeps: layer numbers in order; or ("uniform", 3), ("first", 3)
            or ("last", 3) for three layers at equal distances, at the beginning or at the end. An empty tuple keeps all
            layers.
        cut: sizes to reduce: (axis, method, new size) for each axis that gets smaller. The axis is "width", "ffn",
            "heads" or "kv_heads". The method "evenly" keeps units (or heads) at equal distances (structured pruning);
            the method "average" averages groups of neighbouring units (or heads).
        keep: folder of a reduced vocabulary, written by the command `jaxdistill vocabulary`. The model keeps only the
            embeddings of the tokens in this vocabulary, so texts must be tokenised by the tokenizer in the folder. If
            teacher and student share the reduced vocabulary, pass the same folder to both.
        options: arguments of the family's factory that replace those of the checkpoint, such as `classes=2` or
            `dropout=0.1`. If `classes` differs from the checkpoint, the head is new and must be trained.
    """
    architecture = architecture_of(open_config(source), layers, cut, keep, options)
    model = models.build(Spec(architecture.family, (), architecture.arguments), "")

    def prepare(shapes: Variables) -> Pretrained:
        family, checkpoint = hub_family.families[architecture.family], open_source(source)
        selections = architecture.selections
        loading = map_weights(checkpoint, family, architecture.arguments, shapes, architecture.layers, selections)
        return Pretrained(loading.fresh, lambda: load(checkpoint, loading, shapes))

    return model._replace(load=prepare)


def sources_of(spec: str, path: str = "") -> tuple[str, ...]:
    """Return the checkpoints (folders, files or hub ids) that the spec string of a model names, as a tuple of strings.

    They are the sources of `pretrained`, also where it is an argument of another model, and of `cut` (structured
    pruning).

    Args:
        spec: name and arguments of a registered model factory, such as "pretrained('runs/bert', layers=(0, 5))".
        path: config key of the spec string, such as `student.model`, for error messages.

    Raises:
        ConfigError: the spec string does not parse.
    """
    named = []
    for each in nested_specs(parse(spec, path)):
        if each.name == "pretrained" and each.args:
            named.append(str(each.args[0]))
        elif each.name in ("pretrained", "cut") and each.kwargs.get("source"):
            named.append(str(each.kwargs["source"]))
    return tuple(dict.fromkeys(named))


def vocabularies_of(spec: str, path: str = "") -> tuple[str, ...]:
    """Return the folders of reduced vocabularies that the spec string of a model names, the arguments `keep`.

    Args:
        spec: name and arguments of a registered model factory, such as "pretrained('runs/bert', keep='runs/words')".
        path: config key of the spec string, such as `student.model`, for error messages.

    Raises:
        ConfigError: the spec string does not parse.
    """
    named = [each for each in nested_specs(parse(spec, path)) if each.name == "pretrained"]
    return tuple(filter(None, (str(each.kwargs.get("keep", (*each.args, "", "", "", "")[3])) for each in named)))


def architecture_of_spec(spec: str, path: str = "") -> Architecture | None:
    """Return the architecture of the model that a spec string describes, or None if it has no Hugging Face format.

    A model that adds no parameter to a network, such as `siamese`, has the architecture of the network.

    Args:
        spec: name and arguments of a registered model factory, such as "pretrained('runs/bert', layers=(0, 5))".
        path: config key of the spec string, such as `student.model`, for error messages.

    Raises:
        ConfigError: the spec string does not parse, or names a checkpoint that does not exist or has an unknown
            architecture.
    """
    parsed = parse(spec, path)
    if parsed.name == "siamese":
        return architecture_of_spec(network_argument(parsed), path)
    if parsed.name not in {"pretrained", *hub_family.families}:
        return None
    bound = inspect.signature(models[parsed.name]).bind(*parsed.args, **parsed.kwargs)
    bound.apply_defaults()
    if bound.arguments.get("tokens"):  # more tokens than rows of the embedding
        return None
    if parsed.name != "pretrained":
        return Architecture(parsed.name, dict(bound.arguments), (), {})
    source, layers, cut, keep = bound.args
    try:
        architecture = architecture_of(open_config(source), layers, cut, keep, bound.kwargs)
    except WeightsError as error:
        raise ConfigError(path, f"{error}.") from None
    arguments = hub_family.with_defaults(models[architecture.family], architecture.arguments)
    return architecture._replace(arguments=arguments)


def network_argument(spec: Spec, name: str = "network", place: int = 0) -> str:
    """Return the spec string of the network that a model, such as `siamese`, takes as an argument.

    Args:
        spec: the parsed spec of the model.
        name: name of this argument, for a spec that passes it by keyword.
        place: place of this argument among those that are passed by position.
    """
    network = spec.kwargs.get(name, spec.args[place] if len(spec.args) > place else "")
    return network if isinstance(network, str) else repr(network)


def architecture_of(
    source: CheckpointConfig | Source, layers: Layers, cut: Cut, keep: str, options: Mapping[str, Any]
) -> Architecture:
    """Return the architecture that `pretrained` builds from a checkpoint.

    Args:
        source: the checkpoint, or only its config.
        layers: the layers that are kept: layer numbers, or for example ("uniform", 3); an empty tuple means all layers.
        cut: (axis, method, new size) for each axis that gets smaller.
        keep: folder of a reduced vocabulary; "" means the full vocabulary.
        options: arguments of the family's factory that replace those of the checkpoint.

    Raises:
        WeightsError: the architecture is unknown, the config has an unsupported setting, or `layers`, `cut` or `keep`
            does not fit it.
        ValueError: a size is not possible.
    """
    name = hub_family.family_name(source.config)
    with as_weights_error(source.path):
        try:
            arguments = hub_family.families[name].arguments(source.config)
        except WeightsError:
            raise
        except ValueError as error:  # a setting that the model does not support: the message says which
            raise WeightsError(f"{source.path}: {error}") from None
    _check_head(source, hub_family.families[name], options)
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


def _check_head(source: CheckpointConfig | Source, family: hub_family.Family, options: Mapping[str, Any]) -> None:
    """Require that a checkpoint has no head of another task, unless `classes` is set, so that no head is lost silently.

    Raises:
        WeightsError: the checkpoint has a head that the family's model does not have, and `classes` is not set.
    """
    others = [head for head in family.heads_of(source.config) if head not in family.own_heads]
    if others and "classes" not in options:
        architecture = ", ".join(map(str, source.config["architectures"]))
        cure = "Set classes=0 to use it without a head, as an embedding, or classes=N for a new classifier of N classes"
        raise WeightsError(f"{source.path} is a {architecture}, and this model does not have its head. {cure}")


def _layer_numbers(layers: Layers, depth: int, path: str) -> tuple[int, ...]:
    """Convert the argument `layers` of `pretrained` to layer numbers of a checkpoint with `depth` layers.

    `path` is the path of the checkpoint, for error messages.
    """
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
