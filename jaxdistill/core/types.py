"""The types of a run: plain data and pairs of pure functions, with one signature for every part.

*This student learns from these teachers, fused like this, matched by these terms, updated by this step, on this
mesh.* Everything below is a pytree or a tuple of functions. Nothing here depends on configs, devices or files.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Generic, NamedTuple, dataclass_transform

import jax
import jax.numpy as jnp
from typing_extensions import TypeVar

Array = jax.Array
PyTree = Any
Key = Array  # a typed PRNG key
Params = PyTree  # trained values; those of a model are flat: `{"blocks/0/mlp/up/kernel": array}`
State = PyTree  # values that are not trained: running statistics, banks, adaptive coefficients
ByRole = Mapping[str, PyTree]  # params or state by role: `student`, `fusion`, `terms`, ...
Rows = Mapping[str, Array]  # the arrays of one stream of a batch
RowsLike = Mapping[str, Any]  # rows, NumPy arrays that `jit` makes rows of, or shapes of rows
Batch = Mapping[str, Rows]  # the streams of a batch, by name
Shapes = Mapping[str, jax.ShapeDtypeStruct]  # the shapes of the arrays of one stream


@dataclass_transform(frozen_default=True)
def struct[T](cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass and a pytree; its fields are data unless their metadata marks them static."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@struct
class Factored:
    """Logits that are not multiplied out yet: `features @ kernel + bias`.

    With a vocabulary of 150,000, logits are the largest array of a run. From this form, the objective computes them
    one chunk of rows at a time.

    Args:
        features: `[*batch, width]`
        kernel: `[width, classes]`
        bias: `[classes]`, or None
        cap: if not 0, the logits are `cap tanh(features @ kernel / cap) + bias` (Gemma 2, arxiv.org/abs/2408.00118)
    """

    features: Array
    kernel: Array
    bias: Array | None = None
    cap: float = dataclasses.field(default=0.0, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the logits, `(*batch, classes)`."""
        return (*self.features.shape[:-1], self.kernel.shape[-1])

    def dense(self) -> Array:
        """Compute the logits, `[*batch, classes]`."""
        logits = self.features @ self.kernel
        logits = self.cap * jnp.tanh(logits / self.cap) if self.cap else logits
        return logits if self.bias is None else logits + self.bias


