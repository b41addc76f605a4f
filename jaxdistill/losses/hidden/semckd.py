"""Semantic calibration (SemCKD): match all pairs of layers, weighted for each example by learned attention.

Chen, Mei, Zhang, Wang, Feng and Chen, Cross-Layer Distillation with Semantic Calibration, AAAI 2021
(arxiv.org/abs/2012.03236).

    A_l[b, c]   = cosine of the examples b and c in layer l, over the batch
    q_i[b]      = unit(V mean_c relu(w A_i[b, c] + u) + v) for each student layer i; k_j[b] likewise for the teacher
    alpha[b, i] = softmax_j q_i[b] . k_j[b]
    mean over i of sum_j alpha[b, i, j] MSE(r_ij(h_i[b]), h_j[b])

i is a student layer with hidden state h_i, j a teacher layer with h_j; w, u, V and v are learned for each layer. alpha
is called the assignment. Every student layer in the layer map is compared with every teacher layer in the layer map.
The regressor r_ij is a 1x1, a 3x3 and a 1x1 convolution with batch normalisation and ReLU in between, and twice the
teacher's width inside. The larger of two maps is average-pooled to the size of the smaller one. For hidden states
without positions, and for sequences of equal lengths, the 3x3 convolution is a dense layer at each position; padding is
ignored.

Difference from the published code: that code embeds row b of the matrix of inner products with a kernel of `batch_size`
columns. That fixes the batch size, drops a smaller last batch, and gives each SLOT of the batch its own weights, though
slots are filled at random. Here the entries of row b are normalised (cosines), embedded one by one and averaged.
Batches of any size work, and permuting the batch permutes the result. Everything else is as published; the published
weight is 400 on CIFAR-100 and 50 on ImageNet.

Traps: the assignment alpha is trained by the loss that it weights, so it prefers teacher layers that are EASY to match,
such as a dead or saturated layer. Check the layers that the layer map names. Queries and keys are unit vectors, so with
J teacher layers a weight lies between 1 / (1 + (J - 1) e^2) and e^2 / (e^2 + J - 1): no layer is ever switched off. The
loss compares all examples of the global batch with each other, and its memory grows with the square of their number.

Config: objective.semckd.term = "semckd(layers=((1, 5), (2, 10), (3, 15)))"; objective.semckd.weight = 400.0
When: the layers of different architectures have no obvious partners.
Checked: value and gradient of the regressors and the weighted loss equal those of the published code
    (golden/layer_losses.npz); the assignment, which differs, equals a restatement in float64.
"""

import itertools
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jaxdistill.core.collectives import by_rows, gather
from jaxdistill.core.interfaces import Term, Values
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Key, Params, Signals, State
from jaxdistill.losses.hidden.convolution import batch_norm, convolve, init_kernel
from jaxdistill.losses.hidden.extent import pool_to_same_extent
from jaxdistill.losses.hidden.layers import LayerMap, check_layers, chosen_pairs
from jaxdistill.losses.term import mean_over_positions, precise, real_tokens, select_teacher, unit


def pairwise_cosine(states: Float[Array, "rows *extent width"], all_states: Float[Array, "all *extent width"]) -> Array:
    """Compute the matrix `[rows, all]` of the cosine similarities of each of `states` with each of `all_states`.

    An example's hidden state is flattened over its positions and channels.
    """
    flat = lambda x: unit(precise(x).reshape(x.shape[0], -1), axis=-1)
    return by_rows(flat(states) @ flat(all_states).T)


def embed(
    states: Float[Array, "rows *extent width"], valid: Bool[Array, " all"], params: Mapping[str, Array], name: str
) -> Float[Array, "rows size"]:
    """Compute the query or key of each example b in one layer, before normalisation: V mean_c relu(w A[b, c] + u) + v.

    A[b, c] is the cosine similarity of the hidden states of the examples b and c. The mean is over the global batch.

    Args:
        states: the layer's hidden states of the examples b.
        valid: mask over all examples c of the global batch; examples with False are left out of the mean.
        params: the learned arrays w, u (`<name>/entry/...`) and V, v (`<name>/mean/...`).
        name: name of the layer in `params`.
    """
    entries = pairwise_cosine(states, gather(states))[..., None] * params[f"{name}/entry/kernel"][0]
    entries = jax.nn.relu(entries + params[f"{name}/entry/bias"])
    entries = jnp.where(valid[:, None], entries, 0)
    mean = by_rows(jnp.sum(entries, axis=1) / jnp.maximum(jnp.sum(valid), 1))
    return convolve(mean, params[f"{name}/mean/kernel"]) + params[f"{name}/mean/bias"]


