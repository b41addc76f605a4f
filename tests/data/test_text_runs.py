"""Tests of runs on text: similarity of layers despite padding, runs on sentences and documents, an early error."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from corpora import WORDS, Labelled, documents, sentences, written
from flax import nnx

import jaxdistill
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.registry import datasets
from jaxdistill.core.registry import models as networks
from jaxdistill.core.types import Outputs, Variables
from jaxdistill.data import evaluation_batches, open_records
from jaxdistill.data.text.unigram import unigram_nll
from jaxdistill.evaluation.evaluator import evaluator
from jaxdistill.fusion.average import average
from jaxdistill.models.nnx import from_nnx


def letters(split: str, size: int = 64):
    """Build texts in which a letter determines the next one, and the first one determines the label."""
    alphabet = ("a b c d e f g " * 3).split()
    texts = (" ".join(alphabet[i % 7 : i % 7 + 4 + i % 8]) for i in range(size))
    return Labelled({"text": text, "label": i % 7 % 2} for i, text in enumerate(texts))


def bag(classes: int, width: int = 8):
    """Build a network that classifies a text by the mean of its word embeddings."""
    return reader(classes, width, pooled=True)


def bigram(classes: int, width: int = 8):
    """Build a network that predicts each next word from the current word alone."""
    return reader(classes, width, pooled=False)


def reader(classes: int, width: int, pooled: bool):
    class Reader(nnx.Module):
        def __init__(self, rngs):
            self.words = nnx.Embed(12, width, rngs=rngs)
            self.head = nnx.Linear(width, classes, rngs=rngs)

        def __call__(self, batch, *, train, key):
            states = self.words(batch["input_ids"])
            top = states
            if pooled:
                real = batch["attention_mask"][..., None]
                top = jnp.sum(states * real, 1) / jnp.maximum(jnp.sum(real, 1), 1)
            return Outputs(self.head(top), (states, states))

    return from_nnx(lambda rngs, batch: Reader(rngs))


@pytest.fixture(autouse=True, scope="module")
def registered():
    datasets.register(letters)
    for factory in (bag, bigram):
        networks.register(factory)


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("words"), WORDS)


# Runs


def test_the_likeness_of_layers_does_not_see_padding(words, tmp_path):
    """Check that CKA is the same with more padding, which would otherwise look like a similarity of two networks."""
    networks = [bag(2), bag(2, width=4)]
    found = []
    for length in (13, 26):  # both are enough for every text
        records = open_records("letters(size=10)", "train", tmp_path, "data", "train", sentences(words, length))
        batch = next(evaluation_batches(records, batch_size=16, rows=slice(16)))
        student, teacher = (Variables(*n.init(jax.random.key(i), batch)) for i, n in enumerate(networks))
        measure = evaluator(networks[0], networks[1:], average(), ((-1, -1),))
        params, state = {"student": student.params}, {"student": student.state}
        found.append(jax.jit(measure)(params, state, (teacher,), batch)["cka/-1:-1"])
    jax.tree.map(lambda short, long: np.testing.assert_allclose(short, long, rtol=1e-4), *found)
    assert 0 < found[0].compute() < 1


def config(words: Path, folder: Path, **differences):
    data = {"name": "letters", "folder": str(folder), "test": "test", **differences.pop("data")}
    common = {"batch_size": 8, "control": False, "rate": 0.05, "mesh": {"data": 1}, "logging": {"tensorboard": False}}
    return jaxdistill.make(**common, evaluate={"batch_size": 8, "every": 40}, data=data, **differences)


def test_a_run_on_sentences(words, tmp_path):
    learned = config(
        words,
        tmp_path,
        steps=20,
        student={"model": "bag(classes=2)"},
        teachers={"wide": {"model": "bag(classes=2, width=16)", "steps": 20}},
        objective={"kd": {}, "hidden": {"term": "hidden(layers='last')"}, "raters": {"term": "cross_entropy"}},
        data={"tokens": sentences(words, 9)},
    )
    rows = jaxdistill.distill(learned, tmp_path / "run").rows
    assert [row["name"] for row in rows] == ["teacher wide", "student"]
    assert all(np.isfinite(row["nll"]) and row.get("perplexity") is None for row in rows)


def test_a_run_on_running_text_beats_the_unigram_model(words, tmp_path):
    learned = config(
        words,
        tmp_path,
        steps=40,
        student={"model": "bigram(classes=12)"},
        objective={"cross_entropy": {}},
        data={"tokens": documents(words, 16)},
    )
    (row,) = jaxdistill.distill(learned, tmp_path / "run").rows
    records = open_records("letters", "test", tmp_path, "data", "test", documents(words, 16))
    unigram = unigram_nll(records, records, 12)
    assert row["perplexity"] == pytest.approx(np.exp(row["nll"])) and row["nll"] < 0.5 < unigram
    assert row["accuracy"] > 0.95  # each letter determines the next one


def test_a_run_reports_what_is_wrong_before_it_compiles(words, tmp_path):
    wrong = config(
        words,
        tmp_path,
        student={"model": "bag(classes=2)"},
        objective={"raters": {"term": "cross_entropy(target='label_probs')"}},
        data={"tokens": sentences(words, 9)},
    )
    with pytest.raises(ConfigError, match=r"objective.raters: the batch has no field 'label_probs'; it has attention"):
        jaxdistill.distill(wrong, tmp_path / "run")
