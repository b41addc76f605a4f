"""The interfaces of models, fusions, loss terms, objectives and training steps.

Each is a tuple of pure functions with one signature, so that one model, fusion, term or step can be swapped for
another. Params are trained by gradients; state is not (running statistics, memory banks, coefficients). A stream is a
named source of examples; a batch has one dict of arrays for each stream. A row is one example of a batch.
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
    """A pretrained checkpoint that fits a model, checked but not yet loaded.

    fresh: names of the model's arrays that keep their initial values, such as a new head, because the checkpoint lacks
        them or has another number of classes
    read: `() -> Variables`; loads all other arrays, each directly into its shards
    """

    fresh: tuple[str, ...]
    read: Callable[[], Variables]


@runtime_checkable
class ModelInit(Protocol):
    """The type of `Model.init`: a function that creates the initial params and state of a model for a batch."""

    def __call__(self, key: Key, batch: Rows, /) -> tuple[Params, State]:
        """Initialise params and state for the shapes of the arrays in `batch`."""


@runtime_checkable
class ModelApply(Protocol):
    """The type of `Model.apply`: a pure function that runs a model on a batch and returns its outputs and new state."""

    def __call__(
        self, params: Params, state: State, batch: Rows, /, *, train: bool, key: Key
    ) -> tuple[Outputs[Any], State]:
        """Compute the model's outputs for a batch, and the new state; pure."""


class Model(NamedTuple):
    """A network as two pure functions, with a loader if the network is pretrained.

    Params are trained by gradients, and state is not (such as running statistics). Both are flat dicts by name:
    `{"blocks/0/mlp/up/kernel": array}`.

    init: `(key, batch) -> (params, state)`; see `ModelInit`
    apply: `(params, state, batch, *, train, key) -> (outputs, new state)`; see `ModelApply`
    load: `(Variables of jax.ShapeDtypeStruct) -> Pretrained`; checks the files of the checkpoint but reads no array.
        None if the model is not pretrained
    locked: prefixes of the names of params that training never changes, such as `images/`
    second_prefix: for a model that embeds two texts, the prefix of the batch fields of the second text, such as
        `teacher/`; empty for any other model
    """

    init: ModelInit
    apply: ModelApply
    load: Callable[[Variables], Pretrained] | None = None
    locked: tuple[str, ...] = ()
    second_prefix: str = ""


@runtime_checkable
class FusionInit(Protocol):
    """The type of `Fusion.init`: a function that creates the initial params and state of a rule that fuses teachers."""

    def __call__(self, key: Key, signals: Signals, /) -> tuple[Params, State]:
        """Initialise params (of a learned gate) and state, from example outputs of the models (`signals`)."""


@runtime_checkable
class FusionApply(Protocol):
    """The type of `Fusion.apply`: a pure function that fuses the outputs of several teachers into one `Outputs`."""

    def __call__(self, params: Params, state: State, signals: Signals, /, *, key: Key) -> tuple[Outputs, State]:
        """Fuse the teachers' outputs into one `Outputs`, with the teachers' weights in `Outputs.weights`; pure."""


class Fusion(NamedTuple):
    """A rule that fuses the outputs of several teachers into those of one teacher.

    The fused distribution is `softmax(fused logits / temperature)`. A fusion reads the temperature
    (`signals.temperature`), because a mean of probabilities at temperature 1, softened afterwards, is another
    distribution than the mean of softened probabilities.

    init: `(key, signals) -> (params, state)`; `signals` are the outputs of student and teachers, with the batch
    apply: `(params, state, signals, *, key) -> (fused outputs, new state)`
    trained_by_step: True for a gate (a network that weights the teachers), whose params the training step must train
        with a loss of their own (`Step.trains_fusion`). The distillation loss would only make the gate favour the
        teacher that is easiest to match
    """

    init: FusionInit
    apply: FusionApply
    trained_by_step: bool = False


Values = Float[Array, "*batch"]  # the values of a term, one for each row or token


