"""The nouns of a run: plain data and pairs of pure functions, one signature for every part.

*This student learns from these teachers, fused like this, matched by these terms, updated by this step, on this
mesh.* Everything below is a pytree or a tuple of functions; nothing here knows about configs, devices or files.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, dataclass_transform

import jax
import jax.numpy as jnp

Array = jax.Array
PyTree = Any
Shapes = Mapping[str, jax.ShapeDtypeStruct]  # of a batch of one stream


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
        """Of the logits, `(*batch, classes)`."""
        return (*self.features.shape[:-1], self.kernel.shape[-1])

    def dense(self) -> Array:
        """The logits, `[*batch, classes]`."""
        logits = self.features @ self.kernel
        logits = self.cap * jnp.tanh(logits / self.cap) if self.cap else logits
        return logits if self.bias is None else logits + self.bias


@struct
class Few:
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
        """Of the logits, `(*batch, size)`."""
        return (*self.rest.shape, self.size)

    def dense(self) -> Array:
        """The logits, `[*batch, size]`."""
        logits = jnp.broadcast_to(self.rest[..., None], self.shape)
        return jnp.put_along_axis(logits, self.classes, self.logits, axis=-1, inplace=False, mode="drop")


@struct
class Heads:
    """What the heads of one layer attend with. Under rotary positions, queries and keys are turned already.

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
class Spans:
    """Where the predictions of a teacher that reads other tokens than its student lie in their common text.

    A span reaches from one place where tokens of both end to the next: of one token each where they agree, of more
    where they do not.

    Args:
        number: `[batch, length]`, the span that the predicted token belongs to, rising from 1 in each row; 0: none
        label: `[batch, length]`, the predicted token
    """

    number: Array
    label: Array


@struct
class Outputs:
    """Everything a model returns. Nothing is hooked: under `jit`, what no term reads is removed by the compiler.

    Args:
        logits: `[*batch, classes]`, or a `Factored` head, or `Few` of them
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
        few: the same as the logits, where few of them are known; for terms that need no others
    """

    logits: Array | Factored | Few
    hidden_states: tuple[Array, ...] = ()
    attentions: tuple[Heads, ...] = ()
    embedding: Array | None = None
    text_embedding: Array | None = None
    weights: Array | None = None
    routes: Array | None = None
    input_gradients: Array | None = None
    state_gradients: tuple[Array, ...] = ()
    spans: Spans | None = None
    few: Few | None = None

    def dense(self) -> "Outputs":
        """The same with its logits as one array."""
        match self.logits:
            case Factored() as head:
                return dataclasses.replace(self, logits=head.dense())
            case Few() as few:
                return dataclasses.replace(self, logits=few.dense(), few=few)
        return self


@struct
class Signals:
    """All that a term or a fusion may look at, for ONE stream of the batch.

    Args:
        student: outputs of the student
        teachers: outputs of each teacher, in the order of the config
        teacher: the fused teacher, at this term's temperature; None while fusing, and without teachers
        batch: the stream's arrays
        mask: `[*batch]`, 1 for a row (or token) that counts, 0 for padding
        step: the step number, int32 scalar
        temperature: the temperature of the term that is being computed; to the objective, a factor on those of all
        params: parameters by role: `student`, `teachers` (a tuple)
    """

    student: Outputs
    teachers: tuple[Outputs, ...]
    teacher: Outputs | None
    batch: Mapping[str, Array]
    mask: Array
    step: Array
    temperature: Array | float
    params: Mapping[str, PyTree]


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


class Model(NamedTuple):
    """A network as two pure functions.

    init: `(key, batch) -> (params, state)`, both flat: `{"blocks/0/mlp/up/kernel": array}`
    apply: `(params, state, batch, *, train, key) -> (Outputs, state)`
    load: of a pretrained model, `(Variables of jax.ShapeDtypeStruct) -> Pretrained`, checked and not read yet
    """

    init: Callable[..., tuple[PyTree, PyTree]]
    apply: Callable[..., tuple[Outputs, PyTree]]
    load: "Callable[[Variables], Pretrained] | None" = None


class Variables(NamedTuple):
    """A model's values: its parameters and its state. How frozen teachers are handed to a step."""

    params: PyTree
    state: PyTree


NOTHING = Variables({}, {})


