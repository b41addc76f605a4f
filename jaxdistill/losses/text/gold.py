"""A teacher of another tokenizer: shared tokens compared as such, the others by rank, wherever both have read the same.

Hugging Face, Unlocking On-Policy Distillation for Any Model Family, 2025
(huggingfaceh4-on-policy-distillation.hf.space), the trainer GOLD of TRL; upon Boizard et al., Universal Logit
Distillation, 2024 (arxiv.org/abs/2402.12030). From one place where tokens of both models end to the next reaches a span
(`losses/alignment.py`). With m_s, m_t the measures of what may end it:

    one token each:    w T^2 D_b(m_s, m_t) over shared tokens + v sum |sort m_t - sort m_s| over the others
    more tokens:       v sum |sort m_t - sort m_s| over all

D is the generalised Jensen-Shannon divergence of `jsd`, summed over shared tokens only. Where the tokenizers are the
same, all of it is D: at b = 0 it is `kd`, exactly.

Where we differ from TRL, on purpose:
- In a span of more tokens it compares shared tokens too. There they are different events: where the student writes "ab"
  and the teacher "a", "b", the student would learn to write "b". Ours are compared by rank, as TRL's are without its
  hybrid loss.
- At b = 0, sum p log(p / q) over a part of the vocabulary falls below 0 where the student gives that part more than the
  teacher does, and is least for a student that never says anything else. Ours has the mass that is missing, q - p,
  added, which is 0 over a whole vocabulary; between the ends the divergence needs nothing.
- Its default merging compares each prediction with the token before it; ours is the one that it calls bayesian.
- Probabilities are not kept above 1e-8; tokens are shared if they are the same text, not the same spelling in a file.

A class that the teacher masks with -inf has the probability 0. The whole batch's logits exist at once, and are sorted:
a factored head is not cut into pieces. Cross-entropy with the student's own tokens is a term of its own.

Config: objective.gold.term = "gold()", beside teachers.NAME.reads = "teacher/" and data.tokens = "aligned(...)"
When: a language model whose teacher has another tokenizer.
Checked: published code (TRL) where every span is one token, and where every span is compared by rank, in value and
gradient; against `kd` where tokenizers are the same; alignment by hand.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdistill.core.registry import losses
from jaxdistill.core.schedules import Scalar, as_schedule, require_positive
from jaxdistill.core.types import Array, Signals, Term
from jaxdistill.core.vocabulary import SharedVocabulary
from jaxdistill.losses.logits.jsd import kl_to_mixture
from jaxdistill.losses.term import one_of, stateless
from jaxdistill.losses.text.alignment import Aligned, aligned
from jaxdistill.losses.text.uld import sorted_distance

Vocabularies = SharedVocabulary | None  # what build.py fills in from the data's tokenization


def shared_divergence(
    log_q: Float[Array, "*batch shared"], log_p: Float[Array, "*batch shared"], beta: float
) -> Float[Array, "*batch"]:
    """D_b of measures, which need not sum to 1; 0 where they are equal and more elsewhere."""
    if beta > 0:
        return beta * kl_to_mixture(log_p, log_q, 1 - beta) + (1 - beta) * kl_to_mixture(log_q, log_p, beta)
    p, q, has = jnp.exp(log_p), jnp.exp(log_q), log_p != -jnp.inf
    ratio = jnp.where(has, log_p, 0.0) - jnp.where(has, log_q, 0.0)  # selected BEFORE the product
    return jnp.sum(p * ratio - p + q, axis=-1)


def rest_distance(seen: Aligned, shared: SharedVocabulary) -> Float[Array, "*batch"]:
    """Distance by rank over all tokens; where a span is one token of each, over those that are not shared."""

    def left(log_m: Array, numbers: np.ndarray) -> Array:
        known = np.isin(np.arange(log_m.shape[-1]), numbers)
        return jnp.where(seen.single[..., None] & known, 0.0, jnp.exp(log_m))

    return sorted_distance(left(seen.student, shared.student), left(seen.teacher, shared.teacher))


@losses.register
def gold(
    beta: float = 0.0,
    shared_weight: float = 1.0,
    rest_weight: float = 1.0,
    teacher: int = 0,
    temperature: Scalar = 1.0,
    scale_t2: bool = True,
    vocabulary: Vocabularies = None,
) -> Term:
    """Divergence over shared tokens and distance by rank over the others, from one teacher of whatever tokenizer.

    Args:
        beta: of the divergence, from 0, the forward KL, to below 1.
        shared_weight: w; TRL has the share of the teacher's tokens that are shared.
        rest_weight: v; TRL has 1 - w.
        teacher: which teacher. Distributions over unlike tokens have no mean, so one is chosen.
        temperature: number or schedule, positive.
        scale_t2: multiply the divergence by T^2, so that its gradient keeps its size; published code does not.
        vocabulary: given by the data's tokenization. Without one, both have the same classes.

    Raises:
        ValueError: a number is out of range; when it is applied, the classes differ and no vocabulary is given.
    """
    if not 0 <= beta < 1 or shared_weight < 0 or rest_weight < 0:
        given = f"beta={beta}, shared_weight={shared_weight}, rest_weight={rest_weight}"
        raise ValueError(f"beta is from 0 to below 1, and weights are 0 or more; got {given}")
    schedule = require_positive("temperature", as_schedule(temperature))

    def values(signals: Signals) -> Array | tuple[Array, Array]:
        seen = aligned(signals, teacher)
        other_tokens = one_of(signals.teachers, teacher).spans is not None
        shared = _shared(vocabulary if other_tokens else None, seen.student.shape[-1], seen.teacher.shape[-1])
        direct = shared_divergence(seen.student[..., shared.student], seen.teacher[..., shared.teacher], beta)
        direct = shared_weight * (direct * signals.temperature**2 if scale_t2 else direct)
        if not other_tokens:  # every token stands alone and is shared: nothing is left to be sorted
            return seen.told(direct)
        return seen.told(jnp.where(seen.single, direct, 0.0) + rest_weight * rest_distance(seen, shared))

    needs = frozenset({"teacher", "alignment"})
    return stateless(values, local=False, needs=needs, temperature=schedule)


def _shared(vocabulary: SharedVocabulary | None, classes: int, others: int) -> SharedVocabulary:
    """What is shared, by the data or because both have the same classes."""
    if vocabulary is not None:
        for numbers, known, whose in (
            (vocabulary.student, classes, "student"),
            (vocabulary.teacher, others, "teacher"),
        ):
            if numbers.max(initial=-1) >= known:
                raise ValueError(f"the {whose} has {known} classes, and its tokenizer a token {numbers.max()}")
        return SharedVocabulary(*(np.asarray(numbers, np.int32) for numbers in vocabulary))
    if classes != others:
        cure = 'data.tokens="aligned(...)" gives those that they share'
        raise ValueError(f"the student has {classes} classes and the teacher {others}; {cure}")
    return SharedVocabulary(np.arange(classes, dtype=np.int32), np.arange(classes, dtype=np.int32))
