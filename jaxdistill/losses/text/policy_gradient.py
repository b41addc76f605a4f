"""Policy gradient of the reverse KL between texts (MiniLLM), on text sampled from the student.

Gu et al., MiniLLM, 2023 (arxiv.org/abs/2306.08543), section 2.2. For the tokens y of a text sampled from the student,
with q the student's and p the teacher's probability:

    -R_t log q(y_t),    R_t = 1 / (T - t) sum_{u > t} log p(y_u) / q(y_u)         q held constant in R

T is the number of tokens. The gradient of the reverse KL between whole texts has two parts. The first is the cost of a
token at its own position, which `reverse_kl` on the samples computes over the full vocabulary (the paper's single-step
term). The second is the cost of the tokens that follow, which is this loss. With `own=True` the sum begins at t, and
this loss gives the complete gradient, with a larger variance. The paper divides by the number of tokens, so that texts
do not get short. With `normalized=False`, the expected gradient is that of the KL between texts.

Only the gradient of this loss has a meaning, not its value. Each row of `[rows, length]` is a text, made of the tokens
that the mask selects; rows without a length are texts of one token. Each log-ratio is clipped, as published, so that a
token that the teacher masks has a finite cost.

Config: objective.policy_gradient.term = "policy_gradient()"; objective.policy_gradient.stream = "samples", beside
    objective.reverse_kl.stream = "samples", and step = "on_policy(prompt=64)"
Mean: over tokens (`reduction="token"`), as in MiniLLM (LMOps 4f2a9de, minillm/minillm/losses.py, lines 70 and 94) and
TRL (f2cd577, trl/trainer/grpo_trainer.py, line 3139, by default). For texts of unequal lengths, the gradient of the KL
between texts would need the sum over each text, which neither reduction is.
When: long answers, in which an early token can spoil all that follows.
Checked: against the exact gradient of the KL between all texts of three tokens, alone and beside `reverse_kl`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.task.cross_entropy import softmax_cross_entropy
from jaxdistill.losses.term import stateless


def returns(
    rewards: Float[Array, "*batch"], mask: Float[Array, "*batch"], include_own: bool, normalized: bool
) -> Float[Array, "*batch"]:
    """Compute each token's return: the sum or mean of the rewards of the unmasked tokens that follow in the same text.

    Args:
        rewards: reward of each token, `[rows, length]` with a text in each row, or `[rows]` for texts of one token.
        mask: not 0 for tokens that count.
        include_own: include the token's own reward.
        normalized: return the mean of the rewards instead of their sum.
    """
    valid = (mask != 0).astype(rewards.dtype)
    rewards = jnp.where(valid > 0, rewards, 0.0)
    if rewards.ndim < 2:
        return rewards if include_own else jnp.zeros_like(rewards)
    suffix_sum = lambda x: jnp.flip(jnp.cumsum(jnp.flip(x, -1), -1), -1) - (0 if include_own else x)
    return suffix_sum(rewards) / jnp.maximum(suffix_sum(valid), 1) if normalized else suffix_sum(rewards)


@losses.register
def policy_gradient(own: bool = False, normalized: bool = True, clip: float = 100.0) -> Term:
    """Build the policy-gradient loss term -R_t log q(y_t) for each token y_t of texts that the student has generated.

    The return R_t is the mean over later tokens u > t of the reward log(p(y_u) / q(y_u)), in which q is held constant.
    p and q are the teacher's and the student's probabilities. Several teachers are first combined into one by the
    config's fusion, such as `average()`.

    Args:
        own: include u = t in R_t; with the loss `reverse_kl` on the same tokens, the own reward would count twice.
        normalized: if True, R_t is the mean of the rewards, as in the paper; if False, it is their sum.
        clip: positive; rewards are clipped to the range from -clip to clip, in nats.

    Raises:
        ValueError: `clip` is not positive.
    """
    if clip <= 0:
        raise ValueError(f"clip must be above 0; got {clip}")

    def values(signals: Signals) -> Array:
        label = signals.batch["label"]
        student_loss = softmax_cross_entropy(signals.student.logits, label)  # -log q
        teacher_loss = softmax_cross_entropy(signals.teacher.logits, label)  # -log p
        rewards = jnp.clip(jax.lax.stop_gradient(student_loss) - teacher_loss, -clip, clip)  # log p - log q
        return student_loss * returns(rewards, signals.mask, own, normalized)

    return stateless(values, needs=frozenset({"teacher", "samples"}), local=False)
