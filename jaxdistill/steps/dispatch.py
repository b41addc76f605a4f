"""Hard routing: run one selected teacher on each row, and no other."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxdistill.core.interfaces import Model, Objective
from jaxdistill.core.jaxpr import used_inputs
from jaxdistill.core.types import Array, Outputs, PyTree, Signals, Variables
from jaxdistill.steps.observe import observe


def dispatch_rows(
    teachers: Sequence[Model],
    frozen: Sequence[Variables],
    rows: Mapping[str, Array],
    choice: Array,
    key: Array,
    block: int = 8,
) -> Outputs:
    """Compute the logits of each row by the teacher that is selected for it.

    The rows are sorted by teacher and cut into blocks of `block` rows, so that all rows of a block have the same
    teacher. A block runs through this teacher alone. For B rows and K teachers, at most B + K * block rows are
    computed, whatever the choice. Only logits are returned, because hidden states of different teachers differ in
    shape.

    Args:
        teachers: the models.
        frozen: their variables.
        rows: one stream of the batch.
        choice: `[batch]`, the number of the selected teacher of each row.
        key: PRNG key of the teachers.
        block: rows that run at once.
    """
    count, size = len(teachers), choice.shape[0]
    blocks = -(-size // block) + count
    order = jnp.argsort(choice, stable=True)
    sizes = jnp.bincount(choice, length=count)
    ends = jnp.cumsum(-(-sizes // block) * block)  # each teacher starts a new block
    starts = ends - -(-sizes // block) * block
    sorted_choice = choice[order]
    slots = starts[sorted_choice] + jnp.arange(size) - (jnp.cumsum(sizes) - sizes)[sorted_choice]
    source = jnp.zeros(blocks * block, jnp.int32).at[slots].set(order.astype(jnp.int32))
    block_teacher = jnp.searchsorted(ends, jnp.arange(blocks) * block, side="right")  # K: the block is empty

    def run(number: int):
        def logits(rows: Mapping[str, Array]) -> Array:
            outputs, _ = teachers[number].apply(*frozen[number], rows, train=False, key=key)
            return jnp.asarray(outputs.dense().logits, jnp.float32)

        return logits

    branches = [run(number) for number in range(count)]
    take = lambda index: {name: x[index] for name, x in rows.items()}
    source = source.reshape(blocks, block)
    block_logits = jax.eval_shape(lambda index: branches[0](take(index)), source[0])
    branches.append(lambda rows: jnp.zeros(block_logits.shape, block_logits.dtype))

    def run_block(_: None, index_and_teacher: tuple[Array, Array]) -> tuple[None, Array]:
        index, number = index_and_teacher
        return None, jax.lax.switch(number, branches, take(index))

    _, logits = jax.lax.scan(run_block, None, (source, block_teacher))
    logits = logits.reshape(blocks * block, *logits.shape[2:])[slots]
    return Outputs(jnp.zeros_like(logits).at[order].set(logits))


def teacher_weights(fused: Signals) -> Array:
    """Return the teachers' weights of a fusion, `[teachers, *batch]`.

    Raises:
        ValueError: the fusion returns no weights.
    """
    if fused.teacher is None or fused.teacher.weights is None:
        raise ValueError("this fusion returns no weights of the teachers; routing needs fusion='gate()'")
    return fused.teacher.weights


def observe_selected(objective, student, teachers, params, state, frozen, batch, streams, *, step, key):
    """Like `observe`, but run only the selected teacher of each row: the one with the largest weight.

    Raises:
        ValueError: the gate reads teacher outputs.
    """
    by_stream, student_state = observe(student, (), params, state, (), batch, streams, step=step, key=key)
    frozen, stopped = jax.lax.stop_gradient((frozen, params))
    for stream, signals in by_stream.items():
        rows, classes = signals.mask.shape, signals.student.logits.shape[-1]
        zeros = (Outputs(jnp.zeros((*rows, classes))),) * len(teachers)
        role_params = {**signals.params, "teachers": tuple(values.params for values in frozen)}
        by_stream[stream] = replace(signals, teachers=zeros, params=role_params)
        if "fusion" in params:  # while the fusion is initialised, only shapes are needed
            weights = _weights_without_teachers(objective, stopped, state, by_stream[stream], key)
            outputs = dispatch_rows(teachers, frozen, signals.batch, jnp.argmax(weights, axis=0), key)
            by_stream[stream] = replace(by_stream[stream], teachers=(outputs,) * len(teachers))
    return by_stream, student_state


def _weights_without_teachers(
    objective: Objective, params: Mapping[str, PyTree], state: Mapping[str, PyTree], signals: Signals, key: Array
) -> Array:
    """Compute the gate's weights before any teacher has run.

    Raises:
        ValueError: the gate reads teacher outputs.
    """
    weigh = lambda outputs: teacher_weights(
        objective.fuse(params, state, replace(signals, teachers=outputs), key=key)[0]
    )
    if any(jax.tree.leaves(used_inputs(weigh, signals.teachers))):
        cure = "Set fusion=\"gate(inputs=('student', 'image'))\", or one of the two inputs, or remove hard"
        raise ValueError(f"hard=True selects a teacher before any has run, but this gate reads teacher outputs. {cure}")
    return weigh(signals.teachers)
