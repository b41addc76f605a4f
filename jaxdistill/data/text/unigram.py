"""The unigram baseline for language models: predict tokens by their frequency."""

import numpy as np

from jaxdistill.data.records import Records
from jaxdistill.data.stream import evaluation_batches

BATCH_SIZE = 1024  # rows that are read at once


def unigram_nll(train: Records, test: Records, vocabulary: int, smoothing: float = 1.0) -> float:
    """Compute the mean negative log-likelihood of the test tokens under a unigram model, in nats per token.

    The model predicts a token with its smoothed frequency in the training texts, whatever the context is:
    `p = (count + smoothing) / (sum(count) + smoothing * vocabulary)`.

    Args:
        train: training texts that the tokenization `documents` tokenised, with the fields `label` and `mask`.
        test: test texts, tokenised in the same way.
        vocabulary: vocabulary size of the tokenizer.
        smoothing: number that is added to the count of every token (Laplace smoothing); positive.
    """
    train_counts, test_counts = _counts(train, vocabulary), _counts(test, vocabulary)
    log_p = np.log(train_counts + smoothing) - np.log(train_counts.sum() + smoothing * vocabulary)
    return float(-(test_counts * log_p).sum() / test_counts.sum())


def _counts(records: Records, vocabulary: int) -> np.ndarray:
    """Count how often each token of the vocabulary is an unmasked label, `[vocabulary]`."""
    total = np.zeros(vocabulary)
    for batch in evaluation_batches(records, batch_size=BATCH_SIZE, rows=slice(BATCH_SIZE)):
        total += np.bincount(batch["label"].ravel(), batch["mask"].ravel(), minlength=vocabulary)
    return total
