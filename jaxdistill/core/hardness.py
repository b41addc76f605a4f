"""Scores for the difficulty of an example, computed from the class probabilities that models predict.

A larger score is a harder example. The functions take NumPy and JAX arrays (`__array_namespace__`), because the same
scores weight the examples in a loss and select the examples of a transfer set.
"""

from typing import Any

Probabilities = Any  # `[..., classes]`, a numpy or JAX array


def entropy(p: Probabilities) -> Any:
    """Compute the entropy of a prediction in nats, `-sum(p * log(p))` over the last axis.

    It is 0 if the prediction is certain, and log(classes) if it is uniform.

    Args:
        p: `[..., classes]`, probabilities.
    """
    xp = p.__array_namespace__()
    return -xp.sum(p * xp.log(xp.where(p > 0, p, 1)), axis=-1)  # 0 log 0 is 0


def margin(p: Probabilities) -> Any:
    """Compute `1 - (p1 - p2)`, where `p1 >= p2` are the two largest probabilities of a prediction.

    The score is 0 for a certain prediction, and 1 if the two largest probabilities are equal (Scheffer, Decomain and
    Wrobel, Active hidden Markov models for information extraction, 2001).

    Args:
        p: `[..., classes]`, probabilities.
    """
    first, second = (p.__array_namespace__().sort(p, axis=-1)[..., -place] for place in (1, 2))
    return 1 - (first - second)


def disagreement(p: Probabilities) -> Any:
    """Compute `entropy(mean(p)) - mean(entropy(p))` over models: the Jensen-Shannon divergence of predictions, in nats.

    It is 0 where all models agree, however uncertain they are, and at most log(models). McCallum and Nigam used it for
    committees (Employing EM and pool-based active learning, 1998).

    Args:
        p: `[models, ..., classes]`, the probabilities that each model predicts.
    """
    xp = p.__array_namespace__()
    # for equal models, rounding gives slightly less than 0
    return xp.maximum(entropy(xp.mean(p, axis=0)) - xp.mean(entropy(p), axis=0), 0)