@runtime_checkable
class TermInit(Protocol):
    """The type of `Term.init`: a function that creates the initial params and state of a loss term."""

    def __call__(self, key: Key, signals: Signals, /) -> tuple[Params, State]:
        """Initialise params (projectors, ...) and state (memory banks, ...), from example outputs (`signals`)."""


@runtime_checkable
class TermApply(Protocol):
    """The type of `Term.apply`: a pure function that computes the values of a loss term, one for each row or token."""

    def __call__(
        self, params: Params, state: State, signals: Signals, /, *, key: Key
    ) -> tuple[Values | tuple[Values, Array], State]:
        """Compute the unweighted values of a loss term from outputs of the models (`signals`), and its new state; pure.

        The values are `[*batch]`, one for each row or token; or `(values, mask)`, if another mask than that of the
        signals says which values count; or a scalar, for a regulariser.
        """


class Term(NamedTuple):
    """One term of the training loss: a distance between student and teacher, a task loss, or a regulariser.

    init: `(key, signals) -> (params, state)`; `signals` are the outputs of student and teachers for one stream (named
        source of examples), with the batch
    apply: `(params, state, signals, *, key) -> (values, new state)`, with one value for each row or token, or a scalar
    stream: name of the stream that the term reads
    local: True if the value at a token (or row) depends on that token alone and `apply` changes no state. The term can
        then be computed in chunks of the sequence
    needs: what the term requires: "teacher"; "input_gradients" or "state_gradients", for which the models
        then also return gradients in the input or in the hidden states (`models/derivatives.py`);
        "alignment" if the term compares the student with teachers of other tokenizers; "samples" if it is right only
        for texts that the student generated, which it reads from the stream of that name
    temperature: `(step number) -> temperature` of the softmax at which several teachers are combined into one; None
        means the temperature 1
    follow: `(state, mean, step number) -> new state`, called once a step with the term's `Mean` (a sum and a count) of
        the whole batch. So a local term, too, can keep a state, such as a running mean
    linear: True if the gradient with respect to the student is linear in the teacher's probabilities (at the term's
        temperature). Classes sampled from the teacher then give an unbiased estimate of the gradient
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
    """The type of `Objective.init`: a function that creates the initial params and state of fusion and loss terms."""

    def __call__(self, key: Key, signals: Mapping[str, Signals], /) -> tuple[dict[str, Params], dict[str, State]]:
        """Initialise `(params, state)` from example outputs of the models (`signals`), by stream.

        Params and state have the keys `fusion` and `terms`.
        """


@runtime_checkable
class ObjectiveApply(Protocol):
    """The type of `Objective.apply`: a function that computes the mean of every loss term, as a sum and a count."""

    def __call__(
        self, params: ByRole, state: ByRole, signals: Mapping[str, Signals], /, *, key: Key
    ) -> tuple[dict[str, Any], dict[str, State]]:
        """Compute `({name of a loss term: Mean}, new state)` from outputs of the models (`signals`), by stream."""


@runtime_checkable
class ObjectiveLoss(Protocol):
    """The type of `Objective.loss`: a function that computes `sum_k weight_k * mean(term_k)`, to be differentiated."""

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
        """Compute `(weighted sum, ({term: Mean}, new state))` from outputs of the models (`signals`), by stream.

        `weights` has the weight of each loss term, by name. The weighted sum is the loss to differentiate.
        """


@runtime_checkable
class ObjectiveFuse(Protocol):
    """The type of `Objective.fuse`: a function that fuses the teachers, and adds the result to one stream's signals.

    It is called by training steps that train the fusion (the rule that fuses several teachers) with another loss.
    """

    def __call__(self, params: ByRole, state: ByRole, signals: Signals, /, *, key: Key) -> tuple[Signals, State]:
        """Return outputs of the models (`signals`) with the fused teacher added, and the new state of the fusion."""


class Objective(NamedTuple):
    """The training loss `sum_k weight_k(step) * mean(term_k)`, with the fusion of several teachers that the terms read.

    In all functions, `signals` are the outputs of student and teachers with the batch, as a dict by stream (a named
    source of examples). A `Mean` is a sum and a count.

    init: `(key, signals) -> (params, state)` of the fusion and the loss terms
    apply: `(params, state, signals, *, key) -> ({term: Mean}, new state)`; for steps that take one gradient per term
    loss: `(params, state, signals, weights, *, key) -> (weighted sum, ({term: Mean}, new state))`; the weighted sum is
        differentiated. If the student's logits are `Factored` (not computed yet), one pass gives value and gradient
    fuse: `(params, state, signals of one stream, *, key) -> (signals with the fused teacher, new state of the fusion)`
    weights: `(step number) -> {term: weight}`, the weights in the config
    total: `({term: Mean}, step number) -> weighted sum` with the weights in the config
    terms: names of the loss terms, in order
    streams: names of the streams that the terms read, and always `train`
    only: `(names of terms) -> Objective` with these terms alone, for models that are trained beside the student
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
    """The type of `Step.init`: a function that creates the train state before the first training step."""

    def __call__(
        self, key: Key, teachers: tuple[Variables, ...], batch: Batch, start: Variables = NO_VARIABLES, /
    ) -> TrainState:
        """Initialise the train state from the shapes of a batch.

        Args:
            key: the PRNG key of the run.
            teachers: variables of the frozen teachers.
            batch: a batch of the right shapes, such as zeros.
            start: pretrained values of the student, by name; they replace the random ones of the same names.
        """


