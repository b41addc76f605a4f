"""Factored heads of a student and its teachers, and losses between them from whole logits in float64."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from batches import signals
from terms import build_loss

from jaxdistill.core import registry
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.core.types import Factored, Outputs

T, ALPHA, BETA = 2.0, 0.1, 0.3


def kl(log_p, log_q):
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)


def mixed(log_p, log_q, share):
    return jnp.log((1 - share) * jnp.exp(log_p) + share * jnp.exp(log_q))


FORMULAS = {  # arguments: the log-probabilities of the teacher and of the student, both at temperature T
    f"kd(temperature={T})": lambda p, q: T**2 * kl(p, q),
    f"reverse_kl(temperature={T})": lambda p, q: T**2 * kl(q, p),
    f"jsd(beta={BETA}, temperature={T})": lambda p, q: (
        T**2 * (BETA * kl(p, mixed(q, p, BETA)) + (1 - BETA) * kl(q, mixed(q, p, BETA)))
    ),
    f"skew_kl(alpha={ALPHA}, temperature={T})": lambda p, q: T**2 * kl(p, mixed(q, p, ALPHA)),
    f"skew_reverse_kl(alpha={ALPHA}, temperature={T})": lambda p, q: T**2 * kl(q, mixed(p, q, ALPHA)),
}


EVERY = {**dict.fromkeys(FORMULAS, 1.0), "cross_entropy": 1.0}


def world(seed, rows, length, classes, widths, cap, kind):
    """Draw heads of a student and its teachers, labels and a mask. Only float32 has a bias: bfloat16 rounds twice."""
    rng = np.random.default_rng(seed)
    draw = lambda scale, *shape: jnp.asarray((scale * rng.normal(size=shape)).astype(kind))
    kernel = lambda width: draw(2 * width**-0.5, width, classes)
    bias = lambda: draw(1, classes) if kind == jnp.float32 else None
    head = lambda width: Factored(draw(1, rows, length, width), kernel(width), bias(), cap)
    label = jnp.asarray(rng.integers(0, classes, (rows, length)).astype(np.int32))
    mask = np.float32(rng.random((rows, length)) < 0.8)
    mask[0, 0] = 1
    return head(widths[0]), tuple(map(head, widths[1:])), label, jnp.asarray(mask)


def plain(weights, student, teachers, label, mask):
    """Return value and gradients in float64, computed from whole logits by the formulas above."""
    with jax.enable_x64(True):
        double = lambda x: jnp.asarray(np.asarray(x, np.float64))
        capped = lambda z: student.cap * jnp.tanh(z / student.cap) if student.cap else z
        parts = lambda head: tuple(map(double, jax.tree.leaves(head)))
        logits = lambda features, kernel, bias=0.0: capped(features @ kernel) + bias

        def loss(*head):
            told = [jax.nn.softmax(logits(*parts(t)) / T) for t in teachers]
            log_p, z = jnp.log(sum(told) / len(told)), logits(*head)
            hard = -jnp.take_along_axis(jax.nn.log_softmax(z), label[..., None], -1)[..., 0]
            log_q = jax.nn.log_softmax(z / T)
            values = [
                w * (hard if name == "cross_entropy" else FORMULAS[name](log_p, log_q)) for name, w in weights.items()
            ]
            return jnp.sum(sum(values) * double(mask)) / double(mask).sum()

        return jax.tree.map(np.asarray, jax.jit(jax.value_and_grad(loss, range(len(parts(student)))))(*parts(student)))


def streamed(weights, student, teachers, label, mask, chunks, kernels="xla", fusion="average"):
    """Return value and gradients as the objective computes them, chunk by chunk in one pass."""
    terms = {name: WeightedTerm(build_loss(name), w) for name, w in weights.items()}
    minimised = objective(terms, registry.fusions.build(fusion, ""), chunks, kernels)
    base = signals(batch=mask.shape)
    params, state = (
        {"fusion": {}, "terms": {name: {} for name in weights}},
        {"fusion": {}, "terms": {n: {} for n in weights}},
    )

    def loss(student, teachers):
        seen = replace(
            base, student=Outputs(student), teachers=tuple(map(Outputs, teachers)), batch={"label": label}, mask=mask
        )
        return minimised.loss(params, state, {"train": seen}, minimised.weights(0), key=jax.random.key(0))[0]

    value, slope = jax.jit(jax.value_and_grad(loss))(student, teachers)
    return value, (slope.features, slope.kernel, slope.bias)


def apart(found, wanted) -> float:
    """Return the largest error among the value and the gradients, each relative to its norm."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    return max(float(np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)) for a, b in pairs)
