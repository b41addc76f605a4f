"""Online batch selection: of a large batch, train on the rows that the teacher knows and the student does not.

Mindermann et al., Prioritized Training on Points that are Learnable, Worth Learning, and Not Yet Learnt (RHO-LOSS),
2022 (arxiv.org/abs/2206.07137); for image-text pairs, Udandarao et al., Active Data Curation Effectively
Distills Large-Scale Multimodal Models (ACID, ACED), 2024 (arxiv.org/abs/2411.18674).

    for each batch of `batch_size` rows x_i:
        s_i       <- L(S(x_i)) - L(T(x_i))          # the score of a row: its learnability
        selected  <- the rows with the largest scores, a `share` of the batch
        S         <- optimizer(grad_S of the config's losses on the selected rows)

S is the student, T a frozen teacher, and L the loss that the argument `loss` names. A row with a wrong label has a
small score, because the teacher's loss is large there too; so has a row on which the student is as good as the teacher.
`by="hard"` takes L(S) alone, which prefers wrong labels, and `by="easy"` takes -L(T).

Both models score the whole batch in evaluation mode and without gradients: every row costs one forward pass of the
student, and one of the teacher unless its outputs are cached; the selected rows are then run again. The control of a
run trains on all rows of its batches. If L is a loss of pairs, such as `contrastive` or `sigmoid`, the candidates are
all rows of the batch in the scores, and the selected rows alone in the training. Of equal scores, the earlier row is
taken. A score that is not a number stops the run. Random draws in proportion to the score (ACID), and scores that
depend on the rows selected so far (JEST, Evans et al., 2024, arxiv.org/abs/2406.17711), are not implemented. The log
has `selection/selected` and `selection/all`, the mean scores of the selected rows and of all rows, without infinite
ones.

Config: step = "batch_selection(share=0.2, loss=contrastive())"; batch_size = 500
When: there are more rows than steps, and many rows teach nothing: wrong labels, repetitions, and rows that the student
    has learned.
Checked: scores and choice by hand, for classes, pairs and tokens; rows with wrong labels are left out, and taken by
    `by="hard"`.
Experiment: `experiments/selection`.
"""

from dataclasses import replace
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, Int

from jaxdistill.core.collectives import by_rows, gather, row_numbers
from jaxdistill.core.interfaces import Model, Objective, RowSelection, Step, Term
from jaxdistill.core.registry import steps
from jaxdistill.core.sums import Mean, broadcast_mask, shared_mean
from jaxdistill.core.types import NO_VARIABLES, Array, Batch, Key, Rows, Signals, TrainState, Variables
from jaxdistill.losses.term import select_teacher
from jaxdistill.steps.learner import learner
from jaxdistill.steps.observe import step_key, step_metrics


