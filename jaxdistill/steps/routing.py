"""Routing: a gate learns which teacher, or which path between layers, each example should learn from.

    signals   <- student(batch), sg(teacher_k(batch)) for each k         # sg: stop_gradient
    w         <- gate(sg(signals))                                       # for each row: weights that sum to 1
    student   <- optimizer(grad of the objective, with the teachers fused by sg(w))
    gate      <- optimizer(grad of one of these losses, on a stream with labels)
        calibration   -log sum_k w_k p_k(y)                              # likelihood of the mixture: the default
        quiz          CE(student - lr grad_student objective(w), y)      # hypergradient through one student update
        reinforce     -(log p_k(y) - mean) log w_k,  k drawn from w      # Williams 1992; Yuan et al. 2021
        probes        -log sum_r r_r softmax(V_r h_r)(y)                 # for paths, added to calibration

A row is an example of the batch (or a token), y its label, and p_k(y) the label's probability by teacher k. A stream is
a named source of batches, here of held-out labelled examples. Likelihood of a mixture: Jacobs et al., Adaptive Mixtures
of Local Experts, 1991 (doi.org/10.1162/neco.1991.3.1.79). The gate is never trained by the loss that it weights: that
loss is smallest for the teacher that is easiest to match, such as a dead layer.

A path is a pair of a student and a teacher layer, and r_r is its weight. Path weights are trained by the label
likelihood of a linear probe V_r on each path's teacher layer h_r (Alain and Bengio, 2016, arxiv.org/abs/1610.01644), or
by `quiz`. Beware of `quiz` for hints: one update is a short horizon, and it gave a dead layer the weight 0.96, where
probes gave 0.01 (experiments/routing).

A floor on the entropy of the mean weights, `+ max(0, floor - H(mean w))`, prevents the collapse to one teacher. The log
has `gate/loss`, `gate/entropy` (of a row's weights, in nats) and `gate/share/<k>` (the mean weight of each teacher, or
with probes of each path).

Config: step = "routing(by='calibration')"; fusion = "gate()"; streams.calibration.split = "train[90%:]"
When: teachers are right on different inputs. If they differ only by noise, an average is as good.
Checked: hypergradient against finite differences; no gradient crosses; probes find the dead layer; experiments/routing.
"""

from dataclasses import replace
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from jaxdistill.core.collectives import psum, row_keys
from jaxdistill.core.interfaces import Model, Objective, Step
from jaxdistill.core.registry import steps
from jaxdistill.core.sums import Mean, shared_mean, values_at_labels
from jaxdistill.core.types import NO_VARIABLES, Array, Batch, Key, PyTree, Signals, TrainState, Variables
from jaxdistill.fusion.mixture import teacher_logits
from jaxdistill.losses.term import masked_labels, precise
from jaxdistill.steps.dispatch import observe_selected, teacher_weights
from jaxdistill.steps.learner import learner
from jaxdistill.steps.observe import observe, step_key, step_metrics
from jaxdistill.steps.probes import init_probes, path_weights, probe_logits
from jaxdistill.steps.quiz import cross_entropy_of_rows

