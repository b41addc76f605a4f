"""Encode teacher outputs as fields of a batch, and build a model that decodes them.

Cached and sub-mesh teachers use this format: their outputs travel in the batch, and the decoding model needs no
parameters and no forward pass. For a large vocabulary, the encoding keeps one of three things instead of all logits:

- the `top` largest logits, with the probability mass of all other classes spread evenly over them. (A KL over a
  renormalised top-k is not the KL.)
- classes drawn from the distribution; their frequencies equal it in expectation (see `sparse_logits.py`);
- the features of a factored head, its last hidden states. The head's kernel travels once: it is a parameter of the
  decoding model, never trained. Logits are multiplied out beside the student's, chunk by chunk. They are exact with
  dtype="float32"; float16 rounds features, and cannot hold any above 65,504.

Of a teacher with two towers, both embeddings and its scale are kept, never logits: their columns are the texts of one
batch. The decoding model compares the embeddings of the batch that it is given.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxdistill.core.interfaces import Model
from jaxdistill.core.types import (
    Array,
    Factored,
    Key,
    Outputs,
    Params,
    PyTree,
    RowsLike,
    Shapes,
    SparseLogits,
    State,
    Variables,
)
from jaxdistill.models.combinators import with_prefix
from jaxdistill.models.towers import pair_outputs
from jaxdistill.teachers.sparse_logits import draw_classes, draw_keys, logits_of_draws, pack_classes, unpack_classes
from jaxdistill.teachers.top_k import top_k


class Encoding(NamedTuple):
    """The format of a teacher's outputs that are stored in a cache on disk, or sent from the teacher's own devices.

    folder: folder of the cache; empty if outputs are sent
    dtype: dtype of logits and hidden states
    top: keep only this many of the largest logits; 0 keeps all logits
    layers: indices of the hidden states that are kept; 0 is the embedding
    draws: keep this many classes, drawn at random for each example or token, instead of logits; 0 keeps logits
    temperature: T of the distribution softmax(logits / T) from which classes are drawn
    features: keep the features of a factored head instead of logits
    """

    folder: str
    dtype: str
    top: int
    layers: tuple[int, ...]
    draws: int = 0
    temperature: float = 1.0
    features: bool = False


class Head(NamedTuple):
    """The description of a teacher's head (its last layer), if the features before it are kept instead of logits.

    kernel, bias: shapes and dtypes of the arrays, as in `Factored`; bias is None if the head has none
    cap, tied: constants, as in `Factored`
    """

    kernel: jax.ShapeDtypeStruct
    bias: jax.ShapeDtypeStruct | None
    cap: float
    tied: bool


def head_shapes(outputs: Any) -> Head:
    """Return shapes, dtypes and constants of a teacher's head (its last layer), from the shapes of its outputs.

    Args:
        outputs: shapes of the teacher's outputs for a batch.

    Raises:
        ValueError: the logits are not a product of features and a kernel (`Factored`).
    """
    head = outputs.logits
    if not isinstance(head, Factored):
        raise ValueError("features need a head that is one product, as in a language model; leave features out")
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    return Head(shape(head.kernel), None if head.bias is None else shape(head.bias), head.cap, head.tied)


def head_arrays(model: Model, variables: Variables, rows: Shapes, mesh: Mesh) -> dict[str, Array]:
    """Return the arrays of a teacher's head (its last layer): `kernel` and, if it has one, `bias`, by name.

    The network below the head is not run, because XLA removes it from the program.

    Args:
        model: the teacher's network.
        variables: its parameters and state, on the mesh.
        rows: shapes of the arrays of a batch.
        mesh: mesh of the teacher's devices.
    """

    def arrays(variables: Variables) -> dict[str, Array]:
        zeros = {name: jnp.zeros(x.shape, x.dtype) for name, x in rows.items()}
        outputs, _ = model.apply(*variables, zeros, train=False, key=jax.random.key(0))
        head: Any = outputs.logits
        return {"kernel": head.kernel} | ({} if head.bias is None else {"bias": head.bias})

    with jax.set_mesh(mesh):
        return jax.jit(arrays)(variables)  # XLA removes what the kernel does not depend on: the network


def encoded_forward(model: Model, encoding: Encoding, chunks: int) -> Callable[..., dict[str, Array]]:
    """Build a function that runs a teacher on a batch and encodes its outputs; it is compiled by `jit_evaluate`.

    Args:
        model: the teacher's network.
        encoding: format of the encoded outputs.
        chunks: number of chunks of a sequence; the logits of one chunk at a time are computed, to save memory.

    Returns:
        `(params, state, teachers, rows) -> {field: array}`. The teacher's own parameters and state are
        `params["student"]` and `state["student"]`, the key that `jit_evaluate` uses for any model; `teachers` is
        unused.
    """

    def forward(params: PyTree, state: PyTree, _: Any, rows: Mapping[str, Array]) -> dict[str, Array]:
        outputs, _ = model.apply(params["student"], state["student"], rows, train=False, key=jax.random.key(0))
        return encode(outputs, encoding, draw_keys(rows["index"], outputs.logits.shape[:-1]), chunks)

    return forward


def encoded_fields(outputs: Any, encoding: Encoding, chunks: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the fields of one example's encoded teacher outputs: a dict from field name to (shape, dtype).

    Args:
        outputs: shapes of the teacher's outputs for a batch.
        encoding: format of the encoded outputs.
        chunks: number of chunks of a sequence; the logits of one chunk at a time are computed, to save memory.

    Raises:
        ValueError: the teacher lacks a layer of `encoding`, or has no more classes than `encoding.top`; or the sequence
            does not divide into chunks.
    """
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), outputs.logits.shape[:-1]))
    shapes = jax.eval_shape(lambda outputs, keys: encode(outputs, encoding, keys, chunks), outputs, keys)
    return {name: (tuple(x.shape[1:]), str(x.dtype)) for name, x in shapes.items()}


