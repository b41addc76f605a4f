"""Learned gate (mixture of experts): teacher weights as a function of the input, per row, or per token of a text.

Jacobs, Jordan, Nowlan and Hinton, Adaptive Mixtures of Local Experts, 1991; for distillation Yuan et al., Reinforced
Multi-Teacher Selection, 2021 (arxiv.org/abs/2012.06048).

    w(x) = softmax(head(relu(hidden(standardised features of x))))

A gate must not be trained by the loss that it weights: it would choose what is easiest to match, such as a dead layer.
So a gate needs a training step with another loss for the gate, see `steps/routing.py`. No gradient flows to its inputs,
or the student would learn features for which the gate picks the easiest teacher. Its head starts at zero: at first all
teachers have equal weights.

Config: fusion = "gate(inputs=('student', 'teachers'), width=64)", with step = "routing(by='calibration')"
When: teachers are right on different inputs, and a few hundred labels can show on which.
Checked: each domain gets its teacher, and with shuffled labels none does (tests/steps/test_routing.py); common tests of
    fusions.
"""

from dataclasses import replace
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.collectives import by_rows
from jaxdistill.core.interfaces import Fusion
from jaxdistill.core.registry import fusions
from jaxdistill.core.types import Array, Key, Outputs, Params, Signals, State
from jaxdistill.fusion.mixture import mix, present_mask, teacher_logits
from jaxdistill.losses.task.cross_entropy import entropy
from jaxdistill.losses.term import precise

Input = Literal["student", "image", "teachers", "entropies", "disagreement"]


def features(signals: Signals, inputs: tuple[Input, ...]) -> Float[Array, "*batch width"]:
    """Compute the input of the gate (network that weights teachers) for each row (example or token), `[*batch, width]`.

    Each signal in `inputs` is standardised to `(x - mean) / std`, with mean and standard deviation over the features of
    one row, unless it has only one or two features. Then all signals are concatenated. No gradient flows through the
    result.

    Args:
        signals: outputs of student and teachers, and the batch.
        inputs: names of the signals that the gate reads, such as "student", the student's embedding.
    """
    standardised = [_standardised(READERS[name](signals)) for name in inputs]
    return by_rows(jax.lax.stop_gradient(jnp.concatenate(standardised, axis=-1)))


def _standardised(x: Array) -> Array:
    if x.shape[-1] < 3:  # standardising two numbers would leave only a sign
        return x
    x = precise(x)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def _student(signals: Signals) -> Array:
    """Return the student's embedding of each example, or the student's last hidden state of each token."""
    embedding, states = signals.student.embedding, signals.student.hidden_states
    if signals.mask.ndim == 1 and embedding is not None:
        return embedding
    if not states or states[-1].ndim != signals.mask.ndim + 1:
        cure = "remove 'student' from the gate's inputs"
        raise ValueError(f"the student returns neither an embedding nor a last hidden state for each row; {cure}")
    return states[-1]


def _image(signals: Signals) -> Array:
    image = signals.batch["image"]
    return image.reshape(image.shape[0], -1).astype(jnp.float32) / 255


def _log_probabilities(signals: Signals) -> Array:
    """Return the log-probabilities of all teachers, clipped at -10, side by side: `[*batch, teachers * classes]`."""
    log_p = jnp.maximum(jax.nn.log_softmax(precise(teacher_logits(signals))), -10.0)
    return jnp.moveaxis(log_p, 0, -2).reshape(*log_p.shape[1:-1], -1)


def _entropies(signals: Signals) -> Array:
    return jnp.moveaxis(entropy(teacher_logits(signals)), 0, -1)


def _disagreement(signals: Signals) -> Array:
    """Return the total variation distance 1/2 sum |p - q| of each pair of teachers, `[*batch, pairs]`."""
    p = jax.nn.softmax(precise(teacher_logits(signals)))
    first, second = jnp.triu_indices(len(p), 1)
    return jnp.moveaxis(0.5 * jnp.sum(jnp.abs(p[first] - p[second]), axis=-1), 0, -1)


READERS = {
    "student": _student,
    "image": _image,
    "teachers": _log_probabilities,
    "entropies": _entropies,
    "disagreement": _disagreement,
}


@fusions.register
def gate(
    inputs: tuple[Input, ...] = ("student", "teachers", "entropies", "disagreement"),
    width: int = 64,
    top: int = 0,
    paths: int = 0,
) -> Fusion:
    """Average the teachers of each row (example or token) with weights by a gate, a perceptron with a hidden layer.

    A training step such as `routing()` trains the gate with a loss of its own.

    Args:
        inputs: signals that the gate reads: the "student"'s embedding, the "image", the "teachers"' log-probabilities,
            their "entropies", and "disagreement", the total variation distance of each pair of teachers. A gate that
            reads only the first two can choose a teacher before any teacher runs.
        width: width of the hidden layer.
        top: number of teachers that are mixed for a row, at least 2: those with the largest weights; 0 means all
            teachers.
        paths: number of paths (pairs of a student layer and a teacher layer) that the gate weights too, for the loss
            `routed_hidden`; 0 means none.

    Raises:
        ValueError: a number is out of range, `top` is 1, or `inputs` is empty.
    """
    if top == 1:
        why = "a single teacher always has weight 1, so nothing would train the gate"
        cure = "To run only the selected teacher, remove top and set step='routing(hard=True)'"
        raise ValueError(f"top=1: {why}. {cure}")
    if not inputs or width < 1 or top < 0 or paths < 0:
        values = f"{inputs=}, {width=}, {top=}, {paths=}"
        raise ValueError(f"a gate needs inputs, a width of at least 1, top and paths of at least 0; got {values}")

    def init(key: Key, signals: Signals) -> tuple[Params, State]:
        size = features(signals, inputs).shape[-1]
        kernel = jax.random.normal(key, (size, width)) * (2 / size) ** 0.5
        head = jnp.zeros((width, len(signals.teachers) + paths))
        return {"hidden/kernel": kernel, "hidden/bias": jnp.zeros(width), "head/kernel": head}, {}

    def apply(params: Params, state: State, signals: Signals, *, key: Key) -> tuple[Outputs, State]:
        x = features(signals, inputs)
        x = by_rows(jax.nn.relu(x @ params["hidden/kernel"] + params["hidden/bias"]))
        scores, path_scores = jnp.split(by_rows(x @ params["head/kernel"]), [len(signals.teachers)], axis=-1)
        scores = jnp.where(jnp.moveaxis(present_mask(signals), 0, -1), scores, -1e9)
        if 0 < top < scores.shape[-1]:
            _, chosen = jax.lax.top_k(scores, top)  # exactly `top`: ties go to the first
            selected = jnp.any(chosen[..., None] == jnp.arange(scores.shape[-1]), axis=-2)
            scores = jnp.where(selected, scores, -1e9)
        fused = mix(signals, jnp.moveaxis(jax.nn.softmax(scores), -1, 0))
        return replace(fused, routes=jnp.moveaxis(jax.nn.softmax(path_scores), -1, 0) if paths else None), state

    return Fusion(init, apply, trained_by_step=True)
