"""Pre-norm transformer blocks over patches or tokens, which the families of vision and of image and text share.

Vaswani et al., Attention Is All You Need, 2017 (arxiv.org/abs/1706.03762), normalised before each branch.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdistill.core.collectives import by_rows
from jaxdistill.core.types import Array, AttentionHeads
from jaxdistill.models.hub.family import Layout, Rule
from jaxdistill.models.layers import ACTIVATIONS, pixels, require_share
from jaxdistill.models.layers import dropout as drop

Activation = Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu"]
layer_norm = partial(nnx.LayerNorm, use_fast_variance=False)  # the fast one cancels where a mean is large


class Stack(NamedTuple):
    """What the blocks of a tower share; the arguments of `vit` say what each means."""

    width: int
    depth: int
    heads: int
    ffn: int
    dropout: float
    activation: str
    epsilon: float
    bias: bool
    attentions: bool

    def checked(self) -> "Stack":
        """Itself.

        Raises:
            ValueError: heads that do not divide the width, or a share that is none.
        """
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.width}")
        require_share("dropout", self.dropout)
        return self


class Attention(nnx.Module):
    """Multi-head self-attention; its probabilities are formed where they are asked for.

    `mask` is true for the keys that a query may see, `[batch, 1, 1 or queries, keys]`.
    """

    def __init__(self, stack: Stack, *, rngs: nnx.Rngs):
        linear = partial(nnx.Linear, stack.width, stack.width, rngs=rngs)
        self.query, self.key, self.value = (linear(use_bias=stack.bias) for _ in range(3))
        self.out = linear()
        self.heads, self.returned = stack.heads, stack.attentions

    def __call__(self, x: Array, mask: Array | None = None) -> tuple[Array, AttentionHeads]:
        split = lambda y: by_rows(y.reshape(*y.shape[:-1], self.heads, -1), tensor=-2)
        q, k, v = (split(project(x)) for project in (self.query, self.key, self.value))
        if not self.returned:
            mixed = jax.nn.dot_product_attention(q, k, v, mask=mask)
            return by_rows(self.out(by_rows(mixed, tensor=-2).reshape(x.shape))), AttentionHeads(q, k, v)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
        if mask is not None:
            scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
        weights = by_rows(jax.nn.softmax(scores).astype(x.dtype), tensor=1)
        mixed = by_rows(jnp.einsum("bhqk,bkhd->bqhd", weights, v), tensor=-2)
        return by_rows(self.out(mixed.reshape(x.shape))), AttentionHeads(q, k, v, weights)


class Block(nnx.Module):
    """Attention and a two-layer perceptron, each on a normalised input and added to it."""

    def __init__(self, stack: Stack, *, rngs: nnx.Rngs):
        norm = partial(layer_norm, stack.width, epsilon=stack.epsilon, rngs=rngs)
        self.attention_norm, self.mlp_norm = norm(), norm()
        self.attention = Attention(stack, rngs=rngs)
        self.up = nnx.Linear(stack.width, stack.ffn, rngs=rngs)
        self.down = nnx.Linear(stack.ffn, stack.width, rngs=rngs)
        self.activation, self.rate = ACTIVATIONS[stack.activation], stack.dropout

    def __call__(self, x: Array, train: bool, key: Array, mask: Array | None = None) -> tuple[Array, AttentionHeads]:
        first, second = jax.random.split(key)
        mixed, heads = self.attention(self.attention_norm(x), mask)
        x = by_rows(x + drop(mixed, self.rate, train=train, key=first))
        y = by_rows(self.down(by_rows(self.activation(self.up(self.mlp_norm(x))), tensor=-1)))
        return by_rows(x + drop(y, self.rate, train=train, key=second)), heads


class Patches(nnx.Module):
    """Patches as vectors behind `tokens` learned ones, with their positions: `[batch, tokens + patches, width]`.

    `flat`: learned arrays are [width] and [positions, width], as checkpoints of CLIP have them, without axes of 1.
    """

    def __init__(
        self, image, patch: int, width: int, tokens: int, bias: bool = True, flat: bool = False, *, rngs: nnx.Rngs
    ):
        height, length, channels = image
        normal = lambda *shape: nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))
        ones = () if flat else (1,)
        self.conv = nnx.Conv(channels, width, (patch, patch), strides=patch, padding="VALID", use_bias=bias, rngs=rngs)
        self.tokens = nnx.List([normal(*ones, *ones, width) for _ in range(tokens)])
        self.position = normal(*ones, tokens + (height // patch) * (length // patch), width)

    def __call__(self, image: Array) -> Array:
        x = by_rows(self.conv(pixels(image, self.conv.kernel.dtype)))
        rows, width = x.shape[0], x.shape[-1]
        every = [jnp.broadcast_to(token[...], (rows, 1, width)) for token in self.tokens]
        return by_rows(jnp.concatenate([*every, x.reshape(rows, -1, width)], axis=1) + self.position[...])


def require_image(found: tuple[int, ...], patch: int, image: int | None, channels: int | None) -> None:
    """Refuses images `[height, width, channels]` that are not those of the network.

    Raises:
        ValueError: another size than `image`, other `channels`, or sides that a patch does not divide.
    """
    if found[0] % patch or found[1] % patch:
        raise ValueError(f"a patch of {patch} does not divide an image of {found[0]} x {found[1]}")
    wanted = (image or found[0], image or found[1], channels or found[2])
    if found != wanted:
        raise ValueError(f"the network has positions for images of {list(wanted)}, not {list(found)}; resize them")


def require_squares(config: Mapping[str, Any]) -> None:
    """Refuses a config of images or patches that are no squares.

    Raises:
        ValueError: with key and value.
    """
    for key in ("image_size", "patch_size"):
        if not isinstance(config.get(key), int | None):
            raise ValueError(f"{key}={config[key]!r}: this network knows squares; take another checkpoint")


def pair(ours: str, theirs: str, axes: tuple[str, ...]) -> tuple[Rule, Rule]:
    """Rules of a linear layer (two axes) or of a layer norm (one): its weight and its bias."""
    layout: Layout = "linear" if len(axes) == 2 else "same"
    weight = Rule(f"{ours}/{'kernel' if len(axes) == 2 else 'scale'}", f"{theirs}.weight", layout, axes)
    return weight, Rule(f"{ours}/bias", f"{theirs}.bias", axes=axes[-1:])
