"""A stage of a run on the data that it reads: what its batches look like, and its parts, checked on its mesh."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxdistill import build, cached, fits, selected, sources
from jaxdistill.apart import Apart
from jaxdistill.build import Parts
from jaxdistill.cached import Cached
from jaxdistill.data.describe import Description, describe
from jaxdistill.data.splits import share_records
from jaxdistill.errors import ConfigError
from jaxdistill.schedules import Horizon

Read = Mapping[str, Cached | Apart]  # teachers whose outputs travel in the batch, by name


def described(config: ConfigDict) -> dict[str, Description]:
    """What is known of the records of every stream, and of the test's, before they are read.

    Raises:
        ConfigError: they are not there, not alike, have no labels; a quiz shares some; none would be selected.
    """
    sources.check_data(config)
    folder, data = sources.data_folder(config), config.data
    found = {
        stream: describe(data.name, read.text, folder, read.path, read.key, data.tokens)
        for stream, read in cached.streams(config).items()
    }
    if "label" not in found["test"].fields:
        raise ConfigError("data.name", f"the records of {data.name!r} have no field 'label', which accuracy needs.")
    if found["train"].fields != found["test"].fields:
        raise ConfigError("data.test", f"{data.test!r} differs from {data.train!r} in fields or shapes.")
    _check_quiz(config)
    selected.check(config, found["train"])
    return found


def _check_quiz(config: ConfigDict) -> None:
    """A quiz on what the student learned from, or is judged on, tells nothing."""
    if "quiz" not in config.streams:
        return
    folder, quiz = sources.data_folder(config), config.streams.quiz.split
    size = lambda split: describe(config.data.name, split, folder, "streams.quiz", "split").records
    for key in ("train", "test"):
        if share_records(quiz, config.data[key], size):
            cure = "Choose others, such as data.train='train[:90%]' and streams.quiz.split='train[90%:]'"
            raise ConfigError("streams.quiz.split", f"{quiz!r} has records of data.{key}={config.data[key]!r}. {cure}.")


def fields(read: Read, stream: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """What such teachers add to a record of a stream: shape and dtype by name."""
    return {field: look for name, each in read.items() for field, look in each.fields(name, stream).items()}


def shapes(config: ConfigDict, described: Mapping[str, Description], read: Read) -> dict[str, dict[str, Any]]:
    """Shapes of a stage's global batches, with what travels in them if it has teachers."""
    found = {}
    for stream, own in sources.batch_shapes(config, described).items():
        rows = own["mask"].shape[0]
        more = fields(read, stream).items() if config.teachers else ()
        said = {name: jax.ShapeDtypeStruct((rows, *shape), dtype) for name, (shape, dtype) in more}
        found[stream] = {**own, **said}
    return found


def parts(config: ConfigDict, described: Mapping[str, Description], mesh: Mesh, read: Read) -> Parts:
    """Everything that a stage needs, checked on shapes alone.

    Args:
        config: the stage's.
        described: the data, by stream.
        mesh: of its devices, which may be elsewhere.
        read: teachers that are read.

    Raises:
        ConfigError: naming the path in this config, the value and the cure.
    """
    horizon = Horizon(config.steps, selected.count(config, described["train"].records) / config.batch_size)
    models = {name: each.model for name, each in read.items()}
    batch = shapes(config, described, read)
    found = build.parts(config, batch, described["train"].classes, horizon, models)
    fits.check_constrained(found.student, batch["train"], mesh)
    fits.check_divided(config, mesh)
    return found
