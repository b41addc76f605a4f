"""How hard an example is, from the probabilities that models give it.

Arrays of numpy or of JAX alike (`__array_namespace__`): a loss weighs rows by the numbers by which a transfer set is
chosen. Larger is harder.
"""

from typing import Any

Probabilities = Any  # `[..., classes]`, of numpy or of JAX


def entropy(p: Probabilities) -> Any:
    """Shannon's, in nats, `[...]`: 0 where a model is sure, log(classes) where it knows nothing."""
    xp = p.__array_namespace__()
    return -xp.sum(p * xp.log(xp.where(p > 0, p, 1)), axis=-1)  # 0 log 0 is 0


def margin(p: Probabilities) -> Any:
    """1 less what the likeliest class is ahead of the next one, `[...]`, between 0 and 1.

    Scheffer, Decomain and Wrobel, Active hidden Markov models for information extraction, 2001.
    """
    first, second = (p.__array_namespace__().sort(p, axis=-1)[..., -place] for place in (1, 2))
    return 1 - (first - second)


def disagreement(p: Probabilities) -> Any:
    """Of models `[models, ..., classes]`: the entropy of their mean less the mean of theirs, `[...]`.

    The Jensen-Shannon divergence, in nats: 0 where all say the same, however unsure they are, and log(models) at most.
    Committees were asked for it by McCallum and Nigam (Employing EM and pool-based active learning, 1998).
    """
    xp = p.__array_namespace__()
    # rounding makes a little less than 0 of equals
    return xp.maximum(entropy(xp.mean(p, axis=0)) - xp.mean(entropy(p), axis=0), 0)
