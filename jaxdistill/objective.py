"""What is minimised: teachers fused, terms computed, reduced and weighted. The only place that reduces."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdistill.metrics import Mean, mean_of
from jaxdistill.parallel.collectives import psum
from jaxdistill.schedules import Scalar, as_schedule
from jaxdistill.types import Array, Fusion, Objective, Outputs, PyTree, Signals, Term


class Weighted(NamedTuple):
    """A term and its weight, a number or a schedule."""

    term: Term
    weight: Scalar = 1.0


def reduce(out: Any, mask: Array) -> Mean:
    """One mean from what a term returned: a LOCAL sum over the GLOBAL count, since gradients are summed over devices.

    Args:
        out: values `[*batch]`, or `(values, mask)`, or a scalar regulariser.
        mask: the stream's mask.
    """
    if isinstance(out, tuple):
        out, mask = out
    if out.ndim == 0:  # each pmap device holds the whole scalar: count them
        return Mean(out, psum(jnp.ones(())))
    mean = mean_of(out, mask)
    return Mean(mean.sum, psum(mean.count))


def _counted(outputs: Outputs, mask: Array) -> Outputs:
    """Says 0 of rows that do not count: in a gradient, a teacher's NaN there would survive the 0 of its weight."""

    def select(tree: PyTree, mask: Array) -> PyTree:
        shaped = lambda x: mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
        return jax.tree.map(lambda x: jnp.where(shaped(x) != 0, x, 0), tree)

    examples = jnp.any(mask != 0, axis=tuple(range(1, mask.ndim)))  # of a sequence, if any token counts
    return Outputs(
        logits=select(outputs.logits, mask),
        hidden_states=select(outputs.hidden_states, mask),
        attentions=select(outputs.attentions, examples),
        embedding=select(outputs.embedding, examples),
    )


def objective(terms: Mapping[str, Weighted], fusion: Fusion) -> Objective:
    """`sum_k weight_k(step) * mean(term_k)`; `alpha L_distill + beta L_task + gamma L_reg` is one case.

    Args:
        terms: by name.
        fusion: how several teachers become one, for the terms that read `signals.teacher`.
    """

    def seen(signals: Signals, temperature: Scalar | None = None) -> Signals:
        at = jnp.ones((), jnp.float32) if temperature is None else as_schedule(temperature)(signals.step)
        teachers = tuple(_counted(teacher.dense(), signals.mask) for teacher in signals.teachers)
        return replace(signals, student=signals.student.dense(), teachers=teachers, temperature=at)

    def fuse(params, state, signals, *, key, temperature=None):
        signals = seen(signals, temperature)
        if not signals.teachers:
            return signals, state["fusion"]
        teacher, fusion_state = fusion.apply(params["fusion"], state["fusion"], signals, key=key)
        return replace(signals, teacher=teacher), fusion_state

    def init(key, signals):
        first = seen(signals["train"])
        params: dict[str, PyTree] = {"fusion": {}, "terms": {}}
        state: dict[str, PyTree] = {"fusion": {}, "terms": {}}
        if first.teachers:
            params["fusion"], state["fusion"] = fusion.init(key, first)
        for number, (name, (term, _)) in enumerate(terms.items()):
            fused, _ = fuse(params, state, signals[term.stream], key=key, temperature=term.temperature)
            term_key = jax.random.fold_in(key, number)
            params["terms"][name], state["terms"][name] = term.init(term_key, fused)
        return params, state

    def apply(params, state, signals, *, key):
        means, new = {}, {"fusion": state["fusion"], "terms": {}}
        for number, (name, (term, _)) in enumerate(terms.items()):
            # fused anew at each term's temperature; what is the same, XLA computes once
            fused, fusion_state = fuse(params, state, signals[term.stream], key=key, temperature=term.temperature)
            if term.stream == "train":
                new["fusion"] = fusion_state
            out, new["terms"][name] = term.apply(
                params["terms"][name], state["terms"][name], fused, key=jax.random.fold_in(key, number)
            )
            means[name] = reduce(out, fused.mask)
        return means, new

    def total(means, step):
        weighted = [
            as_schedule(terms[name].weight)(step) * mean.sum / jnp.maximum(mean.count, 1)
            for name, mean in means.items()
        ]
        return jnp.sum(jnp.stack(weighted))

    streams = frozenset({"train"} | {term.stream for term, _ in terms.values()})
    return Objective(init, apply, fuse, total, streams)