def regress(
    states: Float[Array, "*batch width"], valid: Bool[Array, "..."], params: Mapping[str, Array], name: str
) -> Float[Array, "*batch other"]:
    """Predict the hidden states of a teacher layer from those of a student layer, by three learned convolutions.

    Batch normalisation and ReLU follow the first and the second convolution.

    Args:
        states: hidden states of the student layer.
        valid: mask over the positions; positions with False are left out of the statistics of batch normalisation.
        params: the convolution kernels, and scale and bias of both batch normalisations, under the prefix `<name>/`.
        name: name of the regressor in `params`.
    """
    for layer in (0, 1):
        states = convolve(states, params[f"{name}/{layer}/kernel"])
        states = jax.nn.relu(batch_norm(states, valid, params, f"{name}/{layer}"))
    return convolve(states, params[f"{name}/2/kernel"])


def assignment(
    query: Float[Array, "rows student_layers size"], key: Float[Array, "rows teacher_layers size"]
) -> Float[Array, "rows student_layers teacher_layers"]:
    """Compute the weights alpha[i, j] of teacher layers j for student layers i: the softmax over j of q_i . k_j.

    q_i and k_j are `query[:, i]` and `key[:, j]`, divided by their norms.
    """
    return jax.nn.softmax(jnp.einsum("bis,bjs->bij", unit(query, -1), unit(key, -1)), axis=-1)


def assigned_mean(
    distances: Float[Array, "rows student_layers teacher_layers"],
    weights: Float[Array, "rows student_layers teacher_layers"],
) -> Float[Array, " rows"]:
    """Compute mean_i sum_j `weights[i, j] * distances[i, j]`, over student layers i and teacher layers j."""
    return jnp.mean(jnp.sum(weights * distances, axis=-1), axis=-1)