# The gate's loss for each row (example or token), and its weights of the teachers or paths
ValuesAndWeights = tuple[Float[Array, "*batch"], Float[Array, " choices *batch"]]
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
    """Build the routing step: a gate network, trained on labels, weights the frozen teachers for each example.

    The student learns from the teachers with the gate's weights w_k. The gate's params are stored as
    `TrainState.params["fusion"]`.

    Args:
        student, teachers, objective, optimizer: the models, the losses with their weights, and the optimiser, built
            from the other keys of the config.
        by: the gate's loss for label y. "calibration" is -log sum_k w_k p_k(y), with teacher k's probability p_k.
            "quiz" is the cross-entropy of the student after one update with the weights w_k. "reinforce" is -(log
            p_k(y) - mean) log w_k for a teacher k drawn by w_k, divided by the standard deviation. The labelled
            examples are the stream (named source of batches) `quiz` for "quiz", otherwise the stream `calibration`.
        floor: minimum entropy, in nats, of the gate's mean weights over a batch. If the entropy is lower, the
            difference is added to the gate's loss.
        inner_lr: learning rate of the student's update for "quiz".
        hard: run only the teacher with the largest weight for each training example. The inputs of the gate may then be
            only the student's outputs and the image.
        probes: layers of the first teacher, one for each path (layer pair) that the gate weights; only for
            "calibration". A linear probe on each layer predicts the label, and the gate's path weights are trained by
            -log sum_r w_r p_r(y). The probes are stored as `TrainState.params["probes"]`.

    Raises:
        ValueError: `probes` are given without "calibration"; when the train state is initialised, the teacher has no
            such layer, or the gate reads teacher outputs although `hard` is set.
    """
    if probes and by != "calibration":
        raise ValueError(f"probes need by='calibration'; with by={by!r} remove them")
    run_models = partial(observe_selected, objective) if hard else observe
    parts, stream = learner(student, teachers, objective, optimizer, run_models), STREAMS[by]

    def init(key: Key, frozen: tuple[Variables, ...], batch: Batch, start: Variables = NO_VARIABLES) -> TrainState:
        extra = NO_VARIABLES
        if probes:
            outputs, _ = teachers[0].apply(frozen[0].params, frozen[0].state, batch[stream], train=False, key=key)
            extra = Variables({"probes": init_probes(outputs, probes)}, {})
        ts = parts.init(key, frozen, batch, start, extra)
        if hard:  # raises if the gate, which now has parameters, reads teacher outputs
            run_models(student, teachers, ts.params, ts.state, frozen, batch, ("train",), step=ts.step, key=key)
        return ts

    def calibration_loss(
        params: dict[str, PyTree], ts: TrainState, frozen: tuple[Variables, ...], batch: Batch, fused: Signals, key: Key
    ) -> ValuesAndWeights:
        weights = teacher_weights(fused)
        values = _mixture_nll(weights, _teacher_log_likelihoods(fused))
        if probes:  # then the log shows the weights of the paths
            weights = path_weights(fused, probes)
            log_p = _log_likelihoods(probe_logits(params["probes"], fused, probes), fused)
            values = values + _mixture_nll(weights, log_p)
        return values, weights

    def reinforce_loss(
        params: dict[str, PyTree], ts: TrainState, frozen: tuple[Variables, ...], batch: Batch, fused: Signals, key: Key
    ) -> ValuesAndWeights:
        weights = teacher_weights(fused)
        return _policy_gradient(weights, _teacher_log_likelihoods(fused), fused.mask, key), weights

    def hypergradient_loss(
        params: dict[str, PyTree], ts: TrainState, frozen: tuple[Variables, ...], batch: Batch, fused: Signals, key: Key
    ) -> ValuesAndWeights:
        gradient, *_ = parts.gradient(replace(ts, params=params), frozen, batch, objective.weights(ts.step))
        pilot = jax.tree.map(lambda p, g: p - inner_lr * g, params["student"], gradient["student"])
        values = cross_entropy_of_rows(student, Variables(pilot, ts.state["student"]), fused.batch, key)
        return values, teacher_weights(fused)

    row_losses = {"calibration": calibration_loss, "reinforce": reinforce_loss, "quiz": hypergradient_loss}[by]

    def gate_loss(
        learned: dict[str, PyTree], ts: TrainState, frozen: tuple[Variables, ...], batch: Batch, key: Key
    ) -> tuple[Array, dict[str, Mean]]:
        models_key, fusion_key, loss_key = jax.random.split(key, 3)
        params, settings = jax.lax.stop_gradient(ts.params) | learned, {"step": ts.step, "key": models_key}
        signals = observe(student, teachers, params, ts.state, frozen, batch, (stream,), **settings)[0][stream]
        fused, _ = objective.fuse(params, ts.state, signals, key=fusion_key)
        values, weights = row_losses(params, ts, frozen, batch, fused, loss_key)
        return _loss_with_entropy_floor(values, weights, fused.mask, floor)

    def update(ts: TrainState, frozen: tuple[Variables, ...], batch: Batch) -> tuple[TrainState, dict[str, Mean]]:
        gradient, means, state = parts.gradient(ts, frozen, batch, objective.weights(ts.step))
        key = step_key(ts)
        learned = {role: ts.params[role] for role in ("fusion", "probes") if role in ts.params}
        gate_gradient, gate_metrics = jax.grad(gate_loss, has_aux=True)(learned, ts, frozen, batch, key)
        gradient = gradient | psum(gate_gradient)
        metrics = step_metrics(means, objective.total(means, ts.step), gradient) | gate_metrics
        return parts.descend(ts, gradient, state), metrics

    return Step(init, update, objective.streams | {stream}, trains_fusion=True)


