"""How much each attention head matters to a model's task loss.

Michel, Levy and Neubig, Are Sixteen Heads Really Better than One?, 2019 (arxiv.org/abs/1905.10650).

    importance of head h = mean over examples of |dL / dm_h| at m = 1, where the mask m_h scales what the head says

made comparable between layers by dividing through the layer's L2 norm, and then stretched from 0 to 1. L is the
example's cross-entropy, of running text the mean over its tokens. The mask needs no hook: a head is heard through its
own rows of the layer's output kernel, and scaling these is scaling the head.

The published code takes the absolute value for every token of an example and adds them up; the paper's formula, and
this, for every example.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.core.types import Array, Model, Outputs, Variables
from jaxdistill.losses.task.cross_entropy import softmax_cross_entropy

OUT = re.compile(r"(?:.*/)?attention/out/kernel")
TOGETHER = 8  # rows whose gradients are formed at a time: each is as large as an output kernel


def head_importance(model: Model, variables: Variables, batches: Iterable[Mapping[str, Any]]) -> np.ndarray:
    """The importance of every head, `[layers, heads]`, from 0 to 1.

    Args:
        model: a transformer whose layers have as many heads each.
        variables: of the model, trained.
        batches: with `label` and `mask`, as a run has them; rows that do not count are left out.

    Raises:
        ValueError: the model has no heads that can be told apart, or no row counts.
    """
    sums, count = np.zeros(()), 0
    measure = jax.jit(lambda values, batch: mask_slopes(model, values, batch))
    for batch in batches:
        counts = np.asarray(batch["mask"]).reshape(len(batch["mask"]), -1).any(axis=1)
        if counts.any():
            sums = sums + np.abs(np.asarray(measure(variables, batch), np.float64)[counts]).sum(axis=0)
            count += int(counts.sum())
    if not count:
        raise ValueError("no row counts; give batches whose mask is not 0 everywhere")
    return normalised(sums / count)


def normalised(importance: np.ndarray) -> np.ndarray:
    """Divided by each layer's L2 norm, then stretched from 0 to 1 over all of them."""
    norm = np.linalg.norm(importance, axis=1, keepdims=True)
    shares = importance / np.where(norm > 0, norm, 1.0)
    spread = np.ptp(shares)
    return (shares - shares.min()) / (spread if spread > 0 else 1.0)


def top_heads(importance: np.ndarray, count: int) -> tuple[tuple[int, int], ...]:
    """The most important heads, the first ones first, as (layer, head); layers count from 1, heads from 0."""
    order = np.argsort(-importance, axis=None, kind="stable")[:count].tolist()
    return tuple((n // importance.shape[1] + 1, n % importance.shape[1]) for n in order)


def mask_slopes(model: Model, variables: Variables, batch: Mapping[str, Array]) -> Array:
    """DL / dm of each row, `[rows, layers, heads]`; 0 for one that does not count.

    Raises:
        ValueError: the model has no heads that can be told apart.
    """
    params, state = variables

    def say(params, rows):
        return model.apply(params, state, rows, train=False, key=jax.random.key(0))[0].dense()

    names, shape = _kernels(params, jax.eval_shape(say, params, batch))

    def loss(mask, row):
        rows = {name: x[None] for name, x in row.items()}
        counts = rows["mask"] != 0
        values = softmax_cross_entropy(say(_masked(params, names, mask), rows).logits, rows["label"])
        return jnp.sum(jnp.where(counts, values, 0.0)) / jnp.maximum(jnp.sum(counts), 1)

    return jax.lax.map(lambda row: jax.grad(loss)(jnp.ones(shape), row), dict(batch), batch_size=TOGETHER)


def _kernels(params: Mapping[str, Array], said: Outputs) -> tuple[list[str], tuple[int, int]]:
    """Names of the output kernels, one layer after the other, and the numbers of layers and heads."""
    names = sorted(filter(OUT.fullmatch, params), key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
    layers = sum(params[name].shape[0] if params[name].ndim == 3 else 1 for name in names)
    heads = {each.query.shape[2] for each in said.attentions}
    if not layers or layers != len(said.attentions) or len(heads) != 1:
        found = f"{layers} kernels named .../attention/out/kernel beside the heads of {len(said.attentions)} layers"
        raise ValueError(f"the model has {found}, and {sorted(heads)} heads in a layer; take a single transformer")
    return names, (layers, heads.pop())


def _masked(params: Mapping[str, Array], names: list[str], mask: Array) -> dict[str, Array]:
    """Output kernels, `[in, out]` or stacked `[layers, in, out]`, with each head's rows scaled by its mask."""
    masked, first = dict(params), 0
    for name in names:
        kernel = params[name]
        own = mask[first : first + (kernel.shape[0] if kernel.ndim == 3 else 1)]
        rows = kernel.reshape(*own.shape, -1, kernel.shape[-1])
        masked[name] = (rows * own[:, :, None, None].astype(kernel.dtype)).reshape(kernel.shape)
        first += len(own)
    return masked
