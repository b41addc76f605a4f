"""Compute the relations between classes that a network has learned: which other classes it finds probable for a class.

    A[c, j] = mean over the records of class c of softmax(logits / T)[j], for j != c

A[c, j] is the strength of the relation from class c to class j. The nearest classes of c have the largest strengths in
row c. A student keeps a relation of its teacher if it has the same class among the nearest ones. Two networks that
learned from the same labels share many relations; compare with a control (the student's network trained on labels).
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
    """Compute how strongly a network relates each class (row) to each other class (column).

    The strength is the mean probability, at temperature T, of the column's class over the records of the row's class.

    Args:
        logits: logits of the network.
        labels: class of each record.
        temperature: T, by which the logits are divided before the softmax.

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
    """Return the number of nearest classes to compare: 3, but at most half of the other classes, and at least 1."""
    return max(1, min(MOST, (classes - 1) // 2))


def nearest(strengths: Float[np.ndarray, "classes classes"], number: int = 0) -> list[list[int]]:
    """Return a list of the nearest classes (those with the strongest relation) for each class, the nearest one first.

    The list of a class without records is empty.

    Args:
        strengths: strengths of the relations between classes, from `relations`.
        number: number of nearest classes of each class; 0 means the number from `number_of`.
    """
    number = number or number_of(len(strengths))
    order = np.argsort(-strengths, axis=1, kind="stable")
    return [[int(j) for j in row[:number] if strengths[c, j] > 0] for c, row in enumerate(order)]


def share_kept(teacher: Sequence[Sequence[int]], model: Sequence[Sequence[int]]) -> float:
    """Return the share of a teacher's relations between classes that a model has too; NaN if the teacher has none.

    Args:
        teacher, model: the nearest classes of each class, from `nearest`.
    """
    kept = [j in model[c] for c, row in enumerate(teacher) for j in row]
    return float(np.mean(kept)) if kept else float("nan")


def edges(strengths: Float[np.ndarray, "classes classes"], number: int = 0) -> tuple[Edge, ...]:
    """Return the relations between classes as edges of an undirected graph, tuples `(class, class, weight)`.

    Two classes are joined if one is among the nearest classes of the other. The weight is the geometric mean of the
    strengths in both directions; edges with the weight 0 are left out.

    Args:
        strengths: strengths of the relations between classes, from `relations`.
        number: number of nearest classes of each class; 0 means the number from `number_of`.
    """
    pairs = sorted({(min(c, j), max(c, j)) for c, row in enumerate(nearest(strengths, number)) for j in row})
    weights = {(a, b): float(np.sqrt(strengths[a, b] * strengths[b, a])) for a, b in pairs}
    return tuple((a, b, weight) for (a, b), weight in weights.items() if weight > 0)
