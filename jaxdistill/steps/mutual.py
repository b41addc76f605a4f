"""Mutual learning: peers that begin together, and learn from each other as they learn from the labels.

Zhang, Xiang, Hospedales and Lu, Deep Mutual Learning, 2018 (arxiv.org/abs/1706.00384), algorithm 1 and equation 9.

    for each batch, and members M_0 (the student), M_1, M_2, ... (the config's teachers, of any architecture):
        p_k      <- M_k(batch) for each k
        loss_k   <- task loss of p_k + kd of p_k beside the fused sg(p_j), j != k
        M_k      <- optimizer(grad_k loss_k) for each k             # all at once

The paper moves the members in turn, each beside the others as they are by then; here all move at once, so that their
order has no meaning, as in the authors' later code. Each minimises the config's terms as if it were the student, with
projectors and gates of its own. With `fusion="average()"` a member's kd has the gradient of the paper's mean of
divergences from each of the others, since the mean of KLs is the KL from the mean, but for a constant.

`terms` are what the peers minimise. With `terms=('cross_entropy',)` they hear nobody: that is online co-training, a
teacher that learns from labels while its student learns from it. A peer with a checkpoint or steps of its own goes on
from there. The student hears its peers as they are in evaluation, with running statistics; so do they.

The log has `peers/<k>/loss`; what the peers became are rows of the report.

Config: step = "mutual()"; fusion = "average()"; teachers.peer.model = "mlp(widths=(128,), classes=10)", without
    checkpoint or steps; objective.kd.term = "kd(temperature=1.0)"; roles.teachers.rate = 0.001
When: no teacher is better than its student yet, and there is memory for all of them.
Checked: two and three members by hand; no gradient crosses; peers that stay are frozen teachers, to the bit.
Experiment: `experiments/peers` (mutual and co-training beside their control: no gain on 500 digits).
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import optax

from jaxdistill.core.registry import steps
from jaxdistill.core.sums import Mean
from jaxdistill.core.types import NO_VARIABLES, Model, Objective, Step, TrainState, Variables
from jaxdistill.steps.learner import learner, weighed
from jaxdistill.steps.observe import report

OWN = ("fusion", "terms")  # what a member has beside its network
ROLES = ("student", *OWN)


@steps.register
def mutual(
    student: Model,
    teachers: tuple[Model, ...],
    objective: Objective,
    optimizer: optax.GradientTransformation,
    terms: tuple[str, ...] = (),
) -> Step:
    """Student and teachers learn from each other; these are a role, and `peers` holds their gates and projectors.

    Args:
        student, teachers, objective, optimizer: given by the config.
        terms: what the teachers minimise, by name; empty: all that the student does.

    Raises:
        ValueError: there is no teacher, or the objective has no such term; when it is initialised, a teacher has no
            parameters.
    """
    if not teachers:
        raise ValueError("a student alone has no peers; name teachers, without checkpoint or steps if they begin here")
    models = (student, *teachers)
    minimised = [objective] + [objective.only(weighed(objective, terms))] * len(teachers)
    parts = [learner(m, _but(k, models), o, optimizer) for k, (m, o) in enumerate(zip(models, minimised, strict=True))]

    def evolve_teachers(params, state, frozen):
        return tuple(map(Variables, params["teachers"], state["teachers"]))

    def init(key, frozen, batch, start=NO_VARIABLES):
        if not all(jax.tree.leaves(values.params) for values in frozen):
            raise ValueError("every peer learns; one has no parameters: read none from a cache")
        first = parts[0].init(key, frozen, batch, start)
        values = (Variables(first.params["student"], first.state["student"]), *jax.tree.map(jnp.copy, frozen))
        found = [first] + [
            each.init(jax.random.fold_in(key, k), _but(k, values), batch, values[k])
            for k, each in enumerate(parts[1:], 1)
        ]
        params, state = (_whole([getattr(each, name) for each in found]) for name in ("params", "state"))
        return TrainState(first.step, params, state, optimizer.init(params), first.key)

    def update(ts, frozen, batch):
        views = [_as_student(ts, k) for k in range(len(models))]
        values = [Variables(view.params["student"], view.state["student"]) for view in views]
        weights = [each.weights(ts.step) for each in minimised]
        found = [each.gradient(views[k], _but(k, values), batch, weights[k]) for k, each in enumerate(parts)]
        gradients, means, states = zip(*found, strict=True)
        gradient = _whole(gradients)
        losses = [each.total(mean, ts.step) for each, mean in zip(minimised, means, strict=True)]
        peers = {f"peers/{k}/loss": Mean(loss, jnp.ones(())) for k, loss in enumerate(losses) if k}
        metrics = report(means[0], losses[0], gradient)
        return parts[0].descend(ts, gradient, _whole(states)), metrics | peers

    return Step(
        init,
        update,
        objective.streams,
        evolve_teachers=evolve_teachers,
        trained_teachers=frozenset(range(len(teachers))),
    )


def _but(k, each):
    """All but the k-th."""
    return (*each[:k], *each[k + 1 :])


def _as_student(ts: TrainState, k: int) -> TrainState:
    """The train state in which member k is the student, with draws of its own."""

    def roles(tree):
        return {"student": tree["teachers"][k - 1], **tree["peers"][k - 1]} if k else {r: tree[r] for r in ROLES}

    key = jax.random.fold_in(ts.key, k) if k else ts.key
    return replace(ts, params=roles(ts.params), state=roles(ts.state), key=key)


def _whole(found):
    """What each member has by role, put together; inverse of `_as_student`."""
    first, *others = found
    peers = tuple({role: each[role] for role in OWN} for each in others)
    return {role: first[role] for role in ROLES} | {
        "teachers": tuple(each["student"] for each in others),
        "peers": peers,
    }
