"""Semantic calibration: which of the teacher's layers each layer of the student learns from, decided for each example.

Chen, Mei, Zhang, Wang, Feng and Chen, Cross-Layer Distillation with Semantic Calibration, AAAI 2021
(arxiv.org/abs/2012.03236).

    A_l[b, c]   = cosine of the examples b and c in layer l, over the batch
    q_i[b]      = unit(V mean_c relu(w A_i[b, c] + u) + v) for each layer i of the student; k_j[b] so for the teacher's
    alpha[b, i] = softmax_j q_i[b] . k_j[b]
    mean over i of sum_j alpha[b, i, j] MSE(r_ij(h_i[b]), h_j[b])

Every layer of the student that the map names may learn from every one of the teacher's that it names. r_ij is a 1x1, a
3x3 and a 1x1 convolution with batch normalisation and ReLU between them, twice the teacher's width inside. Of two maps
the larger is pooled to the smaller. States without an extent, and sequences of equal lengths, have a window of one
position in place of 3x3; padding counts nothing.

Where we differ: published code embeds row b of the matrix of inner products by a kernel of `batch_size` columns. That
freezes the batch size, drops a last batch that is smaller, and gives each SLOT of the batch weights of its own, though
slots are filled at random. Here the entries are normalised (cosines), embedded one by one, and the mean is taken:
batches of any size will do, and permuting them permutes the result. All else is the published code's; its weight is 400
on CIFAR-100 and 50 on ImageNet.

Traps: the assignment learns from the loss that it weights, so that it goes where matching is EASY: a layer of the
teacher that says nothing (one that is dead or saturated) draws it. Look at what the map names. Queries and keys are
units, so that with J layers a weight lies between 1 / (1 + (J - 1) e^2) and e^2 / (e^2 + J - 1): none is ever switched
off. The rows of the global batch are compared, so that this is no local term, and its memory grows with their square.

Config: objective.semckd.term = "semckd(layers=((1, 5), (2, 10), (3, 15)))"; objective.semckd.weight = 400.0
When: layers of unlike networks have no obvious partners.
Checked: published code for the regressors and the weighted loss (golden/layer_losses.npz), in value and gradient; the
    assignment, which differs, against a restatement in float64.
"""

import itertools
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jaxdistill.core.collectives import by_rows, gather
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals, Term
from jaxdistill.losses.hidden.convolution import convolved, kernel, normalised
from jaxdistill.losses.hidden.extent import same_extent
from jaxdistill.losses.hidden.layers import LayerMap, check_layers, chosen_pairs
from jaxdistill.losses.term import extent_mean, one_of, precise, real_tokens, unit


def similarity(states: Float[Array, "rows *extent width"], everyone: Float[Array, "all *extent width"]) -> Array:
    """Cosines `[rows, all]` of examples, each with all its positions."""
    flat = lambda x: unit(precise(x).reshape(x.shape[0], -1), axis=-1)
    return by_rows(flat(states) @ flat(everyone).T)


def embedded(
    states: Float[Array, "rows *extent width"], counts: Bool[Array, " all"], params: Mapping[str, Array], name: str
) -> Float[Array, "rows size"]:
    """A layer's queries or keys, not yet units, from each example's cosines to all that count."""
    entries = similarity(states, gather(states))[..., None] * params[f"{name}/entry/kernel"][0]
    entries = jax.nn.relu(entries + params[f"{name}/entry/bias"])
    counted = jnp.where(counts[:, None], entries, 0)
    mean = by_rows(jnp.sum(counted, axis=1) / jnp.maximum(jnp.sum(counts), 1))
    return convolved(mean, params[f"{name}/mean/kernel"]) + params[f"{name}/mean/bias"]


def regressed(
    states: Float[Array, "*batch width"], counts: Bool[Array, "..."], params: Mapping[str, Array], name: str
) -> Float[Array, "*batch other"]:
    """r_ij(h_i), normalised over the positions that count."""
    for layer in (0, 1):
        states = convolved(states, params[f"{name}/{layer}/kernel"])
        states = jax.nn.relu(normalised(states, counts, params, f"{name}/{layer}"))
    return convolved(states, params[f"{name}/2/kernel"])


def assignment(
    query: Float[Array, "rows student_layers size"], key: Float[Array, "rows teacher_layers size"]
) -> Float[Array, "rows student_layers teacher_layers"]:
    """Softmax over the teacher's layers of the products of unit vectors."""
    return jax.nn.softmax(jnp.einsum("bis,bjs->bij", unit(query, -1), unit(key, -1)), axis=-1)


def assigned_mean(
    distances: Float[Array, "rows student_layers teacher_layers"],
    weights: Float[Array, "rows student_layers teacher_layers"],
) -> Float[Array, " rows"]:
    """Over the student's layers the mean of what each one's assignment makes of its distances."""
    return jnp.mean(jnp.sum(weights * distances, axis=-1), axis=-1)


