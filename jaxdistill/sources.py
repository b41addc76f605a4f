"""The data that a config names: what each stream reads, how it is changed, and the shapes of its batches."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxdistill import registry
from jaxdistill.data import datasets
from jaxdistill.data.describe import Description
from jaxdistill.data.orders import Order
from jaxdistill.data.processors import forms
from jaxdistill.data.selections import Selection
from jaxdistill.data.stream import Transform, as_numbers
from jaxdistill.data.tokens import Tokenization
from jaxdistill.errors import ConfigError
from jaxdistill.fetch import default_folder
from jaxdistill.types import Shapes


class Split(NamedTuple):
    """Which records a stream reads, and where the config says so: `text` at `path.key`."""

    text: str
    path: str
    key: str


def tokenization(config: ConfigDict) -> Tokenization | None:
    """How a config's texts become arrays; None where it says nothing of it."""
    spec = config.data.tokens
    return registry.tokenizations.build(spec, "data.tokens") if spec else None


def selection(config: ConfigDict) -> Selection | None:
    """Which of the training records are learned from; None: all."""
    spec = config.data.select
    return registry.selections.build(spec, "data.select") if spec else None


def order(config: ConfigDict) -> Order | None:
    """In which order training records come; None: shuffled over and over."""
    spec = config.data.order
    return registry.orders.build(spec, "data.order") if spec else None


def splits(config: ConfigDict) -> dict[str, Split]:
    """What every stream of a run reads."""
    further = {name: Split(entry.split, f"streams.{name}", "split") for name, entry in config.streams.items()}
    return {"train": Split(config.data.train, "data", "train"), **further}


def stream_batch_size(config: ConfigDict, stream: str) -> int:
    """Rows of a stream's global batch."""
    further = config.streams[stream].batch_size if stream in config.streams else 0
    return further or config.batch_size


def batch_shapes(config: ConfigDict, described: Mapping[str, Description]) -> dict[str, Shapes]:
    """Shapes of the global batch, by stream: a transform may change them, or add fields."""
    augment = transforms(config)

    def one(stream: str, looks: Description) -> Shapes:
        rows = stream_batch_size(config, stream)
        pair = {name: _pair(shape, kind) for name, (shape, kind) in looks.fields.items()}
        for transform in augment[stream]:
            pair = transform.apply(pair, np.zeros((2, transform.draws)))
        return {name: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype) for name, x in as_numbers(pair).items()}

    return {stream: one(stream, looks) for stream, looks in described.items()}


def _pair(shape: tuple[int, ...], kind: str) -> np.ndarray:
    """Two records' arrays; where a size differs from record to record, it differs here."""
    if -1 not in shape:
        return np.zeros((2, *shape), kind)
    two = (np.zeros([other if size < 0 else size for size in shape], kind) for other in (8, 9))
    return np.fromiter(two, dtype=object, count=2)


def transforms(config: ConfigDict) -> dict[str, tuple[Transform, ...]]:
    """The augmentation of each stream's batches."""

    def built(specs: tuple[str, ...], path: str) -> tuple[Transform, ...]:
        return tuple(registry.transforms.build(spec, path) for spec in specs)

    further = {name: built(entry.augment, f"streams.{name}.augment") for name, entry in config.streams.items()}
    return {"train": built(config.data.augment, "data.augment"), **further}


def check_data(config: ConfigDict) -> None:
    """The data set is known; nothing is read or fetched yet."""
    datasets.known(config.data.name, data_folder(config))
    tokenization(config)
    transforms(config)
    selection(config)
    order(config)
    _check_forms(config)


def _check_forms(config: ConfigDict) -> None:
    """Whatever learns here sees images of the form in which the student and its teachers see them later."""
    trained = {name: entry for name, entry in config.teachers.items() if entry.steps and not entry.checkpoint}
    others = {f"teachers.{name}.augment": entry.augment for name, entry in trained.items()}
    others |= {f"streams.{name}.augment": entry.augment for name, entry in config.streams.items()}
    wanted = forms(config.data.augment)
    for path, augment in others.items():
        if forms(augment) != wanted:
            theirs, ours = (", ".join(each) or "as they are" for each in (forms(augment), wanted))
            cure = "What draws nothing must be the same in both"
            raise ConfigError(path, f"its images are {theirs}, those of data.augment {ours}. {cure}.")


def data_folder(config: ConfigDict) -> Path:
    """Where prepared data lies."""
    return Path(config.data.folder).expanduser() if config.data.folder else default_folder()
