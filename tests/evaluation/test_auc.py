"""Tests of the area under the ROC curve (AUC): by its definition over pairs, over batches, and in reports."""

import jax.numpy as jnp
import numpy as np

from jaxdistill.core.interfaces import Model
from jaxdistill.core.types import Outputs
from jaxdistill.evaluation import metrics
from jaxdistill.evaluation.evaluator import evaluator, scores, totals
from jaxdistill.evaluation.report.exports import circumstances, table
from jaxdistill.export.measure import difference


def by_pairs(score: np.ndarray, label: np.ndarray) -> float:
    gaps = score[label == 1][:, None] - score[label == 0][None]
    return float(((gaps > 0) + 0.5 * (gaps == 0)).mean())


def test_it_is_the_share_of_pairs_in_order_with_ties_as_halves():
    draw = np.random.default_rng(0)
    label, score = draw.integers(0, 2, 60), np.round(draw.normal(size=60), 1)
    np.testing.assert_allclose(metrics.roc_auc(score, label), by_pairs(score, label), rtol=1e-12)
    assert len(set(score)) < 60  # there are ties
    assert metrics.roc_auc(score + 9.0 * label, label) == 1.0 and metrics.roc_auc(-label, label) == 0.0
    assert np.isnan(metrics.roc_auc(score, np.ones(60)))


def test_batches_are_ranked_together_without_the_rows_that_fill_a_batch():
    label, score = np.array([0, 1, 0, 1, 1]), np.array([1.0, 0.5, 3.0, 2.0, 9.0])
    batches = [
        {"auc": metrics.Ranking({"score": jnp.array(s), "label": jnp.array(y)}, jnp.array(m))}
        for s, y, m in ((score[:3], label[:3], [1, 1, 1]), ([2.0, 9.0, -50.0], [1, 1, 1], [1, 1, 0]))
    ]
    total = totals(batches)
    assert isinstance(total["auc"], metrics.Ranking)
    assert scores(total) == {"auc": by_pairs(score, label)}


def test_a_file_has_its_own():
    """Check that an exported file has an AUC of its own, and that the table of exports shows it."""
    labels, expected = np.array([0, 1, 0, 1]), np.float32([[0, -1], [0, 1], [0, 0.5], [0, 0.2]])
    compared = difference(expected[:, ::-1], expected, labels, True)
    assert (compared.expected_auc, compared.auc) == (0.75, 0.25)
    assert np.isnan(difference(expected, expected, None, True).auc)
    latency = {"median": 1.0, "low": 1.0, "high": 1.0}
    entry = {"model": "student", "name": "onnx", "runtime": "x", "records": 4, "processor": "p", "threads": 1}
    plain = {name: None if value != value else value for name, value in compared._asdict().items()}
    entry["measured"] = {**plain, "bytes": 10, "latency_ms": latency, "memory": 2**20}
    heading, row = table([entry])
    assert "KL" not in heading and row[heading.index("AUC")] == "0.2500"
    assert "AUC: area under" in circumstances([entry]) and "KL:" not in circumstances([entry])


def test_an_evaluation_ranks_by_the_difference_of_the_logits():
    logits = np.float32([[5, 5.5], [0, 1], [3, 1], [9, 10]])  # their AUC: 0.625
    label = np.array([1, 0, 0, 1])
    model = Model(lambda key, batch: ({}, {}), lambda p, s, batch, *, train, key: (Outputs(batch["x"], ()), s))
    rows = {"x": jnp.asarray(logits), "label": jnp.asarray(label), "mask": jnp.ones(4)}
    found = evaluator(model, (), None, ())({"student": {}}, {"student": {}}, (), rows)
    expected = by_pairs(logits[:, 1] - logits[:, 0], label)
    assert scores({"auc": found["auc"]})["auc"] == expected == 0.625 != by_pairs(logits[:, 1], label)
