"""Where student and teacher speak of the same text, for losses that compare models of unlike tokens and classes.

Both read the same text in tokens of their own. A span of it reaches from one place where tokens of both end to the
next; before it, both have read the same. The chain rule gives each model's measure of the text that ends there:

    m(y) = p(y | the span's earlier tokens) * product of p(earlier token)

over what the span's last token may be. It sums to the probability of the earlier tokens, and is the distribution itself
where the span is one token.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Integer

from jaxdistill.core.types import Array, Signals, TokenSpans
from jaxdistill.losses.term import one_of, precise


class Aligned(NamedTuple):
    """What student and teacher say at the places that they share, at the student's positions.

    student, teacher: logarithms of the measures, `[*batch, classes]` each with its own classes
    single: `[*batch]`, whether the span is one token of each, so that both are distributions of what comes next
    counts: `[*batch]`, whether a span ends here; None where both read the same tokens, of which the stream knows it
    """

    student: Array
    teacher: Array
    single: Array
    counts: Array | None = None

    def told(self, values: Array) -> Array | tuple[Array, Array]:
        """What a term returns of its values."""
        return values if self.counts is None else (values, self.counts)


def aligned(signals: Signals, teacher: int) -> Aligned:
    """Student and teacher at a term's temperature.

    Raises:
        ValueError: the teacher reads other tokens, and the batch does not say where they meet.
    """
    said = one_of(signals.teachers, teacher)
    log_q, log_p = (
        jax.nn.log_softmax(precise(outputs.logits) / signals.temperature) for outputs in (signals.student, said)
    )
    if said.spans is None:
        if log_q.shape[:-1] != log_p.shape[:-1]:
            shapes = f"{list(log_q.shape)} and {list(log_p.shape)}"
            raise ValueError(f"logits of {shapes} have no places in common; let the teacher read 'teacher/' of aligned")
        return Aligned(log_q, log_p, jnp.ones(log_q.shape[:-1], bool))
    own = TokenSpans(signals.batch["span"], signals.batch["label"])
    at, found = partners(own.number, said.spans.number)
    there = lambda x: jnp.take_along_axis(x, at.reshape(at.shape + (1,) * (x.ndim - 2)), axis=1)
    single = begins(own.number) & there(begins(said.spans.number))
    return Aligned(measure(log_q, own), there(measure(log_p, said.spans)), single, found & (signals.mask != 0))


def begins(number: Integer[Array, "batch length"]) -> Bool[Array, "batch length"]:
    """Whether a prediction is the first of its span."""
    return (number > 0) & (number != jnp.pad(number, ((0, 0), (1, 0)))[:, :-1])


def ends(number: Integer[Array, "batch length"]) -> Bool[Array, "batch length"]:
    """Whether a prediction is the last of its span."""
    return (number > 0) & (number != jnp.pad(number, ((0, 0), (0, 1)))[:, 1:])


def partners(
    student: Integer[Array, "batch length"], teacher: Integer[Array, "batch other"]
) -> tuple[Integer[Array, "batch length"], Bool[Array, "batch length"]]:
    """Where the teacher ends the span that the student ends at a position, and whether both do."""
    last = jnp.where(ends(teacher), teacher, -1)
    same = jnp.where(ends(student), student, 0)[:, :, None] == last[:, None, :]
    return jnp.argmax(same, axis=2), jnp.any(same, axis=2)


def measure(log_p: Float[Array, "batch length classes"], spans: TokenSpans) -> Float[Array, "batch length classes"]:
    """The logarithm of m at each position, from log-probabilities."""
    own = jnp.take_along_axis(log_p, spans.label[..., None], axis=-1)[..., 0]
    own = jnp.where(spans.number > 0, own, 0.0)

    def add(one: tuple[Array, Array], other: tuple[Array, Array]) -> tuple[Array, Array]:
        return jnp.where(other[1], other[0], one[0] + other[0]), one[1] | other[1]

    first = begins(spans.number) | (spans.number == 0)
    until, _ = jax.lax.associative_scan(add, (own, first), axis=1)
    before = jnp.pad(until, ((0, 0), (1, 0)))[:, :-1]
    return log_p + jnp.where(first, 0.0, before)[..., None]
