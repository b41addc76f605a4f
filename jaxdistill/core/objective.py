"""What is minimised: teachers fused, terms computed, reduced and weighted. The only place that reduces."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdistill.core.chunked.terms import (
    Kernels,
    by_kernels,
    counted_by_all,
    in_one_pass,
    in_pieces,
    local_terms,
    over_pieces,
)
from jaxdistill.core.collectives import psum
from jaxdistill.core.schedules import Scalar, as_schedule
from jaxdistill.core.sums import Mean, mean_of
from jaxdistill.core.types import Array, Fusion, Objective, Outputs, PyTree, Signals, Term


class Weighted(NamedTuple):
    """A term and its weight, a number or a schedule."""

    term: Term
    weight: Scalar = 1.0


def reduce(out: Any, mask: Array) -> Mean:
    """One mean from what a term returned, of this device's rows.

    Args:
        out: values `[*batch]`, or `(values, mask)`, or a scalar regulariser.
        mask: the stream's mask.

    Raises:
        ValueError: values of another shape.
    """
    if isinstance(out, tuple):
        out, mask = out
    if out.ndim == 0:  # each device holds the whole scalar, and is counted
        return Mean(out, jnp.ones(()))
    if out.shape != mask.shape:
        raise ValueError(f"a term gives a value for each row, {list(mask.shape)}, or a scalar; got {list(out.shape)}")
    return mean_of(out, mask)


def weighted(means: Mapping[str, Mean], weights: Mapping[str, Array]) -> Array:
    """`sum over terms of weight * mean`; a local share of it where sums are local."""
    parts = [weights[name] * mean.sum / jnp.maximum(mean.count, 1) for name, mean in means.items()]
    return jnp.sum(jnp.stack(parts)) if parts else jnp.zeros(())


def _counted(outputs: Outputs, mask: Array) -> Outputs:
    """Says 0 of rows that do not count: in a gradient, a teacher's NaN there would survive the 0 of its weight."""

    def select(tree: PyTree, mask: Array) -> PyTree:
        shaped = lambda x: mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
        return jax.tree.map(lambda x: jnp.where(shaped(x) != 0, x, 0), tree)

    examples = jnp.any(mask != 0, axis=tuple(range(1, mask.ndim)))  # of a sequence, if any token counts
    if outputs.spans is not None:  # of tokens of its own
        mask = (outputs.spans.number != 0) & examples[:, None]
    return Outputs(
        logits=select(outputs.logits, mask),
        hidden_states=select(outputs.hidden_states, mask),
        attentions=select(outputs.attentions, examples),
        embedding=select(outputs.embedding, examples),
        text_embedding=select(outputs.text_embedding, examples),
        input_gradients=select(outputs.input_gradients, examples),
        state_gradients=select(outputs.state_gradients, mask),
        spans=outputs.spans,
        sparse=select(outputs.sparse, mask),
    )


def _seen(signals: Signals, temperature: Callable[[Array], Array] | None = None) -> Signals:
    """Signals as fusion and terms see them: heads multiplied out, at the term's temperature."""
    at = jnp.ones((), jnp.float32) if temperature is None else temperature(signals.step) * signals.temperature
    teachers = tuple(_counted(teacher.dense(), signals.mask) for teacher in signals.teachers)
    return replace(signals, student=signals.student.dense(), teachers=teachers, temperature=at)


def objective(terms: Mapping[str, Weighted], fusion: Fusion, chunks: int = 1, kernels: Kernels = "xla") -> Objective:
    """`sum_k weight_k(step) * mean(term_k)`; `alpha L_distill + beta L_task + gamma L_reg` is one case.

    Args:
        terms: by name.
        fusion: how several teachers become one, for the terms that read `signals.teacher`.
        chunks: where the student's head is `Factored`, fusion and all local terms run over this many pieces of the
            sequence in one pass, and the logits of one piece exist at a time, in the gradient too. Terms that are not
            local see the whole.
        kernels: what computes terms and fusion from the logits of a piece, in `loss`: the compiler, or one kernel for
            all terms that read logits, see `kernels/rows.py`.
    """

    def fuse(params, state, signals, *, key, temperature=None):
        signals = _seen(signals, temperature)
        if not signals.teachers:
            return signals, state["fusion"]
        teacher, fusion_state = fusion.apply(params["fusion"], state["fusion"], signals, key=key)
        return replace(signals, teacher=teacher), fusion_state

    def init(key, signals):
        first = _seen(signals["train"])
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
        means: dict[str, Mean] = {}
        for stream, names in piecewise(signals).items():
            means |= over_pieces(pieces(params, state, signals[stream], key, names))
        return whole(means, params, state, signals, key)

    def loss(params, state, signals, weights, *, key):
        values: list[Array] = []
        found: dict[str, Mean] = {}
        for stream, names in piecewise(signals).items():
            of = functools.partial(pieces, params, state, signals[stream], key)
            for by, group in by_kernels(names, of, kernels).items():
                value, means = in_one_pass(of(group), {name: weights[name] for name in group}, by)
                values.append(value)
                found |= means
        means, new = whole(found, params, state, signals, key)
        rest = weighted({name: mean for name, mean in means.items() if name not in found}, weights)
        return sum(values, rest), (means, new)

    def whole(means, params, state, signals, key):
        """The means of all terms, some of them found already, and the new state."""
        means, new = dict(means), {"fusion": state["fusion"], "terms": {name: state["terms"][name] for name in means}}
        for name, (term, _) in terms.items():
            if name not in means:
                found, new["terms"][name], fusion_state = one(name, params, state, signals[term.stream], key)
                means |= counted_by_all({name: found})
                new["fusion"] = fusion_state if term.stream == "train" else new["fusion"]
        for name, (term, _) in terms.items():
            if term.follow is not None:
                mean = Mean(psum(means[name].sum), means[name].count)
                new["terms"][name] = term.follow(new["terms"][name], mean, signals[term.stream].step)
        return means, new

    def one(name, params, state, signals, key, piece=None):
        term, number = terms[name].term, list(terms).index(name)
        # fused anew at each term's temperature; what is the same, XLA computes once
        # by one key for all pieces, so that each of a sequence hears the teacher that another hears
        fused, fusion_state = fuse(params, state, signals, key=key, temperature=term.temperature)
        if {"teacher", "alignment"} & term.needs == {"teacher"} and fused.teacher.spans is not None:
            raise ValueError("the teacher reads other tokens than the student; gold and uld compare such models alone")
        own = jax.random.fold_in(key if piece is None else jax.random.fold_in(key, piece), number)
        out, term_state = term.apply(params["terms"][name], state["terms"][name], fused, key=own)
        return reduce(out, fused.mask), term_state, fusion_state

    def piecewise(signals):
        """By stream, the terms that are computed piece by piece."""
        return local_terms({name: term for name, (term, _) in terms.items()}, signals) if chunks > 1 else {}

    def pieces(params, state, signals, key, names):
        return in_pieces(lambda *given: one(*given)[0], names, params, state, signals, key, chunks)

    def weights(step):
        return {name: as_schedule(weight)(step) for name, (_, weight) in terms.items()}

    def total(means, step):
        return weighted(means, weights(step))

    def only(names):
        return objective({name: terms[name] for name in names}, fusion, chunks, kernels)

    streams = frozenset({"train"} | {term.stream for term, _ in terms.values()})
    return Objective(init, apply, loss, fuse, weights, total, tuple(terms), streams, only)
