"""Run the models of a training step on a batch, and collect the metrics of the step."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax

from jaxdistill.core.interfaces import Model
from jaxdistill.core.streams import stream_id
from jaxdistill.core.sums import Mean
from jaxdistill.core.types import NO_OUTPUTS, Array, Batch, ByRole, Key, PyTree, Signals, State, TrainState, Variables


@runtime_checkable
class RunModels(Protocol):
    """The type of a function that runs student and teachers on a batch, such as `observe`."""

    def __call__(
        self,
        student: Model,
        teachers: tuple[Model, ...],
        params: ByRole,
        state: ByRole,
        frozen: tuple[Variables, ...],
        batch: Batch,
        streams: Iterable[str],
        /,
        *,
        step: Array,
        key: Key,
    ) -> tuple[dict[str, Signals], State]:
        """Return the inputs of the loss terms by stream (source of batches), and the student's new state."""


def step_key(ts: TrainState) -> Key:
    """Return a PRNG key for the random draws that the training step itself makes, such as sampled labels.

    The key is new in each step, and differs from the keys of the models and the loss terms.
    """
    # number 2, because `split(fold_in(key, step))`, for models and terms, gives the keys of numbers 0 and 1
    return jax.random.fold_in(jax.random.fold_in(ts.key, ts.step), 2)


def observe(
    student: Model,
    teachers: tuple[Model, ...],
    params: ByRole,
    state: ByRole,
    frozen: tuple[Variables, ...],
    batch: Batch,
    streams: Iterable[str],
    *,
    step: Array,
    key: Key,
) -> tuple[dict[str, Signals], State]:
    """Run the student, and the teachers without gradient, on each stream (named source of batches).

    Args:
        student: the student model, run in training mode.
        teachers: the teacher models, run in evaluation mode.
        params: params of the train state; only `params["student"]` is used.
        state: state of the train state; only `state["student"]` is used.
        frozen: the teachers' variables.
        batch: the arrays of each stream, by name of the stream.
        streams: names of the streams to run on.
        step: the step number.
        key: PRNG key of the models.

    Returns:
        The inputs of the loss terms by stream (outputs of student and teachers, batch and mask); and the student's new
        state, which only the stream `train` changes.
    """
    frozen = jax.lax.stop_gradient(frozen)
    return observe_with_gradients(student, teachers, params, state, frozen, batch, streams, step=step, key=key)


def observe_with_gradients(
    student: Model,
    teachers: tuple[Model, ...],
    params: ByRole,
    state: ByRole,
    values: tuple[Variables, ...],
    batch: Batch,
    streams: Iterable[str],
    *,
    step: Array,
    key: Key,
) -> tuple[dict[str, Signals], State]:
    """Run student and teachers on each stream (named source of batches), with gradients through the teachers.

    The function is like `observe`, which stops the gradients of the teachers.

    Args:
        student: the student model, run in training mode.
        teachers: the teacher models, run in evaluation mode.
        params: params of the train state; only `params["student"]` is used.
        state: state of the train state; only `state["student"]` is used.
        values: the teachers' variables, with respect to which a caller may differentiate.
        batch: the arrays of each stream, by name of the stream.
        streams: names of the streams to run on.
        step: the step number.
        key: PRNG key of the models.

    Returns:
        The inputs of the loss terms by stream (outputs of student and teachers, batch and mask); and the student's new
        state, which only the stream `train` changes.
    """
    signals, student_state = {}, state["student"]
    for stream in sorted(streams):
        rows, stream_key = batch[stream], jax.random.fold_in(key, stream_id(stream))
        student_outputs, new_state = student.apply(
            params["student"], state["student"], rows, train=True, key=stream_key
        )
        teacher_outputs = [
            teacher.apply(*v, rows, train=False, key=stream_key)[0] for teacher, v in zip(teachers, values, strict=True)
        ]
        signals[stream] = Signals(
            student=student_outputs,
            teachers=tuple(teacher_outputs),
            teacher=NO_OUTPUTS,
            batch=rows,
            mask=rows["mask"],
            step=step,
            temperature=1.0,
            params={"student": params["student"], "teachers": tuple(v.params for v in values)},
        )
        if stream == "train":
            student_state = new_state
    return signals, student_state


def step_metrics(
    means: Mapping[str, Mean], loss: Array, gradient: PyTree, weights: Mapping[str, Array] = MappingProxyType({})
) -> dict[str, Mean]:
    """Collect a step's metrics in a dict: `loss`, `grad_norm`, and for each loss term `terms/NAME` and `weights/NAME`.

    Args:
        means: mean of each loss term over the global batch, by the term's name.
        loss: the sum of the means with the weights of the config. A step that learns other weights logs this sum, too,
            so that runs can be compared.
        gradient: the gradient, summed over devices; its norm is a metric.
        weights: weights of the loss terms to log, by the term's name, if they differ from those of the config.
    """
    one = jnp.ones(())
    terms = {f"terms/{name}": mean for name, mean in means.items()}
    weight_metrics = {f"weights/{name}": Mean(weight, one) for name, weight in weights.items()}
    return {"loss": Mean(loss, one), **terms, **weight_metrics, "grad_norm": Mean(optax.tree.norm(gradient), one)}
