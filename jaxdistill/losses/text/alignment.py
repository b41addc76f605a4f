"""Align the predictions of a student and a teacher with different tokenizers, for losses that compare them.

Both models read the same text, each in its own tokens. The text is cut into spans: a span ends wherever a token of the
student and a token of the teacher end at the same place. Both models have then read the same text at the start and at
the end of every span, so their predictions are compared at span ends only. The chain rule gives the probability of a
span whose last token is y:

    m(y) = p(y | the span's earlier tokens) * product of p(earlier token)

m is a measure over the model's own vocabulary. It sums to the probability of the earlier tokens. If the span is one
token, m is the next-token distribution itself.

`span_log_probs` computes log m at every position: a segmented prefix sum over the length adds up the earlier tokens'
log-probabilities and restarts at every span. `match_spans` finds, for every span end of the student, the teacher's
position by comparing all pairs of positions: `[batch, length, other length]` booleans.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Integer

from jaxdistill.core.types import Array, Signals, TokenSpans
from jaxdistill.losses.term import precise, select_teacher


class AlignedLogProbs(NamedTuple):
    """Log-probabilities of a student and a teacher that may have different tokenizers, at the student's positions.

    A span is the text between two places where tokens of both models end. m(y) is a model's probability of the span
    that ends at a position, as a function of the span's last token y.

    student, teacher: log m, `[*batch, classes]`, each over the vocabulary of its model
    single_token: `[*batch]`, True if the span is one token in both models, so that m is the next-token distribution
    span_ends: `[*batch]`, True where a span ends, which are the positions to compare; None if both models read the same
        tokens, so that the batch's mask selects the positions
    """

    student: Array
    teacher: Array
    single_token: Array
    span_ends: Array | None = None

    def with_mask(self, values: Array) -> Array | tuple[Array, Array]:
        """Return `(values, span_ends)`, the form in which a loss term returns values and mask.

        If `span_ends` is None, `values` alone are returned, and the batch's mask applies.

        Args:
            values: the loss at each position.
        """
        return values if self.span_ends is None else (values, self.span_ends)


def align(signals: Signals, teacher: int) -> AlignedLogProbs:
    """Compute the log-probabilities of the student and of one teacher at the ends of shared spans of text.

    A span is the text between two places where tokens of both models end. Only there, both models have read the same
    text.

    Args:
        signals: the inputs of a loss term; `signals.temperature` divides the logits.
        teacher: index of the teacher, in the order of the config.

    Raises:
        ValueError: the teacher has another tokenizer, and the batch does not hold the spans of both models' tokens.
    """
    outputs = signals.student, select_teacher(signals.teachers, teacher)
    log_q, log_p = (jax.nn.log_softmax(precise(output.logits) / signals.temperature) for output in outputs)
    teacher_spans = outputs[1].spans
    if teacher_spans is None:
        if log_q.shape[:-1] != log_p.shape[:-1]:
            shapes = f"{list(log_q.shape)} (student) and {list(log_p.shape)} (teacher)"
            cure = "set data.tokens='aligned(...)' and teachers.NAME.reads='teacher/'"
            raise ValueError(f"logits of shapes {shapes} cannot be aligned; {cure}")
        return AlignedLogProbs(log_q, log_p, jnp.ones(log_q.shape[:-1], bool))
    student_spans = TokenSpans(signals.batch["span"], signals.batch["label"])
    positions, matched = match_spans(student_spans.number, teacher_spans.number)
    # [batch, other length, ...] -> [batch, length, ...]
    to_student = lambda x: jnp.take_along_axis(x, positions.reshape(positions.shape + (1,) * (x.ndim - 2)), axis=1)
    single_token = starts_span(student_spans.number) & to_student(starts_span(teacher_spans.number))
    log_m_student, log_m_teacher = span_log_probs(log_q, student_spans), span_log_probs(log_p, teacher_spans)
    return AlignedLogProbs(log_m_student, to_student(log_m_teacher), single_token, matched & (signals.mask != 0))


def starts_span(number: Integer[Array, "batch length"]) -> Bool[Array, "batch length"]:
    """Return True for each predicted token that is the first of its span (piece of text of one or more tokens).

    Args:
        number: number of the span that each predicted token belongs to, rising from 1 in each row; 0 means no span.
    """
    return (number > 0) & (number != jnp.pad(number, ((0, 0), (1, 0)))[:, :-1])


def ends_span(number: Integer[Array, "batch length"]) -> Bool[Array, "batch length"]:
    """Return True for each predicted token that is the last of its span (piece of text of one or more tokens).

    Args:
        number: number of the span that each predicted token belongs to, rising from 1 in each row; 0 means no span.
    """
    return (number > 0) & (number != jnp.pad(number, ((0, 0), (0, 1)))[:, 1:])


def match_spans(
    student: Integer[Array, "batch length"], teacher: Integer[Array, "batch other"]
) -> tuple[Integer[Array, "batch length"], Bool[Array, "batch length"]]:
    """Find, for each position where a span of text ends in the student's tokens, where it ends in the teacher's tokens.

    Args:
        student: number of the span that each token predicted by the student belongs to, from 1; 0 means no span.
        teacher: the same for the teacher's tokens; equal numbers are the same span.

    Returns:
        For each position of the student: the teacher's position, and True if both models end a span there. Where it is
        False, the teacher's position has no meaning.
    """
    teacher_ends = jnp.where(ends_span(teacher), teacher, -1)
    same = jnp.where(ends_span(student), student, 0)[:, :, None] == teacher_ends[:, None, :]
    return jnp.argmax(same, axis=2), jnp.any(same, axis=2)


def span_log_probs(
    log_p: Float[Array, "batch length classes"], spans: TokenSpans
) -> Float[Array, "batch length classes"]:
    """Compute the log-probability of the span that ends at each position, as a function of the span's last token.

    A span is a piece of text of one or more tokens. Its log-probability is that of its last token plus those of its
    earlier tokens.

    Args:
        log_p: next-token log-probabilities.
        spans: the predicted token at each position, and the span that the token belongs to.
    """
    token_log_probs = jnp.take_along_axis(log_p, spans.label[..., None], axis=-1)[..., 0]  # [batch, length]
    token_log_probs = jnp.where(spans.number > 0, token_log_probs, 0.0)

    def add(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        """Add the (sum, flag) pairs of two neighbouring ranges of tokens, for a prefix sum that restarts at each span.

        The flag is True if a span starts in the range. If a span starts in the right range, only the right sum is kept.
        """
        return jnp.where(right[1], right[0], left[0] + right[0]), left[1] | right[1]

    starts = starts_span(spans.number) | (spans.number == 0)
    sums, _ = jax.lax.associative_scan(add, (token_log_probs, starts), axis=1)
    earlier = jnp.pad(sums, ((0, 0), (1, 0)))[:, :-1]  # without the token at the position itself
    return log_p + jnp.where(starts, 0.0, earlier)[..., None]
