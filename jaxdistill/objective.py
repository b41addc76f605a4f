"""What is minimised: teachers fused, terms computed, reduced and weighted. The only place that reduces."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxdistill.kernels.rows import summed
from jaxdistill.metrics import Mean, mean_of
from jaxdistill.parallel.collectives import psum
from jaxdistill.pieces import cut, is_factored, joined, multiplied, reads_logits
from jaxdistill.schedules import Scalar, as_schedule
from jaxdistill.streamed import Piece, streamed
from jaxdistill.types import Array, Fusion, Objective, Outputs, PyTree, Signals, Term


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


def _counted_by_all(means: Mapping[str, Mean]) -> dict[str, Mean]:
    """LOCAL sums over GLOBAL counts, since gradients are summed over devices."""
    return {name: Mean(mean.sum, psum(mean.count)) for name, mean in means.items()}


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
        few=select(outputs.few, mask),
    )


PieceOfMeans = Callable[[PyTree, PyTree], dict[str, Mean]]
Kernels = Literal["xla", "pallas"]


def _summed(piece: PieceOfMeans, shared: PyTree, rows: PyTree) -> dict[str, Mean]:
    """The means of all pieces. The logits of a piece are formed again for its gradient, and never kept."""
    kept = jax.checkpoint(piece)

    def add(means: PyTree, rows: PyTree) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, means, kept(shared, rows)), None

    zeros = jax.eval_shape(piece, shared, jax.tree.map(lambda x: x[0], rows))
    return _counted_by_all(jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), zeros), rows)[0])


def _in_one_pass(
    piece: PieceOfMeans, shared: PyTree, rows: PyTree, weights: Mapping[str, Array], kernels: Kernels
) -> tuple[Array, dict[str, Mean]]:
    """The weighted sum of the means, whose gradient is taken with its value, and the means."""

    def counted(shared: PyTree, rows: PyTree) -> tuple[Array, PyTree]:
        return jnp.zeros(()), {name: mean.count for name, mean in piece(shared, rows).items()}

    def scaled(given: PyTree, rows: PyTree) -> tuple[Array, PyTree]:
        shared, scales = given
        means = piece(shared, rows)
        return sum((scales[name] * mean.sum for name, mean in means.items()), jnp.zeros(())), means

    counts = psum(streamed(counted, shared, rows)[1])  # of masks alone: nothing else of a piece is formed for it
    scales = {name: weight / jnp.maximum(counts[name], 1) for name, weight in weights.items()}
    by = scaled if kernels == "xla" else functools.partial(_by_kernel, scaled)
    value, means = streamed(by, (shared, scales), rows)
    return value, _counted_by_all(means)


def _by_kernel(scaled: Piece, given: PyTree, numbered: PyTree) -> tuple[Array, PyTree]:
    """What `scaled` computes of a piece: the products of its heads by XLA, what follows by a kernel, row by row."""
    ((signals, *rest), scales), (rows, number) = given, numbered
    silent, rows = multiplied(signals, rows)
    of_row = lambda given, row: scaled(given[0], (row, given[1]))
    classes = signals.student.logits.kernel.shape[-1]
    return summed(of_row, classes, (((silent, *rest), scales), number), rows)


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

    def seen(signals: Signals, temperature: Callable[[Array], Array] | None = None) -> Signals:
        at = jnp.ones((), jnp.float32) if temperature is None else temperature(signals.step) * signals.temperature
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
        means: dict[str, Mean] = {}
        for stream, names in in_pieces(signals).items():
            means |= _summed(*pieces(names, params, state, signals[stream], key))
        return whole(means, params, state, signals, key)

    def loss(params, state, signals, weights, *, key):
        values: list[Array] = []
        found: dict[str, Mean] = {}
        for stream, names in in_pieces(signals).items():
            for by, group in by_kernels(names, params, state, signals[stream], key).items():
                piece, shared, rows = pieces(group, params, state, signals[stream], key)
                value, means = _in_one_pass(piece, shared, rows, {name: weights[name] for name in group}, by)
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
                means |= _counted_by_all({name: found})
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

    def in_pieces(signals):
        """Of each stream whose head is factored, the terms that are computed piece by piece."""
        factored = [stream for stream, seen in signals.items() if chunks > 1 and is_factored(seen)]
        local = {s: [n for n, (term, _) in terms.items() if term.local and term.stream == s] for s in factored}
        return {stream: names for stream, names in local.items() if names}

    def by_kernels(names, params, state, signals, key):
        """Which of the terms what computes: a kernel is for those that read logits."""
        if kernels == "xla":
            return {"xla": names}
        reading = [name for name in names if reads_logits(*pieces([name], params, state, signals, key))]
        groups = {"pallas": reading, "xla": [name for name in names if name not in reading]}
        return {by: group for by, group in groups.items() if group}

    def pieces(names, params, state, signals, key):
        """A function of one piece that gives the means of the terms, what all pieces read, and the pieces."""
        shared, tokens = cut(signals, chunks)

        def piece(shared, numbered):
            signals, params, state, key = shared
            rows, number = numbered
            return {name: one(name, params, state, joined(signals, rows), key, number)[0] for name in names}

        own = {"fusion": params["fusion"], "terms": {name: params["terms"][name] for name in names}}
        return piece, (shared, own, state, key), (tokens, jnp.arange(chunks))

    def weights(step):
        return {name: as_schedule(weight)(step) for name, (_, weight) in terms.items()}

    def total(means, step):
        return weighted(means, weights(step))

    def only(names):
        return objective({name: terms[name] for name in names}, fusion, chunks, kernels)

    streams = frozenset({"train"} | {term.stream for term, _ in terms.values()})
    return Objective(init, apply, loss, fuse, weights, total, tuple(terms), streams, only)
