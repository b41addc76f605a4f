"""GOLD: cross-tokenizer distillation with a divergence over shared tokens and a rank distance over the others.

Hugging Face, Unlocking On-Policy Distillation for Any Model Family, 2025
(huggingfaceh4-on-policy-distillation.hf.space), the trainer GOLD of TRL. It extends Boizard et al., Universal Logit
Distillation, 2024 (arxiv.org/abs/2402.12030). The text is cut into spans that end where tokens of both models end
(`losses/text/alignment.py`). With m_s, m_t the models' probabilities of a span as a function of its last token:

    one token each:    w T^2 D_b(m_s, m_t) over shared tokens + v sum |sort m_t - sort m_s| over the others
    more tokens:       v sum |sort m_t - sort m_s| over all

Shared tokens are those with the same text in both vocabularies. D_b is the generalised Jensen-Shannon divergence of
`jsd`, summed over shared tokens only; w and v are weights. With the same tokenizer, the loss is w T^2 D_b alone; at
b = 0 and w = 1 it equals `kd` exactly.

Deliberate differences from TRL:
- TRL compares shared tokens in spans of several tokens too. There they are different events: if the student writes "ab"
  and the teacher "a", "b", the student would learn to write "b". Here such spans are compared by rank, as in TRL
  without its hybrid loss.
- At b = 0, sum p log(p / q) over a part of the vocabulary falls below 0 if the student gives that part more probability
  than the teacher does, and is lowest for a student that writes nothing else. Here the difference in mass, q - p, is
  added, which is 0 over a whole vocabulary. For b > 0 the divergence needs no correction.
- TRL's default merging compares each prediction with the token before it. This is the merging that TRL calls bayesian.
- Probabilities are not clipped at 1e-8. Tokens are shared if they are the same text, not if a file spells them alike.

A class that the teacher masks with -inf has probability 0. The logits of the whole batch are computed at once, not in
chunks, because they are sorted. Cross-entropy with the student's tokens is a separate term.

Config: objective.gold.term = "gold()", beside teachers.NAME.reads = "teacher/" and data.tokens = "aligned(...)"
Mean: `reduction="text"` in TRL: over the spans of each text, then over texts; a text without a span counts as 0
(f2cd577, trl/experimental/gold/gold_trainer.py, lines 334, 524 and 739 to 747). With the same tokenizer TRL has
`reduction="token"` (lines 2319 to 2335), which is the default here.
When: a language model whose teacher has another tokenizer.
Checked: against published code (TRL) with spans of one token each, and with every span compared by rank, in value and
gradient; against `kd` with the same tokenizer; alignment by hand.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.schedules import Scalar, as_schedule, require_positive
from jaxdistill.core.types import Array, Signals
from jaxdistill.core.vocabulary import SharedVocabulary
from jaxdistill.losses.logits.jsd import kl_to_mixture
from jaxdistill.losses.logits.temperature import scaled_by_t2
from jaxdistill.losses.term import select_teacher, stateless
from jaxdistill.losses.text.alignment import AlignedLogProbs, align
from jaxdistill.losses.text.uld import sorted_distance

Vocabularies = SharedVocabulary | None  # `run/parts.py` fills it in from the data's tokenization


def shared_divergence(
    log_q: Float[Array, "*batch shared"], log_p: Float[Array, "*batch shared"], beta: float
) -> Float[Array, "*batch"]:
    """Compute the generalised Jensen-Shannon divergence of p and q, which need not sum to 1.

        beta > 0:  sum(beta p log(p / m) + (1 - beta) q log(q / m)),   m = beta p + (1 - beta) q
        beta = 0:  sum(p log(p / q) - p + q)

    p and q are the teacher's and the student's probabilities of the tokens that both vocabularies share. The value is 0
    if p and q are equal, and positive otherwise.
    """
    if beta > 0:
        return beta * kl_to_mixture(log_p, log_q, 1 - beta) + (1 - beta) * kl_to_mixture(log_q, log_p, beta)
    p, q, support = jnp.exp(log_p), jnp.exp(log_q), log_p != -jnp.inf
    # select BEFORE the product: 0 * (-inf) is NaN, in the value and in its gradient
    log_ratio = jnp.where(support, log_p, 0.0) - jnp.where(support, log_q, 0.0)
    return jnp.sum(p * log_ratio - p + q, axis=-1)


def rest_distance(aligned: AlignedLogProbs, shared: SharedVocabulary) -> Float[Array, "*batch"]:
    """Compute sum |sort(m_t) - sort(m_s)|, the rank distance of the teacher's and the student's span probabilities.

    A span is a piece of text. m is the probability of a span as a function of its last token. If the span is one token
    in both models, the sum is over the tokens that the models do not share, otherwise over all tokens.

    Args:
        aligned: log m of both models.
        shared: the tokens that both vocabularies have.
    """

    def rest(log_m: Array, shared_tokens: np.ndarray) -> Array:
        is_shared = np.isin(np.arange(log_m.shape[-1]), shared_tokens)
        return jnp.where(aligned.single_token[..., None] & is_shared, 0.0, jnp.exp(log_m))

    return sorted_distance(rest(aligned.student, shared.student), rest(aligned.teacher, shared.teacher))


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
    """Build the GOLD loss term, for a teacher whose tokenizer may differ from the student's.

        w T^2 D(m_s, m_t) over the shared tokens  +  v sum |sort(m_t) - sort(m_s)| over the other tokens

    A span is the text between two places where tokens of both models end. m_s and m_t are the student's and the
    teacher's probability of a span as a function of its last token. Spans of more than one token have only the rank
    distance, over all tokens. If student and teacher have the same tokenizer, the loss is w T^2 D.

    Args:
        beta: D is a generalised Jensen-Shannon divergence, which is KL(teacher || student) at beta = 0 and approaches
            KL(student || teacher) towards 1; from 0 to below 1.
        shared_weight: w, the weight of the divergence; TRL uses the share of the teacher's tokens that are shared.
        rest_weight: v, the weight of the rank distance; TRL uses 1 - w.
        teacher: index of the teacher, in the order of the config. Only one teacher is used, because distributions over
            different tokens cannot be averaged.
        temperature: T, a positive number or a schedule over the training steps.
        scale_t2: multiply the divergence by T^2, so that its gradient keeps its size when T changes; the published code
            does not.
        vocabulary: the tokens that both models share; a run fills it in from `data.tokens` of the config. Without it,
            both models must have the same classes.

    Raises:
        ValueError: a number is out of range; when the loss is computed, the models differ in their classes and there is
            no vocabulary, or the vocabulary does not fit the classes.
    """
    if not 0 <= beta < 1 or shared_weight < 0 or rest_weight < 0:
        arguments = f"beta={beta}, shared_weight={shared_weight}, rest_weight={rest_weight}"
        raise ValueError(f"beta must be at least 0 and below 1, and weights must be 0 or more; got {arguments}")
    schedule = require_positive("temperature", as_schedule(temperature))

    def values(signals: Signals) -> Array | tuple[Array, Array]:
        aligned = align(signals, teacher)
        other_tokens = select_teacher(signals.teachers, teacher).spans is not None
        shared = _shared(vocabulary if other_tokens else None, aligned.student.shape[-1], aligned.teacher.shape[-1])
        divergence = shared_divergence(aligned.student[..., shared.student], aligned.teacher[..., shared.teacher], beta)
        divergence = shared_weight * scaled_by_t2(divergence, signals, scale_t2)
        if not other_tokens:  # every span is one shared token: no token is left to be sorted
            return aligned.with_mask(divergence)
        divergence = jnp.where(aligned.single_token, divergence, 0.0)
        return aligned.with_mask(divergence + rest_weight * rest_distance(aligned, shared))

    needs = frozenset({"teacher", "alignment"})
    return stateless(values, local=False, needs=needs, temperature=schedule)


def _shared(vocabulary: SharedVocabulary | None, student_classes: int, teacher_classes: int) -> SharedVocabulary:
    """Return the shared vocabulary of the data, or all classes if student and teacher have the same ones."""
    if vocabulary is not None:
        for tokens, classes, model in (
            (vocabulary.student, student_classes, "student"),
            (vocabulary.teacher, teacher_classes, "teacher"),
        ):
            if tokens.max(initial=-1) >= classes:
                problem = f"the {model} has {classes} classes, but its tokenizer has a token {tokens.max()}"
                raise ValueError(f"{problem}; name the tokenizer of the {model} in data.tokens")
        return SharedVocabulary(*(np.asarray(tokens, np.int32) for tokens in vocabulary))
    if student_classes != teacher_classes:
        cure = 'set data.tokens="aligned(...)", which finds the tokens that they share'
        raise ValueError(f"the student has {student_classes} classes and the teacher {teacher_classes}; {cure}")
    every_class = np.arange(student_classes, dtype=np.int32)
    return SharedVocabulary(every_class, every_class)