@losses.register
def semckd(layers: LayerMap = "uniform", size: int = 16, teacher: int = 0) -> Term:
    """Hidden states of the student against all of the teacher's, weighted by a learned assignment.

    Args:
        layers: the layer map, see `losses/layers.py`, which says the layers, not their pairs.
        size: of queries and keys.
        teacher: which teacher. Hidden states of unlike teachers have no mean, so one is chosen.

    Raises:
        ValueError: for a misspelt map or no size; when it is applied, for extents that do not fit each other.
    """
    check_layers(layers)
    if size < 1:
        raise ValueError(f"queries and keys need a size of at least 1; got {size}")

    def chosen(signals: Signals) -> tuple[list[Array], list[Array]]:
        """The student's states and the teacher's; what does not count is 0."""
        pairs = chosen_pairs(signals, layers, teacher)
        students, teachers = signals.student.hidden_states, one_of(signals.teachers, teacher).hidden_states
        counted = lambda x: jnp.where(_counts(x, signals), precise(x), 0)
        ours, theirs = (sorted(set(numbers)) for numbers in zip(*pairs, strict=True))
        return [counted(students[i]) for i in ours], [counted(teachers[j]) for j in theirs]

    def init(key, signals):
        students, teachers = chosen(signals)
        draws = (jax.random.fold_in(key, number) for number in itertools.count())
        params: dict[str, Array] = {}
        for whose, states in (("query", students), ("key", teachers)):
            for number in range(len(states)):
                params |= _embedding(f"{whose}/{number}", draws, size)
        window = lambda x: (3, 3) if x.ndim == signals.mask.ndim + 3 else ()
        for (i, student), (j, target) in itertools.product(enumerate(students), enumerate(teachers)):
            widths = student.shape[-1], target.shape[-1]
            params |= _regressor(f"regressor/{i}/{j}", draws, *widths, window(student))
        return params, {}

    def apply(params, state, signals, *, key):
        students, teachers = chosen(signals)
        rows = lambda x: x.reshape(-1, *x.shape[signals.mask.ndim :])
        everyone = gather(rows(signals.mask)) != 0

        def distance(student: Array, target: Array, name: str) -> Array:
            student, target = same_extent(student, target, signals.mask.ndim)
            found = regressed(student, _counts(student, signals), params, name)
            return rows(extent_mean(jnp.mean((found - target) ** 2, axis=-1), signals.batch, signals.mask.ndim))

        queries = [embedded(rows(x), everyone, params, f"query/{number}") for number, x in enumerate(students)]
        keys = [embedded(rows(x), everyone, params, f"key/{number}") for number, x in enumerate(teachers)]
        weights = assignment(jnp.stack(queries, axis=1), jnp.stack(keys, axis=1))
        distances = [
            [distance(x, target, f"regressor/{i}/{j}") for j, target in enumerate(teachers)]
            for i, x in enumerate(students)
        ]
        table = jnp.stack([jnp.stack(row, axis=-1) for row in distances], axis=1)
        return assigned_mean(table, weights).reshape(signals.mask.shape), state

    return Term(init, apply, local=False, needs=frozenset({"teacher"}))


def _embedding(name: str, draws: Iterator[Array], size: int) -> dict[str, Array]:
    """w, u, V and v of a layer's queries or keys."""
    return {
        f"{name}/entry/kernel": kernel(next(draws), 1, 2 * size),
        # each unit bends somewhere in the range of a cosine
        f"{name}/entry/bias": jax.random.uniform(next(draws), (2 * size,), minval=-1.0, maxval=1.0),
        f"{name}/mean/kernel": kernel(next(draws), 2 * size, size),
        f"{name}/mean/bias": jnp.zeros(size),
    }


def _regressor(
    name: str, draws: Iterator[Array], student: int, teacher: int, window: tuple[int, ...]
) -> dict[str, Array]:
    """Of r_ij, from the student's width to the teacher's."""
    sizes = ((student, 2 * teacher), (*window, 2 * teacher, 2 * teacher), (2 * teacher, teacher))
    params = {f"{name}/{layer}/kernel": kernel(next(draws), *size) for layer, size in enumerate(sizes)}
    for layer in (0, 1):
        params[f"{name}/{layer}/scale"] = jnp.ones(2 * teacher)
        params[f"{name}/{layer}/bias"] = jnp.zeros(2 * teacher)
    return params


def _counts(x: Array, signals: Signals) -> Array:
    """Which positions of `[*batch, *extent, width]` are of rows that count and no padding of a text; width is 1."""
    counted = signals.mask.reshape(signals.mask.shape + (1,) * (x.ndim - signals.mask.ndim)) != 0
    real = real_tokens(signals.batch, x.shape[:-1])
    return counted if real is None else counted & real[..., None]
