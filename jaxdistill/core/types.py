"""The nouns of a run: plain data and pairs of pure functions, one signature for every part.

*This student learns from these teachers, fused like this, matched by these terms, updated by this step, on this
mesh.* Everything below is a pytree or a tuple of functions; nothing here knows about configs, devices or files.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, Protocol, dataclass_transform

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int32
from typing_extensions import TypeVar

Array = jax.Array
PyTree = Any
Key = Array  # a typed PRNG key
Params = PyTree  # what is trained; of a model flat: `{"blocks/0/mlp/up/kernel": array}`
State = PyTree  # what is not trained: running statistics, banks, adaptive coefficients
ByRole = Mapping[str, PyTree]  # params or state by role: `student`, `fusion`, `terms`, ...
Rows = Mapping[str, Array]  # the arrays of one stream of a batch
Batch = Mapping[str, Rows]  # the streams of a batch, by name
Shapes = Mapping[str, jax.ShapeDtypeStruct]  # of the arrays of one stream


@dataclass_transform(frozen_default=True)
def struct[T](cls: type[T]) -> type[T]:
    """Registers a frozen dataclass as a pytree whose fields are all data."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@struct
class Factored:
    """Logits that are not multiplied out yet: `features @ kernel + bias`.

    A vocabulary of 150,000 makes logits the largest array of a run; kept in this form, the objective forms them a
    chunk of rows at a time.

    Args:
        features: `[*batch, width]`
        kernel: `[width, classes]`
        bias: `[classes]`, or None
        cap: the logits are `cap tanh(features @ kernel / cap) + bias` (Gemma 2, arxiv.org/abs/2408.00118); 0: as above
    """

    features: Array
    kernel: Array
    bias: Array | None = None
    cap: float = dataclasses.field(default=0.0, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the logits, `(*batch, classes)`."""
        return (*self.features.shape[:-1], self.kernel.shape[-1])

    def dense(self) -> Array:
        """The logits, `[*batch, classes]`."""
        logits = self.features @ self.kernel
        logits = self.cap * jnp.tanh(logits / self.cap) if self.cap else logits
        return logits if self.bias is None else logits + self.bias


@struct
class SparseLogits:
    """Logits of which few are known: what is kept of a teacher with a large vocabulary.

    Args:
        classes: `[*batch, few]` int32, each of them once; `size` where there is none
        logits: `[*batch, few]`, of these classes
        rest: `[*batch]`, the logit of every other class; -inf: they have no probability
        size: how many classes there are
    """

    classes: Array
    logits: Array
    rest: Array
    size: int = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of all logits, `(*batch, size)`."""
        return (*self.rest.shape, self.size)

    def dense(self) -> Array:
        """All logits, `[*batch, size]`."""
        logits = jnp.broadcast_to(self.rest[..., None], self.shape)
        return jnp.put_along_axis(logits, self.classes, self.logits, axis=-1, inplace=False, mode="drop")


@struct
class AttentionHeads:
    """What the heads of one layer attend with. Under rotary positions, queries and keys are rotated already.

    A model forms these anyway, so that returning them costs nothing; scores and relations are made of them by the
    terms that want them.

    Args:
        query: `[batch, queries, heads, head_size]`
        key, value: `[batch, keys, kv_heads, head_size]`; with grouped queries there are fewer heads
        probabilities: `[batch, heads, queries, keys]`, of a model that was asked for them by `attentions=True`
    """

    query: Array
    key: Array
    value: Array
    probabilities: Array | None = None


@struct
class TokenSpans:
    """Where the predictions of a teacher that reads other tokens than its student lie in their common text.

    A span reaches from one place where tokens of both end to the next: of one token each where they agree, of more
    where they do not.

    Args:
        number: `[batch, length]`, the span that the predicted token belongs to, rising from 1 in each row; 0: none
        label: `[batch, length]`, the predicted token
    """

    number: Array
    label: Array


Logits = TypeVar("Logits", default=Array)  # Array, Factored or SparseLogits


@struct
class Outputs(Generic[Logits]):
    """Everything a model returns. Nothing is hooked: outputs that no loss uses are removed by `jit`, and cost nothing.

    `Outputs` alone has logits in one array, as fusions and terms see them. A model may return `Outputs[Factored]`, and
    a cached teacher `Outputs[SparseLogits]`.

    Args:
        logits: `[*batch, classes]`, or a `Factored` head, or `SparseLogits`
        hidden_states: one array per layer, `[*batch, width]`, the embedding (stem) first: 12 layers give 13. Layers
            with a spatial extent keep it: `[batch, height, width, channels]`
        attentions: what each layer's heads attend with
        embedding: the pooled or projected representation, `[batch, width]`
        text_embedding: of a model with two towers, that of the other one; `embedding` is then the image's
        input_gradients: of a random mixture of the logits with respect to the input, `[batch, *input]`; where a term
            needs them, see `models/derivatives.py`
        weights: of a fused teacher, what share each teacher has in it, `[teachers, *batch]`
        routes: of a gated teacher, what share each path between layers has, `[paths, *batch]`
        state_gradients: of each row's task loss with respect to each hidden state, shaped like these; where a term
            needs them
        spans: of a teacher that reads tokens of its own; its logits are then as long as these
        sparse: the same as the logits, where few of them are known; for terms that need no others
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
        """The same with its logits as one array."""
        whole: Any = self
        match self.logits:
            case Factored() as head:
                return dataclasses.replace(whole, logits=head.dense())
            case SparseLogits() as sparse:
                return dataclasses.replace(whole, logits=sparse.dense(), sparse=sparse)
        return whole


NO_OUTPUTS: Any = None  # in place of `Outputs` that are not there


@struct
class Signals:
    """All that a term or a fusion may look at, for ONE stream of the batch.

    Args:
        student: outputs of the student
        teachers: outputs of each teacher, in the order of the config
        teacher: the fused teacher, at this term's temperature; None (`NO_OUTPUTS`) while fusing, and without teachers,
            where no term that needs one is built
        batch: the stream's arrays
        mask: `[*batch]`, 1 for a row (or token) that counts, 0 for padding
        step: the step number, int32 scalar
        temperature: the temperature of the term that is being computed; to the objective, a factor on those of all
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
    """All that training changes. Frozen teachers are NOT in it: they would be donated and saved.

    Args:
        step: int32 scalar
        params: trainable parameters by role: `student`, `fusion`, `terms`, ...
        state: what is not trained, by role: running statistics, banks, adaptive coefficients
        opt_state: the optimisers' state
        key: the run's PRNG key; step n draws from `fold_in(key, n)`, so that a resumed run repeats itself
    """

    step: Array
    params: dict[str, PyTree]
    state: dict[str, PyTree]
    opt_state: PyTree
    key: Array


class Variables(NamedTuple):
    """A model's values: its parameters and its state. How frozen teachers are given to a step."""

    params: Params
    state: State


NO_VARIABLES = Variables({}, {})


class Pretrained(NamedTuple):
    """A checkpoint that fits a model.

    fresh: names of the arrays that it lacks because they belong to the task, such as a new head
    read: `() -> Variables` without those, each array read straight into its shards
    """

    fresh: tuple[str, ...]
    read: Callable[[], Variables]


class ModelInit(Protocol):
    """Draws a model's first values."""

    def __call__(self, key: Key, batch: Rows, /) -> tuple[Params, State]:
        """`(key, batch of one stream) -> (params, state)`."""


class ModelApply(Protocol):
    """Runs a model on one stream of a batch."""

    def __call__(
        self, params: Params, state: State, batch: Rows, /, *, train: bool, key: Key
    ) -> tuple[Outputs[Any], State]:
        """`(params, state, batch) -> (outputs, new state)`; pure."""


class Model(NamedTuple):
    """A network as two pure functions.

    init: see `ModelInit`; params and state are flat: `{"blocks/0/mlp/up/kernel": array}`
    apply: see `ModelApply`
    load: of a pretrained model, `(Variables of jax.ShapeDtypeStruct) -> Pretrained`, checked and not read yet
    """

    init: ModelInit
    apply: ModelApply
    load: Callable[[Variables], Pretrained] | None = None


class FusionInit(Protocol):
    """Draws a fusion's first values."""

    def __call__(self, key: Key, signals: Signals, /) -> tuple[Params, State]:
        """`(key, signals) -> (params, state)`; params hold gates."""


class FusionApply(Protocol):
    """Fuses the teachers of one stream."""

    def __call__(self, params: Params, state: State, signals: Signals, /, *, key: Key) -> tuple[Outputs, State]:
        """`(params, state, signals) -> (fused outputs, new state)`; `Outputs.weights` are the teachers' shares."""


class Fusion(NamedTuple):
    """Many teachers -> one, at `signals.temperature`: `softmax(logits / temperature)` is the fused distribution.

    Averaging probabilities first and softening them afterwards is another objective, so the temperature is an input.

    init: see `FusionInit`
    apply: see `FusionApply`
    by_step: its params must not be trained by the loss that it weighs; only a step that `gates` may have it
    """

    init: FusionInit
    apply: FusionApply
    by_step: bool = False


Values = Float[Array, "*batch"]  # of a term, one for each row or token


class TermInit(Protocol):
    """Draws a term's first values."""

    def __call__(self, key: Key, signals: Signals, /) -> tuple[Params, State]:
        """`(key, signals) -> (params, state)`; params hold projectors, state banks and adaptive coefficients."""


class TermApply(Protocol):
    """Computes the values of a term."""

    def __call__(
        self, params: Params, state: State, signals: Signals, /, *, key: Key
    ) -> tuple[Values | tuple[Values, Array], State]:
        """`(params, state, signals) -> (out, new state)`.

        Out is unweighted: values `[*batch]`, or `(values, mask)` where the term knows better what counts, or a scalar
        regulariser.
        """


class Term(NamedTuple):
    """One thing to match, or to regularise.

    init: see `TermInit`
    apply: see `TermApply`
    stream: which stream of the batch it reads
    local: every row stands for itself and no state is kept, so that rows may be cut into chunks
    needs: what it cannot do without: "teacher"; "input_gradients" or "state_gradients", which models are made to
        return where a term says so; "alignment", of a term that compares teachers of other tokens and classes
    temperature: `step -> temperature` at which its teacher is fused; None: 1
    follow: `(state, mean, step) -> state` of a term whose state follows its own mean over the whole batch, a `Mean`;
        what it remembers then depends on no row, and it may be local
    linear: its gradient in the student is linear in the fused teacher's distribution at its temperature: draws from it
        will do
    """

    init: TermInit
    apply: TermApply
    stream: str = "train"
    local: bool = True
    needs: frozenset[str] = frozenset()
    temperature: Callable[[Int32[Array, ""]], Array] | None = None
    follow: Callable[[State, Any, Array], State] | None = None
    linear: bool = False


class ObjectiveInit(Protocol):
    """Draws the first values of a fusion and of terms."""

    def __call__(self, key: Key, signals: Mapping[str, Signals], /) -> tuple[dict[str, Params], dict[str, State]]:
        """`(key, {stream: signals}) -> (params, state)`, each with the roles `fusion` and `terms`."""


class ObjectiveApply(Protocol):
    """Computes the mean of every term."""

    def __call__(
        self, params: ByRole, state: ByRole, signals: Mapping[str, Signals], /, *, key: Key
    ) -> tuple[dict[str, Any], dict[str, State]]:
        """`(params, state, {stream: signals}) -> ({term: Mean}, new state)`."""


class ObjectiveLoss(Protocol):
    """Computes the weighted sum of the terms, to be differentiated."""

    def __call__(
        self,
        params: ByRole,
        state: ByRole,
        signals: Mapping[str, Signals],
        weights: Mapping[str, Array],
        /,
        *,
        key: Key,
    ) -> tuple[Array, tuple[dict[str, Any], dict[str, State]]]:
        """`(params, state, {stream: signals}, {term: weight}) -> (scalar, ({term: Mean}, new state))`."""


class ObjectiveFuse(Protocol):
    """Fuses the teachers of one stream, for steps that train a gate."""

    def __call__(self, params: ByRole, state: ByRole, signals: Signals, /, *, key: Key) -> tuple[Signals, State]:
        """`(params, state, signals) -> (signals with the fused teacher, new state of the fusion)`."""


class Objective(NamedTuple):
    """Fusion, terms, weights, schedules and the reduction.

    init: see `ObjectiveInit`
    apply: see `ObjectiveApply`; one mean per term, so that a step may take one gradient per term
    loss: see `ObjectiveLoss`; where a head is factored, value and gradient are taken in one pass
    fuse: see `ObjectiveFuse`
    weights: `step -> {term: weight}`, as the config says
    total: `({term: Mean}, step) -> ` the weighted scalar, from the means
    terms: their names, in order
    streams: the streams that its terms read
    only: `names -> Objective` of these terms alone, for models that learn beside the student
    """

    init: ObjectiveInit
    apply: ObjectiveApply
    loss: ObjectiveLoss
    fuse: ObjectiveFuse
    weights: Callable[[Array], dict[str, Array]]
    total: Callable[[Mapping[str, Any], Array], Array]
    terms: tuple[str, ...]
    streams: frozenset[str]
    only: Callable[[tuple[str, ...]], "Objective"]


class StepInit(Protocol):
    """Makes the first train state."""

    def __call__(
        self, key: Key, teachers: tuple[Variables, ...], batch: Batch, start: Variables = NO_VARIABLES, /
    ) -> TrainState:
        """`(key, teachers, batch, start) -> TrainState`.

        `start` are values of the student by name, all, some or none of them, which take the place of drawn ones.
        """


class StepUpdate(Protocol):
    """Takes one step."""

    def __call__(
        self, ts: TrainState, teachers: tuple[Variables, ...], batch: Batch, /
    ) -> tuple[TrainState, dict[str, Any]]:
        """`(train_state, teachers, batch) -> (new train_state, {name: Mean})`; pure."""


class EvolveTeachers(Protocol):
    """Says what the teachers have become."""

    def __call__(self, params: ByRole, state: ByRole, teachers: tuple[Variables, ...], /) -> tuple[Variables, ...]:
        """`(params, state, teachers) -> teachers` as they are by now, from params and state by role."""


class Step(NamedTuple):
    """The swappable algorithm.

    init: see `StepInit`
    update: see `StepUpdate`; compiled by `parallel/compile.py`
    streams: the streams of the batch it reads
    gates: it trains a fusion's params by something else than the loss that they weigh
    evolve_teachers: see `EvolveTeachers`; None: they stay as they came
    trained_teachers: numbers of the teachers that it trains from the start: they need no checkpoint
    own: streams that it makes of `train`, with the same fields and shapes; terms may read them
    """

    init: StepInit
    update: StepUpdate
    streams: frozenset[str]
    gates: bool = False
    evolve_teachers: EvolveTeachers | None = None
    trained_teachers: frozenset[int] = frozenset()
    own: frozenset[str] = frozenset()
