"""Write each trained model of a run as a folder that can be used without the run: `hub` in its training's folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdistill.compress import masks
from jaxdistill.core import registry
from jaxdistill.core.interfaces import Model
from jaxdistill.core.notes import note
from jaxdistill.core.spec import parse
from jaxdistill.core.types import Shapes, Variables
from jaxdistill.data.image.processors import processor_config
from jaxdistill.data.pipeline import Pipeline
from jaxdistill.export import model_folder
from jaxdistill.export.hugging_face import in_transformers
from jaxdistill.export.model_card import card, public
from jaxdistill.export.model_folder import About, Extras
from jaxdistill.models.abstract import embeds
from jaxdistill.models.build import build_model
from jaxdistill.models.hub.family import families, with_defaults
from jaxdistill.models.pretrained import Architecture, architecture_of_spec
from jaxdistill.run.config import Config
from jaxdistill.run.own_parts import own_parts
from jaxdistill.run.parts import build_quantizer

HUB = "hub"  # name of the folder of a model in the folder of its stage


class Export(NamedTuple):
    """A trained model to write as a folder that can be used without its run.

    name: name of the model in the result table
    config: config of its training; the section `student` describes the model
    model: the model
    """

    name: str
    config: Config
    model: Model


def write_model(
    stage: Path, export: Export, variables: Variables, data: Pipeline, shapes: Shapes, results: Mapping[str, Any]
) -> None:
    """Write a trained model as a folder that can be used without its run.

    The library transformers can load the folder if it has the architecture of the model.

    Every process must call the function; one process writes.

    Args:
        stage: folder of the training; the model is written to its folder `HUB`.
        export: the model.
        variables: its parameters and state.
        data: data pipeline of the run.
        shapes: shapes and dtypes of a batch of the training, by field.
        results: content of results.json, with the models that are trained so far, for the model card.
    """
    facts = about(export.config, data, shapes, _is_embedder(export.model, shapes))
    variables = masks.finished(variables)
    if quantizer := build_quantizer(export.config):
        floats = build_model(export.config.student.model, "student.model", export.config.dtype)
        variables, ranges = quantizer.finish(floats, variables, shapes)
        spans = {name: np.asarray(x).tolist() for name, x in ranges.items()}
        facts = facts._replace(quantized=quantizer.serving, ranges=spans)
    facts = facts._replace(stage=export.name, run=results.get("run") or "")
    text = card(export.name, export.config.to_dict(), results, facts)
    model_folder.write(stage / HUB, facts, extras(export.config, data, shapes), variables, text)


def write_card(stage: Path, export: Export, data: Pipeline, shapes: Shapes, results: Mapping[str, Any]) -> None:
    """Write the model card of a model folder again, with all results of the run; for arguments see `write_model`."""
    facts = about(export.config, data, shapes, _is_embedder(export.model, shapes))
    model_folder.write_card(stage / HUB, card(export.name, export.config.to_dict(), results, facts))


def is_complete(stage: Path, name: str, run: str) -> bool:
    """Return True if a trained model is already written as a complete folder of this run; else it is written again.

    With several processes, always return False, because all processes must decide alike.

    Args:
        stage: folder of the training.
        name: name of the model in the result table; the folder of another model gives False.
        run: random name of the run; the folder of another run gives False.
    """
    if jax.process_count() > 1 or not (stage / HUB).exists():
        return False
    about = model_folder.read_about(stage / HUB) if model_folder.is_complete(stage / HUB) else None
    if about and about.stage in ("", name) and about.run in ("", run):
        return True
    note(f"{stage / HUB} has changed since it was written, or holds another model; it is written again")
    return False


def about(config: Config, data: Pipeline, shapes: Shapes, is_embedder: bool) -> About:
    """Return the description of a trained model for `jaxdistill.json`: all that its use needs, except the weights.

    Args:
        config: config of the training; its section `student` describes the model.
        data: data pipeline of the run.
        shapes: shapes and dtypes of a batch of the training, by field.
        is_embedder: True if the model outputs an embedding of its input, and no classes.
    """
    spec, tokens = config.student.model, data.tokenization
    form, image = architecture_of_spec(spec), shapes.get("image")
    augment = [text for text in config.data.augment if not registry.transforms.build(text, "data.augment").draws]
    if _image_processor(config, shapes):  # the folder contains the preprocessing
        is_processed = lambda text: parse(text, "data.augment").name == "processed"
        augment = ["processed(source='.')" if is_processed(text) else text for text in augment]
    return About(
        model=public(spec) if form else spec,
        options=_beyond_config(form) if form else {},
        dtype=config.dtype,
        inputs={name: (x.shape[1:], str(x.dtype)) for name, x in shapes.items() if _is_read(name)},
        tokens=tokens.serving if tokens else "",
        texts=list(tokens.texts) if tokens else [],
        transforms=augment,
        task=_task(data, shapes, is_embedder),
        class_names=list(data.class_names),
        batch_size=config.evaluate.batch_size,
        columns=columns_of(config.data.name),
        channels=image.shape[-1] if image is not None and image.ndim == 4 else 3,
        embeds=is_embedder,
        hub_layout=form is not None,
        in_transformers=form is not None and in_transformers(form.family, form.arguments),
        parts=own_parts({"model": spec, "tokens": config.data.tokens, "transforms": augment}),
    )


def _is_embedder(model: Model, shapes: Shapes) -> bool:
    """Return True if a model outputs an embedding of its input, and no classes."""
    return embeds(model, {name: x for name, x in shapes.items() if _is_read(name)})


def _is_read(field: str) -> bool:
    """Return True if a batch field is an input of a model; record numbers, labels and teacher outputs are not."""
    return field not in ("index", "label", "label_probs") and "/" not in field


def _task(data: Pipeline, shapes: Shapes, is_embedder: bool) -> str:
    """Return the name that the Hugging Face hub has for the task of a model, such as "text-classification"."""
    if data.tokenization and "image" in shapes:
        return "zero-shot-image-classification"
    if data.tokenization is None:
        kind = "image" if "image" in shapes and len(shapes["image"].shape) == 4 else "tabular"
        return "image-feature-extraction" if is_embedder else f"{kind}-classification"
    if not data.tokenization.labelled:
        return "text-generation"
    return "sentence-similarity" if is_embedder else "text-classification"


def _beyond_config(form: Architecture) -> dict[str, Any]:
    """Return the model arguments that a Hugging Face config cannot store, such as the pooling of an embedding model."""
    family = families[form.family]
    plain = lambda value: json.loads(json.dumps(value))
    kept = with_defaults(family.factory, family.arguments(plain(family.config(form.arguments))))
    return {name: value for name, value in form.arguments.items() if plain(kept.get(name)) != plain(value)}


def _image_processor(config: Config, shapes: Shapes) -> dict[str, Any] | None:
    image = shapes.get("image")
    if image is None or image.ndim != 4 or architecture_of_spec(config.student.model) is None:
        return None
    return processor_config(config.data.augment, image.shape[1:], image.dtype)


def extras(config: Config, data: Pipeline, shapes: Shapes) -> Extras:
    """Return the files of a model folder that only some models have: for transformers, tokenizer and image processor.

    Args:
        config: config of the training; its section `student` describes the model.
        data: data pipeline of the run.
        shapes: shapes and dtypes of a batch of the training, by field.
    """
    form, tokens, ids = architecture_of_spec(config.student.model), data.tokenization, shapes.get("input_ids")
    return Extras(
        family=form.family if form else "",
        arguments=form.arguments if form else {},
        tokenizer=tokens.file if tokens else None,
        length=ids.shape[1] if ids is not None else 0,
        image_processor=_image_processor(config, shapes),
    )


def columns_of(name: str) -> dict[str, list[str]]:
    """Return the columns that the data set `table` reads from the user's files, such as `{"text": ["review"]}`.

    Return an empty dict for any other data set.

    Args:
        name: spec string of the data set.

    Returns:
        A list of column names for each of the arguments "text", "image" and "features" of `table` that is set.
    """
    if name.partition("(")[0].strip() != "table":
        return {}
    spec = parse(name, "data.name")._replace(added={"split": "", "folder": Path()})
    arguments = registry.datasets.bind(spec, "data.name")[1].arguments
    listed = lambda value: [value] if isinstance(value, str) else list(value)
    return {key: listed(arguments[key]) for key in ("text", "image", "features") if arguments.get(key)}
