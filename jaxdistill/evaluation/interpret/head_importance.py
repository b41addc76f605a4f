"""Compute the importance of each attention head for a model's task loss.

Michel, Levy and Neubig, Are Sixteen Heads Really Better than One?, 2019 (arxiv.org/abs/1905.10650).

    importance of head h = mean over examples of |dL / dm_h| at m = 1, where the mask m_h scales the output of the head

The importance is divided by the L2 norm over the heads of its layer, to compare layers, and then scaled to the range 0
to 1. L is the cross-entropy of an example; for running text it is the mean over tokens. The mask needs no hook: the
output of a head is multiplied by some rows of the layer's output kernel, so that scaling these rows scales the head.

The published code takes the absolute value of the gradient for every token and adds up these values. The paper's
formula takes it for every example, as this module does.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.core.interfaces import Model
from jaxdistill.core.types import Array, Outputs, Params, Variables
from jaxdistill.losses.task.cross_entropy import softmax_cross_entropy

OUT = re.compile(r"(?:.*/)?attention/out/kernel")
BATCH_SIZE = 8  # rows whose gradients are computed at a time; each gradient is as large as an output kernel


def head_importance(model: Model, variables: Variables, batches: Iterable[Mapping[str, Any]]) -> np.ndarray:
    """Compute the importance of every attention head for the task loss, `[layers, heads]`, from 0 to 1.

    The importance of head h is the mean over examples of `|dL / dm_h|` at `m_h = 1`. L is the cross-entropy of an
    example, and m_h is a factor that scales the output of the head. The importances of each layer are divided by their
    L2 norm, and then all are scaled to the range 0 to 1.

    Args:
        model: a transformer with the same number of heads in every layer.
        variables: trained parameters and state of the model.
        batches: batches with the model's inputs, and with the fields `label` and `mask`; examples whose mask is 0 are
            left out.

    Raises:
        ValueError: the model is not a single transformer with the same number of heads in every layer, or all masks are
            0.
    """
    sums, count = np.zeros(()), 0
    measure = jax.jit(lambda values, batch: mask_gradients(model, values, batch))
    for batch in batches:
        valid = np.asarray(batch["mask"]).reshape(len(batch["mask"]), -1).any(axis=1)
        if valid.any():
            sums = sums + np.abs(np.asarray(measure(variables, batch), np.float64)[valid]).sum(axis=0)
            count += int(valid.sum())
    if not count:
        raise ValueError("the mask is 0 in every row; give batches with a row whose mask is not 0")
    return normalised(sums / count)


def normalised(importance: np.ndarray) -> np.ndarray:
    """Normalise the importance of attention heads, `[layers, heads]`, to compare heads of different layers.

    Each layer is divided by its L2 norm: `s[l, h] = importance[l, h] / ||importance[l]||`. Then all values are scaled
    to the range 0 to 1: `(s - min(s)) / (max(s) - min(s))`.
    """
    norm = np.linalg.norm(importance, axis=1, keepdims=True)
    shares = importance / np.where(norm > 0, norm, 1.0)
    width = np.ptp(shares)
    return (shares - shares.min()) / (width if width > 0 else 1.0)


def top_heads(importance: np.ndarray, count: int) -> tuple[tuple[int, int], ...]:
    """Return the most important heads as pairs (layer, head), the most important first.

    Args:
        importance: importance of the heads, `[layers, heads]`.
        count: number of heads to return.

    Returns:
        The pairs; layers are numbered from 1, heads from 0.
    """
    order = np.argsort(-importance, axis=None, kind="stable")[:count].tolist()
    return tuple((n // importance.shape[1] + 1, n % importance.shape[1]) for n in order)


def mask_gradients(model: Model, variables: Variables, batch: Mapping[str, Array]) -> Array:
    """Compute `dL / dm` at m = 1 for each example, `[rows, layers, heads]`; 0 for examples with the mask 0.

    L is the cross-entropy of one example. m has one factor for each attention head, which scales the output of the
    head.

    Args:
        model: a transformer with the same number of heads in every layer.
        variables: parameters and state of the model.
        batch: the model's inputs, with the fields `label` and `mask`.

    Raises:
        ValueError: the model is not a single transformer with the same number of heads in every layer.
    """
    params, state = variables

    def apply(params: Params, rows: Mapping[str, Array]) -> Outputs:
        return model.apply(params, state, rows, train=False, key=jax.random.key(0))[0].dense()

    names, shape = _output_kernels(params, jax.eval_shape(apply, params, batch))

    def loss(mask: Array, row: Mapping[str, Array]) -> Array:
        rows = {name: x[None] for name, x in row.items()}
        valid = rows["mask"] != 0
        values = softmax_cross_entropy(apply(_masked(params, names, mask), rows).logits, rows["label"])
        return jnp.sum(jnp.where(valid, values, 0.0)) / jnp.maximum(jnp.sum(valid), 1)

    return jax.lax.map(lambda row: jax.grad(loss)(jnp.ones(shape), row), dict(batch), batch_size=BATCH_SIZE)


def _output_kernels(params: Mapping[str, Array], outputs: Outputs) -> tuple[list[str], tuple[int, int]]:
    """Return the names of the attention output kernels in the order of layers, and `(layers, heads)`.

    `outputs` are the shapes of the model's outputs; the number of heads is read from the shapes of the attentions.
    """
    names = sorted(filter(OUT.fullmatch, params), key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
    layers = sum(params[name].shape[0] if params[name].ndim == 3 else 1 for name in names)
    heads = {each.query.shape[2] for each in outputs.attentions}
    if not layers or layers != len(outputs.attentions) or len(heads) != 1:
        counts = f"{layers} layers with a kernel .../attention/out/kernel, {len(outputs.attentions)} with attentions"
        raise ValueError(f"the model has {counts}, and {sorted(heads)} heads in a layer; use a single transformer")
    return names, (layers, heads.pop())


def _masked(params: Mapping[str, Array], names: list[str], mask: Array) -> dict[str, Array]:
    """Return the parameters with the output of each attention head scaled by its factor in `mask`, `[layers, heads]`.

    Each output kernel, `[in, out]` or stacked `[layers, in, out]`, is scaled in the rows that read the head.
    """
    masked, first = dict(params), 0
    for name in names:
        kernel = params[name]
        factors = mask[first : first + (kernel.shape[0] if kernel.ndim == 3 else 1)]
        rows = kernel.reshape(*factors.shape, -1, kernel.shape[-1])
        masked[name] = (rows * factors[:, :, None, None].astype(kernel.dtype)).reshape(kernel.shape)
        first += len(factors)
    return masked
