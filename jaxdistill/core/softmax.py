"""Divergences of two softmaxes over many classes: value and gradient by hand, in as few passes as they need.

With p = softmax(t), q = softmax(s) and a function f of one class, every such divergence and its gradient are

    L = sum_c f(p_c, q_c, log p_c, log q_c)          r_c = df / d(log q_c)          dL / ds_c = r_c - q_c sum_k r_k

and alike for t. Written like this, each logit has one exponential, which serves value and gradient. Differentiated by
JAX, `log_softmax` and the selections that guard it make twice as many passes over the logits.

The numbers of a row (its maximum, the logarithm of its sum) stand behind barriers. Without them XLA fuses them into the
loop over the classes, and on CPUs it repeats the logarithm for every class.

The gradient is the rule of a `jax.custom_jvp`, so forward mode and gradients of gradients work, too. Losses use it from
`MANY` classes on. Fewer gain nothing: there each loss keeps its plain form, and a run its bits.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Float

from jaxdistill.core.jaxpr import used_inputs
from jaxdistill.core.types import Array

MANY = 1024
# (p, q, log p, log q), each `[*batch, classes]` -> the values of the classes. Where p or q is 0, its logarithm is -inf.
OfClass = Callable[[Array, Array, Array, Array], Array]


def has_many_classes(logits: Array) -> bool:
    """Return True if logits have so many classes (`MANY` or more) that `sum_over_classes` is faster than plain JAX."""
    return logits.shape[-1] >= MANY


def sum_over_classes(
    of_class: OfClass,
    teacher: Float[Array, "*batch classes"],
    student: Float[Array, "*batch classes"],
    temperature: Float[Array, ""] | float = 1.0,
) -> Float[Array, "*batch"]:
    """Compute `sum_c of_class(p_c, q_c, log p_c, log q_c)`, with p = softmax(teacher / T) and q = softmax(student / T).

    Divergences such as the KL divergence have this form. A custom derivative rule computes the gradient in fewer passes
    over the classes than JAX would; the module's docstring derives it.

    Args:
        of_class: function of arrays, one value for each class. It must be differentiable in JAX, and finite, with a
            finite gradient, where p or q is 0.
        teacher, student: logits, in float32 or wider.
        temperature: T.
    """

    @jax.custom_jvp
    def total(teacher: Array, student: Array, inverse: Array) -> Array:
        (p, log_p), (q, log_q) = _softmax(teacher, inverse), _softmax(student, inverse)
        return jnp.sum(of_class(p, q, log_p, log_q), axis=-1)

    def derivative(primals: tuple[Array, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
        *logits, inverse = primals
        *changes, inverse_change = tangents
        softmaxes = [_softmax(x, inverse) for x in logits]
        (p, log_p), (q, log_q) = softmaxes
        uses_p, uses_q, *_ = used_inputs(of_class, p, q, log_p, log_q)
        values, pull_back = jax.vjp(of_class, p, q, log_p, log_q)
        of_p, of_q, of_log_p, of_log_q = pull_back(jnp.ones_like(values))
        out = jnp.sum(values, axis=-1)
        change = jnp.zeros_like(out)
        slopes = (of_log_p + p * of_p if uses_p else of_log_p, of_log_q + q * of_q if uses_q else of_log_q)
        for x, dx, slope, (probability, _) in zip(logits, changes, slopes, softmaxes, strict=True):
            if isinstance(dx, SymbolicZero) and isinstance(inverse_change, SymbolicZero):
                continue  # the logits of a frozen teacher
            mean = jax.lax.optimization_barrier(jnp.sum(slope, axis=-1, keepdims=True))
            slope -= probability * mean
            if not isinstance(dx, SymbolicZero):
                change += jnp.sum(slope * inverse * dx, axis=-1)
            if not isinstance(inverse_change, SymbolicZero):
                change += jnp.sum(slope * x, axis=-1) * inverse_change
        return out, change

    total.defjvp(derivative, symbolic_zeros=True)
    return total(teacher, student, 1 / jnp.asarray(temperature, student.dtype))


def _softmax(logits: Array, inverse: Array) -> tuple[Array, Array]:
    """Return softmax(logits / T) and its logarithm, from one exponential for each class; `inverse` is 1 / T."""
    largest = jax.lax.optimization_barrier(jnp.max(logits, axis=-1, keepdims=True) * inverse)
    powers = jnp.exp(logits * inverse - largest)
    norm = jnp.sum(powers, axis=-1, keepdims=True)
    of_norm, log_norm = jax.lax.optimization_barrier((1 / norm, largest + jnp.log(norm)))
    return powers * of_norm, logits * inverse - log_norm