def encode(outputs: Outputs, encoding: Encoding, keys: Array, chunks: int = 1) -> dict[str, Array]:
    """Encode a teacher's outputs for a batch as arrays, `{field: [rows, ...]}`, which `decode` converts back.

    Args:
        outputs: the teacher's outputs, with logits `[*batch, classes]`.
        encoding: format of the arrays.
        keys: PRNG key of each example or token, `[*batch]`, for formats that draw classes at random.
        chunks: number of chunks of a sequence; the logits of one chunk at a time are computed, to save memory. More
            than 1 needs `Factored` logits, which are not yet multiplied out.

    Raises:
        ValueError: the teacher lacks a layer of `encoding`, or has no more classes than `encoding.top`; or the sequence
            does not divide into chunks.
    """
    states = outputs.hidden_states
    for layer in encoding.layers:
        if layer >= len(states):
            known = f"it has layers 0 (the embedding) to {len(states) - 1}" if states else "it returns no hidden states"
            raise ValueError(f"the teacher has no layer {layer}; {known}")
    hidden = {f"hidden/{layer}": states[layer].astype(encoding.dtype) for layer in encoding.layers}
    head: Any = outputs.logits
    if outputs.text_embedding is not None:
        return _encode_pairs(outputs, encoding) | hidden
    if encoding.features:
        _ = head_shapes(outputs)
        return {"features": head.features.astype(encoding.dtype)} | hidden
    if chunks == 1:
        return _encode_logits(outputs.dense().logits, encoding, keys) | hidden
    if keys.shape[1] % chunks:
        raise ValueError(f"{chunks} chunks do not divide a sequence of {keys.shape[1]} tokens")
    split = lambda x: jnp.moveaxis(x.reshape(x.shape[0], chunks, -1, *x.shape[2:]), 1, 0)
    join = lambda x: jnp.moveaxis(x, 0, 1).reshape(*keys.shape, *x.shape[3:])
    encode_chunk = lambda chunk: _encode_logits(replace(head, features=chunk[0]).dense(), encoding, chunk[1])
    return jax.tree.map(join, jax.lax.map(encode_chunk, (split(head.features), split(keys)))) | hidden


def _encode_pairs(outputs: Outputs, encoding: Encoding) -> dict[str, Array]:
    """Encode the embeddings, scale and bias of a teacher with two towers as fields `[batch, ...]`, by name."""
    if encoding.top or encoding.draws or encoding.features:
        raise ValueError("the teacher has two towers, whose embeddings are kept; leave out top, features and draws")
    numbers = {"scale": outputs.scale, "bias": outputs.bias}
    embeddings = {"image": outputs.embedding, "text": outputs.text_embedding}
    return {name: x.astype(encoding.dtype) for name, x in embeddings.items() if x is not None} | {
        name: x.astype(jnp.float32) for name, x in numbers.items() if x is not None
    }


