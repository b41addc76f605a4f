"""Make the network of relations between classes that a network sees: which classes it takes for each other.

    A[c, j] = mean over the records of class c of softmax(logits / T)[j], for j != c

A class's nearest ones are the largest entries of its row. A relation of a teacher is kept by a student that has the
same class among its nearest. Two networks that learned from the same labels share many relations, so that a control
stands beside every number.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from jaxdistill.losses.relations.edges import Edge

TEMPERATURE = 4.0  # at 1, the probabilities of most wrong classes are too small to tell from each other
MOST = 3  # nearest classes of each class


def relations(
    logits: Float[np.ndarray, "records classes"],
    labels: Int[np.ndarray, " records"],
    temperature: float = TEMPERATURE,
) -> Float[np.ndarray, "classes classes"]:
    """Compute the strength of the relation of each class (row) to each other one (column).

    Args:
        logits: logits of the network.
        labels: class of each record.
        temperature: T.

    Returns:
        The strengths, from 0 to 1; the diagonal, and the row of a class without records, are 0.
    """
    soft = np.asarray(logits, np.float64) / temperature
    soft = np.exp(soft - soft.max(axis=1, keepdims=True))
    soft /= soft.sum(axis=1, keepdims=True)
    classes = soft.shape[1]
    of_class = np.eye(classes)[labels]
    strengths = of_class.T @ soft / np.maximum(of_class.sum(axis=0), 1)[:, None]
    np.fill_diagonal(strengths, 0)
    return strengths


def number_of(classes: int) -> int:
    """Return how many nearest classes are compared: three, or of few classes at most half of the others."""
    return max(1, min(MOST, (classes - 1) // 2))


def nearest(strengths: Float[np.ndarray, "classes classes"], number: int = 0) -> list[list[int]]:
    """Return the nearest classes of each class, the strongest relation first; of a class without records none.

    Args:
        strengths: what `relations` returns.
        number: nearest classes of each class; 0: `number_of` the classes.
    """
    number = number or number_of(len(strengths))
    order = np.argsort(-strengths, axis=1, kind="stable")
    return [[int(j) for j in row[:number] if strengths[c, j] > 0] for c, row in enumerate(order)]


def share_kept(teacher: Sequence[Sequence[int]], model: Sequence[Sequence[int]]) -> float:
    """Return the share of a teacher's relations, as `nearest` lists them, that a model has; NaN if there are none."""
    kept = [j in model[c] for c, row in enumerate(teacher) for j in row]
    return float(np.mean(kept)) if kept else float("nan")


def edges(strengths: Float[np.ndarray, "classes classes"], number: int = 0) -> tuple[Edge, ...]:
    """Return the relations as edges of a graph, each once: `(class, class, strength)`.

    A pair is joined if one is among the nearest of the other. Its weight is the geometric mean of both strengths.

    Args:
        strengths: what `relations` returns.
        number: nearest classes of each class; 0: `number_of` the classes.
    """
    pairs = sorted({(min(c, j), max(c, j)) for c, row in enumerate(nearest(strengths, number)) for j in row})
    weights = {(a, b): float(np.sqrt(strengths[a, b] * strengths[b, a])) for a, b in pairs}
    return tuple((a, b, weight) for (a, b), weight in weights.items() if weight > 0)
