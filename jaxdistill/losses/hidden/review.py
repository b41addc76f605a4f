"""Knowledge review (ReviewKD): fuse the student's layers from deep to shallow and match each result to the teacher.

Chen, Liu, Zhao and Jia, Distilling Knowledge via Knowledge Review, CVPR 2021 (arxiv.org/abs/2104.09044).

    for each layer n of the map, from the deepest to the first; BN is batch normalisation, r the last layer's result:
    x   = BN(W1 h_n)                                          1x1 convolution to a width that all layers share
    x   = g_1 x + g_2 up(r),  g = sigmoid(W [x, up(r)] + b)   except for the deepest; up: nearest neighbours
    r   = x, resized to the teacher's layer n
    out = BN(W2 r)                                            3x3 convolution to the teacher's width
    HCL(out, h_t) = sum_l w_l MSE(pool_l(out), pool_l(h_t)) / sum_l w_l

The fusion is the paper's ABF (attention based fusion). HCL (hierarchical context loss) compares the maps at full size
and average-pooled to 4x4, 2x2 and 1x1, as far as these sizes are smaller than the map. Its weights w_l are 1, 1/2, 1/4,
..., in the order of the sizes that are used.

The loss is the mean over the layers. With `pooled`, the deepest pair of layers is averaged over its positions and added
as one more pair, deeper than all others, as for the published classifiers. Widths and resolutions may differ. Hidden
states must be maps `[batch, height, width, channels]`; those of sequences, and those without positions, raise an error.

Traps: batch normalisation uses the statistics of the global batch without padding, so the loss of an example depends on
the other examples. The layer map is read from shallow to deep, and the review runs through it backwards. The published
code ADDS the layers, with weights from 0.6 to 8 on CIFAR-100, rising from 0 over the first 20 epochs; here they are
averaged: its 5 for resnet32x4 and resnet8x4, with 4 layers including the pooled one, is 20 here. The published code
takes hidden states before the last ReLU; here they are taken after it.

Config: objective.review.term = "review(layers=((1, 5), (2, 10), (3, 15)))"; objective.review.weight = 20.0
When: student and teacher are convolutional networks with maps of several resolutions. Each layer of the layer map costs
    a 3x3 convolution to the teacher's width.
Checked: value and the gradient of all parameters equal those of the published blocks and HCL
    (golden/layer_losses.npz). The published loop over the layers needs CUDA, so the script that wrote the file restates
    this loop.
"""

import itertools
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.collectives import by_rows
from jaxdistill.core.interfaces import Term, Values
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Key, Params, Signals, State
from jaxdistill.losses.hidden.convolution import batch_norm, convolve, init_kernel
from jaxdistill.losses.hidden.extent import average_pool
from jaxdistill.losses.hidden.layers import LayerMap, check_layers, paired_states
from jaxdistill.losses.term import precise

CONTEXT_SIZES = (4, 2, 1)


def hierarchical_context(
    student: Float[Array, "*batch height width channels"], teacher: Float[Array, "*batch height width channels"]
) -> Float[Array, "*batch"]:
    """Compute the mean squared difference (MSE) of two maps at several sizes l, averaged with weights w_l.

        sum_l w_l MSE(pool_l(student), pool_l(teacher)) / sum_l w_l

    The sizes l are the full size, then those of 4x4, 2x2 and 1x1 that are smaller than the maps. pool_l average-pools a
    map to size l. The weights w_l are 1, 1/2, 1/4, ..., in the order of the sizes that are used.
    """
    student, teacher = precise(student), precise(teacher)
    square = lambda a, b: jnp.mean((a - b) ** 2, axis=(-3, -2, -1))
    value, weight, total = square(student, teacher), 1.0, 1.0
    for size in CONTEXT_SIZES:
        if size < min(student.shape[-3:-1]):
            weight /= 2
            value += weight * square(average_pool(student, (size, size)), average_pool(teacher, (size, size)))
            total += weight
    return value / total


