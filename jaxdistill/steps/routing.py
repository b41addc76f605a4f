"""Routing: a gate that chooses among teachers, and paths, by the input; trained on what the choice is worth.

    signals   <- student(batch), sg(teacher_k(batch)) for each k
    w         <- gate(sg(signals))                                       # of every row: shares that sum to 1
    student   <- optimizer(grad of the objective beside the teachers fused by sg(w))
    gate      <- optimizer(grad of one of these, on a stream with labels of its own)
        calibration   -log sum_k w_k p_k(y)                              # likelihood of the mixture: the default
        quiz          CE(student - lr grad_student objective(w), y)      # hypergradient: what one update would bring
        reinforce     -(log p_k(y) - mean) log w_k,  k drawn from w      # Williams 1992; Yuan et al. 2021
        probes        -log sum_r r_r softmax(V_r h_r)(y)                 # of paths, beside calibration

Likelihood of a mixture: Jacobs et al., Adaptive Mixtures of Local Experts, 1991 (doi.org/10.1162/neco.1991.3.1.79).
Never the loss that it weighs: that is least where the teacher is easiest to match, as is a dead layer.

Paths are chosen by what a linear probe V_r reads of the labels in each path's layer h_r of the teacher (Alain and
Bengio, 2016, arxiv.org/abs/1610.01644), or by `quiz`. Beware of `quiz` for hints: one update is a short horizon, and
it put 0.96 on a dead layer where probes put 0.01 (experiments/routing).

Collapse is guarded by a floor of the entropy of the mean weights, `+ max(0, floor - H(mean w))`, and watched: the log
has `gate/loss`, `gate/entropy` (of a row's weights, in nats) and `gate/share/<k>` (the mean weight of each teacher, or
of each path that is probed).

Config: step = "routing(by='calibration')"; fusion = "gate()"; streams.calibration.split = "train[90%:]"
When: teachers that are right on unlike inputs. Where noise is all that tells them apart, an average does as well.
Checked: hypergradient against finite differences; no gradient crosses; probes find the dead layer; experiments/routing.
"""

from dataclasses import replace
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from jaxdistill.core.collectives import psum, row_keys
from jaxdistill.core.registry import steps
from jaxdistill.core.sums import Mean, of_label, shared_mean
from jaxdistill.core.types import NO_VARIABLES, Array, Model, Objective, Signals, Step, Variables
from jaxdistill.fusion.mixture import spoken
from jaxdistill.losses.term import labels_of, precise
from jaxdistill.steps.dispatch import chosen_alone, weights_of
from jaxdistill.steps.learner import learner
from jaxdistill.steps.observe import observe, own_key, report
from jaxdistill.steps.probes import begun, read, shares
from jaxdistill.steps.quiz import surprise

STREAMS = {"calibration": "calibration", "quiz": "quiz", "reinforce": "calibration"}


