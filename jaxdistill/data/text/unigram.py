"""The unigram baseline for language models: predict tokens by their frequency."""

import numpy as np

from jaxdistill.data.records import Records
from jaxdistill.data.stream import evaluation_batches

BATCH_SIZE = 1024  # rows that are read at once


def unigram_nll(train: Records, test: Records, vocabulary: int, smoothing: float = 1.0) -> float:
    """Compute the negative log-likelihood of the test tokens under the training frequencies, in nats per token.

    Args:
        train: records from `documents`, with `label` and `mask` `[rows, length]`.
        test: the same.
        vocabulary: number of tokens.
        smoothing: added to the count of every token (Laplace); positive.
    """
    train_counts, test_counts = _counts(train, vocabulary), _counts(test, vocabulary)
    log_p = np.log(train_counts + smoothing) - np.log(train_counts.sum() + smoothing * vocabulary)
    return float(-(test_counts * log_p).sum() / test_counts.sum())


def _counts(records: Records, vocabulary: int) -> np.ndarray:
    """Count how often each token is an unmasked label, `[vocabulary]`."""
    total = np.zeros(vocabulary)
    for batch in evaluation_batches(records, batch_size=BATCH_SIZE, rows=slice(BATCH_SIZE)):
        total += np.bincount(batch["label"].ravel(), batch["mask"].ravel(), minlength=vocabulary)
    return total
