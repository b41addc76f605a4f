"""The data that models, fusions, loss terms and training steps exchange: outputs, signals and train states.

Every class is a pytree. Nothing here depends on configs, devices or files. Words of the docstrings: a stream is a named
source of examples, and a batch has one dict of arrays for each stream. A row is one example of a batch. `*batch` stands
for `rows`, or for `rows, tokens` if the model predicts every token. A role is a top-level key of the trained params:
`student`, `fusion`, `terms` (the params of loss terms), ...
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

NO_CANDIDATE = -1e9  # logit of a row that is not compared; finite, so that probability 0 times this logit is 0, not NaN


@dataclass_transform(frozen_default=True)
def struct[T](cls: type[T]) -> type[T]:
    """Turn a class into a frozen dataclass and a pytree; fields with the metadata `{"static": True}` are not leaves."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@struct
class Factored:
    """Logits that are not computed yet, `features @ kernel + bias`, kept as features, kernel and bias.

    With a vocabulary of 150,000, logits are the largest array of a run. From `Factored` logits, the objective computes
    the logits of one chunk of the sequence at a time.

    Args:
        features: `[*batch, width]`, the input of the model's last layer
        kernel: `[width, classes]`, the kernel of the last layer; if `tied`, the table of embeddings, `[classes, width]`
        bias: `[classes]`, the bias of the last layer, or None
        cap: if not 0, the logits are `cap * tanh(features @ kernel / cap) + bias` (Gemma 2, arxiv.org/abs/2408.00118)
        tied: True if the kernel is the table of the model's embeddings
    """

    features: Array
    kernel: Array
    bias: Array | None = None
    cap: float = dataclasses.field(default=0.0, metadata={"static": True})
    tied: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape that the logits will have, `(*batch, classes)`."""
        return (*self.features.shape[:-1], self.kernel.shape[0 if self.tied else -1])

    def dense(self) -> Array:
        """Compute the logits `features @ kernel + bias` (capped by `cap`), `[*batch, classes]`."""
        rows = self.features.reshape(-1, self.features.shape[-1])  # else the gradient of the kernel is transposed
        contracted = ((1,), (1 if self.tied else 0,))  # a table is not transposed, which would copy it in every chunk
        logits = jax.lax.dot_general(rows, self.kernel, (contracted, ((), ()))).reshape(self.shape)
        logits = self.cap * jnp.tanh(logits / self.cap) if self.cap else logits
        return logits if self.bias is None else logits + self.bias


@struct
class SparseLogits:
    """The logits of a few classes for each row or token, and one logit that all other classes share.

    The outputs of a teacher with a large vocabulary are stored in this form.

    Args:
        classes: `[*batch, few]`, int32, the classes that have their own logit, each once; the value `size` is padding
        logits: `[*batch, few]`, the logits of `classes`
        rest: `[*batch]`, the logit of every other class; -inf if the other classes have probability 0
        size: the number of all classes
    """

    classes: Array
    logits: Array
    rest: Array
    size: int = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the logits as one array, `(*batch, size)`."""
        return (*self.rest.shape, self.size)

    def dense(self) -> Array:
        """Return the logits of all classes as one array, `[*batch, size]`."""
        logits = jnp.broadcast_to(self.rest[..., None], self.shape)
        return jnp.put_along_axis(logits, self.classes, self.logits, axis=-1, inplace=False, mode="drop")


@struct
class AttentionHeads:
    """Queries, keys and values of the attention heads of one layer, after rotary position embedding.

    A model computes these arrays anyway, so returning them costs nothing. Loss terms compute attention scores or
    relations from them.

    Args:
        query: `[batch, queries, heads, head_size]`
        key, value: `[batch, keys, kv_heads, head_size]`; grouped-query attention has fewer `kv_heads` than `heads`
        probabilities: `[batch, heads, queries, keys]`, the attention weights; only from models with `attentions=True`
    """

    query: Array
    key: Array
    value: Array
    probabilities: Array | None = None


@struct
class TokenSpans:
    """A division of a teacher's tokens into spans of text that end where tokens of the student end too.

    The spans let a loss compare a student with a teacher that has another tokenizer. A span is the text between two
    adjacent character positions at which tokens of both tokenizers end.

    Args:
        number: `[batch, length]`, the number of the span that contains the token predicted at each position of the
            teacher's tokens; spans are counted from 1 in each row; 0 if the token belongs to no span
        label: `[batch, length]`, the id of that predicted token in the teacher's vocabulary
    """

    number: Array
    label: Array


