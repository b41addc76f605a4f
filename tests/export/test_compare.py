"""Tests of comparing a file's outputs with those of its model: next tokens, classes and embeddings."""

import numpy as np
import pytest

from jaxdistill.core.types import Variables
from jaxdistill.export.examples import Examples
from jaxdistill.export.measure import DIVERGENCE
from jaxdistill.export.network import Network
from jaxdistill.export.output_difference import compare, token_difference

DRAW = np.random.default_rng(0)
LOGITS = DRAW.normal(0, 2, (600, 7)).astype(np.float32)  # more tokens than are compared at once
LABELS = DRAW.integers(0, 7, 600)


def test_a_constant_that_is_added_to_the_logits_of_a_token_changes_nothing():
    moved = LOGITS + DRAW.normal(0, 9, (600, 1)).astype(np.float32)
    found = token_difference(moved, LOGITS, LABELS)
    assert found.largest < 1e-6 and abs(found.divergence) < 1e-9 and found.same == 1
    assert found.accuracy == found.expected_accuracy == (LOGITS.argmax(1) == LABELS).mean()
    assert found.problem(False) == found.problem(True) == ""


def test_divergence_is_that_of_the_file_from_the_model_in_nats():
    model, file = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])), np.log(np.array([[0.25, 0.5, 0.25]] * 2))
    found = token_difference(file, model, None)
    first = 0.5 * np.log(2) + 0.25 * np.log(0.5)  # by hand
    second = 0.1 * np.log(0.4) + 0.2 * np.log(0.4) + 0.7 * np.log(2.8)
    assert found.divergence == pytest.approx((first + second) / 2) and found.same == 0
    assert found.largest == pytest.approx(np.log(2.8) / -np.log(0.1)) and found.record == 1
    assert np.isnan(found.accuracy)


def test_rounded_weights_are_bound_by_divergence_and_floats_by_their_greatest_difference():
    noise = DRAW.normal(0, 1, LOGITS.shape).astype(np.float32)
    near, far = (token_difference(LOGITS + share * noise, LOGITS, LABELS) for share in (0.05, 0.3))
    assert near.divergence < DIVERGENCE < far.divergence and near.same < 0.99
    assert near.problem(True) == "" and near.problem(False).startswith("outputs differ by")
    said = f"the distribution of the next token diverges by {far.divergence:.4f} nats from that of the model, 0.01 are"
    assert far.problem(True).startswith(said)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_a_problem(value):
    broken = LOGITS.copy()
    broken[420, 3] = value
    found = token_difference(broken, LOGITS, LABELS)
    assert found.record == 420
    assert found.problem(True) == found.problem(False) == "the output for test record 420 is not finite"


NETWORK = Network(lambda variables, rows: {}, Variables({}, {}), {}, "logits")


@pytest.mark.parametrize("per_token", [True, False])
def test_only_tokens_that_count_are_compared_and_the_record_is_that_of_the_token(per_token):
    expected = LOGITS[:24].reshape(4, 6, 7)
    real = np.arange(6) < np.array([6, 3, 4, 2])[:, None]
    outputs = np.where(real[..., None], expected, 99)
    outputs[2, 3, 0] += 0.5
    outputs[3, 5, 0] = np.nan
    inputs = {} if per_token else {"attention_mask": real.astype(np.int32)}
    examples = Examples(inputs, None, real if per_token else np.ones(4, bool))
    found = compare(NETWORK, examples, expected, outputs)
    assert found.record == 2 and 0 < found.largest < 0.5 and np.isfinite(found.divergence)


def test_classes_and_embeddings_are_compared_as_before():
    examples = Examples({}, LABELS[:5], np.array([True, False, True, True, True]))
    outputs = LOGITS[:5].copy()
    outputs[1], outputs[3, 0] = 99, outputs[3, 0] + 0.01
    found = compare(NETWORK, examples, LOGITS[:5], outputs)
    assert found.record == 3 and np.isnan(found.divergence) and found.accuracy >= 0
    vectors = compare(NETWORK._replace(output="embedding"), examples, LOGITS[:5], outputs)
    assert vectors.record == 1 and np.isnan(vectors.same)