@struct
class SparseLogits:
    """The logits of a few classes, and one logit for all others: the stored form of a teacher's large vocabulary.

    Args:
        classes: `[*batch, few]` int32, without repetition; the value `size` is padding
        logits: `[*batch, few]`, the logits of `classes`
        rest: `[*batch]`, the logit of every other class; -inf: these classes have probability 0
        size: the number of classes
    """

    classes: Array
    logits: Array
    rest: Array
    size: int = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the dense logits, `(*batch, size)`."""
        return (*self.rest.shape, self.size)

    def dense(self) -> Array:
        """Return the dense logits, `[*batch, size]`."""
        logits = jnp.broadcast_to(self.rest[..., None], self.shape)
        return jnp.put_along_axis(logits, self.classes, self.logits, axis=-1, inplace=False, mode="drop")


@struct
class AttentionHeads:
    """Queries, keys and values of one layer's attention heads. Rotary positions are already applied.

    A model computes these anyway, so that returning them costs nothing. The terms that need scores or relations
    compute them from these arrays.

    Args:
        query: `[batch, queries, heads, head_size]`
        key, value: `[batch, keys, kv_heads, head_size]`; grouped-query attention has fewer `kv_heads` than `heads`
        probabilities: `[batch, heads, queries, keys]`, from models with `attentions=True`
    """

    query: Array
    key: Array
    value: Array
    probabilities: Array | None = None


@struct
class TokenSpans:
    """An alignment of the predictions of a teacher with the text, for a teacher whose tokenizer is not the student's.

    A span reaches from one place where tokens of both tokenizers end to the next. A span has one token of each where
    the tokenizers agree, and more where they do not.

    Args:
        number: `[batch, length]`, the span of the predicted token, rising from 1 in each row; 0: none
        label: `[batch, length]`, the predicted token
    """

    number: Array
    label: Array


Logits = TypeVar("Logits", default=Array)  # Array, Factored or SparseLogits


@struct
class Outputs(Generic[Logits]):
    """Everything that a model returns; there are no hooks.

    Outputs that no loss uses are removed by `jit`, so they cost nothing. `Outputs` alone has logits in one array:
    fusions and terms receive this form. A model may return `Outputs[Factored]`, and a cached teacher
    `Outputs[SparseLogits]`.

    Args:
        logits: `[*batch, classes]`, or a `Factored` head, or `SparseLogits`
        hidden_states: one array per layer, `[*batch, width]`, the embedding (stem) first: 12 layers give 13. Layers
            with a spatial extent keep it: `[batch, height, width, channels]`
        attentions: one `AttentionHeads` per layer
        embedding: the pooled or projected representation, `[batch, width]`
        text_embedding: the text embedding of a model with two towers; `embedding` is then the image embedding
        input_gradients: gradients of a random mixture of the logits with respect to the input, `[batch, *input]`; only
            where a term needs them, see `models/derivatives.py`
        weights: the share of each teacher in a fused teacher, `[teachers, *batch]`
        routes: the share of each path between layers of a gated teacher, `[paths, *batch]`
        state_gradients: gradients of each row's task loss with respect to each hidden state, with the shapes of
            `hidden_states`; only where a term needs them
        spans: the alignment of a teacher that has its own tokenizer; its logits have the same length as the spans
        sparse: the same logits in sparse form, where only few are known; for terms that need no others
    """

    logits: Logits
    hidden_states: tuple[Array, ...] = ()
    attentions: tuple[AttentionHeads, ...] = ()
    embedding: Array | None = None
    text_embedding: Array | None = None
    weights: Array | None = None
    routes: Array | None = None
    input_gradients: Array | None = None
    state_gradients: tuple[Array, ...] = ()
    spans: TokenSpans | None = None
    sparse: SparseLogits | None = None

    def dense(self) -> "Outputs":
        """Return these outputs with the logits in one array."""
        outputs: Any = self
        match self.logits:
            case Factored() as head:
                return dataclasses.replace(outputs, logits=head.dense())
            case SparseLogits() as sparse:
                return dataclasses.replace(outputs, logits=sparse.dense(), sparse=sparse)
        return outputs


NO_OUTPUTS: Any = None  # stands for missing `Outputs`


@struct
class Signals:
    """All inputs of a term or a fusion, for ONE stream of the batch.

    Args:
        student: outputs of the student
        teachers: outputs of each teacher, in the order of the config
        teacher: the fused teacher, at this term's temperature; None (`NO_OUTPUTS`) during fusion, and in a run without
            teachers, which has no term that needs one
        batch: the stream's arrays
        mask: `[*batch]`, 1 for a row (or token) that counts, 0 for padding
        step: the step number, int32 scalar
        temperature: the temperature of the current term; as input of the objective, a factor on every temperature
        params: parameters by role: `student`, `teachers` (a tuple)
    """

    student: Outputs
    teachers: tuple[Outputs, ...]
    teacher: Outputs
    batch: Rows
    mask: Array
    step: Array
    temperature: Array | float
    params: ByRole


@struct
class TrainState:
    """All values that training changes. Frozen teachers are NOT in it: they would be donated and saved.

    Args:
        step: int32 scalar
        params: trainable parameters by role: `student`, `fusion`, `terms`, ...
        state: values that are not trained, by role: running statistics, banks, adaptive coefficients
        opt_state: the optimisers' state
        key: the run's PRNG key; step n draws from `fold_in(key, n)`, so that a resumed run repeats the same draws
    """

    step: Array
    params: dict[str, PyTree]
    state: dict[str, PyTree]
    opt_state: PyTree
    key: Array


class Variables(NamedTuple):
    """The parameters and the state of a model. A step receives frozen teachers in this form."""

    params: Params
    state: State


NO_VARIABLES = Variables({}, {})
