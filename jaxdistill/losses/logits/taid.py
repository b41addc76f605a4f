"""A teacher that moves from the student to the teacher while the student follows.

Shing et al., TAID: Temporally Adaptive Interpolated Distillation, 2025 (arxiv.org/abs/2501.16937). With logits s and t:

    T^2 CE(softmax(((1 - m) sg(s) + m t) / T), softmax(s / T))

    after each step, L being this loss over the batch:
    v <- 0.99 v + 0.01 (L_before - L) / L_before
    m <- min(1, max(floor(step), m + 0.0005 sigmoid(v) (1 - m)))          floor: a line from 0.4 to 1 over the run

Logits are interpolated, not probabilities. What the paper calls a KL is a cross-entropy: it has the KL's gradient in
the student and is the target's entropy at best, and `m` follows how fast this number falls, so the entropy belongs to
it. The student's part of the target is held fixed (`stop_gradient`, as in the paper), so that the gradient in the
student is not that of the value; the teacher's is whole. The first step leaves `m` as it is.

A class that the teacher masks with -inf adds nothing. `m` and what it remembers are the term's state: three numbers,
which are saved and resumed with the run.

Config: objective.taid.term = "taid(floor=linear(start=0.4, end=1.0))"
When: language models, where the teacher is so much larger that the forward KL smears the student out and the reverse
KL collapses it.
Checked: published code (SakanaAI/TAID), over several steps: value, gradient and coefficient.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.registry import losses
from jaxdistill.core.schedules import Scalar, Schedule, as_schedule, require_positive
from jaxdistill.core.sums import Mean
from jaxdistill.core.types import Array, PyTree, Term
from jaxdistill.losses.task.cross_entropy import soft_cross_entropy
from jaxdistill.losses.term import precise


def interpolated_cross_entropy(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    coefficient: Float[Array, ""] | float,
    temperature: Float[Array, ""] | float = 1.0,
) -> Float[Array, "*batch"]:
    """CE(softmax(((1 - m) sg(s) + m t) / T), softmax(s / T)), without T^2."""
    student, teacher = precise(student), precise(teacher)
    has = teacher != -jnp.inf  # selected BEFORE the product, which is NaN where m is 0
    mixed = (1 - coefficient) * jax.lax.stop_gradient(student) + coefficient * jnp.where(has, teacher, 0.0)
    target = jax.nn.softmax(jnp.where(has, mixed, -jnp.inf) / temperature)
    return soft_cross_entropy(student / temperature, target)


def next_coefficient(state: PyTree, loss: Array, floor: Array, top: float, rate: float, decay: float) -> PyTree:
    """The state after a step: `coefficient`, `momentum` and `loss` (infinite before the first step), scalars."""
    first = jnp.isinf(state["loss"])
    before = jnp.where(first, loss, state["loss"])
    change = (before - loss) / (before + 1e-15)
    momentum = decay * state["momentum"] + (1 - decay) * change
    moved = state["coefficient"] + rate * jax.nn.sigmoid(momentum) * (1 - state["coefficient"])
    moved = jnp.minimum(top, jnp.maximum(floor, moved))
    return {
        "coefficient": jnp.where(first, state["coefficient"], moved),
        "momentum": jnp.where(first, state["momentum"], momentum),
        "loss": loss,
    }


@losses.register
def taid(
    floor: Scalar, rate: float = 5e-4, decay: float = 0.99, temperature: Scalar = 1.0, scale_t2: bool = True
) -> Term:
    """Cross-entropy with what lies between the student and the fused teacher, ever closer to the teacher.

    Args:
        floor: the least coefficient at each step, between 0 and 1, such as `linear(start=0.4, end=1.0)`; it begins
            there, and its greatest value is the coefficient's.
        rate: how fast the coefficient runs ahead of its floor; 0: not at all.
        decay: of the momentum, from 0 to below 1.
        temperature: number or schedule, positive.
        scale_t2: multiply by T^2, so that the gradient keeps its size; published code has neither.

    Raises:
        ValueError: a number is out of range.
    """
    curve: Schedule = as_schedule(floor)
    if not 0 <= curve.low <= curve.high <= 1:
        raise ValueError(f"floor lies between 0 and 1, but it reaches {curve.low if curve.low < 0 else curve.high:g}")
    if rate < 0 or not 0 <= decay < 1:
        raise ValueError(f"rate is 0 or more and decay from 0 to below 1; got rate={rate}, decay={decay}")
    schedule = require_positive("temperature", as_schedule(temperature))

    def init(key, signals):
        scalar = lambda value: jnp.full((), value, jnp.float32)
        start = {"coefficient": curve(jnp.zeros((), jnp.int32)), "momentum": scalar(0.0), "loss": scalar(jnp.inf)}
        return {}, start

    def apply(params, state, signals, *, key):
        student, teacher = signals.student.logits, signals.teacher.logits
        values = interpolated_cross_entropy(student, teacher, state["coefficient"], signals.temperature)
        return values * signals.temperature**2 if scale_t2 else values, state

    def follow(state: PyTree, mean: Mean, step: Array) -> PyTree:
        state = jax.lax.stop_gradient(state)
        loss = jax.lax.stop_gradient(mean.compute())
        new = next_coefficient(state, loss, curve(step), curve.high, rate, decay)
        return jax.tree.map(lambda old, new: jnp.where(mean.count > 0, new, old), state, new)

    return Term(init, apply, needs=frozenset({"teacher"}), temperature=schedule, follow=follow)
