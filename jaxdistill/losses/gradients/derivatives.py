"""Helpers for losses that match derivatives. `models/derivatives.py` computes the derivatives by `jax.vjp`."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.term import precise, select_teacher


def input_gradients(signals: Signals, teacher: int) -> tuple[Array, Array]:
    """Return the gradients `J^T v` of the student and of one teacher with respect to the input, each as `[rows, dims]`.

    J is the Jacobian of the logits with respect to the input, so `J^T v` is the gradient of sum_c v_c logits_c. v is a
    random vector over the classes, the same for both models. The axes of the input are flattened.

    Args:
        signals: the inputs of a loss term; `input_gradients` of student and teacher must be present.
        teacher: index of the teacher, in the order of the config.

    Raises:
        ValueError: the inputs of the two models differ in shape.
    """
    student_gradients: Any = signals.student.input_gradients  # the term's `needs` ask the models for them
    teacher_gradients: Any = select_teacher(signals.teachers, teacher).input_gradients
    if student_gradients.shape != teacher_gradients.shape:
        shapes = f"student {list(student_gradients.shape[1:])}, teacher {list(teacher_gradients.shape[1:])}"
        cure = "Give both models the same embedding width, or match gradients of hidden states by loss_gradients"
        raise ValueError(f"input gradients differ in shape ({shapes}). {cure}")
    flat = lambda x: precise(x).reshape(x.shape[0], -1)
    return flat(student_gradients), flat(teacher_gradients)


def broadcast_to_tokens(values: Float[Array, " rows"], mask: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Broadcast one value per example to the shape of the mask.

    If the mask is `[rows, tokens]`, each token gets the value of its example; if it is `[rows]`, nothing changes.
    """
    return jnp.broadcast_to(values.reshape(values.shape + (1,) * (mask.ndim - 1)), mask.shape)