@losses.register
def semckd(layers: LayerMap = "uniform", size: int = 16, teacher: int = 0) -> Term:
    """Build the SemCKD loss term, which compares each student layer i with all teacher layers j.

        mean_i sum_j alpha_ij mean((r_ij(h_i) - h_j)**2)

    h_i and h_j are hidden states. r_ij is a learned regressor from student layer i to teacher layer j. alpha_ij is
    computed for each example as softmax_j(q_i . k_j), with a learned query q_i of each student layer and key k_j of
    each teacher layer.

    Args:
        layers: a layer map, see `layer_pairs`. It only selects the layers of both models; the pairs are not used.
        size: width of queries and keys.
        teacher: index of the teacher, in the order of the config. Only one teacher is used, because the channels of
            different teachers do not correspond and cannot be averaged.

    Raises:
        ValueError: `layers` is not a layer map, or the size is below 1; when the loss is computed, the spatial or
            sequence axes of two hidden states cannot be pooled to the same size.
    """
    check_layers(layers)
    if size < 1:
        raise ValueError(f"size must be at least 1; got {size}")

    def selected_states(signals: Signals) -> tuple[list[Array], list[Array]]:
        """Return the hidden states of the student's and of the teacher's layers that the layer map selects.

        States are 0 where the batch's mask is 0, and at padding tokens.
        """
        pairs = chosen_pairs(signals, layers, teacher)
        students, teachers = signals.student.hidden_states, select_teacher(signals.teachers, teacher).hidden_states
        masked = lambda x: jnp.where(_valid_positions(x, signals), precise(x), 0)
        student_layers, teacher_layers = (sorted(set(numbers)) for numbers in zip(*pairs, strict=True))
        return [masked(students[i]) for i in student_layers], [masked(teachers[j]) for j in teacher_layers]

    def init(key: Key, signals: Signals) -> tuple[Params, State]:
        students, teachers = selected_states(signals)
        keys = (jax.random.fold_in(key, number) for number in itertools.count())
        params: dict[str, Array] = {}
        for kind, states in (("query", students), ("key", teachers)):
            for number in range(len(states)):
                params |= _init_embedding(f"{kind}/{number}", keys, size)
        window = lambda x: (3, 3) if x.ndim == signals.mask.ndim + 3 else ()
        for (i, student), (j, target) in itertools.product(enumerate(students), enumerate(teachers)):
            widths = student.shape[-1], target.shape[-1]
            params |= _init_regressor(f"regressor/{i}/{j}", keys, *widths, window(student))
        return params, {}

    def apply(params: Params, state: State, signals: Signals, *, key: Key) -> tuple[Values, State]:
        students, teachers = selected_states(signals)
        rows = lambda x: x.reshape(-1, *x.shape[signals.mask.ndim :])
        valid = gather(rows(signals.mask)) != 0

        def distance(student: Array, target: Array, name: str) -> Array:
            student, target = pool_to_same_extent(student, target, signals.mask.ndim)
            predicted = regress(student, _valid_positions(student, signals), params, name)
            square = jnp.mean((predicted - target) ** 2, axis=-1)
            return rows(mean_over_positions(square, signals.batch, signals.mask.ndim))

        queries = [embed(rows(x), valid, params, f"query/{number}") for number, x in enumerate(students)]
        keys = [embed(rows(x), valid, params, f"key/{number}") for number, x in enumerate(teachers)]
        weights = assignment(jnp.stack(queries, axis=1), jnp.stack(keys, axis=1))
        distances = [
            [distance(x, target, f"regressor/{i}/{j}") for j, target in enumerate(teachers)]
            for i, x in enumerate(students)
        ]
        table = jnp.stack([jnp.stack(row, axis=-1) for row in distances], axis=1)
        return assigned_mean(table, weights).reshape(signals.mask.shape), state

    return Term(init, apply, local=False, needs=frozenset({"teacher"}))


def _init_embedding(name: str, keys: Iterator[Array], size: int) -> dict[str, Array]:
    """Draw the arrays w, u, V and v of `embed` for one layer.

    Args:
        name: prefix of the parameters' names.
        keys: PRNG keys, one for each drawn array.
        size: width of queries and keys.
    """
    return {
        f"{name}/entry/kernel": init_kernel(next(keys), 1, 2 * size),
        # these put the kink of each ReLU in [-1, 1], the range of a cosine
        f"{name}/entry/bias": jax.random.uniform(next(keys), (2 * size,), minval=-1.0, maxval=1.0),
        f"{name}/mean/kernel": init_kernel(next(keys), 2 * size, size),
        f"{name}/mean/bias": jnp.zeros(size),
    }


def _init_regressor(
    name: str, keys: Iterator[Array], student: int, teacher: int, window: tuple[int, ...]
) -> dict[str, Array]:
    """Draw the parameters of the regressor from one student layer to one teacher layer; see `regress`.

    Args:
        name: prefix of the parameters' names.
        keys: PRNG keys, one for each drawn array.
        student: width of the student's layer.
        teacher: width of the teacher's layer.
        window: window of the middle one of three convolutions; an empty tuple makes it a dense layer.
    """
    shapes = ((student, 2 * teacher), (*window, 2 * teacher, 2 * teacher), (2 * teacher, teacher))
    params = {f"{name}/{layer}/kernel": init_kernel(next(keys), *shape) for layer, shape in enumerate(shapes)}
    for layer in (0, 1):
        params[f"{name}/{layer}/scale"] = jnp.ones(2 * teacher)
        params[f"{name}/{layer}/bias"] = jnp.zeros(2 * teacher)
    return params


def _valid_positions(x: Array, signals: Signals) -> Array:
    """Return a mask that is True at the positions of valid examples that are not padding tokens.

    Its shape broadcasts to the hidden state `[*batch, *extent, width]`; its last axis has size 1.
    """
    valid = signals.mask.reshape(signals.mask.shape + (1,) * (x.ndim - signals.mask.ndim)) != 0
    real = real_tokens(signals.batch, x.shape[:-1])
    return valid if real is None else valid & real[..., None]
