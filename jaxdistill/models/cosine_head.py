"""Classify by directions: the logit of a class is the scaled cosine of an embedding and the vector of the class.

Gidaris and Komodakis, Dynamic Few-Shot Visual Learning without Forgetting, 2018 (arxiv.org/abs/1804.09458).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill.core.collectives import by_rows
from jaxdistill.core.interfaces import Model, Pretrained
from jaxdistill.core.registry import models
from jaxdistill.core.types import Key, Outputs, Params, RowsLike, State, Variables

KERNEL = "cosine/kernel"
SMALL = 1e-24  # least squared norm of a vector


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
        ValueError: `scale` is not positive; or, when the model is initialised, the network returns no embedding.
    """
    if scale <= 0:
        raise ValueError(f"scale={scale} must be positive")

    def init(key: Key, batch: RowsLike) -> tuple[Params, State]:
        network_key, head_key = jax.random.split(key)
        params, state = network.init(network_key, batch)
        forward = lambda p, s, b, k: network.apply(p, s, b, train=False, key=k)[0]
        embedding = jax.eval_shape(forward, params, state, dict(batch), network_key).embedding
        if embedding is None:
            raise ValueError("the network returns no embedding; choose another one")
        kernel = jax.random.normal(head_key, (embedding.shape[-1], classes)) * embedding.shape[-1] ** -0.5
        return {**params, KERNEL: kernel}, state

    def apply(params: Params, state: State, batch: RowsLike, *, train: bool, key: Key) -> tuple[Outputs, State]:
        out, state = network.apply(_without_head(params), state, batch, train=train, key=key)
        assert out.embedding is not None  # `init` has checked it
        inverse = lambda x, axis: jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=axis, keepdims=True), SMALL))
        embedding, kernel = (jnp.asarray(x, jnp.float32) for x in (out.embedding, params[KERNEL]))
        products = out.embedding @ params[KERNEL]  # of the kernel itself, so that a quantizer finds it
        logits = by_rows(scale * products.astype(jnp.float32) * inverse(embedding, 1) * inverse(kernel, 0))
        return replace(out, logits=logits.astype(out.embedding.dtype)), state

    def load(abstract: Variables) -> Pretrained:
        assert network.load is not None
        checkpoint = network.load(abstract._replace(params=_without_head(abstract.params)))
        return Pretrained((*checkpoint.fresh, KERNEL), checkpoint.read)

    return Model(init, apply, load if network.load else None, network.locked)


def _without_head(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: x for name, x in params.items() if name != KERNEL}
