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
Never the loss that it weighs: that is least where the teacher is easiest to match, and put weight 1.00 on a dead layer.

Paths are chosen by what a linear probe V_r reads of the labels in each path's layer h_r of the teacher (Alain and
Bengio, 2016, arxiv.org/abs/1610.01644), or by `quiz`. Beware of `quiz` for hints: one update is a short horizon, and
it put 0.74 on a dead layer where probes put 0.01 (experiments/routing).

Collapse is guarded by a floor of the entropy of the mean weights, `+ max(0, floor - H(mean w))`, and watched: the log
has `gate/loss`, `gate/entropy` (of a row's weights, in nats) and `gate/share/<k>` (the mean weight of each teacher, or
of each path that is probed).

Config: step = "routing(by='calibration')"; fusion = "gate()"; streams.calibration.split = "train[90%:]"
When: teachers that are right on unlike inputs. Where noise is all that tells them apart, an average does as well.
Checked: hypergradient against finite differences; no gradient crosses; probes find the dead layer; experiments/routing.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxdistill.metrics import Mean, mean_of
from jaxdistill.parallel.collectives import psum, row_keys
from jaxdistill.registry import steps
from jaxdistill.steps.dispatch import dispatched
from jaxdistill.steps.learner import learner
from jaxdistill.steps.observe import observe, own_key, report
from jaxdistill.steps.probes import begun, read, shares
from jaxdistill.types import NOTHING, Array, Model, Objective, Outputs, Signals, Step, Variables

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
        ValueError: probes for another way of training; when it is initialised, the teacher has no such layer.
    """
    if probes and by != "calibration":
        raise ValueError(f"probes say what by='calibration' shall weigh; with by={by!r} leave them out")
    look = partial(_chosen_alone, objective) if hard else observe
    parts, stream = learner(student, teachers, objective, optimizer, look), STREAMS[by]

    def init(key, frozen, batch, start=NOTHING):
        if not probes:
            return parts.init(key, frozen, batch, start)
        said, _ = teachers[0].apply(*frozen[0], batch[stream], train=False, key=key)
        return parts.init(key, frozen, batch, start, Variables({"probes": begun(said, probes)}, {}))

    def judged(learned, ts, frozen, batch, key):
        params = jax.lax.stop_gradient(ts.params) | learned
        watch = {"step": ts.step, "key": key}
        signals = observe(student, teachers, params, ts.state, frozen, batch, (stream,), **watch)[0][stream]
        fused, _ = objective.fuse(params, ts.state, signals, key=key)
        weights, log_p = _weights(fused), _likelihoods([teacher.logits for teacher in fused.teachers], fused)
        if by == "calibration":
            values = -jax.nn.logsumexp(log_p, axis=0, b=weights)
            if probes:
                weights, log_p = shares(fused, probes), _likelihoods(read(params["probes"], fused, probes), fused)
                values = values - jax.nn.logsumexp(log_p, axis=0, b=weights)
        elif by == "reinforce":
            values = _reinforced(weights, log_p, signals.mask, key)
        else:
            gradient, *_ = parts.gradient(replace(ts, params=params), frozen, batch, objective.weights(ts.step))
            pilot = jax.tree.map(lambda p, g: p - inner_lr * g, params["student"], gradient["student"])
            out, _ = student.apply(pilot, ts.state["student"], signals.batch, train=False, key=key)
            values = optax.softmax_cross_entropy_with_integer_labels(out.dense().logits, signals.batch["label"])
        return _guarded(values, weights, signals.mask, floor)

    def update(ts, frozen, batch):
        gradient, means, state = parts.gradient(ts, frozen, batch, objective.weights(ts.step))
        key = own_key(ts)
        learned = {role: ts.params[role] for role in ("fusion", "probes") if role in ts.params}
        slope, watched = jax.grad(judged, has_aux=True)(learned, ts, frozen, batch, key)
        gradient = gradient | psum(slope)
        return parts.descend(ts, gradient, state), report(means, objective.total(means, ts.step), gradient) | watched

    return Step(init, update, objective.streams | {stream}, gates=True)


def _weights(fused: Signals) -> Array:
    """The teachers' shares, `[teachers, *batch]`.

    Raises:
        ValueError: the fusion weighs nobody.
    """
    if fused.teacher is None or fused.teacher.weights is None:
        raise ValueError("this fusion gives teachers no weights; routing needs one that does: fusion='gate()'")
    return fused.teacher.weights


def _likelihoods(logits: Iterable[Any], signals: Signals) -> Array:
    """What each of these gives to the label, in nats, `[teachers, *batch]`; no less than -30."""
    log_p = jax.nn.log_softmax(jnp.stack([jnp.asarray(said, jnp.float32) for said in logits]))
    labels = jnp.broadcast_to(signals.batch["label"], log_p.shape[:-1])
    return jnp.maximum(jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0], -30.0)


def _reinforced(weights: Array, log_p: Array, mask: Array, key: Array) -> Array:
    """`-(reward - mean) / deviation * log w` of a teacher drawn for each row, over the rows of the global batch."""
    draw = lambda each, row: jax.random.categorical(each, row)
    log_w = jnp.log(jnp.maximum(jnp.moveaxis(weights, 0, -1), 1e-30))
    chosen = jax.vmap(draw)(row_keys(key, mask.shape[0]), jax.lax.stop_gradient(log_w))[..., None]
    reward = jnp.take_along_axis(jnp.moveaxis(log_p, 0, -1), chosen, axis=-1)[..., 0]
    every = lambda x: psum(jnp.sum(jnp.where(mask != 0, x, 0))) / jnp.maximum(psum(jnp.sum(mask != 0)), 1)
    centred = reward - every(reward)
    standard = centred * jax.lax.rsqrt(every(centred**2) + 1e-6)
    return -standard * jnp.take_along_axis(log_w, chosen, axis=-1)[..., 0]


def _guarded(values: Array, weights: Array, mask: Array, floor: float) -> tuple[Array, dict[str, Mean]]:
    """The mean of the values plus what the mean weights lack of the floor; and what the log says of the gate."""
    found = mean_of(values, mask)
    count = psum(found.count)
    each = [mean_of(weight, mask) for weight in weights]
    shares = jnp.stack([psum(mean.sum) for mean in each]) / jnp.maximum(count, 1)
    entropy = lambda w: -jnp.sum(jnp.where(w > 0, w * jnp.log(jnp.where(w > 0, w, 1.0)), 0.0), axis=0)
    # every device holds the whole scalar, of which it counts its share
    lacks = jnp.maximum(0.0, floor - entropy(shares)) / psum(jnp.ones(()))
    rows = mean_of(entropy(weights), mask)
    total = {f"gate/share/{k}": Mean(share * count, count) for k, share in enumerate(shares)}
    watched = {"gate/loss": Mean(psum(found.sum), count), "gate/entropy": Mean(psum(rows.sum), count), **total}
    return found.sum / jnp.maximum(count, 1) + lacks, jax.lax.stop_gradient(watched)


def _chosen_alone(objective, student, teachers, params, state, frozen, batch, streams, *, step, key):
    """As `observe`, where of a row no teacher runs but the one to which the gate gives most."""
    seen, student_state = observe(student, (), params, state, (), batch, streams, step=step, key=key)
    frozen, stopped = jax.lax.stop_gradient((frozen, params))
    for stream, signals in seen.items():
        rows, classes = signals.mask.shape, signals.student.logits.shape[-1]
        silent = (Outputs(jnp.zeros((*rows, classes))),) * len(teachers)
        whole = {**signals.params, "teachers": tuple(values.params for values in frozen)}
        seen[stream] = replace(signals, teachers=silent, params=whole)
        if "fusion" in params:  # before, only shapes are asked for
            weights = _weights(objective.fuse(stopped, state, seen[stream], key=key)[0])
            said = dispatched(teachers, frozen, signals.batch, jnp.argmax(weights, axis=0), key)
            seen[stream] = replace(seen[stream], teachers=(said,) * len(teachers))
    return seen, student_state
