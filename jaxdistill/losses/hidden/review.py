"""Knowledge review: each layer of the student, joined with all deeper ones, learns the teacher's.

Chen, Liu, Zhao and Jia, Distilling Knowledge via Knowledge Review, CVPR 2021 (arxiv.org/abs/2104.09044).

    from the deepest layer n of the map to the first, BN batch normalisation:
    x   = BN(W1 h_n)                                          1x1, to a width that all layers share
    x   = g_1 x + g_2 up(r),  g = sigmoid(W [x, up(r)] + b)   but for the deepest; up: nearest neighbours
    r   = x at the extent of the teacher's layer n            handed on to the next
    out = BN(W2 r)                                            3x3, to the teacher's width (ABF: attention based fusion)
    HCL(out, h_t) = sum_l w_l MSE(pool_l(out), pool_l(h_t)) / sum_l w_l
    l: as it is, 4x4, 2x2, 1x1 (those that are smaller than it is), w = 1, 1/2, 1/4, 1/8 (HCL: hierarchical context)

Averaged over layers. With `pooled`, the mean over positions of the deepest pair is one more, deepest layer, as for the
published classifiers. Widths and extents may differ at will. Needs maps `[batch, height, width, channels]`: tokens have
no neighbours above and below, and states without an extent have none at all; both are refused.

Traps: the blocks' normalisation takes the moments of the global batch, padded rows left out, so that this is no local
term. The map is read from shallow to deep: its order is the order of the review. Published code ADDS the layers, with
weights from 0.6 to 8 on CIFAR-100, rising from 0 over the first 20 epochs; here they are averaged: its 5 for
resnet32x4 and resnet8x4, 4 layers with the pooled one, is 20. It takes hidden states before the last ReLU; ours are
those after it.

Config: objective.review.term = "review(layers=((1, 5), (2, 10), (3, 15)))"; objective.review.weight = 20.0
When: convolutional student and teacher of several stages. It costs a 3x3 convolution to the teacher's width at each.
Checked: published blocks and HCL (golden/layer_losses.npz; the loop over the layers, which is tied to CUDA there, is
    restated in the script), in value and in the gradient of all that learns.
"""

import itertools
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.collectives import by_rows
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals, Term
from jaxdistill.losses.hidden.convolution import convolved, kernel, normalised
from jaxdistill.losses.hidden.extent import pooled as averaged
from jaxdistill.losses.hidden.layers import LayerMap, check_layers, paired_states
from jaxdistill.losses.term import precise

CONTEXTS = (4, 2, 1)


def hierarchical_context(
    student: Float[Array, "*batch height width channels"], teacher: Float[Array, "*batch height width channels"]
) -> Float[Array, "*batch"]:
    """Weighted mean of the squared differences of maps as they are and pooled to 4x4, 2x2 and 1x1."""
    student, teacher = precise(student), precise(teacher)
    square = lambda a, b: jnp.mean((a - b) ** 2, axis=(-3, -2, -1))
    value, weight, total = square(student, teacher), 1.0, 1.0
    for size in CONTEXTS:
        if size < min(student.shape[-3:-1]):
            weight /= 2
            value += weight * square(averaged(student, (size, size)), averaged(teacher, (size, size)))
            total += weight
    return value / total


