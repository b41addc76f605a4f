"""One teacher for each row, and only that one runs on it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxdistill.core.jaxpr import reads
from jaxdistill.core.types import Array, Model, Objective, Outputs, PyTree, Signals, Variables
from jaxdistill.steps.observe import observe


def dispatched(
    teachers: Sequence[Model],
    frozen: Sequence[Variables],
    rows: Mapping[str, Array],
    choice: Array,
    key: Array,
    block: int = 8,
) -> Outputs:
    """The logits of each row's own teacher.

    Rows are sorted by their teacher into blocks of one teacher each, and a block runs through that teacher alone: of
    B rows and K teachers, at most B + K * block rows are computed, whoever is chosen. Hidden states of unlike teachers
    have no common form, so logits are all that comes back.

    Args:
        teachers: the models.
        frozen: their variables.
        rows: one stream of the batch.
        choice: `[batch]`, the number of each row's teacher.
        key: of this call.
        block: rows that run at once.
    """
    count, size = len(teachers), choice.shape[0]
    blocks = -(-size // block) + count
    order = jnp.argsort(choice, stable=True)
    sizes = jnp.bincount(choice, length=count)
    ends = jnp.cumsum(-(-sizes // block) * block)  # every teacher's rows begin a block
    starts = ends - -(-sizes // block) * block
    own = choice[order]
    slots = starts[own] + jnp.arange(size) - (jnp.cumsum(sizes) - sizes)[own]
    source = jnp.zeros(blocks * block, jnp.int32).at[slots].set(order.astype(jnp.int32))
    whose = jnp.searchsorted(ends, jnp.arange(blocks) * block, side="right")  # K: a block without rows

    def run(number: int):
        def logits(rows: Mapping[str, Array]) -> Array:
            said, _ = teachers[number].apply(*frozen[number], rows, train=False, key=key)
            return jnp.asarray(said.dense().logits, jnp.float32)

        return logits

    branches = [run(number) for number in range(count)]
    taken = lambda index: {name: x[index] for name, x in rows.items()}
    source = source.reshape(blocks, block)
    looks = jax.eval_shape(lambda index: branches[0](taken(index)), source[0])
    branches.append(lambda rows: jnp.zeros(looks.shape, looks.dtype))

    def step(_: None, given: tuple[Array, Array]) -> tuple[None, Array]:
        index, number = given
        return None, jax.lax.switch(number, branches, taken(index))

    _, said = jax.lax.scan(step, None, (source, whose))
    found = said.reshape(blocks * block, *said.shape[2:])[slots]
    return Outputs(jnp.zeros_like(found).at[order].set(found))


def weights_of(fused: Signals) -> Array:
    """The teachers' shares, `[teachers, *batch]`.

    Raises:
        ValueError: the fusion weighs nobody.
    """
    if fused.teacher is None or fused.teacher.weights is None:
        raise ValueError("this fusion gives teachers no weights; routing needs one that does: fusion='gate()'")
    return fused.teacher.weights


def chosen_alone(objective, student, teachers, params, state, frozen, batch, streams, *, step, key):
    """As `observe`, where of a row no teacher runs but the one to which the gate gives most.

    Raises:
        ValueError: the gate reads what teachers say.
    """
    seen, student_state = observe(student, (), params, state, (), batch, streams, step=step, key=key)
    frozen, stopped = jax.lax.stop_gradient((frozen, params))
    for stream, signals in seen.items():
        rows, classes = signals.mask.shape, signals.student.logits.shape[-1]
        silent = (Outputs(jnp.zeros((*rows, classes))),) * len(teachers)
        whole = {**signals.params, "teachers": tuple(values.params for values in frozen)}
        seen[stream] = replace(signals, teachers=silent, params=whole)
        if "fusion" in params:  # before, only shapes are asked for
            weights = _unheard(objective, stopped, state, seen[stream], key)
            said = dispatched(teachers, frozen, signals.batch, jnp.argmax(weights, axis=0), key)
            seen[stream] = replace(seen[stream], teachers=(said,) * len(teachers))
    return seen, student_state


def _unheard(
    objective: Objective, params: Mapping[str, PyTree], state: Mapping[str, PyTree], seen: Signals, key: Array
) -> Array:
    """The weights of teachers that have said nothing yet: the gate must not read it."""
    weigh = lambda said: weights_of(objective.fuse(params, state, replace(seen, teachers=said), key=key)[0])
    if any(jax.tree.leaves(reads(weigh, seen.teachers))):
        cure = "Set fusion=\"gate(inputs=('student', 'image'))\", or to one of the two, or leave hard out"
        raise ValueError(f"hard=True chooses a teacher before any has run, and this gate reads what they say. {cure}")
    return weigh(seen.teachers)
