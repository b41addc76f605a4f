"""The interfaces of the parts of a run: model, fusion, term, objective and step.

Each is a tuple of pure functions with one signature, so that any part can be swapped for another of its kind.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Int32

from jaxdistill.core.types import (
    NO_VARIABLES,
    Array,
    Batch,
    ByRole,
    Key,
    Outputs,
    Params,
    Rows,
    Signals,
    State,
    TrainState,
    Variables,
)


class Pretrained(NamedTuple):
    """A checkpoint that fits a model.

    fresh: names of the model's arrays that the checkpoint lacks because they belong to the task, such as a new head
    read: `() -> Variables` without the fresh arrays; every array is read directly into its shards
    """

    fresh: tuple[str, ...]
    read: Callable[[], Variables]


@runtime_checkable
class ModelInit(Protocol):
    """The function that initialises a model."""

    def __call__(self, key: Key, batch: Rows, /) -> tuple[Params, State]:
        """Compute `(key, batch of one stream) -> (params, state)`."""


@runtime_checkable
class ModelApply(Protocol):
    """The function that runs a model on one stream of a batch."""

    def __call__(
        self, params: Params, state: State, batch: Rows, /, *, train: bool, key: Key
    ) -> tuple[Outputs[Any], State]:
        """Compute `(params, state, batch) -> (outputs, new state)`; pure."""


class Model(NamedTuple):
    """A network as two pure functions.

    init: see `ModelInit`; params and state are flat: `{"blocks/0/mlp/up/kernel": array}`
    apply: see `ModelApply`
    load: for a pretrained model, `(Variables of jax.ShapeDtypeStruct) -> Pretrained`; checks the files, reads no array
    """

    init: ModelInit
    apply: ModelApply
    load: Callable[[Variables], Pretrained] | None = None


@runtime_checkable
class FusionInit(Protocol):
    """The function that initialises a fusion."""

    def __call__(self, key: Key, signals: Signals, /) -> tuple[Params, State]:
        """Compute `(key, signals) -> (params, state)`; params hold gates."""


@runtime_checkable
class FusionApply(Protocol):
    """The function that fuses the teachers of one stream."""

    def __call__(self, params: Params, state: State, signals: Signals, /, *, key: Key) -> tuple[Outputs, State]:
        """Compute `(params, state, signals) -> (fused outputs, new state)`; `Outputs.weights` are teacher shares."""


class Fusion(NamedTuple):
    """A rule that fuses many teachers into one: `softmax(logits / signals.temperature)` is the fused distribution.

    The temperature is an input because averaging probabilities first and softening them afterwards is another
    objective.

    init: see `FusionInit`
    apply: see `FusionApply`
    by_step: the loss that the fusion weighs must not train the fusion's params; requires a step with `gates`
    """

    init: FusionInit
    apply: FusionApply
    by_step: bool = False


Values = Float[Array, "*batch"]  # the values of a term, one for each row or token


@runtime_checkable
class TermInit(Protocol):
    """The function that initialises a term."""

    def __call__(self, key: Key, signals: Signals, /) -> tuple[Params, State]:
        """Compute `(key, signals) -> (params, state)`; params hold projectors, state banks and coefficients."""


@runtime_checkable
class TermApply(Protocol):
    """The function that computes the values of a term."""

    def __call__(
        self, params: Params, state: State, signals: Signals, /, *, key: Key
    ) -> tuple[Values | tuple[Values, Array], State]:
        """Compute `(params, state, signals) -> (out, new state)`.

        Out is unweighted: values `[*batch]`, or `(values, mask)` for a term that has another mask than its stream, or
        a scalar regulariser.
        """


class Term(NamedTuple):
    """One loss term: something to match, or a regulariser.

    init: see `TermInit`
    apply: see `TermApply`
    stream: the stream of the batch that the term reads
    local: the value of a row depends on that row alone and no state is kept, so that rows may be split into chunks
    needs: what the term requires: "teacher"; "input_gradients" or "state_gradients", which models then return;
        "alignment", for a term that compares teachers with other tokens and classes
    temperature: `step -> temperature` at which the teachers are fused; None: 1
    follow: `(state, mean, step) -> state`, for a term whose state follows its mean over the whole batch, a `Mean`;
        such a state depends on no single row, so that the term may be local
    linear: the gradient with respect to the student is linear in the fused teacher's distribution at its temperature,
        so that draws from this distribution suffice
    """

    init: TermInit
    apply: TermApply
    stream: str = "train"
    local: bool = True
    needs: frozenset[str] = frozenset()
    temperature: Callable[[Int32[Array, ""]], Array] | None = None
    follow: Callable[[State, Any, Array], State] | None = None
    linear: bool = False


@runtime_checkable
class ObjectiveInit(Protocol):
    """The function that initialises a fusion and terms."""

    def __call__(self, key: Key, signals: Mapping[str, Signals], /) -> tuple[dict[str, Params], dict[str, State]]:
        """Compute `(key, {stream: signals}) -> (params, state)`, each with the roles `fusion` and `terms`."""


@runtime_checkable
class ObjectiveApply(Protocol):
    """The function that computes the mean of every term."""

    def __call__(
        self, params: ByRole, state: ByRole, signals: Mapping[str, Signals], /, *, key: Key
    ) -> tuple[dict[str, Any], dict[str, State]]:
        """Compute `(params, state, {stream: signals}) -> ({term: Mean}, new state)`."""


@runtime_checkable
class ObjectiveLoss(Protocol):
    """The function that computes the weighted sum of the terms, to be differentiated."""

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
        """Compute `(params, state, {stream: signals}, {term: weight}) -> (scalar, ({term: Mean}, new state))`."""


@runtime_checkable
class ObjectiveFuse(Protocol):
    """The function that fuses the teachers of one stream, for steps that train a gate."""

    def __call__(self, params: ByRole, state: ByRole, signals: Signals, /, *, key: Key) -> tuple[Signals, State]:
        """Compute `(params, state, signals) -> (signals with the fused teacher, new state of the fusion)`."""


class Objective(NamedTuple):
    """A fusion, terms, weights, schedules and the reduction.

    init: see `ObjectiveInit`
    apply: see `ObjectiveApply`; one mean per term, so that a step may take one gradient per term
    loss: see `ObjectiveLoss`; with a factored head, value and gradient are computed in one pass
    fuse: see `ObjectiveFuse`
    weights: `step -> {term: weight}`, from the config
    total: `({term: Mean}, step) -> ` the weighted sum of the means
    terms: names of the terms, in order
    streams: the streams that the terms read
    only: `names -> Objective` with these terms alone, for models that are trained beside the student
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