def resize_nearest(x: Float[Array, "*batch height width channels"], extent: tuple[int, ...]) -> Float[Array, "..."]:
    """Resize maps to `[*batch, *extent, channels]` by nearest neighbours; `extent` is the new (height, width)."""
    for axis, size in zip((-3, -2), extent, strict=True):
        if x.shape[axis] != size:
            x = jnp.take(x, jnp.arange(size) * x.shape[axis] // size, axis=axis)
    return by_rows(x)


def gated_sum(
    x: Float[Array, "*batch height width channels"],
    deeper: Float[Array, "*batch height width channels"],
    params: Mapping[str, Array],
    name: str,
) -> Float[Array, "*batch height width channels"]:
    """Compute g_1 x + g_2 deeper, where (g_1, g_2) = sigmoid(W [x, deeper] + b) at each position.

    Args:
        x: the map of a layer.
        deeper: the result of the next deeper layer, resized to the size of `x`.
        params: the learned W and b, as `<name>/kernel` and `<name>/bias`.
        name: name of the gates in `params`.
    """
    logits = convolve(jnp.concatenate([x, deeper], axis=-1), params[f"{name}/kernel"])
    gates = jax.nn.sigmoid(logits + params[f"{name}/bias"].astype(x.dtype))
    return by_rows(gates[..., :1] * x + gates[..., 1:] * deeper)


@losses.register
def review(layers: LayerMap = "uniform", width: int = 512, pooled: bool = True, teacher: int = 0) -> Term:
    """Build the ReviewKD loss term, which fuses the student's layers from deep to shallow and then compares layers.

    Each student layer is added to the result of the next deeper layer by `gated_sum`, convolved to the teacher's width,
    and compared with its teacher layer by `hierarchical_context` (squared differences at several map sizes). The loss
    is the mean over the layer pairs.

    Args:
        layers: which student layer learns from which teacher layer: "uniform", "skip", "last", a range of teacher
            layers such as "6-9", or pairs such as ((1, 2), (2, 4)); see `layer_pairs`. The pairs must be in the order
            from shallow to deep.
        width: number of channels to which all student layers are projected before they are fused. If the deepest
            student layer has fewer channels, that number is used.
        pooled: add one more pair, deeper than all others: the last layer pair, averaged over its positions.
        teacher: index of the teacher, in the order of the config. Only one teacher is used, because the channels of
            different teachers do not correspond and cannot be averaged.

    Raises:
        ValueError: `layers` has none of these forms, or the width is below 1; when the loss is computed, hidden states
            are not maps `[*batch, height, width, channels]`.
    """
    check_layers(layers)
    if width < 1:
        raise ValueError(f"width must be at least 1; got {width}")

    def map_pairs(signals: Signals) -> list[tuple[Array, Array]]:
        pairs = [(precise(student), precise(target)) for student, target in paired_states(signals, layers, teacher)]
        _check_maps(pairs, signals.mask.ndim)
        mean = lambda x: jnp.mean(x, axis=(-3, -2), keepdims=True)
        return [*pairs, (mean(pairs[-1][0]), mean(pairs[-1][1]))] if pooled else pairs

    def init(key: Key, signals: Signals) -> tuple[Params, State]:
        params: dict[str, Array] = {}
        pairs = map_pairs(signals)
        inner = min(width, pairs[-1][0].shape[-1])
        for number, (student, target) in enumerate(pairs):
            widths = student.shape[-1], inner, target.shape[-1]
            deepest = number == len(pairs) - 1
            params |= _init_layer(str(number), jax.random.fold_in(key, number), *widths, deepest=deepest)
        return params, {}

    def apply(params: Params, state: State, signals: Signals, *, key: Key) -> tuple[Values, State]:
        def block(name: str, x: Array) -> Array:
            return batch_norm(convolve(x, params[f"{name}/kernel"]), signals.mask, params, name)

        values, deeper = [], None
        for number, (student, target) in reversed(list(enumerate(map_pairs(signals)))):
            x = block(f"{number}/enter", student)
            if deeper is not None:
                x = gated_sum(x, resize_nearest(deeper, x.shape[-3:-1]), params, f"{number}/gate")
            deeper = resize_nearest(x, target.shape[-3:-1])
            values.append(hierarchical_context(block(f"{number}/leave", deeper), target))
        return jnp.mean(jnp.stack(values), axis=0), state

    return Term(init, apply, local=False, needs=frozenset({"teacher"}))


def _init_layer(name: str, key: Array, student: int, inner: int, teacher: int, *, deepest: bool) -> dict[str, Array]:
    """Draw one layer's parameters: convolutions, batch normalisations and, except for the deepest layer, the gates.

    Args:
        name: prefix of the parameters' names.
        key: PRNG key.
        student: number of channels of the student's layer.
        inner: number of channels that all student layers are projected to.
        teacher: number of channels of the teacher's layer.
        deepest: this is the deepest layer, which is not fused with a deeper one and so has no gates.
    """
    enter, gate, leave = jax.random.split(key, 3)
    params = {
        f"{name}/enter/kernel": init_kernel(enter, student, inner),
        f"{name}/leave/kernel": init_kernel(leave, 3, 3, inner, teacher),
    }
    if not deepest:
        params[f"{name}/gate/kernel"] = init_kernel(gate, 2 * inner, 2)
        params[f"{name}/gate/bias"] = jnp.zeros(2)
    for block, width in (("enter", inner), ("leave", teacher)):
        params[f"{name}/{block}/scale"] = jnp.ones(width)
        params[f"{name}/{block}/bias"] = jnp.zeros(width)
    return params


def _check_maps(pairs: Iterable[tuple[Array, Array]], batch_dims: int) -> None:
    for state in itertools.chain(*pairs):
        if state.ndim != batch_dims + 3:
            extent = state.shape[batch_dims:-1]
            problem = f"a hidden state has extent {extent}, but review needs maps (height, width)"
            raise ValueError(f"{problem}. Choose layers such as [batch, height, width, channels], or use 'hidden'")
