"""The model that every language model must beat: tokens by their frequency alone."""

import numpy as np

from jaxdistill.data.records import Records
from jaxdistill.data.stream import evaluation_batches

ROWS = 1024  # that are read at once


def unigram_nll(train: Records, test: Records, vocabulary: int, smoothing: float = 1.0) -> float:
    """Negative log-likelihood of the test tokens under the training tokens' frequencies, in nats per token.

    Args:
        train: as `documents` makes them: `label` and `mask` `[rows, length]`.
        test: the same.
        vocabulary: how many tokens there are.
        smoothing: counted for every token beside what was seen (Laplace); positive.
    """
    seen, asked = _counts(train, vocabulary), _counts(test, vocabulary)
    log_p = np.log(seen + smoothing) - np.log(seen.sum() + smoothing * vocabulary)
    return float(-(asked * log_p).sum() / asked.sum())


def _counts(records: Records, vocabulary: int) -> np.ndarray:
    """How often each token is a label that counts, `[vocabulary]`."""
    total = np.zeros(vocabulary)
    for batch in evaluation_batches(records, batch_size=ROWS, rows=slice(ROWS)):
        total += np.bincount(batch["label"].ravel(), batch["mask"].ravel(), minlength=vocabulary)
    return total
