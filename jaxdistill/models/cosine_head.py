"""Classify by directions: the logit of a class is the scaled cosine of an embedding and the vector of the class.

Gidaris and Komodakis, Dynamic Few-Shot Visual Learning without Forgetting, 2018 (arxiv.org/abs/1804.09458).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.core.collectives import by_rows
from jaxdistill.core.interfaces import Model, Pretrained
from jaxdistill.core.registry import models
from jaxdistill.core.types import Array, Key, Outputs, Params, RowsLike, State, Variables

KERNEL = "cosine/kernel"


@models.register
def cosine_head(network: Model, classes: int, scale: float = 12.0) -> Model:
    """Build a classifier whose logits are `scale * cos(embedding, class vector)`, from any network with an embedding.

    The class vectors are the columns of the parameter `cosine/kernel`, `[width, classes]`. Their norms do not matter,
    so that a class with few examples, or none, can have the largest logit; see the loss `class_graph`.

    Args:
        network: a network that returns an embedding, such as `mlp(widths=(64,), classes=1)`; its head is not used.
        classes: number of classes.
        scale: fixed factor of the cosines. Two logits differ by at most twice this factor.

    Raises:
        ValueError: `scale` is not positive, or the network reads two texts, such as `siamese`; or, when the model is
            initialised, the network returns no embedding, or is itself a `cosine_head`.
    """
    if scale <= 0:
        raise ValueError(f"scale={scale} must be positive")
    if network.second_prefix:
        raise ValueError("the network reads two texts and has no classes; give the network of one text")

    def init(key: Key, batch: RowsLike) -> tuple[Params, State]:
        network_key, head_key = jax.random.split(key)
        params, state = network.init(network_key, batch)
        if KERNEL in params:
            raise ValueError("the network has such a head itself; give the network inside")
        forward = lambda p, s, b, k: network.apply(p, s, b, train=False, key=k)[0]
        embedding = jax.eval_shape(forward, params, state, dict(batch), network_key).embedding
        if embedding is None:
            raise ValueError("the network returns no embedding; choose another one")
        kernel = jax.random.normal(head_key, (embedding.shape[-1], classes)) * embedding.shape[-1] ** -0.5
        return {**params, KERNEL: kernel}, state

    def apply(params: Params, state: State, batch: RowsLike, *, train: bool, key: Key) -> tuple[Outputs, State]:
        out, state = network.apply(_without_head(params), state, batch, train=train, key=key)
        assert out.embedding is not None  # `init` has checked it
        products = out.embedding @ params[KERNEL]  # of the kernel itself, so that a quantizer finds it
        inverses = _inverse_norms(out.embedding, 1) * _inverse_norms(params[KERNEL], 0)
        logits = by_rows(scale * products.astype(jnp.float32) * inverses)
        return replace(out, logits=logits.astype(out.embedding.dtype)), state

    def load(abstract: Variables) -> Pretrained:
        assert network.load is not None
        checkpoint = network.load(abstract._replace(params=_without_head(abstract.params)))
        return Pretrained((*checkpoint.fresh, KERNEL), checkpoint.read)

    return network._replace(init=init, apply=apply, load=load if network.load else None)


def _inverse_norms(x: Array | np.ndarray, axis: int) -> Array:
    """Return 1 / L2 norm of the vectors along an axis, in float32; 0 for a zero vector, with gradient 0."""
    square = jnp.sum(jnp.square(jnp.asarray(x, jnp.float32)), axis=axis, keepdims=True)
    is_zero = square == 0  # selected twice: else its gradient, infinite times 0, would be NaN
    return jnp.where(is_zero, 0.0, jax.lax.rsqrt(jnp.where(is_zero, 1.0, square)))


def _without_head(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: x for name, x in params.items() if name != KERNEL}
