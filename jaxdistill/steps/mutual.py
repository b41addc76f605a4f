"""Deep mutual learning: student and peers are trained together, each on the labels and on the others' predictions.

Zhang, Xiang, Hospedales and Lu, Deep Mutual Learning, 2018 (arxiv.org/abs/1706.00384), algorithm 1 and equation 9.

    for each batch, and members M_0 (the student), M_1, M_2, ... (the config's teachers, of any architecture):
        p_k      <- M_k(batch) for each k
        loss_k   <- task loss of p_k + kd of p_k to the fused sg(p_j), j != k       # sg: stop_gradient
        M_k      <- optimizer(grad_k loss_k) for each k             # all at once

The paper updates the members in turn, each with the others' newest parameters. Here all are updated at once, as in the
authors' later code, so that the order of the members does not matter. Each member minimises the config's terms (losses)
as if it were the student, with its own projectors and gates. With `fusion="average()"`, a member's kd has the gradient
of the paper's mean of divergences to each of the others, because the mean of KLs is the KL to the mean, up to a
constant.

`terms` are the terms that the peers (all members but the student) minimise. `terms=('cross_entropy',)` is online
co-training: the teacher learns from labels alone, while its student learns from the teacher. A peer that has a
checkpoint, or that was trained earlier in this run, starts from these weights. All members teach in evaluation mode,
with running statistics.

The log has `peers/<k>/loss`. The report of the run evaluates each trained peer, too.

Config: step = "mutual()"; fusion = "average()"; teachers.peer.model = "mlp(widths=(128,), classes=10)", without
    checkpoint or steps; objective.kd.term = "kd(temperature=1.0)"; roles.teachers.rate = 0.001
When: no teacher is better than the student yet, and all members fit in memory.
Checked: two and three members by hand; no gradient crosses; peers with rate 0 equal frozen teachers, to the bit.
Experiment: `experiments/peers` (mutual learning and co-training against their control: no gain on 500 digits).
"""

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import optax

from jaxdistill.core.interfaces import Model, Objective, Step
from jaxdistill.core.registry import steps
from jaxdistill.core.sums import Mean
from jaxdistill.core.types import NO_VARIABLES, Batch, ByRole, Key, PyTree, TrainState, Variables
from jaxdistill.steps.learner import learner, select_terms
from jaxdistill.steps.observe import step_metrics

EXTRA_ROLES = ("fusion", "terms")  # values of a member beside its model
ROLES = ("student", *EXTRA_ROLES)


@steps.register
def mutual(
    student: Model,
    teachers: tuple[Model, ...],
    objective: Objective,
    optimizer: optax.GradientTransformation,
    terms: tuple[str, ...] = (),
) -> Step:
    """Build the mutual learning step: student and teachers are trained together, each on the others' predictions.

    Each teacher minimises the losses of the config in the place of the student, with the student among its teachers.
    `TrainState.params["teachers"]` holds the params of the teachers, and `TrainState.params["peers"]` those of the
    gates and projectors with which the teachers learn.

    Args:
        student, teachers, objective, optimizer: the models, the losses with their weights, and the optimiser, built
            from the other keys of the config.
        terms: names of the losses that the teachers minimise; () means all losses of the config.

    Raises:
        ValueError: there is no teacher, or the config has no loss of such a name; when the train state is initialised,
            a teacher has no parameters.
    """
    if not teachers:
        raise ValueError(
            "mutual learning needs peers; add teachers, without checkpoint and steps if they start from scratch"
        )
    models = (student, *teachers)
    minimised = [objective] + [objective.only(select_terms(objective, terms))] * len(teachers)
    parts = [
        learner(m, _others(k, models), o, optimizer) for k, (m, o) in enumerate(zip(models, minimised, strict=True))
    ]

    def evolve_teachers(params: ByRole, state: ByRole, frozen: tuple[Variables, ...]) -> tuple[Variables, ...]:
        return tuple(map(Variables, params["teachers"], state["teachers"]))

    def init(key: Key, frozen: tuple[Variables, ...], batch: Batch, start: Variables = NO_VARIABLES) -> TrainState:
        if not all(jax.tree.leaves(values.params) for values in frozen):
            raise ValueError("every peer is trained, but one has no parameters; use no cached teacher")
        first = parts[0].init(key, frozen, batch, start)
        values = (Variables(first.params["student"], first.state["student"]), *jax.tree.map(jnp.copy, frozen))
        members = [first] + [
            part.init(jax.random.fold_in(key, k), _others(k, values), batch, values[k])
            for k, part in enumerate(parts[1:], 1)
        ]
        params, state = (_merge_members([getattr(ts, name) for ts in members]) for name in ("params", "state"))
        return TrainState(first.step, params, state, optimizer.init(params), first.key)

    def update(ts: TrainState, frozen: tuple[Variables, ...], batch: Batch) -> tuple[TrainState, dict[str, Mean]]:
        views = [_as_student(ts, k) for k in range(len(models))]
        values = [Variables(view.params["student"], view.state["student"]) for view in views]
        weights = [each.weights(ts.step) for each in minimised]
        results = [part.gradient(views[k], _others(k, values), batch, weights[k]) for k, part in enumerate(parts)]
        gradients, means, states = zip(*results, strict=True)
        gradient = _merge_members(gradients)
        losses = [each.total(mean, ts.step) for each, mean in zip(minimised, means, strict=True)]
        peers = {f"peers/{k}/loss": Mean(loss, jnp.ones(())) for k, loss in enumerate(losses) if k}
        metrics = step_metrics(means[0], losses[0], gradient)
        return parts[0].descend(ts, gradient, _merge_members(states)), metrics | peers

    return Step(
        init,
        update,
        objective.streams,
        evolve_teachers=evolve_teachers,
        trained_teachers=frozenset(range(len(teachers))),
    )


def _others[T](k: int, members: Sequence[T]) -> tuple[T, ...]:
    """Return a tuple of all members (student and teachers that learn from each other) but member k."""
    return (*members[:k], *members[k + 1 :])


def _as_student(ts: TrainState, k: int) -> TrainState:
    """Return the train state in which member k takes the place of the student, with its own PRNG key.

    Members are the models that learn from each other: member 0 is the student, member k > 0 is teacher k - 1.
    """

    def roles(tree: ByRole) -> dict[str, PyTree]:
        return {"student": tree["teachers"][k - 1], **tree["peers"][k - 1]} if k else {r: tree[r] for r in ROLES}

    key = jax.random.fold_in(ts.key, k) if k else ts.key
    return replace(ts, params=roles(ts.params), state=roles(ts.state), key=key)


def _merge_members(by_member: Sequence[ByRole]) -> dict[str, PyTree]:
    """Merge the params (or states) of all members into one dict by role; the inverse of `_as_student`.

    Members are the models that learn from each other. The first is the student, the others are the teachers.
    """
    first, *others = by_member
    peers = tuple({role: member[role] for role in EXTRA_ROLES} for member in others)
    return {role: first[role] for role in ROLES} | {
        "teachers": tuple(member["student"] for member in others),
        "peers": peers,
    }
