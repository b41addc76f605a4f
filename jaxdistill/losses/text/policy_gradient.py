"""Policy gradient: a token of the student's own text is rewarded by what the teacher thinks of all that followed.

Gu et al., MiniLLM, 2023 (arxiv.org/abs/2306.08543), section 2.2. With q of the student and p of the teacher, of the
tokens y of a text that the student wrote:

    -R_t log q(y_t),    R_t = 1 / (T - t) sum_{u > t} log p(y_u) / q(y_u)         q held constant in R

The reverse KL between whole texts has two gradients: what a token costs at its own place, which `reverse_kl` on the
samples takes over the full vocabulary (the paper's single-step term), and what it leads to, which is this. With `own`
the sum begins at t, and this is the whole gradient, of larger variance. The paper divides by the number of tokens, lest
texts get short; not `normalized`, it is the gradient of the KL between texts, in expectation.

Its value means nothing. It reads the rows of `[rows, length]` as texts, of the tokens that the mask counts; a batch of
rows alone is one of texts of one token. Each log-ratio is clipped, as published: a token that the teacher masks has a
price.

Config: objective.policy_gradient.term = "policy_gradient()"; objective.policy_gradient.stream = "samples", beside
    objective.reverse_kl.stream = "samples", and step = "on_policy(prompt=64)"
When: long answers, in which a token early spoils what comes.
Checked: against the exact gradient of the KL between all texts of three tokens, alone and beside `reverse_kl`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals, Term
from jaxdistill.losses.task.cross_entropy import softmax_cross_entropy
from jaxdistill.losses.term import stateless


def returns(
    rewards: Float[Array, "*batch"], mask: Float[Array, "*batch"], own: bool, normalized: bool
) -> Float[Array, "*batch"]:
    """The sum (or mean) of the rewards that follow each token in its row, of those that count; its own too, or not."""
    counts = (mask != 0).astype(rewards.dtype)
    kept = jnp.where(counts > 0, rewards, 0.0)
    if rewards.ndim < 2:
        return kept if own else jnp.zeros_like(kept)
    onward = lambda x: jnp.flip(jnp.cumsum(jnp.flip(x, -1), -1), -1) - (0 if own else x)
    return onward(kept) / jnp.maximum(onward(counts), 1) if normalized else onward(kept)


@losses.register
def policy_gradient(own: bool = False, normalized: bool = True, clip: float = 100.0) -> Term:
    """Log-probabilities of the student's own tokens, weighed by what followed them.

    Args:
        own: a token's own reward counts too; beside `reverse_kl` on the same tokens it would count twice.
        normalized: R is a mean, as the paper has it; else a sum.
        clip: the largest log-ratio of a token, in nats, positive.

    Raises:
        ValueError: `clip` is not positive.
    """
    if clip <= 0:
        raise ValueError(f"clip is above 0; got {clip}")

    def values(signals: Signals) -> Array:
        label = signals.batch["label"]
        student, teacher = (softmax_cross_entropy(said.logits, label) for said in (signals.student, signals.teacher))
        rewards = jnp.clip(jax.lax.stop_gradient(student) - teacher, -clip, clip)  # log p - log q
        return student * returns(rewards, signals.mask, own, normalized)

    return stateless(values, needs=frozenset({"teacher"}), local=False)
