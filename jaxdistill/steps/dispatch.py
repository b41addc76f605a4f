"""Hard routing: for each example, run only the teacher that a gate selects."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.interfaces import Model, Objective
from jaxdistill.core.jaxpr import used_inputs
from jaxdistill.core.types import Array, Batch, ByRole, Key, Outputs, Rows, Signals, State, Variables
from jaxdistill.steps.observe import observe


def dispatch_rows(
    teachers: Sequence[Model],
    frozen: Sequence[Variables],
    rows: Mapping[str, Array],
    choice: Array,
    key: Array,
    block: int = 8,
) -> Outputs:
    """Compute the logits of each row (example) by running only the teacher that is selected for it.

    The rows are sorted by teacher and split into blocks of `block` rows, so that each block needs only one teacher. At
    most `batch + teachers * block` rows are computed, whatever the choice.

    Args:
        teachers: the teacher models.
        frozen: the teachers' variables.
        rows: the arrays of one batch.
        choice: `[batch]`, the index of the selected teacher of each row.
        key: PRNG key of the teachers.
        block: number of rows that run at once.

    Returns:
        The logits of all rows, in the order of the batch. Hidden states are not returned, because those of different
        teachers differ in shape.
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

    def run(number: int) -> Callable[[Rows], Array]:
        def logits(rows: Rows) -> Float[Array, "*batch classes"]:
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
    """Return the weight of each teacher for each example (or token), `[teachers, *batch]`.

    Args:
        fused: the inputs of a loss term, whose `teacher` is the result of a fusion (rule that combines the teachers).

    Raises:
        ValueError: the fusion computes no weights.
    """
    if fused.teacher is None or fused.teacher.weights is None:
        raise ValueError("this fusion returns no weights of the teachers; routing needs fusion='gate()'")
    return fused.teacher.weights


def observe_selected(
    objective: Objective,
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
    """Run the student on each stream of a batch, and for each example only the teacher with the largest gate weight.

    A gate is a network that weights the teachers. A stream is a named source of batches.

    Args:
        objective: the losses and their fusion of teachers, which is the gate.
        student: the student model, run in training mode.
        teachers: the teacher models, run in evaluation mode and without gradient.
        params: params of the train state, `{"student": ..., "fusion": ...}`.
        state: state of the train state, with the same keys.
        frozen: the teachers' variables.
        batch: the arrays of each stream, by name of the stream.
        streams: names of the streams to run on.
        step: the step number.
        key: PRNG key of the models and the gate.

    Returns:
        The inputs of the loss terms by stream, in which every teacher has the logits of the selected teacher; and the
        student's new state.

    Raises:
        ValueError: the gate computes its weights from teacher outputs, which do not exist before a teacher has run.
    """
    by_stream, student_state = observe(student, (), params, state, (), batch, streams, step=step, key=key)
    frozen, stopped = jax.lax.stop_gradient((frozen, params))
    for stream, signals in by_stream.items():
        rows, classes = signals.mask.shape, signals.student.logits.shape[-1]
        zeros = (Outputs(jnp.zeros((*rows, classes))),) * len(teachers)
        role_params = {**signals.params, "teachers": tuple(values.params for values in frozen)}
        by_stream[stream] = replace(signals, teachers=zeros, params=role_params)
        if "fusion" in params:  # only shapes are needed to initialise the fusion
            weights = _weights_without_teachers(objective, stopped, state, by_stream[stream], key)
            outputs = dispatch_rows(teachers, frozen, signals.batch, jnp.argmax(weights, axis=0), key)
            by_stream[stream] = replace(by_stream[stream], teachers=(outputs,) * len(teachers))
    return by_stream, student_state


def _weights_without_teachers(objective: Objective, params: ByRole, state: ByRole, signals: Signals, key: Key) -> Array:
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
