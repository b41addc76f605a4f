"""Signals of texts that student and teacher tokenize differently, and values of loss terms on them."""

import functools
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from batches import signals

import jaxdistill.run.parts  # noqa: F401  (registers the parts)
from jaxdistill.core import registry
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.core.types import Array, Outputs, Signals, TokenSpans
from jaxdistill.core.vocabulary import SharedVocabulary

KEY = jax.random.key(0)
SINGLE = registry.fusions.build("single", "")


def seen_by(student: Array, teacher: Outputs, batch: dict[str, Array], mask: Array) -> Signals:
    return replace(signals(), student=Outputs(student), teachers=(teacher,), teacher=teacher, batch=batch, mask=mask)


def of_spans(rows: int = 4, classes: int = 6, others: int = 9, seed: int = 0) -> Signals:
    """Draw rows of 7 and 8 tokens: spans of 1:2, 1:1, 2:2 and 1:1 tokens, and one that only the student has."""
    rng = np.random.default_rng(seed)
    numbers = [[0, 1, 2, 3, 3, 4, 5], [1, 1, 2, 3, 3, 5, 0, 0]]
    numbers = [np.broadcast_to(np.int32(n), (rows, len(n))) for n in numbers]
    labels = [np.int32(rng.integers(0, c, n.shape)) for c, n in zip((classes, others), numbers, strict=True)]
    draw = lambda n, c: np.float32(2 * rng.normal(size=(*n.shape, c)))
    teacher = Outputs(draw(numbers[1], others), spans=TokenSpans(numbers[1], labels[1]))
    batch = {"span": numbers[0], "label": labels[0]}
    seen = seen_by(draw(numbers[0], classes), teacher, batch, np.ones(numbers[0].shape, np.float32))
    return jax.device_put(seen)


SHARED = SharedVocabulary(np.array([0, 2, 3, 5]), np.array([8, 5, 2, 0]))


def term_of(name: str, **arguments: Any) -> Any:
    return registry.losses[name](**arguments)


def mean(term: Any, seen: Signals, chunks: int = 1) -> Any:
    return compiled(term, chunks)(seen)


@functools.cache
def compiled(term: Any, chunks: int) -> Any:
    minimised = objective({"a": WeightedTerm(term)}, SINGLE, chunks)

    def apply(seen):
        params, state = minimised.init(KEY, {"train": seen})
        return minimised.apply(params, state, {"train": seen}, key=KEY)[0]["a"]

    return jax.jit(apply)
