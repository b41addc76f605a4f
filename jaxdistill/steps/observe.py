"""Run the models on a batch, and report the metrics of a step."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import optax

from jaxdistill.core.interfaces import Model
from jaxdistill.core.sums import Mean
from jaxdistill.core.types import NO_OUTPUTS, Array, PyTree, Signals, TrainState, Variables
from jaxdistill.data.stream import stream_id


def step_key(ts: TrainState) -> Array:
    """Return the PRNG key of a step's own random draws. Models and terms have `split(fold_in(key, step))`.

    `split` returns `fold_in` of 0 and 1, so a 1 instead of the 2 here would repeat the terms' draws.
    """
    return jax.random.fold_in(jax.random.fold_in(ts.key, ts.step), 2)


def observe(
    student: Model,
    teachers: tuple[Model, ...],
    params: Mapping[str, PyTree],
    state: Mapping[str, PyTree],
    frozen: tuple[Variables, ...],
    batch: Mapping[str, Mapping[str, Array]],
    streams: Iterable[str],
    *,
    step: Array,
    key: Array,
) -> tuple[dict[str, Signals], PyTree]:
    """Run the student, and the teachers without gradient, on each stream.

    Args:
        student, teachers: the models.
        params, state: values of the train state, by role; the role `student` is used.
        frozen: the teachers' variables.
        batch: a dict of arrays per stream.
        streams: the streams to run on.
        step: the step number.
        key: PRNG key of the models.

    Returns:
        Signals by stream, and the student's new state, which only the stream `train` changes.
    """
    frozen = jax.lax.stop_gradient(frozen)
    return observe_with_gradients(student, teachers, params, state, frozen, batch, streams, step=step, key=key)


def observe_with_gradients(
    student: Model,
    teachers: tuple[Model, ...],
    params: Mapping[str, PyTree],
    state: Mapping[str, PyTree],
    values: tuple[Variables, ...],
    batch: Mapping[str, Mapping[str, Array]],
    streams: Iterable[str],
    *,
    step: Array,
    key: Array,
) -> tuple[dict[str, Signals], PyTree]:
    """Like `observe`, but gradients with respect to the teachers' variables `values` are kept."""
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


def report(
    means: Mapping[str, Mean], loss: Array, gradient: PyTree, weights: Mapping[str, Array] = MappingProxyType({})
) -> dict[str, Mean]:
    """Collect the metrics of a step: the mean of each term, the loss, the gradient norm and the weights the step chose.

    Args:
        means: by term, over the global batch.
        loss: the config's loss, `objective.total`, even if the step weights the terms differently: runs are compared by
            it.
        gradient: summed over devices.
        weights: factors of the terms' gradients, if they differ from the config's weights.
    """
    one = jnp.ones(())
    terms = {f"terms/{name}": mean for name, mean in means.items()}
    weight_metrics = {f"weights/{name}": Mean(weight, one) for name, weight in weights.items()}
    return {"loss": Mean(loss, one), **terms, **weight_metrics, "grad_norm": Mean(optax.tree.norm(gradient), one)}
