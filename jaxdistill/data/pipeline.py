"""The data of a run: which records each stream reads, how batches are made of them, and their shapes.

Nothing is read until it is asked for: a description comes from a note beside prepared data, records from `open`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxdistill.core import registry
from jaxdistill.core.types import Shapes
from jaxdistill.data.datasets import contents, open_records
from jaxdistill.data.describe import Description, describe
from jaxdistill.data.order import Order
from jaxdistill.data.records import Records
from jaxdistill.data.selection import Selection
from jaxdistill.data.stream import Transform, as_numbers
from jaxdistill.data.text.token_cache import words
from jaxdistill.data.text.tokens import Tokenization

TEST = "test"  # names the test records where streams are named; a stream may have the name too


class Stream(NamedTuple):
    """Records that are read together, and how their batches are made.

    split: such as "train[:80%]"
    path, key: where the config names the split, for messages: `path.key`
    batch_size: rows of the global batch
    augment: the spec strings of the transforms
    transforms: applied to every batch, in order
    """

    split: str
    path: str
    key: str
    batch_size: int
    augment: tuple[str, ...]
    transforms: tuple[Transform, ...]

    @property
    def draws(self) -> bool:
        """Whether augmentation is random, so that no two epochs are alike."""
        return any(transform.draws for transform in self.transforms)


@dataclass(frozen=True)
class Pipeline:
    """The data of a run or of one of its stages.

    Args:
        name: a TensorFlow Datasets name, or the spec of a registered data set
        folder: of prepared data
        tokens: the spec of the tokenization; empty: no text
        seed: of order, augmentation and selection
        streams: what a step may read, by name; `train` comes first
        test: the records that models are evaluated on; of its transforms, those that draw are left out
        select: the spec of the selection of training records; empty: all
        order: the spec of their order; empty: shuffled in every epoch
        known: descriptions of the streams, if another stage has them
    """

    name: str
    folder: Path
    tokens: str
    seed: int
    streams: Mapping[str, Stream]
    test: Stream
    select: str = ""
    order: str = ""
    known: Mapping[str, Description] | None = None

    @cached_property
    def tokenization(self) -> Tokenization | None:
        """How texts become arrays."""
        return registry.tokenizations.build(self.tokens, "data.tokens") if self.tokens else None

    @cached_property
    def selection(self) -> Selection | None:
        """Which of the training records are learned from; None: all."""
        return registry.selections.build(self.select, "data.select") if self.select else None

    @cached_property
    def ordering(self) -> Order | None:
        """In which order training records come; None: shuffled in every epoch."""
        return registry.orders.build(self.order, "data.order") if self.order else None

    @cached_property
    def descriptions(self) -> dict[str, Description]:
        """What is known of the records of each stream before they are read."""
        return dict(self.known or {name: self.describe(stream) for name, stream in self.streams.items()})

    @cached_property
    def test_description(self) -> Description:
        """What is known of the test records."""
        return self.describe(self.test)

    @property
    def classes(self) -> int | None:
        """How many labels there are; None if the data set does not say."""
        return self.descriptions["train"].classes

    @property
    def vocabulary(self) -> int | None:
        """How many tokens the tokenizer has; None without text."""
        return self.descriptions["train"].vocabulary

    @property
    def with_test(self) -> dict[str, Stream]:
        """All that a run reads: its streams, and the test records under `TEST`."""
        return {**self.streams, TEST: self.test}

    def describe(self, stream: Stream) -> Description:
        """What is known of the records of a stream before they are read.

        Raises:
            ConfigError: there are none, or they cannot be prepared.
        """
        return describe(self.name, stream.split, self.folder, stream.path, stream.key, self.tokens)

    def open(self, stream: Stream, tokens: bool = True) -> Records:
        """Opens the records of a stream.

        Args:
            stream: which.
            tokens: tokenised, where there is text; else as the data set has them.

        Raises:
            ConfigError: there are none, or they cannot be prepared.
        """
        spec = self.tokens if tokens else ""
        return open_records(self.name, stream.split, self.folder, stream.path, stream.key, spec)

    def identity(self, stream: Stream) -> dict[str, str]:
        """Tells these records from others: names, and what data set and tokenizers hold now."""
        held = contents(self.name, stream.split, self.folder, stream.path, stream.key)
        how = self.tokenization
        named = {"name": self.name, "tokens": self.tokens, "split": stream.split}
        return {**named, "contents": held, **({"words": words(how)} if how else {})}

    def learned(self) -> int:
        """How many of the training records are learned from."""
        records = self.descriptions["train"].records
        return self.selection.count(records) if self.selection else records

    @cached_property
    def shapes(self) -> dict[str, Shapes]:
        """Shapes of the global batch, by stream, after its transforms.

        Raises:
            ConfigError: images of several sizes, and no transform that gives them one.
        """
        return {name: self._shapes(stream, self.descriptions[name]) for name, stream in self.streams.items()}

    @staticmethod
    def _shapes(stream: Stream, description: Description) -> Shapes:
        pair = {name: _two_records(shape, dtype) for name, (shape, dtype) in description.fields.items()}
        for transform in stream.transforms:
            pair = transform.apply(pair, np.zeros((2, transform.draws)))
        rows = stream.batch_size
        return {name: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype) for name, x in as_numbers(pair).items()}


def _two_records(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Two records' arrays; where a size differs from record to record, it differs here."""
    if -1 not in shape:
        return np.zeros((2, *shape), dtype)
    two = (np.zeros([other if size < 0 else size for size in shape], dtype) for other in (8, 9))
    return np.fromiter(two, dtype=object, count=2)
