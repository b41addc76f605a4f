"""Tests of `bits_beyond`, the bits about a teacher that outputs add to labels and known networks."""

import numpy as np
import pytest
from scipy import stats

from jaxdistill.evaluation.interpret import bits
from jaxdistill.evaluation.interpret.bits import bits_beyond, centred, residuals

DRAW = np.random.default_rng(0)
RECORDS, CLASSES = 400, 4
LABELS = DRAW.integers(0, CLASSES, RECORDS)
DARK = DRAW.normal(size=(RECORDS, CLASSES))  # what the teacher knows beyond the label
TEACHER = 5 * np.eye(CLASSES)[LABELS] + DARK
KNOWN = [5 * np.eye(CLASSES)[LABELS] + DRAW.normal(size=(RECORDS, CLASSES)) for _ in range(3)]


def noisy(size: float) -> np.ndarray:
    """Return the teacher's logits plus normal noise of a given standard deviation."""
    return TEACHER + size * DRAW.normal(size=DARK.shape)


def test_bits_of_a_noisy_copy_are_those_of_the_theory():
    """Check the bits against theory: noise of size s leaves s^2 / (1 + s^2) of the variance of a normal variable."""
    for size in (0.5, 1.0):
        expected = CLASSES / 2 * np.log2(1 + size**-2)
        found = bits_beyond(TEACHER, noisy(size), KNOWN, LABELS)
        assert found.total == pytest.approx(expected, rel=0.1)
        np.testing.assert_allclose(found.by_class, expected / CLASSES, rtol=0.25)


def test_labels_noise_and_a_known_network_are_worth_nothing():
    for outputs in (np.eye(CLASSES)[LABELS], DRAW.normal(size=DARK.shape), KNOWN[1]):
        assert bits_beyond(TEACHER, outputs, KNOWN, LABELS).total == pytest.approx(0, abs=0.1)


def test_what_another_student_has_is_not_counted_twice():
    student = noisy(0.5)
    alone, beyond = (bits_beyond(TEACHER, student, known, LABELS).total for known in (KNOWN, [*KNOWN, noisy(0.5)]))
    assert 0 < beyond < 0.5 * alone


def test_bits_of_records_have_the_mean_of_all_and_find_those_that_were_understood():
    half = np.arange(RECORDS) < RECORDS // 2
    outputs = np.where(half[:, None], noisy(0.1), 5 * np.eye(CLASSES)[LABELS])
    found = bits_beyond(TEACHER, outputs, KNOWN, LABELS)
    assert found.by_record.mean() == pytest.approx(found.total) == pytest.approx(found.by_class.sum())
    assert found.low < found.total < found.high
    assert found.by_record[half].mean() > found.by_record[~half].mean() + 1


def test_a_class_that_was_not_learned_has_no_bits():
    outputs = noisy(0.2)
    outputs[:, 2] = KNOWN[0][:, 2]
    by_class = bits_beyond(TEACHER, outputs, KNOWN, LABELS).by_class
    assert by_class.argmin() == 2


def test_more_columns_without_content_do_not_help():
    """Check that 100 columns of noise add no bits; in a regression without folds they would explain a quarter."""
    outputs = DRAW.normal(size=(RECORDS, 100))
    assert bits_beyond(TEACHER, outputs, KNOWN, LABELS).total < 0.1


def test_residuals_are_of_other_records_by_hand():
    folds = np.arange(10) % bits.FOLDS
    targets, columns = DRAW.normal(size=(10, 2)), np.concatenate([DRAW.normal(size=(10, 1)), np.ones((10, 1))], axis=1)
    found = residuals(targets, columns, folds)
    train = folds != 3
    x = (columns[:, 0] - columns[train, 0].mean()) / columns[train, 0].std()
    slope = x[train] @ (targets[train] - targets[train].mean(0)) / (x[train] @ x[train] + bits.PENALTY)
    np.testing.assert_allclose(found[3], targets[3] - targets[train].mean(0) - x[3] * slope)


def test_a_unit_that_is_constant_but_in_one_record_is_left_out():
    """Check that a unit with one odd value adds no bits; in the other folds, rounding gives it a spread of 1e-19."""
    unit = np.full((RECORDS, 1), 0.001)
    unit[7] = 1.0
    without, also = (bits_beyond(TEACHER, x, KNOWN, LABELS).total for x in (noisy(0.5), np.c_[noisy(0.5), unit]))
    assert also == pytest.approx(without, abs=0.5) and without > 3


def test_bits_of_a_record_are_the_ratio_of_two_normal_densities_and_the_interval_is_of_their_mean():
    outputs, targets = noisy(0.5), centred(TEACHER)
    found = bits_beyond(TEACHER, outputs, KNOWN, LABELS)
    folds = np.random.default_rng(0).permutation(RECORDS) % bits.FOLDS
    known = np.concatenate([np.eye(CLASSES)[LABELS], *map(centred, KNOWN)], axis=1)
    left = [residuals(targets, x, folds) for x in (known, np.c_[known, outputs])]
    density = [stats.norm.logpdf(x, scale=np.sqrt((x**2).mean(0))) for x in left]
    by_record = (density[1] - density[0]).sum(1) / np.log(2)
    np.testing.assert_allclose(found.by_record, by_record, rtol=1e-6, atol=1e-9)
    error = 1.96 * by_record.std(ddof=1) / np.sqrt(RECORDS)
    assert (found.total, found.high - found.low) == pytest.approx((by_record.mean(), 2 * error))


def test_another_seed_divides_the_records_otherwise():
    outputs = noisy(0.5)
    one, again, other = (bits_beyond(TEACHER, outputs, KNOWN, LABELS, seed=n).total for n in (0, 0, 1))
    assert one == again != other and other == pytest.approx(one, rel=0.1)


def test_logits_and_log_probabilities_are_the_same():
    log_probabilities = TEACHER - np.log(np.exp(TEACHER).sum(1, keepdims=True))
    np.testing.assert_allclose(centred(TEACHER), centred(log_probabilities), atol=1e-12)


def test_too_few_records_and_too_many_columns_are_refused():
    with pytest.raises(ValueError, match="9 test records; give at least 10"):
        bits_beyond(TEACHER[:9], TEACHER[:9], [], LABELS[:9])
    with pytest.raises(ValueError, match="at most 8192 are possible"):
        bits_beyond(TEACHER, np.zeros((RECORDS, 9000)), [], LABELS)