class Pretrained(NamedTuple):
    """A checkpoint of the world that fits a model.

    fresh: names of the arrays that it lacks because they belong to the task, such as a new head
    read: `() -> Variables` without those, each array read straight into its shards
    """

    fresh: tuple[str, ...]
    read: Callable[[], Variables]


class Fusion(NamedTuple):
    """Many teachers -> one, at `signals.temperature`: `softmax(logits / temperature)` is the fused distribution.

    Averaging probabilities first and softening them afterwards is another objective, so the temperature is an input.

    init: `(key, signals) -> (params, state)`; params hold gates
    apply: `(params, state, signals, *, key) -> (Outputs, state)`; `Outputs.weights` are the teachers' shares
    by_step: its params must not be trained by the loss that it weighs; only a step that `gates` may have it
    """

    init: Callable[..., tuple[PyTree, PyTree]]
    apply: Callable[..., tuple[Outputs, PyTree]]
    by_step: bool = False


class Term(NamedTuple):
    """One thing to match, or to regularise.

    init: `(key, signals) -> (params, state)`; params hold projectors, state holds banks and adaptive coefficients
    apply: `(params, state, signals, *, key) -> (out, state)`. `out` is unweighted: values `[*batch]`, or
        `(values, mask)` where the term knows better what counts, or a scalar regulariser
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

    init: Callable[..., tuple[PyTree, PyTree]]
    apply: Callable[..., tuple[Any, PyTree]]
    stream: str = "train"
    local: bool = True
    needs: frozenset[str] = frozenset()
    temperature: Callable[[Array], Array] | None = None
    follow: Callable[..., PyTree] | None = None
    linear: bool = False


class Objective(NamedTuple):
    """Fusion, terms, weights, schedules and the reduction.

    init: `(key, {stream: signals}) -> (params, state)`, each with the roles `fusion` and `terms`
    apply: `(params, state, {stream: signals}, *, key) -> ({term: Mean}, state)`; one mean per term, so that a step may
        take one gradient per term
    loss: `(params, state, {stream: signals}, {term: weight}, *, key) -> (scalar, ({term: Mean}, state))`, the weighted
        sum to differentiate; where a head is factored, its value and gradient are taken in one pass
    fuse: `(params, state, signals, *, key) -> (signals, state)` with the teacher fused, for steps that train a gate
    weights: `step -> {term: weight}`, as the config says
    total: `({term: Mean}, step) -> ` the weighted scalar, from the means
    terms: their names, in order
    streams: the streams that its terms read
    only: `names -> Objective` of these terms alone, for models that learn beside the student
    """

    init: Callable[..., tuple[PyTree, PyTree]]
    apply: Callable[..., tuple[dict[str, Any], PyTree]]
    loss: Callable[..., tuple[Array, tuple[dict[str, Any], PyTree]]]
    fuse: Callable[..., tuple[Signals, PyTree]]
    weights: Callable[[Array], dict[str, Array]]
    total: Callable[..., Array]
    terms: tuple[str, ...]
    streams: frozenset[str]
    only: "Callable[[tuple[str, ...]], Objective]"


class Step(NamedTuple):
    """The swappable algorithm.

    init: `(key, teachers, batch, start) -> TrainState`; `start` are `Variables` of the student by name, all, some or
        none of them, which take the place of its first values (see `steps.observe.begin`)
    update: `(train_state, teachers, batch) -> (train_state, metrics)`; pure, compiled by `parallel/compile.py`.
        `teachers` is a tuple of `Variables`, `batch` a dict with one entry per stream, metrics a dict of `Mean`
    streams: the streams of the batch it reads
    gates: it trains a fusion's params by something else than the loss that they weigh
    evolve_teachers: `(params, state, teachers) -> teachers` as they are by now, from params and state by role; None:
        they stay as they came
    trained_teachers: numbers of the teachers that it trains from the start: they need no checkpoint
    own: streams that it makes of `train`, with the same fields and shapes; terms may read them
    """

    init: Callable[..., TrainState]
    update: Callable[..., tuple[TrainState, dict[str, Any]]]
    streams: frozenset[str]
    gates: bool = False
    evolve_teachers: "Callable[..., tuple[Variables, ...]] | None" = None
    trained_teachers: frozenset[int] = frozenset()
    own: frozenset[str] = frozenset()
