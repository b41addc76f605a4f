"""Functions from `Model` to `Model` that add behaviour, so that model families need no flags for it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.core.interfaces import Model
from jaxdistill.core.types import Array, Factored, Outputs, PyTree, TokenSpans


def in_dtype(model: Model, dtype: str) -> Model:
    """Compute in `dtype`, such as "bfloat16", with float32 parameters.

    The parameters are cast before the model runs, so that their gradients are float32. State keeps its dtype, because
    running statistics in bfloat16 would stop changing.
    """

    def cast(x: Array) -> Array:
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    def apply(params, state, batch, *, train, key):
        return model.apply(jax.tree.map(cast, params), state, batch, train=train, key=key)

    return model._replace(apply=apply)


def microbatched(model: Model, count: int) -> Model:
    """Run the batch in `count` microbatches: gradient accumulation inside the model.

    A scan runs the microbatches one after another, each with rematerialisation, so that only one microbatch's
    activations are in memory at a time. The backward pass runs every forward pass again.

    Losses still see the outputs of the whole batch. Averaging the gradients of separate small batches would give
    another gradient wherever a loss compares rows. Batch statistics are computed per microbatch.

    Args:
        model: a model whose outputs have the batch as their first axis, except for the kernel of a `Factored` head.
        count: number of microbatches; it must divide the batch size (on a mesh, each device's share of the batch).
    """

    def split(x: Array) -> Array:
        # [batch, ...] -> [count, batch / count, ...]; strided, so that each microbatch stays spread over the devices
        return jnp.moveaxis(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 1, 0)

    def join(x: Array) -> Array:
        # [count, batch / count, ...] -> [batch, ...]
        return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])

    def join_outputs(outputs: PyTree) -> PyTree:
        def join_leaf(leaf: Any) -> Any:
            if isinstance(leaf, Factored):  # kernel and bias have no rows, and are the same in every microbatch
                bias = None if leaf.bias is None else leaf.bias[-1]
                return replace(leaf, features=join(leaf.features), kernel=leaf.kernel[-1], bias=bias)
            return join(leaf)

        return jax.tree.map(join_leaf, outputs, is_leaf=lambda leaf: isinstance(leaf, Factored))

    def apply(params, state, batch, *, train, key):
        if not train:  # no activations are kept for a gradient, and any number of rows is allowed
            return model.apply(params, state, batch, train=False, key=key)

        @jax.checkpoint
        def run_microbatch(state, numbered_rows):
            rows, number = numbered_rows
            outputs, state = model.apply(params, state, rows, train=train, key=jax.random.fold_in(key, number))
            return state, outputs

        state, outputs = jax.lax.scan(run_microbatch, state, (jax.tree.map(split, batch), jnp.arange(count)))
        return join_outputs(outputs), state

    return model._replace(apply=apply)


def remap_classes(model: Model, classes: tuple[int, ...]) -> Model:
    """Reorder the logits to the classes of the data: class c of the data is class `classes[c]` of the model.

    Args:
        model: a classifier whose classes differ from those of the data, or have another order.
        classes: one class of the model for each class of the data; -1 if the model has no such class, which gives a
            logit of -inf.

    Raises:
        ValueError: when the model is applied, if `classes` names a class that the model does not have.
    """
    # NumPy arrays, so that nothing compiles before the run starts
    sources, known = np.maximum(classes, 0), np.asarray(classes) >= 0

    def remap(logits: Any) -> Array | Factored:  # [*batch, classes of the model] -> [*batch, classes of the data]
        if logits.shape[-1] <= max(classes):
            last = logits.shape[-1] - 1
            raise ValueError(f"classes names class {max(classes)}, but the model has only classes 0 to {last}")
        if isinstance(logits, Factored):
            bias = jnp.zeros(logits.shape[-1], logits.kernel.dtype) if logits.bias is None else logits.bias
            return replace(logits, kernel=logits.kernel[:, sources], bias=jnp.where(known, bias[sources], -jnp.inf))
        return jnp.where(known, logits[..., sources], -jnp.inf)

    def apply(params, state, batch, *, train, key):
        out, state = model.apply(params, state, batch, train=train, key=key)
        return replace(out, logits=remap(out.logits)), state

    return model._replace(apply=apply)


def strip_prefix(batch: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    """Replace fields of a batch by those with the prefix, for example `input_ids` by `teacher/input_ids`."""
    return {**batch, **{name.removeprefix(prefix): x for name, x in batch.items() if name.startswith(prefix)}}


def with_prefix(model: Model, prefix: str) -> Model:
    """Make a model read the batch fields whose names begin with `prefix`, for example `teacher/input_ids`.

    Such a model reads other tokens than the student. Its hidden states and attentions have no counterpart in the
    student, so they are dropped. If the fields include token spans (see `aligned`), the outputs include them too.
    """

    def init(key, batch):
        return model.init(key, strip_prefix(batch, prefix))

    def apply(params, state, batch, *, train, key):
        fields = strip_prefix(batch, prefix)
        out, state = model.apply(params, state, fields, train=train, key=key)
        pooled = Outputs(out.logits, embedding=out.embedding, text_embedding=out.text_embedding)
        return replace(pooled, spans=TokenSpans(fields["span"], fields["label"]) if "span" in fields else None), state

    return model._replace(init=init, apply=apply)