def _encode_logits(logits: Any, encoding: Encoding, keys: Array) -> dict[str, Array]:
    """Encode logits `[*batch, classes]` as a dict of arrays `[*batch, ...]`: all, the largest, or sampled classes."""
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


def decode(
    encoded: RowsLike, classes: int, states: int, temperature: float = 1.0, head: Factored | None = None
) -> Outputs[Any]:
    """Convert the arrays that `encode` made back to a teacher's outputs, with logits and hidden states in float32.

    A hidden state that was not kept is None. Classes that were not kept share one logit: their total probability is
    spread evenly over them, or is 0 if classes were drawn.

    Args:
        encoded: the encoded arrays of a batch, by field. For a teacher with two towers (of images and of texts), the
            `mask` of the batch is needed too.
        classes: number of classes.
        states: number of hidden states of the teacher, kept or not.
        temperature: temperature at which classes were drawn, if they were.
        head: the teacher's head (its last layer), if features were kept. The encoded features replace those in `head`;
            logits are then `Factored`, in the dtype of the kernel.
    """
    hidden = tuple(_float(encoded.get(f"hidden/{layer}")) for layer in range(states))
    if "text" in encoded:
        bias = encoded["bias"][0] if "bias" in encoded else None
        image, text = _float(encoded["image"]), _float(encoded["text"])
        return replace(
            pair_outputs(image, text, jnp.log(encoded["scale"][0]), bias, encoded["mask"]), hidden_states=hidden
        )
    if head is not None:
        return Outputs(replace(head, features=jnp.asarray(encoded["features"], head.kernel.dtype)), hidden)
    if "logits" in encoded:
        return Outputs(encoded["logits"].astype(jnp.float32), hidden)
    indices = unpack_classes(encoded)
    if "top" not in encoded:
        return Outputs(logits_of_draws(indices, classes, temperature), hidden)
    even = encoded["tail"].astype(jnp.float32) - jnp.log(classes - indices.shape[-1])
    return Outputs(SparseLogits(indices, encoded["top"].astype(jnp.float32), even, classes), hidden)


def _float(x: Array | None) -> Any:
    return None if x is None else x.astype(jnp.float32)


def decoding_model(
    prefix: str,
    classes: int,
    states: int,
    temperature: float = 1.0,
    reads: str = "",
    head: Head | None = None,
    second_prefix: str = "",
) -> Model:
    """Build a model that stands for a teacher: it reads the teacher's encoded outputs from the batch and decodes them.

    The model has no parameters, except if features are kept instead of logits: then its parameters are the teacher's
    head (last layer).

    Args:
        prefix: prefix of the batch fields with the encoded outputs, such as "cached/resnet/".
        classes: number of classes.
        states: number of hidden states of the teacher, kept or not.
        temperature: temperature at which classes were drawn, if they were.
        reads: prefix of the batch fields that the teacher's network read, if it has its own tokenizer; empty if it read
            the same fields as the student.
        head: shapes of the teacher's head, if features are kept; None if logits or classes are kept.
        second_prefix: `Model.second_prefix` of the teacher's network, by which its evaluation tells equal texts.
    """

    def init(key: Key, batch: RowsLike) -> tuple[Params, State]:
        arrays = {} if head is None else {"kernel": head.kernel, "bias": head.bias}
        return {name: jnp.zeros(x.shape, x.dtype) for name, x in arrays.items() if x is not None}, {}

    def apply(params: Params, state: State, batch: RowsLike, *, train: bool, key: Key) -> tuple[Outputs[Any], State]:
        encoded = {name.removeprefix(prefix): x for name, x in batch.items() if name.startswith(prefix)}
        encoded |= {"mask": batch["mask"]} if "text" in encoded else {}
        missing: Any = None
        factors = head and Factored(missing, params["kernel"], params.get("bias"), head.cap, head.tied)
        return decode(encoded, classes, states, temperature, factors), state

    model = Model(init, apply, second_prefix=second_prefix)
    return with_prefix(model, reads) if reads else model