Logits = TypeVar("Logits", default=Array)  # Array, Factored or SparseLogits


@struct
class Outputs(Generic[Logits]):
    """All outputs of a model: logits, hidden states, attentions, embeddings and gradients.

    A model returns its intermediate values here, without hooks. `jit` removes outputs that no loss uses, so they cost
    nothing. Fusions and loss terms receive logits as one array. A model may return `Outputs[Factored]`, logits that are
    not computed yet, and a cached teacher `Outputs[SparseLogits]`, the logits of a few classes.

    Args:
        logits: `[*batch, classes]`, or the same logits as `Factored` or `SparseLogits`
        hidden_states: one array `[*batch, width]` for the embedding (stem) and for each layer, in order: 12 layers give
            13 arrays. Layers with spatial axes keep them: `[batch, height, width, channels]`
        attentions: one `AttentionHeads` per layer
        embedding: the pooled or projected representation, `[batch, width]`
        text_embedding: the text embedding of a model with two towers, whose `embedding` is the image embedding
        scale: only for a model with two towers: the factor of the similarity of an image and a text, `[batch]`, the
            same number for all rows; exponentiated, if the model learns its logarithm
        bias: only for a model with two towers and a bias: the number that is added to the similarities, `[batch]`
        input_gradients: `J^T v`, `[batch, *input]`, with the Jacobian J of the logits with respect to the input and a
            random direction v; only if a loss term needs it (see `models/derivatives.py`)
        weights: only in fused outputs of several teachers: the weight of each teacher, `[teachers, *batch]`
        routes: only in fused outputs of a gate (network that weights teachers): the weight of each path (pair of a
            student layer and a teacher layer to match), `[paths, *batch]`
        state_gradients: gradients of each row's cross-entropy with respect to each hidden state, with the shapes of
            `hidden_states`; only if a loss term needs them
        spans: only for a teacher with another tokenizer than the student's: the spans of text of the predicted tokens
        sparse: the logits as `SparseLogits`, if the model returned this form; for loss terms that need it
    """

    logits: Logits
    hidden_states: tuple[Array, ...] = ()
    attentions: tuple[AttentionHeads, ...] = ()
    embedding: Array | None = None
    text_embedding: Array | None = None
    scale: Array | None = None
    bias: Array | None = None
    weights: Array | None = None
    routes: Array | None = None
    input_gradients: Array | None = None
    state_gradients: tuple[Array, ...] = ()
    spans: TokenSpans | None = None
    sparse: SparseLogits | None = None

    def dense(self) -> "Outputs":
        """Return these outputs with logits as one array `[*batch, classes]`, not as `Factored` or `SparseLogits`."""
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
    """All inputs of a loss term or a fusion for ONE stream (named source of examples): model outputs and batch.

    Args:
        student: outputs of the student
        teachers: outputs of each teacher, in the order of the config
        teacher: the fused outputs of all teachers, at the temperature of the current term; None (`NO_OUTPUTS`) during
            fusion and in a run without teachers
        batch: the arrays of the stream's batch, by field
        mask: `[*batch]`, 1 for a row (or token) that counts, 0 for padding
        step: the step number, int32 scalar
        temperature: the temperature of the current loss term. In the signals that a training step passes to the
            objective: a factor by which the objective multiplies the temperature of each term that has one
        params: parameters of the models: `{"student": params, "teachers": tuple of params}`
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
    """All values that training changes. Frozen teachers are not in it, because the train state is donated and saved.

    Args:
        step: number of finished steps, int32 scalar
        params: trained parameters by role (top-level key): `student`, `fusion`, `terms` (params of loss terms), ...
        state: values that no gradient trains, also by role: running statistics, memory banks, adaptive weights
        opt_state: state of the optimisers
        key: PRNG key of the run; step n draws from `fold_in(key, n)`, so that a resumed run repeats the same draws
    """

    step: Array
    params: dict[str, PyTree]
    state: dict[str, PyTree]
    opt_state: PyTree
    key: Array


class Variables(NamedTuple):
    """The parameters and the state (values that no gradient trains) of one model, such as a frozen teacher."""

    params: Params
    state: State


NO_VARIABLES = Variables({}, {})
