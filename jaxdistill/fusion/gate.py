"""A learned gate: weights that depend on the input, row by row (token by token where rows are texts).

Jacobs, Jordan, Nowlan and Hinton, Adaptive Mixtures of Local Experts, 1991; for distillation Yuan et al., Reinforced
Multi-Teacher Selection, 2021 (arxiv.org/abs/2012.06048).

    w(x) = softmax(head(relu(hidden(standardised features of x))))

A gate must not be trained by the loss that it weighs: it then chooses what is easiest to match, such as a layer that is
dead. So it only goes with a step that trains it otherwise, see `steps/routing.py`. What it reads has no gradient, or
a student would learn to look as if the easiest teacher were right. Its head begins at zero: all teachers weigh the same
at first.

Config: fusion = "gate(inputs=('student', 'teachers'), width=64)", with step = "routing(by='calibration')"
When: teachers are right on unlike inputs, and a few hundred labels are there to find out on which.
Checked: each domain finds its teacher, and with shuffled labels none does (tests/test_routing.py); by law.
"""

from dataclasses import replace
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.collectives import by_rows
from jaxdistill.core.registry import fusions
from jaxdistill.core.types import Array, Fusion, Signals
from jaxdistill.fusion.mixture import mixed, present, spoken
from jaxdistill.losses.task.cross_entropy import entropy
from jaxdistill.losses.term import precise

Input = Literal["student", "image", "teachers", "entropies", "disagreement"]


def features(signals: Signals, inputs: tuple[Input, ...]) -> Float[Array, "*batch width"]:
    """What the gate reads of every row: each input standardised by itself, side by side.

    A row's own mean and deviation, so that a row is judged alike in every batch.
    """
    found = [_standardised(READ[name](signals)) for name in inputs]
    return by_rows(jax.lax.stop_gradient(jnp.concatenate(found, axis=-1)))


def _standardised(x: Array) -> Array:
    if x.shape[-1] < 3:  # of two numbers nothing but a sign would be left
        return x
    x = precise(x)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def _student(signals: Signals) -> Array:
    """The embedding of an example; of a token its last hidden state."""
    embedding, states = signals.student.embedding, signals.student.hidden_states
    if signals.mask.ndim == 1 and embedding is not None:
        return embedding
    if not states or states[-1].ndim != signals.mask.ndim + 1:
        raise ValueError("the student returns no vector for each row; let the gate read other inputs")
    return states[-1]


def _image(signals: Signals) -> Array:
    image = signals.batch["image"]
    return image.reshape(image.shape[0], -1).astype(jnp.float32) / 255


def _log_probabilities(signals: Signals) -> Array:
    """Of all teachers, from -10 up: what is less likely is as good as impossible."""
    log_p = jnp.maximum(jax.nn.log_softmax(precise(spoken(signals))), -10.0)
    return jnp.moveaxis(log_p, 0, -2).reshape(*log_p.shape[1:-1], -1)


def _entropies(signals: Signals) -> Array:
    return jnp.moveaxis(entropy(spoken(signals)), 0, -1)


def _disagreement(signals: Signals) -> Array:
    """Of every pair of teachers, half the sum of absolute differences of their probabilities."""
    p = jax.nn.softmax(precise(spoken(signals)))
    first, second = jnp.triu_indices(len(p), 1)
    return jnp.moveaxis(0.5 * jnp.sum(jnp.abs(p[first] - p[second]), axis=-1), 0, -1)


READ = {
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
    """Weights from a perceptron of one hidden layer over what is known of the row.

    Args:
        inputs: what it reads: the "student"'s embedding, the "image", the "teachers"' log-probabilities, their
            "entropies", their pairwise "disagreement". Without the last three, teachers need not be run to be chosen.
        width: of the hidden layer.
        top: how many teachers a row hears, those of the largest weights, two or more; 0: all.
        paths: how many paths between layers it weighs too, for the term `routed_hidden`.

    Raises:
        ValueError: a number is out of range, or it would hear one alone.
    """
    if top == 1:
        why = "one teacher alone weighs 1 whatever the gate says, so that nothing would train it"
        raise ValueError(f"top=1: {why}. For the chosen teacher alone leave top out, and set step='routing(hard=True)'")
    if not inputs or width < 1 or top < 0 or paths < 0:
        raise ValueError(f"a gate reads something through a positive width; got {inputs=}, {width=}, {top=}, {paths=}")

    def init(key, signals):
        size = features(signals, inputs).shape[-1]
        kernel = jax.random.normal(key, (size, width)) * (2 / size) ** 0.5
        head = jnp.zeros((width, len(signals.teachers) + paths))
        return {"hidden/kernel": kernel, "hidden/bias": jnp.zeros(width), "head/kernel": head}, {}

    def apply(params, state, signals, *, key):
        x = features(signals, inputs)
        x = by_rows(jax.nn.relu(x @ params["hidden/kernel"] + params["hidden/bias"]))
        scores, of_paths = jnp.split(by_rows(x @ params["head/kernel"]), [len(signals.teachers)], axis=-1)
        scores = jnp.where(jnp.moveaxis(present(signals), 0, -1), scores, -1e9)
        if 0 < top < scores.shape[-1]:
            _, chosen = jax.lax.top_k(scores, top)  # of equals the first: not one more than `top`
            heard = jnp.any(chosen[..., None] == jnp.arange(scores.shape[-1]), axis=-2)
            scores = jnp.where(heard, scores, -1e9)
        fused = mixed(signals, jnp.moveaxis(jax.nn.softmax(scores), -1, 0))
        return replace(fused, routes=jnp.moveaxis(jax.nn.softmax(of_paths), -1, 0) if paths else None), state

    return Fusion(init, apply, by_step=True)
