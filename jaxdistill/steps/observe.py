"""What every step begins and ends with: looking at the batch, and reporting."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import optax

from jaxdistill.core.sums import Mean
from jaxdistill.core.types import NO_OUTPUTS, Array, Model, PyTree, Signals, TrainState, Variables
from jaxdistill.data.stream import stream_number


def own_key(ts: TrainState) -> Array:
    """What a step draws with itself, apart from models and terms: these have `split(fold_in(key, step))`.

    `split` gives `fold_in` of 0 and 1, so that a 1 here would give the terms' draws once more.
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
    """Runs the student, and the teachers without gradient, on each stream.

    Args:
        params, state: the train state's, by role; the role `student` is read.
        frozen: the teachers' variables.
        batch: a dict of arrays per stream.

    Returns:
        Signals by stream, and the student's new state, to which only the stream `train` contributes.
    """
    frozen = jax.lax.stop_gradient(frozen)
    return look(student, teachers, params, state, frozen, batch, streams, step=step, key=key)


def look(
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
    """As `observe`, with a gradient for whoever differentiates the teachers' `values`."""
    signals, student_state = {}, state["student"]
    for stream in sorted(streams):
        rows, draw = batch[stream], jax.random.fold_in(key, stream_number(stream))
        out, new_state = student.apply(params["student"], state["student"], rows, train=True, key=draw)
        seen = [teacher.apply(*v, rows, train=False, key=draw)[0] for teacher, v in zip(teachers, values, strict=True)]
        signals[stream] = Signals(
            student=out,
            teachers=tuple(seen),
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
    """Metrics of one step: every term's mean, the loss, the norm of the gradient, and the weights that a step chose.

    Args:
        means: by term, of the global batch.
        loss: what the config asks for, `objective.total`, whatever a step makes of its weights: runs compare by it.
        gradient: summed over devices.
        weights: what the terms' gradients were multiplied by, where it is not what the config says.
    """
    one = jnp.ones(())
    terms = {f"terms/{name}": mean for name, mean in means.items()}
    chosen = {f"weights/{name}": Mean(weight, one) for name, weight in weights.items()}
    return {"loss": Mean(loss, one), **terms, **chosen, "grad_norm": Mean(optax.tree.norm(gradient), one)}
