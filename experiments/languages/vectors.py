"""Vectors of sentences from all-MiniLM-L6, and a linear head on vectors, for studies of embeddings."""

from collections.abc import Sequence

import jax
import numpy as np

from jaxdistill.core.registry import tokenizations
from jaxdistill.core.types import Variables
from jaxdistill.data.text import tokenizer
from jaxdistill.data.text.tokens import joined
from jaxdistill.models.build import build_model
from jaxdistill.run.presets.text import MINILM

PENALTY = 1.0  # of the ridge regression, for vectors of unit norm
ROWS = 256  # texts of a batch


def sentence_vectors(texts: Sequence[str], length: int = 16) -> np.ndarray:
    """Return the embeddings of English texts by all-MiniLM-L6, `[texts, 384]`, of unit norm.

    Args:
        texts: the texts.
        length: tokens of a text; longer ones are cut.
    """
    tokenization = tokenizations.build(f"sentences(tokenizer={MINILM!r}, length={length})", "tokens")
    columns = {"text": np.array([*texts, *[""] * (-len(texts) % ROWS)], object)}  # whole batches, so one program
    rows = joined(tokenization.encode(tokenizer.load(tokenization.file), iter([columns]))).columns
    rows |= {"mask": np.ones(len(columns["text"]), np.float32)}
    batches = [
        {name: x[start : start + ROWS] for name, x in rows.items()} for start in range(0, len(rows["mask"]), ROWS)
    ]
    model, key = build_model(f"pretrained({MINILM!r}, classes=0)", "model", "float32"), jax.random.key(0)
    values = model.load(Variables(*jax.eval_shape(model.init, key, batches[0]))).read()
    apply = jax.jit(
        lambda values, rows: model.apply(values.params, values.state, rows, train=False, key=key)[0].embedding
    )
    return np.concatenate([np.asarray(apply(values, batch)) for batch in batches])[: len(texts)]


def linear_head(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the weights of a linear head, `[width + 1, classes]`: ridge regression of one-hot labels.

    Args:
        vectors: `[records, width]`, scaled to unit norm here.
        labels: classes, `[records]`.
    """
    rows = _with_one(vectors)
    wanted = np.eye(labels.max() + 1)[labels]
    return np.linalg.solve(rows.T @ rows + PENALTY * np.eye(rows.shape[1]), rows.T @ wanted)


def accuracy(weights: np.ndarray, vectors: np.ndarray, labels: np.ndarray) -> float:
    """Return how often a linear head finds the label of a vector, in percent."""
    return 100 * float(np.mean((_with_one(vectors) @ weights).argmax(axis=1) == labels))


def _with_one(vectors: np.ndarray) -> np.ndarray:
    """Scale vectors to unit norm in float64, and append a constant, which is multiplied by the bias."""
    vectors = np.asarray(vectors, np.float64)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.concatenate([vectors, np.ones((len(vectors), 1))], axis=1)
