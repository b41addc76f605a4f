"""Scores for the difficulty of an example, from the probabilities that models assign.

The functions take numpy and JAX arrays (`__array_namespace__`): the scores that weigh rows in a loss also select a
transfer set. A larger score is a harder example.
"""

from typing import Any

Probabilities = Any  # `[..., classes]`, a numpy or JAX array


def entropy(p: Probabilities) -> Any:
    """Compute the Shannon entropy in nats, `[...]`: 0 for a certain prediction, log(classes) for a uniform one."""
    xp = p.__array_namespace__()
    return -xp.sum(p * xp.log(xp.where(p > 0, p, 1)), axis=-1)  # 0 log 0 is 0


def margin(p: Probabilities) -> Any:
    """Compute 1 minus the gap between the two largest probabilities, `[...]`, between 0 and 1.

    Scheffer, Decomain and Wrobel, Active hidden Markov models for information extraction, 2001.
    """
    first, second = (p.__array_namespace__().sort(p, axis=-1)[..., -place] for place in (1, 2))
    return 1 - (first - second)


def disagreement(p: Probabilities) -> Any:
    """Compute the entropy of the mean of models `[models, ..., classes]` minus the mean of their entropies, `[...]`.

    This is the Jensen-Shannon divergence in nats: 0 where all models agree, however uncertain they are, and at most
    log(models). McCallum and Nigam used it for committees (Employing EM and pool-based active learning, 1998).
    """
    xp = p.__array_namespace__()
    # for equal models, rounding gives slightly less than 0
    return xp.maximum(entropy(xp.mean(p, axis=0)) - xp.mean(entropy(p), axis=0), 0)
