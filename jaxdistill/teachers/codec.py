"""A teacher whose outputs travel in the batch: written ahead, by `jaxdistill cache`, or said on another mesh.

It has no parameters, and its forward pass is free. What is kept of a large vocabulary are the `top` logits, with the
mass of all others as one bucket that is spread evenly over them (a KL over a renormalised top-k is not the KL), or
classes drawn from it, whose shares are its distribution in expectation (see `models/few.py`).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdistill.core.types import Array, Model, Outputs, PyTree, SparseLogits
from jaxdistill.models.combinators import reading
from jaxdistill.teachers.sparse_logits import counted, keys_of, packed, unpacked
from jaxdistill.teachers.sparse_logits import draws as drawn
from jaxdistill.teachers.top_k import top_k


class Keep(NamedTuple):
    """Where a teacher's outputs are, and what of them is kept. See `outputs` and `draws`."""

    folder: str
    dtype: str
    top: int
    layers: tuple[int, ...]
    draws: int = 0
    temperature: float = 1.0


def encoder(model: Model, keep: Keep, pieces: int) -> Callable[..., dict[str, Array]]:
    """An evaluation `(params, state, teachers, rows) -> encoded outputs` of a teacher; its `teachers` are unused."""

    def say(params: PyTree, state: PyTree, _: Any, rows: Mapping[str, Array]) -> dict[str, Array]:
        said, _ = model.apply(params["student"], state["student"], rows, train=False, key=jax.random.key(0))
        return encode(said, keep, keys_of(rows["index"], said.logits.shape[:-1]), pieces)

    return say


def fields_of(said: Any, keep: Keep, pieces: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """What is written of each row: shape and dtype by name.

    Args:
        said: shapes of a batch of outputs.
        keep, pieces: as for `encode`, and as it raises.
    """
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), said.logits.shape[:-1]))
    shapes = jax.eval_shape(lambda outputs, keys: encode(outputs, keep, keys, pieces), said, keys)
    return {name: (tuple(x.shape[1:]), str(x.dtype)) for name, x in shapes.items()}


def encode(said: Outputs, keep: Keep, keys: Array, pieces: int = 1) -> dict[str, Array]:
    """What is written of a batch of outputs, `{name: [rows, ...]}`.

    Args:
        said: `[*batch, classes]`.
        keep: what of it.
        keys: to draw with, `[*batch]`.
        pieces: of a sequence, with a factored head; the logits of one of them exist at a time.

    Raises:
        ValueError: the teacher has no such layer, fewer classes than `top`, or a sequence that does not divide.
    """
    states = said.hidden_states
    for layer in keep.layers:
        if layer >= len(states):
            has = f"it has layers 0 (the embedding) to {len(states) - 1}" if states else "it returns no hidden states"
            raise ValueError(f"the teacher has no layer {layer}; {has}")
    hidden = {f"hidden/{layer}": states[layer].astype(keep.dtype) for layer in keep.layers}
    head: Any = said.logits
    if pieces == 1:
        return _of_logits(said.dense().logits, keep, keys) | hidden
    if keys.shape[1] % pieces:
        raise ValueError(f"{pieces} chunks do not divide a sequence of {keys.shape[1]} tokens")
    cut = lambda x: jnp.moveaxis(x.reshape(x.shape[0], pieces, -1, *x.shape[2:]), 1, 0)
    join = lambda x: jnp.moveaxis(x, 0, 1).reshape(*keys.shape, *x.shape[3:])
    of_piece = lambda given: _of_logits(replace(head, features=given[0]).dense(), keep, given[1])
    return jax.tree.map(join, jax.lax.map(of_piece, (cut(head.features), cut(keys)))) | hidden


def _of_logits(said: Any, keep: Keep, keys: Array) -> dict[str, Array]:
    """Of logits `[*batch, classes]`."""
    logits, size = jnp.asarray(said, jnp.float32), said.shape[-1]
    if keep.draws:
        return packed(drawn(logits / keep.temperature, keys, keep.draws), size)
    if not keep.top:
        return {"logits": logits.astype(keep.dtype)}
    if keep.top >= size:
        raise ValueError(f"top={keep.top} of {size} classes leaves no rest; set top=0")
    log_p = jax.nn.log_softmax(logits)
    most, classes = top_k(log_p, keep.top)
    rest = jnp.put_along_axis(log_p, classes, -jnp.inf, axis=-1, inplace=False)
    tail = jax.nn.logsumexp(rest, axis=-1)
    order = jnp.argsort(classes, axis=-1)
    most, classes = (jnp.take_along_axis(x, order, axis=-1) for x in (most, classes))
    # float16 ends at -65504; below -1e4 a probability is 0 anyway
    small = lambda x: jnp.maximum(x, -1e4).astype(keep.dtype)
    return {"top": small(most), "tail": small(tail), **packed(classes, size)}


def decode(written: Mapping[str, Array], classes: int, states: int, temperature: float = 1.0) -> Outputs[Any]:
    """Outputs from what was written. Logits and hidden states in float32; a state that was not kept is None.

    Args:
        written: as `encode` gives it.
        classes: how many logits there are.
        states: how many hidden states.
        temperature: at which classes were drawn, if they were.
    """
    hidden = tuple(_float(written.get(f"hidden/{layer}")) for layer in range(states))
    if "logits" in written:
        return Outputs(written["logits"].astype(jnp.float32), hidden)
    numbers = unpacked(written)
    if "top" not in written:
        return Outputs(counted(numbers, classes, temperature), hidden)
    even = written["tail"].astype(jnp.float32) - jnp.log(classes - numbers.shape[-1])
    return Outputs(SparseLogits(numbers, written["top"].astype(jnp.float32), even, classes), hidden)


def _float(x: Array | None) -> Any:
    return None if x is None else x.astype(jnp.float32)


def from_batch(prefix: str, classes: int, states: int, temperature: float = 1.0, reads: str = "") -> Model:
    """A teacher whose outputs are in the batch, under names that begin with `prefix`.

    Args:
        prefix: such as "cached/resnet/".
        classes: how many logits it has.
        states: how many hidden states it has, kept or not.
        temperature: at which classes were drawn, if they were.
        reads: how the names of the fields begin that the network read whose outputs these are; empty: the student's.
    """

    def apply(params, state, batch, *, train, key):
        written = {name.removeprefix(prefix): x for name, x in batch.items() if name.startswith(prefix)}
        return decode(written, classes, states, temperature), state

    model = Model(lambda key, batch: ({}, {}), apply)
    return reading(model, reads) if reads else model