@steps.register
def batch_selection(
    student: Model,
    teachers: tuple[Model, ...],
    objective: Objective,
    optimizer: optax.GradientTransformation,
    loss: Term,
    share: float = 0.2,
    by: Literal["learnability", "hard", "easy"] = "learnability",
    teacher: int = 0,
) -> Step:
    """Build a step that trains on the rows of each batch with the largest scores, such as the student's excess loss.

        learnability: L(student) - L(teacher)        hard: L(student)        easy: -L(teacher)

    Args:
        student, teachers, objective, optimizer: the models, the losses with their weights, and the optimiser, built
            from the other keys of the config.
        loss: L, the loss that scores a row, such as `cross_entropy()` or `contrastive()`; it has no parameters. It may
            be another loss than those that are minimised.
        share: fraction of the rows of a batch that is selected, above 0 and at most 1. The selected rows must be a
            whole number, which the devices and `accumulate` divide.
        by: the score.
        teacher: index of the teacher, in the order of the config.

    Raises:
        ValueError: `share` is out of range, there is no such teacher, or the loss needs gradients or generated texts;
            when the train state is initialised, the loss has parameters or gives no value for each row, or the
            teacher has its own tokens, which neither the labels nor the student's tokens match.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1; got {share}")
    reads_teacher = by != "hard" or "teacher" in loss.needs
    if reads_teacher:
        select_teacher(teachers, teacher)
    if wanted := sorted(loss.needs - {"teacher"}):
        raise ValueError(f"the loss needs {wanted[0]}; choose one that reads outputs and labels alone")
    parts = learner(student, teachers, objective, optimizer)

    def scores(ts: TrainState, frozen: tuple[Variables, ...], rows: Rows) -> Float[Array, " rows"]:
        models_key, loss_key = jax.random.split(step_key(ts))
        values = Variables(ts.params["student"], ts.state["student"])
        run = lambda model, v: model.apply(v.params, v.state, rows, train=False, key=models_key)[0].dense()
        out, outputs = run(student, values), tuple(map(run, teachers, frozen))
        target = select_teacher(outputs, teacher) if outputs else out
        if reads_teacher and target.spans is not None:
            cure = "choose by='hard', and a loss that reads labels alone"
            raise ValueError(f"the teacher has its own tokens, which are not those of the student; {cure}")
        temperature = loss.temperature(ts.step) if loss.temperature else 1.0
        params = {"student": values.params, "teachers": tuple(v.params for v in frozen)}
        signals = Signals(out, outputs, target, rows, rows["mask"], ts.step, temperature, params)
        score = jnp.zeros(len(rows["mask"]))
        if by != "easy":
            score += row_losses(loss, signals, loss_key)
        if by != "hard":
            score -= row_losses(loss, replace(signals, student=target), loss_key)
        return jax.lax.stop_gradient(score)

    def init(key: Key, frozen: tuple[Variables, ...], batch: Batch, start: Variables = NO_VARIABLES) -> TrainState:
        ts = parts.init(key, frozen, batch, start)
        jax.eval_shape(lambda: scores(ts, frozen, dict(batch["train"])))
        return ts

    def update(ts: TrainState, frozen: tuple[Variables, ...], batch: Batch) -> tuple[TrainState, dict[str, Mean]]:
        rows = dict(batch["train"])
        count, score = round(share * len(rows["mask"])), scores(ts, frozen, rows)
        counted = jnp.any(rows["mask"].reshape(len(score), -1) != 0, axis=1)
        all_rows, all_scores = gather((rows, jnp.where(counted, score, -jnp.inf)))
        chosen = largest(all_scores, count * len(all_scores) // len(score))
        places = chosen[row_numbers(count)]  # those that this device trains on
        selected = jax.tree.map(lambda x: by_rows(x[places]), all_rows)
        gradient, means, state = parts.gradient(ts, frozen, {**batch, "train": selected}, objective.weights(ts.step))
        # infinite scores have no mean; a NaN stays, so that it stops the run
        has_mean, known = ~jnp.isinf(score) & counted, jnp.where(jnp.isinf(score), 0, score)
        is_selected = jnp.zeros(all_scores.shape, bool).at[chosen].set(True)[row_numbers(len(score))]
        metrics = step_metrics(means, objective.total(means, ts.step), gradient) | {
            "selection/selected": shared_mean(known, has_mean & is_selected)[1],
            "selection/all": shared_mean(known, has_mean)[1],
        }
        return parts.descend(ts, gradient, state), metrics

    selection = RowSelection(share, loss, teacher % len(teachers) if reads_teacher else None)
    return Step(init, update, objective.streams | {"train"}, selection=selection)


def row_losses(loss: Term, signals: Signals, key: Key) -> Float[Array, " rows"]:
    """Compute the loss of each row, `[rows]`; a row of tokens has the mean loss of its tokens.

    Args:
        loss: a loss term without parameters or state.
        signals: outputs of the models, and the batch; rows or tokens with mask 0 do not count.
        key: PRNG key of the loss.

    Raises:
        ValueError: the loss has parameters or a state, or gives no value for each row.
    """
    if any(jax.eval_shape(loss.init, key, signals)):
        raise ValueError("the loss has parameters or a state of its own; choose one without")
    result = loss.apply({}, {}, signals, key=key)[0]
    values, mask = result if isinstance(result, tuple) else (result, signals.mask)
    if values.shape[:1] != signals.mask.shape[:1]:
        shape = f"an array of shape {list(values.shape)}" if values.ndim else "one number for the whole batch"
        raise ValueError(f"loss=...: this loss gives {shape}; choose one with a value for each row")
    counted, axes = broadcast_mask(mask, values.shape), tuple(range(1, values.ndim))
    return jnp.sum(jnp.where(counted, values, 0), axes) / jnp.maximum(jnp.sum(counted, axes), 1)


def largest(scores: Float[Array, " rows"], count: int) -> Int[Array, " count"]:
    """Return the numbers of the rows with the largest scores, in rising order; of equal scores, the earlier row."""
    return jnp.sort(jax.lax.top_k(scores, count)[1])
