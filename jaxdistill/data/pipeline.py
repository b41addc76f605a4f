"""The data of a run: the records of each stream, the transforms that make batches of them, and the batch shapes.

Nothing is read until it is needed: descriptions are read from a file next to the prepared data, records by `open`.
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
from jaxdistill.data.datasets import content_hash, open_records
from jaxdistill.data.describe import Description, describe
from jaxdistill.data.order import Order
from jaxdistill.data.records import Records
from jaxdistill.data.selection import Selection
from jaxdistill.data.stream import Transform, without_text
from jaxdistill.data.text.token_cache import tokenizer_hash
from jaxdistill.data.text.tokens import Tokenization

TEST = "test"  # the key of the test records in `with_test`


class Stream(NamedTuple):
    """A split of the data set and the settings of its batches.

    split: such as "train[:80%]"
    path, key: the config path of the split, for error messages: `path.key`
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
        """Return whether augmentation is random, so that epochs differ."""
        return any(transform.draws for transform in self.transforms)


@dataclass(frozen=True)
class Pipeline:
    """The data of a run or of one of its stages.

    Args:
        name: a name of TensorFlow Datasets, or the spec of a registered data set
        folder: the folder of prepared data
        tokens: the spec of the tokenization; empty: no text
        seed: of order, augmentation and selection
        streams: the streams that a step may read, by name; `train` comes first
        test: the records that models are evaluated on, without random transforms
        select: the spec of the selection of training records; empty: all
        order: the spec of the order of training records; empty: shuffled in every epoch
        reused_descriptions: descriptions of the streams, if another stage has them
    """

    name: str
    folder: Path
    tokens: str
    seed: int
    streams: Mapping[str, Stream]
    test: Stream
    select: str = ""
    order: str = ""
    reused_descriptions: Mapping[str, Description] | None = None

    @cached_property
    def tokenization(self) -> Tokenization | None:
        """Build the tokenization; None without text."""
        return registry.tokenizations.build(self.tokens, "data.tokens") if self.tokens else None

    @cached_property
    def selection(self) -> Selection | None:
        """Build the selection of training records; None: all are used."""
        return registry.selections.build(self.select, "data.select") if self.select else None

    @cached_property
    def ordering(self) -> Order | None:
        """Build the order of training records; None: shuffled in every epoch."""
        return registry.orders.build(self.order, "data.order") if self.order else None

    @cached_property
    def descriptions(self) -> dict[str, Description]:
        """Describe the records of each stream, without reading them."""
        return dict(self.reused_descriptions or {name: self.describe(stream) for name, stream in self.streams.items()})

    @cached_property
    def test_description(self) -> Description:
        """Describe the test records, without reading them."""
        return self.describe(self.test)

    @property
    def classes(self) -> int | None:
        """Return the number of labels; None if the data set does not define it."""
        return self.descriptions["train"].classes

    @property
    def vocabulary(self) -> int | None:
        """Return the number of tokens of the tokenizer; None without text."""
        return self.descriptions["train"].vocabulary

    @property
    def with_test(self) -> dict[str, Stream]:
        """Return all streams of the run, and the test records under `TEST`."""
        return {**self.streams, TEST: self.test}

    def describe(self, stream: Stream) -> Description:
        """Describe the records of a stream, without reading them.

        Raises:
            ConfigError: the records do not exist or cannot be prepared.
        """
        return describe(self.name, stream.split, self.folder, stream.path, stream.key, self.tokens)

    def open(self, stream: Stream, tokens: bool = True) -> Records:
        """Open the records of a stream.

        Args:
            stream: a stream of this pipeline.
            tokens: if true, texts are tokenised; otherwise records are returned as the data set holds them.

        Raises:
            ConfigError: the records do not exist or cannot be prepared.
        """
        spec = self.tokens if tokens else ""
        return open_records(self.name, stream.split, self.folder, stream.path, stream.key, spec)

    def identity(self, stream: Stream) -> dict[str, str]:
        """Identify the records of a stream: names, and hashes of the data set's content and of the tokenizers."""
        contents = content_hash(self.name, stream.split, self.folder, stream.path, stream.key)
        names = {"name": self.name, "tokens": self.tokens, "split": stream.split}
        words = {"words": tokenizer_hash(self.tokenization)} if self.tokenization else {}
        return {**names, "contents": contents, **words}

    def training_records(self) -> int:
        """Return the number of training records after the selection."""
        records = self.descriptions["train"].records
        return self.selection.count(records) if self.selection else records

    @cached_property
    def shapes(self) -> dict[str, Shapes]:
        """Return the shapes of the global batch of each stream, after its transforms.

        Raises:
            ConfigError: images differ in size, and no transform resizes them.
        """
        return {name: self._shapes(stream, self.descriptions[name]) for name, stream in self.streams.items()}

    @staticmethod
    def _shapes(stream: Stream, description: Description) -> Shapes:
        pair = {name: _two_records(shape, dtype) for name, (shape, dtype) in description.fields.items()}
        for transform in stream.transforms:
            pair = transform.apply(pair, np.zeros((2, transform.draws)))
        rows = stream.batch_size
        return {name: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype) for name, x in without_text(pair).items()}


def _two_records(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Return two zero records; sizes that vary in the data set (-1) are 8 in the first and 9 in the second."""
    if -1 not in shape:
        return np.zeros((2, *shape), dtype)
    pair = (np.zeros([varying if size < 0 else size for size in shape], dtype) for varying in (8, 9))
    return np.fromiter(pair, dtype=object, count=2)
