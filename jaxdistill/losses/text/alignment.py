"""Align the predictions of a student and a teacher with different tokenizers, for losses that compare them.

Both models read the same text, each in its own tokens. The text is cut into spans: a span ends wherever a token of the
student and a token of the teacher end at the same place. Both models have then read the same text at the start and at
the end of every span, so their predictions are compared at span ends only. The chain rule gives the probability of a
span whose last token is y:

    m(y) = p(y | the span's earlier tokens) * product of p(earlier token)

m is a measure over the model's own vocabulary. It sums to the probability of the earlier tokens, and is the next-token
distribution itself if the span is one token.

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
    """Log-probabilities of student and teacher, aligned to the student's positions.

    student, teacher: log m, `[*batch, classes]`, each over the classes of its model
    single: `[*batch]`, True if the span is one token in both models, so that m is their next-token distribution
    span_ends: `[*batch]`, True at the end of a shared span; None if both models read the same tokens, so that the
        stream's mask says which positions count
    """

    student: Array
    teacher: Array
    single: Array
    span_ends: Array | None = None

    def with_mask(self, values: Array) -> Array | tuple[Array, Array]:
        """Return the output of a term: its values, with the mask of span ends if there is one."""
        return values if self.span_ends is None else (values, self.span_ends)


def align(signals: Signals, teacher: int) -> AlignedLogProbs:
    """Align the log-probabilities of the student and of one teacher, at the term's temperature.

    Args:
        signals: the signals of the term.
        teacher: number of the teacher.

    Raises:
        ValueError: the teacher reads other tokens, and the batch does not align them.
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
    single = starts_span(student_spans.number) & to_student(starts_span(teacher_spans.number))
    log_m_student, log_m_teacher = span_log_probs(log_q, student_spans), span_log_probs(log_p, teacher_spans)
    return AlignedLogProbs(log_m_student, to_student(log_m_teacher), single, matched & (signals.mask != 0))


def starts_span(number: Integer[Array, "batch length"]) -> Bool[Array, "batch length"]:
    """Return True for predictions that are the first of their span."""
    return (number > 0) & (number != jnp.pad(number, ((0, 0), (1, 0)))[:, :-1])


def ends_span(number: Integer[Array, "batch length"]) -> Bool[Array, "batch length"]:
    """Return True for predictions that are the last of their span."""
    return (number > 0) & (number != jnp.pad(number, ((0, 0), (0, 1)))[:, 1:])


def match_spans(
    student: Integer[Array, "batch length"], teacher: Integer[Array, "batch other"]
) -> tuple[Integer[Array, "batch length"], Bool[Array, "batch length"]]:
    """Find, for each span end of the student, the position where the teacher ends the same span.

    Args:
        student: the span of each predicted token; 0: none.
        teacher: the same for the teacher's tokens.

    Returns:
        The teacher's position, and True where both models end a span of the same number.
    """
    teacher_ends = jnp.where(ends_span(teacher), teacher, -1)
    same = jnp.where(ends_span(student), student, 0)[:, :, None] == teacher_ends[:, None, :]
    return jnp.argmax(same, axis=2), jnp.any(same, axis=2)


def span_log_probs(
    log_p: Float[Array, "batch length classes"], spans: TokenSpans
) -> Float[Array, "batch length classes"]:
    """Compute log m at each position from next-token log-probabilities."""
    token_log_probs = jnp.take_along_axis(log_p, spans.label[..., None], axis=-1)[..., 0]  # [batch, length]
    token_log_probs = jnp.where(spans.number > 0, token_log_probs, 0.0)

    def add(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        """Add two (sum, contains a start) segments; the sum restarts if the right one contains a start."""
        return jnp.where(right[1], right[0], left[0] + right[0]), left[1] | right[1]

    starts = starts_span(spans.number) | (spans.number == 0)
    sums, _ = jax.lax.associative_scan(add, (token_log_probs, starts), axis=1)
    earlier = jnp.pad(sums, ((0, 0), (1, 0)))[:, :-1]  # without the token at the position itself
    return log_p + jnp.where(starts, 0.0, earlier)[..., None]