def nearest(x: Float[Array, "*batch height width channels"], extent: tuple[int, ...]) -> Float[Array, "..."]:
    """The map at another extent, each position the one that it lies in."""
    for axis, wanted in zip((-3, -2), extent, strict=True):
        if x.shape[axis] != wanted:
            x = jnp.take(x, jnp.arange(wanted) * x.shape[axis] // wanted, axis=axis)
    return by_rows(x)


def gated(
    x: Float[Array, "*batch height width channels"],
    deeper: Float[Array, "*batch height width channels"],
    params: Mapping[str, Array],
    name: str,
) -> Float[Array, "*batch height width channels"]:
    """g_1 x + g_2 deeper, by gates of each position."""
    logits = convolved(jnp.concatenate([x, deeper], axis=-1), params[f"{name}/kernel"])
    gates = jax.nn.sigmoid(logits + params[f"{name}/bias"].astype(x.dtype))
    return by_rows(gates[..., :1] * x + gates[..., 1:] * deeper)


@losses.register
def review(layers: LayerMap = "uniform", width: int = 512, pooled: bool = True, teacher: int = 0) -> Term:
    """Fused layers of the student against the teacher's, at several sizes of context.

    Args:
        layers: the layer map, see `losses/layers.py`, from shallow to deep.
        width: channels inside the blocks, or the deepest student layer's where these are fewer.
        pooled: the deepest pair's mean over positions is a further layer.
        teacher: which teacher. Hidden states of unlike teachers have no mean, so one is chosen.

    Raises:
        ValueError: for a misspelt map or no width; when it is applied, for states that are no maps.
    """
    check_layers(layers)
    if width < 1:
        raise ValueError(f"blocks need a width of at least 1; got {width}")

    def stages(signals: Signals) -> list[tuple[Array, Array]]:
        pairs = [(precise(student), precise(target)) for student, target in paired_states(signals, layers, teacher)]
        _check_maps(pairs, signals.mask.ndim)
        mean = lambda x: jnp.mean(x, axis=(-3, -2), keepdims=True)
        return [*pairs, (mean(pairs[-1][0]), mean(pairs[-1][1]))] if pooled else pairs

    def init(key, signals):
        params: dict[str, Array] = {}
        pairs = stages(signals)
        inner = min(width, pairs[-1][0].shape[-1])
        for number, (student, target) in enumerate(pairs):
            widths = student.shape[-1], inner, target.shape[-1]
            params |= _stage(str(number), jax.random.fold_in(key, number), *widths, deepest=number == len(pairs) - 1)
        return params, {}

    def apply(params, state, signals, *, key):
        def block(name: str, x: Array) -> Array:
            return normalised(convolved(x, params[f"{name}/kernel"]), signals.mask, params, name)

        values, handed_on = [], None
        for number, (student, target) in reversed(list(enumerate(stages(signals)))):
            x = block(f"{number}/enter", student)
            if handed_on is not None:
                x = gated(x, nearest(handed_on, x.shape[-3:-1]), params, f"{number}/gate")
            handed_on = nearest(x, target.shape[-3:-1])
            values.append(hierarchical_context(block(f"{number}/leave", handed_on), target))
        return jnp.mean(jnp.stack(values), axis=0), state

    return Term(init, apply, local=False, needs=frozenset({"teacher"}))


def _stage(name: str, key: Array, student: int, inner: int, teacher: int, *, deepest: bool) -> dict[str, Array]:
    """Of one layer of the map: W1, its gate but for the deepest, and W2, from the student's width to the teacher's."""
    enter, gate, leave = jax.random.split(key, 3)
    params = {
        f"{name}/enter/kernel": kernel(enter, student, inner),
        f"{name}/leave/kernel": kernel(leave, 3, 3, inner, teacher),
    }
    if not deepest:
        params[f"{name}/gate/kernel"] = kernel(gate, 2 * inner, 2)
        params[f"{name}/gate/bias"] = jnp.zeros(2)
    for block, size in (("enter", inner), ("leave", teacher)):
        params[f"{name}/{block}/scale"] = jnp.ones(size)
        params[f"{name}/{block}/bias"] = jnp.zeros(size)
    return params


def _check_maps(pairs: Iterable[tuple[Array, Array]], batch_dims: int) -> None:
    for state in itertools.chain(*pairs):
        if state.ndim != batch_dims + 3:
            found = f"a hidden state has the extent {state.shape[batch_dims:-1]}, and maps (height, width) are needed"
            raise ValueError(f"{found}. Choose layers such as [batch, height, width, channels], or use 'hidden'")