@steps.register
def routing(
    student: Model,
    teachers: tuple[Model, ...],
    objective: Objective,
    optimizer: optax.GradientTransformation,
    by: Literal["calibration", "quiz", "reinforce"] = "calibration",
    floor: float = 0.05,
    inner_lr: float = 0.1,
    hard: bool = False,
    probes: tuple[int, ...] = (),
) -> Step:
    """The student learns from frozen teachers whom a gate weighs; the gate is the role `fusion`.

    Args:
        student, teachers, objective, optimizer: given by the config.
        by: what the gate is trained on; "calibration" and "reinforce" read the stream `calibration`, "quiz" the stream
            `quiz`, both with labels.
        floor: the least entropy, in nats, of the weights' mean over a batch.
        inner_lr: rate of the update that "quiz" looks beyond.
        hard: of a training row only its chosen teacher runs; the gate may then read the student and the image only.
        probes: layers of the first teacher, one for each path that the gate weighs, for "calibration"; their probes are
            a role.

    Raises:
        ValueError: probes for another way of training; when it is initialised, the teacher has no such layer, or a hard
            gate reads teachers.
    """
    if probes and by != "calibration":
        raise ValueError(f"probes say what by='calibration' shall weigh; with by={by!r} leave them out")
    look = partial(chosen_alone, objective) if hard else observe
    parts, stream = learner(student, teachers, objective, optimizer, look), STREAMS[by]

    def init(key, frozen, batch, start=NO_VARIABLES):
        more = NO_VARIABLES
        if probes:
            said, _ = teachers[0].apply(frozen[0].params, frozen[0].state, batch[stream], train=False, key=key)
            more = Variables({"probes": begun(said, probes)}, {})
        ts = parts.init(key, frozen, batch, start, more)
        if hard:  # before there was no gate, which may be one that reads teachers
            look(student, teachers, ts.params, ts.state, frozen, batch, ("train",), step=ts.step, key=key)
        return ts

    def calibrated(params, ts, frozen, batch, fused, key):
        weights = weights_of(fused)
        values = _surprise(weights, _of_teachers(fused))
        if probes:  # of which the weights of paths are watched
            weights, log_p = shares(fused, probes), _likelihoods(read(params["probes"], fused, probes), fused)
            values = values + _surprise(weights, log_p)
        return values, weights

    def reinforced(params, ts, frozen, batch, fused, key):
        weights = weights_of(fused)
        return _reinforced(weights, _of_teachers(fused), fused.mask, key), weights

    def quizzed(params, ts, frozen, batch, fused, key):
        gradient, *_ = parts.gradient(replace(ts, params=params), frozen, batch, objective.weights(ts.step))
        pilot = jax.tree.map(lambda p, g: p - inner_lr * g, params["student"], gradient["student"])
        return surprise(student, Variables(pilot, ts.state["student"]), fused.batch, key), weights_of(fused)

    judge = {"calibration": calibrated, "reinforce": reinforced, "quiz": quizzed}[by]

    def judged(learned, ts, frozen, batch, key):
        models, fusion, own = jax.random.split(key, 3)
        params, watch = jax.lax.stop_gradient(ts.params) | learned, {"step": ts.step, "key": models}
        signals = observe(student, teachers, params, ts.state, frozen, batch, (stream,), **watch)[0][stream]
        fused, _ = objective.fuse(params, ts.state, signals, key=fusion)
        values, weights = judge(params, ts, frozen, batch, fused, own)
        return _guarded(values, weights, fused.mask, floor)

    def update(ts, frozen, batch):
        gradient, means, state = parts.gradient(ts, frozen, batch, objective.weights(ts.step))
        key = own_key(ts)
        learned = {role: ts.params[role] for role in ("fusion", "probes") if role in ts.params}
        slope, watched = jax.grad(judged, has_aux=True)(learned, ts, frozen, batch, key)
        gradient = gradient | psum(slope)
        return parts.descend(ts, gradient, state), report(means, objective.total(means, ts.step), gradient) | watched

    return Step(init, update, objective.streams | {stream}, gates=True)


def _likelihoods(logits: Array, signals: Signals) -> Array:
    """What each of these, `[any, *batch, classes]`, gives to the label, in nats, `[any, *batch]`; no less than -30."""
    log_p = jax.nn.log_softmax(precise(logits))
    return jnp.maximum(of_label(log_p, jnp.broadcast_to(labels_of(signals), log_p.shape[:-1])), -30.0)


def _of_teachers(fused: Signals) -> Array:
    """What each teacher gives to the label; of one that is absent, whatever all classes alike would give."""
    return _likelihoods(spoken(fused), fused)


def _surprise(weights: Array, log_p: Array) -> Array:
    """Of the mixture by the label, `[*batch]`."""
    return -jax.nn.logsumexp(log_p, axis=0, b=weights)


def _reinforced(weights: Array, log_p: Array, mask: Array, key: Array) -> Array:
    """`-(reward - mean) / deviation * log w` of a teacher drawn for each row, over the rows of the global batch."""
    draw = lambda each, row: jax.random.categorical(each, row)
    log_w = jnp.log(jnp.maximum(jnp.moveaxis(weights, 0, -1), 1e-30))
    chosen = jax.vmap(draw)(row_keys(key, mask.shape[0]), jax.lax.stop_gradient(log_w))[..., None]
    reward = jnp.take_along_axis(jnp.moveaxis(log_p, 0, -1), chosen, axis=-1)[..., 0]
    every = lambda x: shared_mean(x, mask)[1].compute()
    centred = reward - every(reward)
    standard = centred * jax.lax.rsqrt(every(centred**2) + 1e-6)
    return -standard * jnp.take_along_axis(log_w, chosen, axis=-1)[..., 0]


def _guarded(values: Array, weights: Array, mask: Array, floor: float) -> tuple[Array, dict[str, Mean]]:
    """The mean of the values plus what the mean weights lack of the floor; and what the log says of the gate."""
    share, whole = shared_mean(values, mask)
    each = [shared_mean(weight, mask)[1] for weight in weights]
    entropy = lambda w: -jnp.sum(jnp.where(w > 0, w * jnp.log(jnp.where(w > 0, w, 1.0)), 0.0), axis=0)
    # every device holds the whole scalar, of which it counts its share
    lacks = jnp.maximum(0.0, floor - entropy(jnp.stack([mean.compute() for mean in each]))) / psum(jnp.ones(()))
    total = {f"gate/share/{k}": mean for k, mean in enumerate(each)}
    watched = {"gate/loss": whole, "gate/entropy": shared_mean(entropy(weights), mask)[1], **total}
    return share + lacks, jax.lax.stop_gradient(watched)
