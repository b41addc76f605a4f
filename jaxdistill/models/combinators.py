"""Wrap a model in another one that adds a behaviour, such as a dtype, so that model families need no flag for it."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.core.interfaces import Model
from jaxdistill.core.types import Array, Factored, Key, Outputs, Params, PyTree, Rows, RowsLike, State, TokenSpans


def in_dtype(model: Model, dtype: str) -> Model:
    """Make a model compute in `dtype`, such as "bfloat16", while its parameters and their gradients stay in float32.

    The parameters are cast to `dtype` inside the forward pass. The state (running statistics) is not cast, because
    small updates of it would be lost in the rounding of bfloat16.
    """

    def cast(x: Array) -> Array:
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    def apply(params: Params, state: State, batch: RowsLike, *, train: bool, key: Key) -> tuple[Outputs[Any], State]:
        return model.apply(jax.tree.map(cast, params), state, batch, train=train, key=key)

    return model._replace(apply=apply)


def microbatched(model: Model, count: int) -> Model:
    """Make a model run a training batch in `count` microbatches: gradient accumulation inside the model.

    A scan runs the microbatches one after another, each with rematerialisation, so that only one microbatch's
    activations are in memory at a time. The backward pass runs every forward pass again.

    Losses receive the outputs of the whole batch, so the gradient of a loss that compares examples is unchanged. (An
    average over the gradients of separate small batches would be another gradient.) Batch statistics are computed per
    microbatch. With `train=False` the batch is not split.

    Args:
        model: a model whose outputs have the batch as their first axis. Only the kernel of a `Factored` head (features
            and a kernel that are not yet multiplied) has no such axis.
        count: number of microbatches; it must divide the batch size (on a mesh, each device's share of the batch).
    """

    def split(x: Array | np.ndarray) -> Array:
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

    def apply(params: Params, state: State, batch: RowsLike, *, train: bool, key: Key) -> tuple[Outputs[Any], State]:
        if not train:  # no activations are kept for a gradient, and any number of rows is allowed
            return model.apply(params, state, batch, train=False, key=key)

        @jax.checkpoint
        def run_microbatch(state: State, numbered_rows: tuple[Rows, Array]) -> tuple[State, Outputs[Any]]:
            rows, number = numbered_rows
            outputs, state = model.apply(params, state, rows, train=train, key=jax.random.fold_in(key, number))
            return state, outputs

        state, outputs = jax.lax.scan(run_microbatch, state, (jax.tree.map(split, batch), jnp.arange(count)))
        return join_outputs(outputs), state

    return model._replace(apply=apply)


def remap_classes(model: Model, classes: tuple[int, ...]) -> Model:
    """Make a classifier return one logit for each class of the data, in the order of the data's classes.

    Args:
        model: a classifier whose classes differ from the classes of the data, or have another order.
        classes: `classes[c]` is the model's class that corresponds to class c of the data; -1 if the model has no such
            class, which gives the logit -inf.

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
            kernel = logits.kernel[sources] if logits.tied else logits.kernel[:, sources]
            return replace(logits, kernel=kernel, bias=jnp.where(known, bias[sources], -jnp.inf))
        return jnp.where(known, logits[..., sources], -jnp.inf)

    def apply(params: Params, state: State, batch: RowsLike, *, train: bool, key: Key) -> tuple[Outputs[Any], State]:
        out, state = model.apply(params, state, batch, train=train, key=key)
        return replace(out, logits=remap(out.logits)), state

    return model._replace(apply=apply)


def strip_prefix(batch: RowsLike, prefix: str) -> dict[str, Any]:
    """Return a batch with each field `<prefix><name>` copied to `<name>`, such as `teacher/input_ids` to `input_ids`.

    An existing field `<name>` is replaced.
    """
    return {**batch, **{name.removeprefix(prefix): x for name, x in batch.items() if name.startswith(prefix)}}


def with_prefix(model: Model, prefix: str) -> Model:
    """Make a teacher read the batch field `<prefix><name>` instead of `<name>`, if the batch has it.

    This is for a teacher with another tokenizer than the student's. The hidden states and attentions of the teacher are
    removed from the outputs, because the teacher's tokens have no counterpart in the student. If the batch has the
    field `<prefix>span`, the outputs include `TokenSpans`, which align the tokens of both models (see the tokenization
    `aligned`).

    Args:
        model: the teacher.
        prefix: beginning of the names of the teacher's fields, such as "teacher/".
    """

    def init(key: Key, batch: RowsLike) -> tuple[Params, State]:
        return model.init(key, strip_prefix(batch, prefix))

    def apply(params: Params, state: State, batch: RowsLike, *, train: bool, key: Key) -> tuple[Outputs[Any], State]:
        fields = strip_prefix(batch, prefix)
        out, state = model.apply(params, state, fields, train=train, key=key)
        text, scale, bias = out.text_embedding, out.scale, out.bias
        pooled = Outputs(out.logits, embedding=out.embedding, text_embedding=text, scale=scale, bias=bias)
        return replace(pooled, spans=TokenSpans(fields["span"], fields["label"]) if "span" in fields else None), state

    return model._replace(init=init, apply=apply)
