"""Measure the information about a teacher, in bits, that a model's outputs add to labels and label-trained networks.

Accuracy and agreement do not tell a distilled network from one that learned from labels; this measure does. It is a
conditional V-information with linear predictors V. Two ridge regressions predict the teacher's centred
log-probabilities, with the cross-validated residuals

    E0    from the label and the log-probabilities of the known networks
    E1    from the same inputs and the outputs of the model

The result is `bits = sum_c 1/2 log2(mean E0_c^2 / mean E1_c^2)` per record, a sum over the classes c. The bits of one
record are its gain in log-likelihood under normal residuals, whose mean over the records is `bits`.

Known networks are those whose information does not count, usually networks trained on labels alone. Without them, an
ordinary control (the student's network trained on labels) scores high. To tell two teachers apart, make the students of
the other teacher known too. An untrained network scores above zero, because its outputs are new to the regression: its
score is the floor.

Sources: Xu et al., A Theory of Usable Information Under Computational Constraints, 2020 (arxiv.org/abs/2002.10689);
Hewitt et al., Conditional probing, 2021 (arxiv.org/abs/2109.09234); of a record: Ethayarajh et al., Understanding
Dataset Difficulty with V-Usable Information, 2022 (arxiv.org/abs/2110.08420).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

FOLDS, PENALTY = 5, 3.0
LEAST = 1e-12  # mean squared residual of a class that is predicted perfectly, relative to its variance
MOST_COLUMNS = 8192  # largest number of columns of a regression; its time grows with their cube


class Bits(NamedTuple):
    """The information about a teacher that a model's outputs add to labels and known networks, in bits per record.

    total: bits over all classes
    low, high: limits of the 95 % confidence interval of the total, over the records
    by_class: bits of each class's log-probability, `[classes]`; their sum is the total
    by_record: bits of each record, `[records]`; their mean is the total
    """

    total: float
    low: float
    high: float
    by_class: Float[np.ndarray, " classes"]
    by_record: Float[np.ndarray, " records"]


def bits_beyond(
    teacher: Float[np.ndarray, "records classes"],
    outputs: Float[np.ndarray, "records columns"],
    known: Sequence[Float[np.ndarray, "records _"]],
    labels: Int[np.ndarray, " records"],
    seed: int = 0,
) -> Bits:
    """Compute the bits about a teacher's log-probabilities that a model's outputs add to labels and known networks.

    Two ridge regressions predict the log-probabilities, without and with the outputs of the model. The bits measure how
    much smaller the cross-validated residuals of the second one are; see the module.

    Args:
        teacher: logits of the teacher.
        outputs: outputs of the model: its logits, or the units of a layer.
        known: logits of each known network, which learned from labels alone, or from another teacher.
        labels: class of each record.
        seed: random seed of the division into folds.

    Raises:
        ValueError: there are fewer than two records for each fold, or too many columns.
    """
    if len(labels) < 2 * FOLDS:
        raise ValueError(f"{len(labels)} test records; give at least {2 * FOLDS}")
    one_hot = np.eye(teacher.shape[1])[labels]
    before = np.concatenate([one_hot, *map(centred, known)], axis=1)
    after = np.concatenate([before, np.asarray(outputs, np.float64)], axis=1)
    if after.shape[1] > MOST_COLUMNS:
        raise ValueError(f"{after.shape[1]} classes and units, over all networks; at most {MOST_COLUMNS} are possible")
    folds = np.random.default_rng(seed).permutation(len(labels)) % FOLDS
    targets = centred(teacher)
    squares = [residuals(targets, columns, folds) ** 2 for columns in (before, after)]
    least = LEAST * targets.var(axis=0) + np.finfo(np.float64).tiny
    first, second = (np.maximum(each.mean(axis=0), least) for each in squares)
    by_class = 0.5 * np.log2(first / second)
    gain = (squares[0] / first - squares[1] / second) / (2 * np.log(2))
    by_record = (by_class + gain).sum(axis=1)
    total, error = float(by_class.sum()), 1.96 * float(by_record.std(ddof=1)) / len(labels) ** 0.5
    return Bits(total, total - error, total + error, by_class, by_record)


def centred(logits: Float[np.ndarray, "records classes"]) -> Float[np.ndarray, "records classes"]:
    """Centre logits: subtract their mean over the classes, in float64. Log-probabilities give the same result."""
    logits = np.asarray(logits, np.float64)
    return logits - logits.mean(axis=1, keepdims=True)


def residuals(
    targets: Float[np.ndarray, "records classes"],
    columns: Float[np.ndarray, "records columns"],
    folds: Int[np.ndarray, " records"],
) -> Float[np.ndarray, "records classes"]:
    """Return the cross-validated residuals of a ridge regression of `targets` on `columns`.

    The residuals of each fold are those of a regression fitted on the other folds. Columns are standardised; a column
    that is constant in the other folds, to float32's precision, is left out.
    """
    residual = np.empty_like(targets)
    for fold in range(FOLDS):
        held_out = folds == fold
        others = columns[~held_out]
        mean, spread = others.mean(axis=0), others.std(axis=0)
        varies = spread > np.finfo(np.float32).eps * np.abs(others).max(axis=0)
        scaled = (columns - mean) * np.where(varies, 1 / np.where(varies, spread, 1), 0)
        middle, x = targets[~held_out].mean(axis=0), scaled[~held_out]
        weights = np.linalg.solve(x.T @ x + PENALTY * np.eye(x.shape[1]), x.T @ (targets[~held_out] - middle))
        residual[held_out] = targets[held_out] - middle - scaled[held_out] @ weights
    return residual
