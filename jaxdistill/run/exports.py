"""Write the trained models of a run as folders that can be used anywhere: `hub` in the folder of each stage."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdistill.core import registry
from jaxdistill.core.types import Shapes
from jaxdistill.data.image.processors import processor_config
from jaxdistill.data.pipeline import Pipeline
from jaxdistill.export.hugging_face import in_transformers
from jaxdistill.export.model_folder import About, Extras
from jaxdistill.models.pretrained import architecture_of_spec
from jaxdistill.run.config import Config
from jaxdistill.run.own_parts import own_parts

HUB = "hub"  # name of the folder of a model in the folder of its stage


def about(config: Config, data: Pipeline, shapes: Shapes, embeds: bool) -> About:
    """Return what it takes to use a trained model, beside its weights.

    Args:
        config: config of the training; its section `student` describes the model.
        data: data pipeline of the run.
        shapes: shapes and dtypes of a batch of the training, by field.
        embeds: whether the model has no classes, and gives the embedding of its input.
    """
    spec = config.student.model
    form = architecture_of_spec(spec)
    augment = [text for text in config.data.augment if not registry.transforms.build(text, "data.augment").draws]
    fields = {name: (x.shape[1:], str(x.dtype)) for name, x in shapes.items() if name not in ("index", "label")}
    columns, channels = _columns(config.data.name)
    return About(
        model=spec,
        dtype=config.dtype,
        inputs=fields,
        tokens=config.data.tokens,
        transforms=augment,
        class_names=list(data.class_names),
        batch_size=config.evaluate.batch_size,
        columns=columns,
        channels=channels,
        embeds=embeds,
        hub_layout=form is not None,
        in_transformers=form is not None and in_transformers(form.family, form.arguments),
        parts=own_parts({"model": spec, "tokens": config.data.tokens, "transforms": augment}),
    )


def extras(config: Config, data: Pipeline, shapes: Shapes) -> Extras:
    """Return what transformers, the tokenizer and the image processor of a trained model need.

    Args:
        config: config of the training; its section `student` describes the model.
        data: data pipeline of the run.
        shapes: shapes and dtypes of a batch of the training, by field.
    """
    form, image = architecture_of_spec(config.student.model), shapes.get("image")
    tokens, ids = data.tokenization, shapes.get("input_ids")
    return Extras(
        family=form.family if form else "",
        arguments=form.arguments if form else {},
        tokenizer=tokens.file.parent if tokens else None,
        length=ids.shape[1] if ids is not None else 0,
        image_processor=processor_config(config.data.augment, image.shape[1:], image.dtype) if form and image else None,
    )


def _columns(name: str) -> tuple[dict[str, list[str]], int]:
    """Return the columns of files that the data set `table` reads, by argument, and the number of image channels."""
    spec = registry.parse(name, "data.name") if name.partition("(")[0].strip() in registry.datasets else None
    if spec is None or spec.name != "table":
        return {}, 3
    arguments: Mapping[str, Any] = registry.datasets.bind(spec._replace(added={"split": "", "folder": Path()}), "")[
        1
    ].arguments
    listed = lambda value: [value] if isinstance(value, str) else list(value)
    columns = {key: listed(arguments[key]) for key in ("text", "image", "features") if arguments.get(key)}
    return columns, arguments.get("channels", 3)