@runtime_checkable
class StepUpdate(Protocol):
    """The type of `Step.update`: a pure function that takes one training step on a batch."""

    def __call__(
        self, ts: TrainState, teachers: tuple[Variables, ...], batch: Batch, /
    ) -> tuple[TrainState, dict[str, Any]]:
        """Compute the new train state, and metrics `{name: Mean}`, from the frozen teachers and a batch; pure."""


@runtime_checkable
class EvolveTeachers(Protocol):
    """The type of `Step.evolve_teachers`: a function that returns the current variables of all teachers.

    A step has this function if training changes its teachers, such as a teacher that is an average of past students.
    """

    def __call__(self, params: ByRole, state: ByRole, teachers: tuple[Variables, ...], /) -> tuple[Variables, ...]:
        """Return the current variables of all teachers.

        Args:
            params, state: those of the train state, in which the step keeps the changed values.
            teachers: the variables of all teachers before the first step.
        """


class RowSelection(NamedTuple):
    """How a training algorithm selects rows of a batch, on which alone it trains.

    share: fraction of the rows that is selected
    loss: loss term that scores the rows
    teacher: index of the teacher on which the score depends; None if it depends on no teacher
    """

    share: float
    loss: Term
    teacher: int | None


class Step(NamedTuple):
    """A training algorithm: functions that create the train state, and update it with a batch.

    A batch has one dict of arrays for each stream (named source of examples).

    init: `(key, teachers, batch, start) -> TrainState`; `start` has pretrained values that replace random ones
    update: `(train_state, teachers, batch) -> (new train_state, metrics)`; one training step
    streams: names of the streams that a batch must have
    trains_fusion: True if the algorithm trains the params of the fusion (such as a gate, a network that weights the
        teachers) with another loss than the objective; see `Fusion.trained_by_step`
    evolve_teachers: `(params, state, teachers) -> current teachers`; None if training changes no teacher
    trained_teachers: indices of the teachers that the algorithm changes; these may start from random values
    generated_streams: names of streams that the algorithm generates from the stream `train`, with the same fields and
        shapes, such as texts that the student generates; loss terms may read them
    selection: how the algorithm selects the rows on which it trains; None if it trains on all rows of a batch
    """

    init: StepInit
    update: StepUpdate
    streams: frozenset[str]
    trains_fusion: bool = False
    evolve_teachers: EvolveTeachers | None = None
    trained_teachers: frozenset[int] = frozenset()
    generated_streams: frozenset[str] = frozenset()
    selection: RowSelection | None = None
