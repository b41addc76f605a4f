"""Compare the outputs of an exported file with those of its model, for the examples or tokens that count."""

import jax
import numpy as np

from jaxdistill.export.examples import Examples
from jaxdistill.export.measure import Difference, difference
from jaxdistill.export.network import LOGITS, Network
from jaxdistill.export.process import full_batches

TOKENS_AT_ONCE = 256  # whose distributions are compared, so that few are in memory in float64


def outputs_of(network: Network, examples: Examples, size: int) -> np.ndarray:
    """Compute the outputs of a model for all examples, `[examples, ...]`, in batches of `size`."""
    run_batch = jax.jit(network.function)
    batches = full_batches(examples.inputs, size)
    return np.concatenate([np.asarray(run_batch(batch)) for batch in batches])[: len(examples.counts)]


def compare(network: Network, examples: Examples, expected: np.ndarray, outputs: np.ndarray) -> Difference:
    """Return the difference between the outputs of an exported file and those of its model, over unmasked examples.

    Args:
        network: the model as a function of a batch.
        examples: the test records, with their labels and the mask of those that count.
        expected, outputs: outputs of the model and of the file, `[examples, ...]`.
    """
    if network.output != LOGITS:
        return difference(outputs, expected, None, False)
    counts, labels, is_language_model = examples.counts, examples.labels, outputs.ndim == 3
    if is_language_model and counts.ndim == 1:  # examples count, and of their tokens those that are no padding
        counts = counts[:, None] & (examples.inputs.get("attention_mask", np.ones(outputs.shape[:2])) > 0)
    chosen = labels[counts] if labels is not None and labels.shape == counts.shape else None
    if is_language_model:
        result = token_difference(outputs[counts], expected[counts], chosen)
    else:
        result = difference(outputs[counts], expected[counts], chosen, True)
    return result._replace(record=int(np.argwhere(counts)[result.record][0]))


def token_difference(outputs: np.ndarray, expected: np.ndarray, labels: np.ndarray | None) -> Difference:
    """Compare the next-token distributions of an exported language model with those of the model itself.

    They are compared as log-probabilities, because a constant that is added to all logits of a token changes nothing.
    The greatest difference is a share of the model's greatest logit.

    Args:
        outputs, expected: logits, or log-probabilities, of the file and of the model, `[tokens, vocabulary]`.
        labels: the next token of each token, `[tokens]`; None without labels.
    """
    errors, divergences = [], []
    for start in range(0, len(expected), TOKENS_AT_ONCE):
        part = slice(start, start + TOKENS_AT_ONCE)
        ours, theirs = _log_probabilities(expected[part]), _log_probabilities(outputs[part])
        errors.append(np.abs(theirs - ours).max(1))
        divergences.append((np.exp(ours) * (ours - theirs)).sum(1))
    worst = np.nan_to_num(np.concatenate(errors), nan=np.inf)
    record, scale = int(worst.argmax()), max(float(np.abs(expected).max()), 1e-30)
    answers, expected_answers = outputs.argmax(-1), expected.argmax(-1)
    share = lambda chosen: float("nan") if labels is None else float((chosen == labels).mean())
    return Difference(
        float(worst[record] / scale),
        record,
        float((answers == expected_answers).mean()),
        share(answers),
        share(expected_answers),
        float(np.concatenate(divergences).mean()),
    )


def _log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Return log-probabilities in float64, `[tokens, vocabulary]`; a row with NaN or plus infinity becomes NaN."""
    with np.errstate(invalid="ignore"):  # inf - inf, where both have an infinite logit
        shifted = np.float64(logits) - logits.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
