"""One teacher for each row, and only that one runs on it."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from jaxdistill.types import Array, Model, Outputs, Variables


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
