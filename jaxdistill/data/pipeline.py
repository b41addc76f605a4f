"""The data of a run: records, transforms and batch shapes of each stream, a named source of batches.

Nothing is read until it is needed: the shapes and sizes of the records come from a file next to the prepared data, and
the records themselves are read by `Pipeline.open`.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdistill.core import registry
from jaxdistill.core.types import Shapes
from jaxdistill.data.datasets import content_hash, open_records
from jaxdistill.data.describe import Description, describe_split
from jaxdistill.data.order import Order
from jaxdistill.data.records import Records
from jaxdistill.data.selection import Selection
from jaxdistill.data.splits import split_names
from jaxdistill.data.stream import Transform, transformed, without_text
from jaxdistill.data.text.token_cache import tokenizer_hash
from jaxdistill.data.text.tokens import Tokenization

TEST = "test"  # the key of the test records in `with_test`


class Stream(NamedTuple):
    """A named source of batches: a split of the data set, with the batch size and the transforms.

    split: the split, such as "train[:80%]"
    path, key: section and key of the split in the config, such as `data` and `train`, for error messages
    batch_size: number of examples in the global batch
    augment: spec strings of the configured transforms, such as "shift(pixels=2)"
    transforms: the transforms to apply to every batch, in order; for evaluation, only those of `augment` that are not
        random
    """

    split: str
    path: str
    key: str
    batch_size: int
    augment: tuple[str, ...]
    transforms: tuple[Transform, ...]

    @property
    def is_random(self) -> bool:
        """Return True if a transform of the stream is random, so that the inputs differ from epoch to epoch."""
        return any(transform.draws for transform in self.transforms)


@dataclass(frozen=True)
class Pipeline:
    """The data of a run, or of one training within the run: that of a teacher or of the student.

    A stream is a named source of batches. A spec string is the name of a registered function with its arguments, such
    as "random(share=0.1)".

    Args:
        name: name of the data set in TensorFlow Datasets, or spec string of a registered data set
        folder: folder in which TensorFlow Datasets keeps prepared data sets
        tokens: spec string of the tokenization; if it is empty, texts are not tokenised
        seed: random seed of order, augmentation and selection
        streams: the streams that a training step may read, by name; `train` comes first
        test: the stream of the examples that models are evaluated on, without random transforms
        select: spec string of the rule that selects training examples; if it is empty, all examples are used
        order: spec string of the order of training examples; if it is empty, they are shuffled in every epoch
        reused_descriptions: the descriptions (sizes and shapes) of the streams, if they are known already; if it is
            None, the streams are described on first use
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
        """Return the rule that converts texts to arrays of tokens; None if texts are not tokenised."""
        return registry.tokenizations.build(self.tokens, "data.tokens") if self.tokens else None

    @cached_property
    def selection(self) -> Selection | None:
        """Return the rule that selects the training examples; None if all examples are used."""
        return registry.selections.build(self.select, "data.select") if self.select else None

    @cached_property
    def ordering(self) -> Order | None:
        """Return the rule that orders the training examples; None if the examples are shuffled in every epoch."""
        return registry.orders.build(self.order, "data.order") if self.order else None

    @cached_property
    def descriptions(self) -> dict[str, Description]:
        """Return the number and the shapes of the examples of each stream (named source of batches), by stream name."""
        return dict(
            self.reused_descriptions or {name: self.describe_stream(stream) for name, stream in self.streams.items()}
        )

    @cached_property
    def test_description(self) -> Description:
        """Return the number and the shapes of the examples that models are evaluated on."""
        return self.describe_stream(self.test)

    @property
    def classes(self) -> int | None:
        """Return the number of classes of the labels; None if the data set does not define it."""
        return self.descriptions["train"].classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes, in order; empty if the data set does not define them."""
        return self.descriptions["train"].class_names or self.test_description.class_names

    def summary(self) -> list[dict[str, Any]]:
        """Return a summary of each stream (named source of batches) and of the test data, as a list of dicts.

        An entry is `{"stream": "train", "split": "train", "records": 100, "labels": True, "truncated": 7}`, where
        `truncated` is the number of texts that are longer than a row of tokens.
        """
        described = {**self.descriptions, "test": self.test_description}
        splits = {name: stream.split for name, stream in self.streams.items()} | {"test": self.test.split}
        counts = {name: description.records for name, description in described.items()}
        counts["train"] = self.count_training_records()
        return [
            {
                "stream": name,
                "split": splits[name],
                "records": counts[name],
                "labels": "label" in description.fields,
                "truncated": description.truncated,
            }
            for name, description in described.items()
        ]

    @property
    def unused_splits(self) -> dict[str, int]:
        """Return the number of examples of each split that neither training nor evaluation reads, by split name."""
        used = set().union(*(split_names(stream.split) for stream in self.with_test.values()))
        return {name: size for name, size in self.test_description.split_sizes.items() if name not in used}

    @property
    def vocabulary(self) -> int | None:
        """Return the vocabulary size of the tokenizer; None if texts are not tokenised."""
        return self.descriptions["train"].vocabulary

    @property
    def with_test(self) -> dict[str, Stream]:
        """Return all streams (named sources of batches) by name, and the evaluation data under the name `TEST`."""
        return {**self.streams, TEST: self.test}

    def describe_stream(self, stream: Stream) -> Description:
        """Return the number and the shapes of the examples of a stream (named source of batches).

        They are read from a description file if it exists; see `describe_split`.

        Raises:
            ConfigError: the examples do not exist or cannot be prepared.
        """
        return describe_split(self.name, stream.split, self.folder, stream.path, stream.key, self.tokens)

    def open(self, stream: Stream, tokens: bool = True) -> Records:
        """Open the examples (records) of a stream (named source of batches), for random access by number.

        Args:
            stream: a stream of this pipeline.
            tokens: if true, texts are tokenised; otherwise the examples keep the fields of the data set.

        Raises:
            ConfigError: the examples do not exist or cannot be prepared.
        """
        spec = self.tokens if tokens else ""
        return open_records(self.name, stream.split, self.folder, stream.path, stream.key, spec)

    def identity(self, stream: Stream) -> dict[str, str]:
        """Return a dict of texts that identifies the examples of a stream (named source of batches).

        A cache of results can therefore detect a change of the data. The dict has the name of the data set, the
        tokenization and the split. It also has hashes of the content of the data set, of the tokenizer files if texts
        are tokenised, and of the files that transforms read, if any.
        """
        contents = content_hash(self.name, stream.split, self.folder, stream.path, stream.key)
        names = {"name": self.name, "tokens": self.tokens, "split": stream.split}
        words = {"words": tokenizer_hash(self.tokenization)} if self.tokenization else {}
        read = "".join(transform.reads for transform in stream.transforms)
        transforms = {"transforms": hashlib.sha256(read.encode()).hexdigest()} if read else {}
        return {**names, "contents": contents, **words, **transforms}

    def count_training_records(self) -> int:
        """Return the number of examples that the run trains on: all, or those that the selection keeps."""
        records = self.descriptions["train"].records
        return self.selection.count(records) if self.selection else records

    @cached_property
    def shapes(self) -> dict[str, Shapes]:
        """Return the shapes and dtypes of a global batch after the transforms, by stream (named source of batches).

        Raises:
            ConfigError: the images differ in size, and no transform resizes them.
        """
        return {name: self._shapes(stream, self.descriptions[name]) for name, stream in self.streams.items()}

    @staticmethod
    def _shapes(stream: Stream, description: Description) -> Shapes:
        pair = {name: _two_records(shape, dtype) for name, (shape, dtype) in description.fields.items()}
        for transform in stream.transforms:
            pair = transformed(pair, [transform], np.zeros((2, transform.draws)))
        rows = stream.batch_size
        return {name: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype) for name, x in without_text(pair).items()}


def _two_records(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Return zeros as one field of two records (examples), `[2, *shape]`, to find the shapes of transformed batches.

    A size of -1 varies in the data set: it is 8 in the first record and 9 in the second, in an object array `[2]`.
    """
    if -1 not in shape:
        return np.zeros((2, *shape), dtype)
    pair = (np.zeros([varying if size < 0 else size for size in shape], dtype) for varying in (8, 9))
    return np.fromiter(pair, dtype=object, count=2)
