"""Behaviour added from Model to Model, not by flags inside the models."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.core.types import Array, Factored, Model, Outputs, PyTree, TokenSpans


def in_dtype(model: Model, dtype: str) -> Model:
    """Computes in `dtype`, such as "bfloat16", over float32 parameters.

    They are cast on the way in, so that gradients come back in float32. State keeps its dtype: running statistics in
    bfloat16 would stop moving.
    """

    def cast(x: Array) -> Array:
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    def apply(params, state, batch, *, train, key):
        return model.apply(jax.tree.map(cast, params), state, batch, train=train, key=key)

    return model._replace(apply=apply)


def microbatched(model: Model, parts: int) -> Model:
    """Runs the batch in `parts` pieces, keeping only one piece's activations: gradient accumulation inside the model.

    Terms still see the whole batch: the mean of the gradients of separate small batches is another gradient where a
    loss compares rows. Batch statistics are those of a piece.

    Args:
        model: any model whose outputs have the batch as first axis (a `Factored` kernel excepted).
        parts: how many pieces; it must divide the batch (on a mesh, each device's share of it).
    """

    def cut(x: Array) -> Array:  # strided, so that each piece stays spread over the devices
        return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)

    def join(x: Array) -> Array:
        return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])

    def joined(outputs: PyTree) -> PyTree:
        def each(leaf: Any) -> Any:
            if isinstance(leaf, Factored):  # kernel and bias have no rows; every piece saw the same ones
                bias = None if leaf.bias is None else leaf.bias[-1]
                return replace(leaf, features=join(leaf.features), kernel=leaf.kernel[-1], bias=bias)
            return join(leaf)

        return jax.tree.map(each, outputs, is_leaf=lambda leaf: isinstance(leaf, Factored))

    def apply(params, state, batch, *, train, key):
        if not train:  # nothing is kept for a gradient, and any number of rows will do
            return model.apply(params, state, batch, train=False, key=key)

        @jax.checkpoint
        def piece(state, numbered):
            rows, number = numbered
            outputs, state = model.apply(params, state, rows, train=train, key=jax.random.fold_in(key, number))
            return state, outputs

        state, outputs = jax.lax.scan(piece, state, (jax.tree.map(cut, batch), jnp.arange(parts)))
        return joined(outputs), state

    return model._replace(apply=apply)


def relabelled(model: Model, classes: tuple[int, ...]) -> Model:
    """Says its logits in another order of classes: class c of ours is class `classes[c]` of the model's.

    Args:
        model: a classifier whose classes are not, or not in this order, those of the data.
        classes: one number for each class of the data; -1 for one that the model does not know, whose logit is -inf.
    """
    chosen, known = np.maximum(classes, 0), np.asarray(classes) >= 0  # of NumPy: nothing compiles before a run does

    def ours(logits: Any) -> Array | Factored:
        if logits.shape[-1] <= max(classes):
            raise ValueError(f"classes names {max(classes)}, and it has the classes 0 to {logits.shape[-1] - 1}")
        if isinstance(logits, Factored):
            bias = jnp.zeros(logits.shape[-1], logits.kernel.dtype) if logits.bias is None else logits.bias
            return replace(logits, kernel=logits.kernel[:, chosen], bias=jnp.where(known, bias[chosen], -jnp.inf))
        return jnp.where(known, logits[..., chosen], -jnp.inf)

    def apply(params, state, batch, *, train, key):
        out, state = model.apply(params, state, batch, train=train, key=key)
        return replace(out, logits=ours(out.logits)), state

    return model._replace(apply=apply)


def view(batch: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    """A batch as a model with fields of its own sees it: `teacher/input_ids` in place of `input_ids`."""
    return {**batch, **{name.removeprefix(prefix): x for name, x in batch.items() if name.startswith(prefix)}}


def reading(model: Model, prefix: str) -> Model:
    """Reads the fields of a batch whose names begin with `prefix` in place of those of the same name without it.

    What is said of single tokens has no counterpart in a student that reads others, so that hidden states and
    attentions are not handed on. Where the fields hold spans of text, as of `aligned`, the logits come with them.
    """

    def init(key, batch):
        return model.init(key, view(batch, prefix))

    def apply(params, state, batch, *, train, key):
        own = view(batch, prefix)
        out, state = model.apply(params, state, own, train=train, key=key)
        pooled = Outputs(out.logits, embedding=out.embedding, text_embedding=out.text_embedding)
        return replace(pooled, spans=TokenSpans(own["span"], own["label"]) if "span" in own else None), state

    return model._replace(init=init, apply=apply)
