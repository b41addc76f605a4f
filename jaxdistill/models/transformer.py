"""Pre-norm transformer blocks (Vaswani et al. 2017, arxiv.org/abs/1706.03762), shared by the vision and CLIP families.

The paper is Attention Is All You Need. Unlike in the paper, the norm precedes attention and perceptron. The module also
has the patch embedding, and the checks and weight-loading rules that these families share.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float

from jaxdistill.core.collectives import by_rows
from jaxdistill.core.types import Array, AttentionHeads, RowsLike
from jaxdistill.models.hub.family import Layout, Rule
from jaxdistill.models.layers import ACTIVATIONS, nudged, pixels, require_dropout_rate
from jaxdistill.models.layers import dropout as drop

Activation = Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu"]
Mask = Bool[Array, "#batch 1 #length length"]  # true where a query may attend to a key
layer_norm = partial(nnx.LayerNorm, use_fast_variance=False)  # the fast variance cancels if the mean is large


class Stack(NamedTuple):
    """The sizes and options of a stack of transformer blocks.

    width: width of the residual stream
    depth: number of blocks
    heads: number of attention heads; must divide the width
    ffn: width of the perceptron inside a block
    dropout: dropout rate of the output of each attention layer and perceptron
    activation: name of the activation inside a block, a key of `layers.ACTIVATIONS`
    epsilon: value added to the variance in the layer norms
    bias: if true, queries, keys and values have a bias
    attentions: if true, every block returns the attention probabilities
    head_size: number of units of a head; None means width / heads
    """

    width: int
    depth: int
    heads: int
    ffn: int
    dropout: float
    activation: str
    epsilon: float
    bias: bool
    attentions: bool
    head_size: int | None = None

    @property
    def attention_width(self) -> int:
        """Return the number of units of all heads."""
        return self.heads * (self.head_size or self.width // self.heads)

    def validate(self) -> None:
        """Require that the heads divide the width if `head_size` is None, and that the dropout rate is in range.

        Raises:
            ValueError: the heads do not divide the width, or the dropout rate is negative or not below 1.
        """
        if self.heads < 1 or (self.head_size is None and self.width % self.heads):
            cure = "choose a divisor, or set head_size"
            raise ValueError(f"heads={self.heads} does not divide width={self.width}; {cure}")
        require_dropout_rate("dropout", self.dropout)


class Attention(nnx.Module):
    """Multi-head self-attention, `[batch, length, width] -> [batch, length, width]`.

    `mask`, `[batch, 1, 1 or queries, keys]`, is true where a query may attend to a key. If `stack.attentions` is true,
    the attention probabilities are returned, and are therefore an array in memory.
    """

    def __init__(self, stack: Stack, *, rngs: nnx.Rngs):
        inner = stack.attention_width
        linear = partial(nnx.Linear, stack.width, inner, use_bias=stack.bias, rngs=rngs)
        self.query, self.key, self.value = (linear() for _ in range(3))
        self.out = nnx.Linear(inner, stack.width, rngs=rngs)
        self.heads, self.return_probabilities = stack.heads, stack.attentions

    def __call__(
        self, x: Float[Array, "batch length width"], mask: Mask | None = None
    ) -> tuple[Float[Array, "batch length width"], AttentionHeads]:
        split = lambda y: by_rows(y.reshape(*y.shape[:-1], self.heads, -1), tensor=-2)
        q, k, v = (split(project(x)) for project in (self.query, self.key, self.value))  # [batch, length, heads, d]
        if not self.return_probabilities:
            mixed = jax.nn.dot_product_attention(q, k, v, mask=mask)
            joined = by_rows(mixed, tensor=-2).reshape(*x.shape[:-1], -1)
            return by_rows(self.out(joined)), AttentionHeads(q, k, v)
        # scores and weights are `[batch, heads, queries, keys]`
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
        if mask is not None:
            scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
        weights = by_rows(jax.nn.softmax(scores).astype(x.dtype), tensor=1)
        mixed = by_rows(jnp.einsum("bhqk,bkhd->bqhd", weights, v), tensor=-2)
        return by_rows(self.out(mixed.reshape(*x.shape[:-1], -1))), AttentionHeads(q, k, v, weights)


class Block(nnx.Module):
    """A pre-norm transformer block: attention, then a perceptron; the output of each is added to its input."""

    def __init__(self, stack: Stack, *, rngs: nnx.Rngs):
        norm = partial(layer_norm, stack.width, epsilon=stack.epsilon, rngs=rngs)
        self.attention_norm, self.mlp_norm = norm(), norm()
        self.attention = Attention(stack, rngs=rngs)
        self.up = nnx.Linear(stack.width, stack.ffn, rngs=rngs)
        self.down = nnx.Linear(stack.ffn, stack.width, rngs=rngs)
        self.activation, self.rate = ACTIVATIONS[stack.activation], stack.dropout

    def __call__(
        self, x: Float[Array, "batch length width"], train: bool, key: Array, mask: Mask | None = None
    ) -> tuple[Float[Array, "batch length width"], AttentionHeads]:
        first, second = jax.random.split(key)
        mixed, heads = self.attention(self.attention_norm(x), mask)
        x = by_rows(x + self.of_attention(drop(mixed, self.rate, train=train, key=first)))
        y = by_rows(self.down(by_rows(self.activation(self.up(self.mlp_norm(x))), tensor=-1)))
        return by_rows(x + self.of_mlp(drop(y, self.rate, train=train, key=second))), heads

    def of_attention(self, x: Float[Array, "batch length width"]) -> Float[Array, "batch length width"]:
        """Return what is added to the residual stream, from the output of the attention; a subclass may scale it."""
        return x

    def of_mlp(self, x: Float[Array, "batch length width"]) -> Float[Array, "batch length width"]:
        """Return what is added to the residual stream, from the output of the perceptron; a subclass may scale it."""
        return x


def run_blocks(
    blocks: Iterable[Block], x: Float[Array, "batch length width"], batch: RowsLike, train: bool, key: Array
) -> tuple[Float[Array, "batch length width"], tuple[Array, ...], tuple[AttentionHeads, ...]]:
    """Run blocks without a mask, such as those of images; return the output, the hidden states and the attention heads.

    Args:
        blocks: the blocks, in order.
        x: their input, which is the first hidden state.
        batch: the arrays of the batch, in which a loss may ask for gradients in the hidden states; see `nudged`.
        train: True to apply dropout.
        key: PRNG key of the dropout.
    """
    states, attentions = [x], list[AttentionHeads]()
    for number, block in enumerate(blocks):
        x, heads = block(x, train, jax.random.fold_in(key, number))
        x = nudged(x, batch, number + 1)
        states.append(x)
        attentions.append(heads)
    return x, tuple(states), tuple(attentions)


class Patches(nnx.Module):
    """The patch embedding of images: from `[batch, height, width, channels]` to `[batch, tokens + patches, width]`.

    A learned position embedding is added to every token and patch.

    Args:
        image: shape of an image, `(height, width, channels)`.
        patch: side of a patch in pixels.
        width: width of the embeddings.
        tokens: number of learned tokens before the patches: 1 for a class token, 2 with a distillation token.
        bias: if true, the patch projection has a bias.
        flat: if true, each token is stored as `[width]` and the positions as `[positions, width]`, as in CLIP
            checkpoints; otherwise both have leading axes of size 1, as in ViT checkpoints.
        rngs: random streams of the initial parameters.
    """

    def __init__(
        self,
        image: tuple[int, int, int],
        patch: int,
        width: int,
        tokens: int,
        bias: bool = True,
        flat: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        height, image_width, channels = image
        normal = lambda *shape: nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))
        axis = () if flat else (1,)
        self.conv = nnx.Conv(channels, width, (patch, patch), strides=patch, padding="VALID", use_bias=bias, rngs=rngs)
        self.tokens = nnx.List([normal(*axis, *axis, width) for _ in range(tokens)])
        self.position = normal(*axis, tokens + (height // patch) * (image_width // patch), width)

    def __call__(self, image: Array | np.ndarray) -> Float[Array, "batch tokens width"]:
        x = by_rows(self.conv(pixels(image, self.conv.kernel.dtype)))  # [batch, height / patch, width / patch, width]
        rows, width = x.shape[0], x.shape[-1]
        tokens = [jnp.broadcast_to(token[...], (rows, 1, width)) for token in self.tokens]
        return by_rows(jnp.concatenate([*tokens, x.reshape(rows, -1, width)], axis=1) + self.position[...])


def require_image(shape: tuple[int, ...], patch: int, image: int | None, channels: int | None) -> None:
    """Require that images have the size and channels of the model, and can be split into patches.

    Args:
        shape: shape of the images, `(height, width, channels)`.
        patch: side of a patch in pixels.
        image: required height and width of an image in pixels; None means any size.
        channels: required number of channels; None means any number.

    Raises:
        ValueError: `patch` does not divide height and width, or the images have another size or number of channels.
    """
    height, width, image_channels = shape[:3]
    if height % patch or width % patch:
        raise ValueError(f"patch={patch} does not divide an image of {height} x {width}; resize the images")
    required = (image or height, image or width, channels or image_channels)
    if shape != required:
        raise ValueError(f"the model needs images of {list(required)}, not {list(shape)}; resize the images")


def require_squares(config: Mapping[str, Any]) -> None:
    """Require that images and patches are squares in a Hugging Face config: `image_size` and `patch_size` are integers.

    A missing key is accepted.

    Raises:
        ValueError: a size is not one integer; the message contains key and value.
    """
    for key in ("image_size", "patch_size"):
        if not isinstance(config.get(key), int | None):
            raise ValueError(f"{key}={config[key]!r}: this model supports squares only; use another checkpoint")


def weight_and_bias_rules(name: str, hf_name: str, axes: tuple[str, ...]) -> tuple[Rule, Rule]:
    """Return the two rules that map weight and bias of a layer to arrays of a Hugging Face checkpoint.

    Args:
        name: regex of the layer's name in the model.
        hf_name: name of the layer in the checkpoint.
        axes: names of the weight's axes: two for a linear layer, `(input, output)`; one for a layer norm.
    """
    layout: Layout = "linear" if len(axes) == 2 else "same"
    weight = Rule(f"{name}/{'kernel' if len(axes) == 2 else 'scale'}", f"{hf_name}.weight", layout, axes)
    return weight, Rule(f"{name}/bias", f"{hf_name}.bias", axes=axes[-1:])
