"""Encode teacher outputs as fields of a batch, and a model that decodes them.

Cached and sub-mesh teachers use this format: the outputs travel in the batch, and the decoding model needs no
parameters and no forward pass. For a large vocabulary, the encoding keeps one of two things:

- the `top` largest logits, with the probability mass of all others spread evenly over them. (A KL over a renormalised
  top-k is not the KL.)
- classes drawn from the distribution; their frequencies equal it in expectation (see `sparse_logits.py`).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdistill.core.interfaces import Model
from jaxdistill.core.types import Array, Outputs, PyTree, SparseLogits
from jaxdistill.models.combinators import with_prefix
from jaxdistill.teachers.sparse_logits import draw_classes, draw_keys, logits_of_draws, pack_classes, unpack_classes
from jaxdistill.teachers.top_k import top_k


class Encoding(NamedTuple):
    """The format of a teacher's stored or sent outputs; see `outputs` and `draws` in `cache.py`.

    folder: folder of the stores; empty on a sub-mesh
    dtype: of the values
    top: number of the largest logits; 0: all
    layers: numbers of the hidden states
    draws: classes drawn for each row or token; 0: logits are kept
    temperature: at which the classes are drawn
    """

    folder: str
    dtype: str
    top: int
    layers: tuple[int, ...]
    draws: int = 0
    temperature: float = 1.0


def encoded_forward(model: Model, encoding: Encoding, chunks: int) -> Callable[..., dict[str, Array]]:
    """Build the forward pass of a teacher that returns encoded outputs, for `jit_evaluate`.

    Args:
        model: the teacher's network.
        encoding: format of the outputs.
        chunks: as for `encode`.

    Returns:
        `(params, state, teachers, rows) -> {name: [rows, ...]}`; `teachers` is unused.
    """

    def forward(params: PyTree, state: PyTree, _: Any, rows: Mapping[str, Array]) -> dict[str, Array]:
        outputs, _ = model.apply(params["student"], state["student"], rows, train=False, key=jax.random.key(0))
        return encode(outputs, encoding, draw_keys(rows["index"], outputs.logits.shape[:-1]), chunks)

    return forward


def encoded_fields(outputs: Any, encoding: Encoding, chunks: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the shape and dtype of each encoded field of a row, by name.

    Args:
        outputs: shapes of a batch of outputs.
        encoding, chunks: as for `encode`.

    Raises:
        ValueError: as `encode`.
    """
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), outputs.logits.shape[:-1]))
    shapes = jax.eval_shape(lambda outputs, keys: encode(outputs, encoding, keys, chunks), outputs, keys)
    return {name: (tuple(x.shape[1:]), str(x.dtype)) for name, x in shapes.items()}


def encode(outputs: Outputs, encoding: Encoding, keys: Array, chunks: int = 1) -> dict[str, Array]:
    """Encode a batch of outputs as `{name: [rows, ...]}`.

    Args:
        outputs: `[*batch, classes]`.
        encoding: the format.
        keys: PRNG keys for the draws, `[*batch]`.
        chunks: chunks of a sequence with a factored head; only one chunk's logits are in memory at a time.

    Raises:
        ValueError: the teacher has no such layer, no more classes than `top`, or the sequence does not divide into
            chunks.
    """
    states = outputs.hidden_states
    for layer in encoding.layers:
        if layer >= len(states):
            known = f"it has layers 0 (the embedding) to {len(states) - 1}" if states else "it returns no hidden states"
            raise ValueError(f"the teacher has no layer {layer}; {known}")
    hidden = {f"hidden/{layer}": states[layer].astype(encoding.dtype) for layer in encoding.layers}
    head: Any = outputs.logits
    if chunks == 1:
        return _encode_logits(outputs.dense().logits, encoding, keys) | hidden
    if keys.shape[1] % chunks:
        raise ValueError(f"{chunks} chunks do not divide a sequence of {keys.shape[1]} tokens")
    split = lambda x: jnp.moveaxis(x.reshape(x.shape[0], chunks, -1, *x.shape[2:]), 1, 0)
    join = lambda x: jnp.moveaxis(x, 0, 1).reshape(*keys.shape, *x.shape[3:])
    encode_chunk = lambda chunk: _encode_logits(replace(head, features=chunk[0]).dense(), encoding, chunk[1])
    return jax.tree.map(join, jax.lax.map(encode_chunk, (split(head.features), split(keys)))) | hidden


def _encode_logits(logits: Any, encoding: Encoding, keys: Array) -> dict[str, Array]:
    """Encode logits `[*batch, classes]`."""
    logits = jnp.asarray(logits, jnp.float32)
    size = logits.shape[-1]
    if encoding.draws:
        return pack_classes(draw_classes(logits / encoding.temperature, keys, encoding.draws), size)
    if not encoding.top:
        return {"logits": logits.astype(encoding.dtype)}
    if encoding.top >= size:
        raise ValueError(f"top={encoding.top} keeps all {size} classes; set top=0")
    log_p = jax.nn.log_softmax(logits)
    values, classes = top_k(log_p, encoding.top)
    rest = jnp.put_along_axis(log_p, classes, -jnp.inf, axis=-1, inplace=False)
    tail = jax.nn.logsumexp(rest, axis=-1)
    order = jnp.argsort(classes, axis=-1)
    values, classes = (jnp.take_along_axis(x, order, axis=-1) for x in (values, classes))
    # float16 has nothing below -65504, and the probability of -1e4 is 0 anyway
    convert = lambda x: jnp.maximum(x, -1e4).astype(encoding.dtype)
    return {"top": convert(values), "tail": convert(tail), **pack_classes(classes, size)}


def decode(encoded: Mapping[str, Array], classes: int, states: int, temperature: float = 1.0) -> Outputs[Any]:
    """Decode outputs, the inverse of `encode`.

    Logits and hidden states are float32. A hidden state that was not kept is None.

    Args:
        encoded: the encoded fields.
        classes: number of classes.
        states: number of hidden states of the teacher, kept or not.
        temperature: at which classes were drawn, if they were.
    """
    hidden = tuple(_float(encoded.get(f"hidden/{layer}")) for layer in range(states))
    if "logits" in encoded:
        return Outputs(encoded["logits"].astype(jnp.float32), hidden)
    indices = unpack_classes(encoded)
    if "top" not in encoded:
        return Outputs(logits_of_draws(indices, classes, temperature), hidden)
    even = encoded["tail"].astype(jnp.float32) - jnp.log(classes - indices.shape[-1])
    return Outputs(SparseLogits(indices, encoded["top"].astype(jnp.float32), even, classes), hidden)


def _float(x: Array | None) -> Any:
    return None if x is None else x.astype(jnp.float32)


def decoding_model(prefix: str, classes: int, states: int, temperature: float = 1.0, reads: str = "") -> Model:
    """Build a model that reads its outputs from batch fields whose names start with `prefix`.

    Args:
        prefix: such as "cached/resnet/".
        classes: number of classes.
        states: number of hidden states of the teacher, kept or not.
        temperature: at which classes were drawn, if they were.
        reads: prefix of the fields that the original network reads; empty: the student's.
    """

    def apply(params, state, batch, *, train, key):
        encoded = {name.removeprefix(prefix): x for name, x in batch.items() if name.startswith(prefix)}
        return decode(encoded, classes, states, temperature), state

    model = Model(lambda key, batch: ({}, {}), apply)
    return with_prefix(model, reads) if reads else model
