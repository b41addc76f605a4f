"""A teacher whose outputs were written ahead, by `python -m jaxdistill.cache`, and travel in the batch.

It has no parameters, and its forward pass is free. Of `top` logits only the largest are kept, with the mass of all
others as one bucket that is spread evenly over them: a KL over a renormalised top-k is not the KL.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxdistill.registry import caches
from jaxdistill.types import Array, Model, Outputs


class Keep(NamedTuple):
    """Where a teacher's outputs are, and what of them is kept. See `outputs`."""

    folder: str
    dtype: str
    top: int
    layers: tuple[int, ...]


@caches.register
def outputs(
    folder: str, dtype: Literal["float32", "float16"] = "float32", top: int = 0, layers: tuple[int, ...] = ()
) -> Keep:
    """Outputs of a teacher, written once and read as data.

    Args:
        folder: where they are.
        dtype: of what is written. Trained from float32, a student equals one of a live teacher to the bit.
        top: how many of the largest logits are kept, with the mass of the rest; 0: all. Of the test records all are
            kept anyway, because students are measured beside them.
        layers: the hidden states that are kept, by number from 0, the embedding.
    """
    if not folder or top < 0 or any(layer < 0 for layer in layers):
        raise ValueError(f"give a folder, and numbers from 0; got folder={folder!r}, top={top}, layers={layers}")
    return Keep(folder, dtype, top, layers)


def encode(said: Outputs, keep: Keep) -> dict[str, Array]:
    """What is written of a batch of outputs, `{name: [rows, ...]}`.

    Raises:
        ValueError: the teacher has no such layer, or fewer classes than `top`.
    """
    logits, states = jnp.asarray(said.dense().logits, jnp.float32), said.hidden_states
    for layer in keep.layers:
        if layer >= len(states):
            has = f"it has layers 0 (the embedding) to {len(states) - 1}" if states else "it returns no hidden states"
            raise ValueError(f"the teacher has no layer {layer}; {has}")
    hidden = {f"hidden/{layer}": states[layer].astype(keep.dtype) for layer in keep.layers}
    if not keep.top:
        return {"logits": logits.astype(keep.dtype), **hidden}
    if keep.top >= logits.shape[-1]:
        raise ValueError(f"top={keep.top} of {logits.shape[-1]} classes leaves no rest; set top=0")
    log_p = jax.nn.log_softmax(logits)
    most, classes = jax.lax.top_k(log_p, keep.top)
    rest = jnp.put_along_axis(log_p, classes, -jnp.inf, axis=-1, inplace=False)
    tail = jax.nn.logsumexp(rest, axis=-1)
    # float16 ends at -65504; below -1e4 a probability is 0 anyway
    small = lambda x: jnp.maximum(x, -1e4).astype(keep.dtype)
    return {"top": small(most), "classes": classes.astype(jnp.int32), "tail": small(tail), **hidden}


def decode(written: Mapping[str, Array], classes: int, states: int) -> Outputs:
    """Outputs from what was written. Logits and hidden states in float32; a state that was not kept is None."""
    hidden = tuple(_float(written.get(f"hidden/{layer}")) for layer in range(states))
    if "logits" in written:
        return Outputs(written["logits"].astype(jnp.float32), hidden)
    tail = written["tail"].astype(jnp.float32)[..., None]
    even = jnp.broadcast_to(tail - jnp.log(classes - written["top"].shape[-1]), (*tail.shape[:-1], classes))
    most = written["top"].astype(jnp.float32)
    return Outputs(jnp.put_along_axis(even, written["classes"], most, axis=-1, inplace=False), hidden)


def _float(x: Array | None) -> Any:
    return None if x is None else x.astype(jnp.float32)


def from_batch(prefix: str, classes: int, states: int) -> Model:
    """A teacher whose outputs are in the batch, under names that begin with `prefix`.

    Args:
        prefix: such as "cached/resnet/".
        classes: how many logits it has.
        states: how many hidden states it has, kept or not.
    """

    def apply(params, state, batch, *, train, key):
        written = {name.removeprefix(prefix): x for name, x in batch.items() if name.startswith(prefix)}
        return decode(written, classes, states), state

    return Model(lambda key, batch: ({}, {}), apply)
