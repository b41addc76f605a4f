"""TAID: distillation from a target that moves from the student's to the teacher's distribution during training.

Shing et al., TAID: Temporally Adaptive Interpolated Distillation, 2025 (arxiv.org/abs/2501.16937). With the student's
logits s, the teacher's logits t, the teacher's share m of the target, the cross-entropy CE, and sg for `stop_gradient`:

    T^2 CE(softmax(((1 - m) sg(s) + m t) / T), softmax(s / T))

    after each step, with L the mean of this loss over the batch:
    v <- 0.99 v + 0.01 (L_before - L) / L_before
    m <- min(1, max(floor(step), m + 0.0005 sigmoid(v) (1 - m)))          floor: a line from 0.4 to 1 over the run

Logits are interpolated, not probabilities. What the paper calls a KL is a cross-entropy: its gradient in the student is
the KL's, and its minimum is the target's entropy. The entropy matters, because `m` depends on how fast the loss falls.
The student's part of the target is held constant, as in the paper, so that the gradient in the student is not the
gradient of the value. The gradient in the teacher is complete. The first step does not change `m`.

A class that the teacher masks with -inf adds nothing. The term's state is three numbers, `m`, `v` (a moving average of
the loss's relative decrease) and the last loss, which are saved and resumed with the run.

Config: objective.taid.term = "taid(floor=linear(start=0.4, end=1.0))"
Mean: over tokens (`reduction="token"`), as in the published code (a062892, src/distil_losses/fkl.py, line 24).
When: language models whose teacher is so much larger that the forward KL makes the student average over modes, and the
reverse KL makes it collapse to a few.
Checked: against published code (SakanaAI/TAID), over several steps: value, gradient and coefficient.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.interfaces import Term, Values
from jaxdistill.core.registry import losses
from jaxdistill.core.schedules import Scalar, Schedule, as_schedule, require_positive
from jaxdistill.core.softmax import has_many_classes, sum_over_classes
from jaxdistill.core.sums import Mean
from jaxdistill.core.types import Array, Key, Params, PyTree, Signals, State
from jaxdistill.losses.logits.temperature import scaled_by_t2
from jaxdistill.losses.task.cross_entropy import soft_cross_entropy
from jaxdistill.losses.term import precise


def interpolated_cross_entropy(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    coefficient: Float[Array, ""] | float,
    temperature: Float[Array, ""] | float = 1.0,
) -> Float[Array, "*batch"]:
    """Compute TAID's cross-entropy CE(softmax(((1 - m) sg(s) + m t) / T), softmax(s / T)), without the factor T^2.

    s and t are the student's and the teacher's logits, m is `coefficient`, sg is `stop_gradient`, and CE(p, q) is
    -sum p log q.
    """
    student, teacher = precise(student), precise(teacher)
    unmasked = teacher != -jnp.inf  # select BEFORE the product: 0 * (-inf) is NaN if m is 0
    mixed = (1 - coefficient) * jax.lax.stop_gradient(student) + coefficient * jnp.where(unmasked, teacher, 0.0)
    mixed = jnp.where(unmasked, mixed, -jnp.inf)
    if has_many_classes(student):
        return sum_over_classes(_cross_entropy_of_class, mixed, student, temperature)
    return soft_cross_entropy(student / temperature, jax.nn.softmax(mixed / temperature))


def _cross_entropy_of_class(p: Array, q: Array, log_p: Array, log_q: Array) -> Array:
    # select BEFORE the product: 0 * (-inf) is NaN, in the value and in its gradient
    return -p * jnp.where(p == 0, 0.0, log_q)


def next_state(state: PyTree, loss: Array, floor: Array, top: float, rate: float, decay: float) -> PyTree:
    """Compute TAID's state after a training step: the teacher's share m of the target rises faster if the loss falls.

        v <- decay v + (1 - decay) (L_before - L) / L_before
        m <- min(top, max(floor, m + rate sigmoid(v) (1 - m)))

    The first step sets only L.

    Args:
        state: the state before the step: the scalars `coefficient` (m), `momentum` (v) and `loss` (L_before); the loss
            is infinite before the first step.
        loss: L, the mean loss of this step.
        floor: lower bound of m at this step.
        top: upper bound of m.
        rate: step size of m.
        decay: decay of v, a moving average of the loss's relative decrease; from 0 to below 1.
    """
    is_first = jnp.isinf(state["loss"])
    previous_loss = jnp.where(is_first, loss, state["loss"])
    change = (previous_loss - loss) / (previous_loss + 1e-15)
    momentum = decay * state["momentum"] + (1 - decay) * change
    coefficient = state["coefficient"] + rate * jax.nn.sigmoid(momentum) * (1 - state["coefficient"])
    coefficient = jnp.minimum(top, jnp.maximum(floor, coefficient))
    return {
        "coefficient": jnp.where(is_first, state["coefficient"], coefficient),
        "momentum": jnp.where(is_first, state["momentum"], momentum),
        "loss": loss,
    }


@losses.register
def taid(
    floor: Scalar, rate: float = 5e-4, decay: float = 0.99, temperature: Scalar = 1.0, scale_t2: bool = True
) -> Term:
    """Build the TAID loss term: cross-entropy with a target that moves from student to teacher, per example or token.

        T^2 CE(softmax(((1 - m) sg(s) + m t) / T), softmax(s / T))

    s and t are the student's and the teacher's logits, sg is `stop_gradient`. After each step, `next_state` updates m,
    the teacher's share of the target. Several teachers are first combined into one by the config's fusion, such as
    `average()`.

    Args:
        floor: lower bound of m at each step, between 0 and 1; a number, or a schedule such as
            `linear(start=0.4, end=1.0)`. m starts at the floor's first value, and never exceeds the largest.
        rate: how fast m rises above the floor, 0 or more; with 0, m is the largest value of the floor so far.
        decay: decay of the moving average of the loss's relative decrease, on which the rise of m depends; from 0 to
            below 1.
        temperature: T, a positive number or a schedule over the training steps.
        scale_t2: multiply the loss by T^2, so that its gradient keeps its size when T changes; the published code has
            neither T nor T^2.

    Raises:
        ValueError: a number is out of range.
    """
    floors: Schedule = as_schedule(floor)
    if not 0 <= floors.low <= floors.high <= 1:
        reached = floors.low if floors.low < 0 else floors.high
        raise ValueError(f"floor must lie between 0 and 1, but it reaches {reached:g}")
    if rate < 0 or not 0 <= decay < 1:
        raise ValueError(f"rate must be 0 or more, and decay at least 0 and below 1; got rate={rate}, decay={decay}")
    temperatures = require_positive("temperature", as_schedule(temperature))

    def init(key: Key, signals: Signals) -> tuple[Params, State]:
        scalar = lambda value: jnp.full((), value, float)
        first_floor = floors(jnp.zeros((), jnp.int32))
        return {}, {"coefficient": first_floor, "momentum": scalar(0.0), "loss": scalar(jnp.inf)}

    def apply(params: Params, state: State, signals: Signals, *, key: Key) -> tuple[Values, State]:
        student, teacher = signals.student.logits, signals.teacher.logits
        values = interpolated_cross_entropy(student, teacher, state["coefficient"], signals.temperature)
        return scaled_by_t2(values, signals, scale_t2), state

    def follow(state: PyTree, mean: Mean, step: Array) -> PyTree:
        state = jax.lax.stop_gradient(state)
        loss = jax.lax.stop_gradient(mean.compute())
        new_state = next_state(state, loss, floors(step), floors.high, rate, decay)
        return jax.tree.map(lambda old, new: jnp.where(mean.count > 0, new, old), state, new_state)

    return Term(init, apply, needs=frozenset({"teacher"}), temperature=temperatures, follow=follow)
