"""What terms that match derivatives share: `models/derivatives.py` makes them, by vjp."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.term import one_of, precise


def input_gradients(signals: Signals, teacher: int) -> tuple[Array, Array]:
    """The student's and the teacher's `J^T v`, each `[rows, dims]`.

    Raises:
        ValueError: their inputs differ in shape.
    """
    student: Any = signals.student.input_gradients  # there, as the term needs them
    target: Any = one_of(signals.teachers, teacher).input_gradients
    if student.shape != target.shape:
        shapes = f"student {list(student.shape[1:])}, teacher {list(target.shape[1:])}"
        cure = "Give both one width of embedding, or match gradients of hidden states: loss_gradients"
        raise ValueError(f"gradients of inputs have unlike shapes ({shapes}). {cure}")
    flat = lambda x: precise(x).reshape(x.shape[0], -1)
    return flat(student), flat(target)


def for_each_token(values: Float[Array, " rows"], mask: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """One value per row as one per token, where rows are sequences of them: every token stands for its sequence."""
    return jnp.broadcast_to(values.reshape(values.shape + (1,) * (mask.ndim - 1)), mask.shape)