@runtime_checkable
class StepInit(Protocol):
    """The function that makes the first train state."""

    def __call__(
        self, key: Key, teachers: tuple[Variables, ...], batch: Batch, start: Variables = NO_VARIABLES, /
    ) -> TrainState:
        """Compute `(key, teachers, batch, start) -> TrainState`.

        `start` holds values of the student by name: all, some or none of them. These replace the drawn values.
        """


@runtime_checkable
class StepUpdate(Protocol):
    """The function that takes one step."""

    def __call__(
        self, ts: TrainState, teachers: tuple[Variables, ...], batch: Batch, /
    ) -> tuple[TrainState, dict[str, Any]]:
        """Compute `(train_state, teachers, batch) -> (new train_state, {name: Mean})`; pure."""


@runtime_checkable
class EvolveTeachers(Protocol):
    """The function that returns the current teachers, for a step that changes them."""

    def __call__(self, params: ByRole, state: ByRole, teachers: tuple[Variables, ...], /) -> tuple[Variables, ...]:
        """Compute `(params, state, first teachers) -> current teachers`; params and state are by role."""


class Step(NamedTuple):
    """The swappable training algorithm.

    init: see `StepInit`
    update: see `StepUpdate`; compiled by `parallel/`
    streams: the streams of the batch that the step reads
    gates: the step trains the fusion's params by another loss than the one that they weigh
    evolve_teachers: see `EvolveTeachers`; None: the teachers never change
    trained_teachers: numbers of the teachers that the step trains from the start; they need no checkpoint
    own: streams that the step makes of `train`, with the same fields and shapes; terms may read them
    """

    init: StepInit
    update: StepUpdate
    streams: frozenset[str]
    gates: bool = False
    evolve_teachers: EvolveTeachers | None = None
    trained_teachers: frozenset[int] = frozenset()
    own: frozenset[str] = frozenset()