def _log_likelihoods(logits: Array, signals: Signals) -> Array:
    """Compute the label's log-likelihood, `[k, *batch]`, from k sets of logits `[k, *batch, classes]`.

    The result is in nats, and at least -30.
    """
    log_p = jax.nn.log_softmax(precise(logits))
    return jnp.maximum(values_at_labels(log_p, jnp.broadcast_to(masked_labels(signals), log_p.shape[:-1])), -30.0)


def _teacher_log_likelihoods(fused: Signals) -> Array:
    """Compute each teacher's log-likelihood of the label, `[teachers, *batch]`.

    A teacher that is absent for an example has the log-likelihood of the uniform distribution.
    """
    return _log_likelihoods(teacher_logits(fused), fused)


def _mixture_nll(weights: Array, log_p: Array) -> Array:
    """Compute the label's negative log-likelihood under the weighted mixture of teachers or probes, `[*batch]`."""
    return -jax.nn.logsumexp(log_p, axis=0, b=weights)


def _policy_gradient(weights: Array, log_p: Array, mask: Array, key: Array) -> Array:
    """Compute the REINFORCE loss `-(reward - mean) / deviation * log w` of each row for a teacher drawn by weight w.

    A row is an example, or a token of a text. The reward is the drawn teacher's log-likelihood of the label. Mean and
    standard deviation of the rewards are over the rows of the global batch.
    """
    draw_teacher = lambda row_key, log_weights: jax.random.categorical(row_key, log_weights)
    log_w = jnp.log(jnp.maximum(jnp.moveaxis(weights, 0, -1), 1e-30))
    chosen = jax.vmap(draw_teacher)(row_keys(key, mask.shape[0]), jax.lax.stop_gradient(log_w))[..., None]
    reward = jnp.take_along_axis(jnp.moveaxis(log_p, 0, -1), chosen, axis=-1)[..., 0]
    global_mean = lambda x: shared_mean(x, mask)[1].compute()
    centred = reward - global_mean(reward)
    advantage = centred * jax.lax.rsqrt(global_mean(centred**2) + 1e-6)
    return -advantage * jnp.take_along_axis(log_w, chosen, axis=-1)[..., 0]


def _loss_with_entropy_floor(values: Array, weights: Array, mask: Array, floor: float) -> tuple[Array, dict[str, Mean]]:
    """Compute the gate's mean loss, plus the amount by which the entropy of its mean weights is below a floor.

    Args:
        values: the gate's loss for each row (example or token).
        weights: the gate's weights of the teachers or paths, `[choices, *batch]`.
        mask: 0 for rows that do not count.
        floor: minimum entropy, in nats.

    Returns:
        This device's share of the loss, for differentiation, and the metrics of the gate.
    """
    local_loss, loss = shared_mean(values, mask)
    mean_weights = [shared_mean(weight, mask)[1] for weight in weights]
    entropy = lambda w: -jnp.sum(jnp.where(w > 0, w * jnp.log(jnp.where(w > 0, w, 1.0)), 0.0), axis=0)
    # every device computes the same penalty, so each adds only its share
    penalty = jnp.maximum(0.0, floor - entropy(jnp.stack([mean.compute() for mean in mean_weights])))
    shares = {f"gate/share/{k}": mean for k, mean in enumerate(mean_weights)}
    metrics = {"gate/loss": loss, "gate/entropy": shared_mean(entropy(weights), mask)[1], **shares}
    return local_loss + penalty / psum(jnp.ones(())), jax.lax.stop_gradient(metrics)
