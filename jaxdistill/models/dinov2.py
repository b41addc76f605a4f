"""DINOv2: a vision transformer trained without labels, a common teacher of image features.

Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, 2023 (arxiv.org/abs/2304.07193); with
registers: Darcet et al., Vision Transformers Need Registers, 2023 (arxiv.org/abs/2309.16588).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from jaxdistill.core.collectives import by_rows
from jaxdistill.core.interfaces import Model
from jaxdistill.core.registry import models
from jaxdistill.core.types import Array, Outputs, RowsLike
from jaxdistill.models.hub import family
from jaxdistill.models.hub.family import OWN_PREFIX, Family, Rule
from jaxdistill.models.layers import ACTIVATIONS, nudged, pixels
from jaxdistill.models.nnx import from_nnx
from jaxdistill.models.transformer import (
    Activation,
    Block,
    Stack,
    layer_norm,
    require_image,
    require_squares,
    run_blocks,
    weight_and_bias_rules,
)
from jaxdistill.models.vit import BLOCK as VIT_BLOCK
from jaxdistill.models.vit import SETTINGS as VIT_SETTINGS


class ScaledBlock(Block):
    """A pre-norm transformer block whose attention and perceptron are multiplied by a learned scale per unit."""

    def __init__(self, stack: Stack, scale: float, *, rngs: nnx.Rngs):
        super().__init__(stack, rngs=rngs)
        self.attention_scale = nnx.Param(jnp.full(stack.width, scale))
        self.mlp_scale = nnx.Param(jnp.full(stack.width, scale))

    def of_attention(self, x: Float[Array, "batch length width"]) -> Float[Array, "batch length width"]:
        """Scale the output of the attention."""
        return x * self.attention_scale[...]

    def of_mlp(self, x: Float[Array, "batch length width"]) -> Float[Array, "batch length width"]:
        """Scale the output of the perceptron."""
        return x * self.mlp_scale[...]


class Tokens(nnx.Module):
    """The input of the blocks: `[batch, height, width, channels]` to `[batch, 1 + registers + patches, width]`.

    The class token and the patches have learned positions, for images of one size; for another size, they are
    interpolated. The registers, which follow the class token, have none.
    """

    def __init__(self, image: int, channels: int, patch: int, width: int, registers: int, *, rngs: nnx.Rngs):
        normal = lambda *shape: nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))
        self.conv = nnx.Conv(channels, width, (patch, patch), strides=patch, padding="VALID", rngs=rngs)
        self.token, self.position = normal(1, 1, width), normal(1, 1 + (image // patch) ** 2, width)
        self.registers = normal(1, registers, width) if registers else None

    def __call__(self, image: Array | np.ndarray) -> Float[Array, "batch tokens width"]:
        x = by_rows(self.conv(pixels(image, self.conv.kernel.dtype)))  # [batch, height / patch, width / patch, width]
        rows, (height, width), units = x.shape[0], x.shape[1:3], x.shape[-1]
        position = jnp.asarray(self.position[...])[0]
        first = jnp.broadcast_to(self.token[...], (rows, 1, units)) + position[:1]
        of_patches = resized(position[1:], height, width, antialias=self.registers is not None)
        parts = [first, x.reshape(rows, -1, units) + of_patches]
        if self.registers is not None:
            parts.insert(1, jnp.broadcast_to(self.registers[...], (rows, *self.registers[...].shape[1:])))
        return by_rows(jnp.concatenate(parts, axis=1))


def resized(positions: Float[Array, "old width"], height: int, width: int, antialias: bool) -> Array:
    """Interpolate the positions of a square of patches to another number of patches, `[height * width, units]`.

    This is PyTorch's bicubic interpolation, with which the weights were published: without antialias it takes a cubic
    with a = -0.75 and repeats the patches at the border.

    Args:
        positions: position embeddings of a square of patches, row by row.
        height, width: number of patches of an image, down and to the right.
        antialias: True for a smoother kernel when the number shrinks, as in the models with registers.
    """
    side = round(len(positions) ** 0.5)
    if (height, width) == (side, side):
        return positions
    square = positions.reshape(side, side, -1).astype(jnp.float32)
    if antialias:
        result = jax.image.resize(square, (height, width, square.shape[-1]), "cubic")
    else:
        down, right = bicubic_weights(side, height), bicubic_weights(side, width)
        result = jnp.einsum("ab,bcu,dc->adu", down, square, right)
    return result.reshape(height * width, -1).astype(positions.dtype)


def bicubic_weights(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Return the weights of `old` values in each of `new` interpolated ones (Keys 1981, a = -0.75), `[new, old]`."""
    places = (np.arange(new) + 0.5) * old / new - 0.5
    first, weights = np.floor(places).astype(int), np.zeros((new, old), np.float32)
    for tap in range(-1, 3):
        x = np.abs(places - (first + tap))
        near, far = 1.25 * x**3 - 2.25 * x**2 + 1, -0.75 * x**3 + 3.75 * x**2 - 6 * x + 3
        np.add.at(weights, (np.arange(new), np.clip(first + tap, 0, old - 1)), np.where(x <= 1, near, far))
    return weights


class DINOv2(nnx.Module):
    """A DINOv2 network; hidden states are the outputs of tokens and blocks, `[batch, tokens + patches, width]`.

    The embedding is the class token after the last norm. The head reads the class token beside the mean of the patches;
    without classes, there is no head, and the logits are the embedding.
    """

    def __init__(
        self,
        image: int,
        channels: int,
        patch: int,
        stack: Stack,
        registers: int,
        scale: float,
        classes: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.embed = Tokens(image, channels, patch, stack.width, registers, rngs=rngs)
        self.blocks = nnx.List([ScaledBlock(stack, scale, rngs=rngs) for _ in range(stack.depth)])
        self.norm = layer_norm(stack.width, epsilon=stack.epsilon, rngs=rngs)
        self.head = nnx.Linear(2 * stack.width, classes, rngs=rngs) if classes else None
        self.first_patch = 1 + registers

    def __call__(self, batch: RowsLike, *, train: bool, key: Array) -> Outputs:
        x = nudged(self.embed(batch["image"]), batch, 0)
        x, states, attentions = run_blocks(self.blocks, x, batch, train, key)
        x = by_rows(self.norm(x))
        embedding = x[:, 0]  # [batch, width]
        if self.head is None:
            return Outputs(embedding, states, attentions, embedding)
        patches = by_rows(jnp.mean(x[:, self.first_patch :], axis=1))
        logits = by_rows(self.head(jnp.concatenate([embedding, patches], axis=-1)))
        return Outputs(logits, states, attentions, embedding)


@models.register
def dinov2(
    patch: int,
    width: int,
    depth: int,
    heads: int,
    classes: int,
    image: int,
    channels: int = 3,
    registers: int = 0,
    ffn: int | None = None,
    dropout: float = 0.0,
    activation: Activation = "gelu",
    epsilon: float = 1e-6,
    bias: bool = True,
    scale: float = 1.0,
    attentions: bool = False,
) -> Model:
    """Build DINOv2, a vision transformer with layer scales, which reads the field `image`.

    Args:
        patch: side of a patch in pixels; must divide the images' sides.
        width: width of the residual stream.
        depth: number of blocks.
        heads: number of attention heads; must divide the width.
        classes: number of classes; 0 for a network without a head, such as the published ones, whose logits are its
            embedding.
        image: side in pixels of the images whose patches have a learned position each. Images of another size have
            interpolated positions, such as images of 224 pixels for the published weights, which have `image=518`.
        channels: number of channels of an image.
        registers: number of register tokens, which the head does not read; 4 in the published weights with registers.
        ffn: width of the perceptron inside a block; None means 4 times the width.
        dropout: dropout rate of the output of each attention layer and perceptron; 0 in the published networks.
        activation: activation inside a block. "gelu" is exact; "gelu_pytorch_tanh" and "gelu_new" approximate it.
        epsilon: value added to the variance in the layer norms.
        bias: if true, queries, keys and values have a bias.
        scale: initial value of the learned scales of attention layers and perceptrons.
        attentions: return the attention probabilities of every block, which takes additional memory.

    Raises:
        ValueError: the patch does not divide the image, the heads do not divide the width, or a number is out of range.
    """
    if image < patch or image % patch:
        raise ValueError(f"patch={patch} does not divide image={image}; choose another one")
    if registers < 0:
        raise ValueError(f"registers={registers} must be 0 or more")
    stack = Stack(width, depth, heads, ffn or 4 * width, dropout, activation, epsilon, bias, attentions)
    stack.validate()

    def make(rngs: nnx.Rngs, batch: RowsLike) -> DINOv2:
        require_image(batch["image"].shape[1:], patch, None, channels)
        return DINOv2(image, channels, patch, stack, registers, scale, classes, rngs=rngs)

    return from_nnx(make)


SETTINGS = {  # argument: (Hugging Face config key, default of the config)
    **{name: setting for name, setting in VIT_SETTINGS.items() if name != "ffn"},
    "patch": ("patch_size", 14),
    "epsilon": ("layer_norm_eps", 1e-6),
    "scale": ("layerscale_value", 1.0),
}
PLAIN, REGISTERS, OWN = "dinov2", "dinov2_with_registers", f"{OWN_PREFIX}dinov2"  # model types
BLOCK = VIT_BLOCK | {  # our layer name: (layer name in the checkpoint, axes)
    "attention_norm": ("norm1", ("width",)),
    "mlp_norm": ("norm2", ("width",)),
    "up": ("mlp.fc1", ("width", "ffn")),
    "down": ("mlp.fc2", ("ffn", "width")),
}


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a Hugging Face config to arguments of `dinov2`.

    Attention dropout and dropped paths of the config are ignored: they only mattered for the pretraining. A checkpoint
    of the architecture "Model" has no classes.
    """
    family.require_supported(config, {"hidden_act": ACTIVATIONS, "use_swiglu_ffn": (False,)})
    require_squares(config)
    arguments = {argument: config.get(key, default) for argument, (key, default) in SETTINGS.items()}
    model_type = config["model_type"]
    registers = config.get("num_register_tokens", 4 if model_type == REGISTERS else 0)
    ffn = config.get("ffn_size") or int(arguments["width"] * config.get("mlp_ratio", 4))
    classifies = not all(str(name).endswith("Model") for name in config.get("architectures") or ["Model"])
    classes = family.num_classes(config) if classifies else 0
    return arguments | {"classes": classes, "registers": registers, "ffn": ffn}


def _config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    settings = family.with_defaults(dinov2, arguments)
    ffn, width, registers = settings["ffn"] or 4 * settings["width"], settings["width"], settings["registers"]
    is_own = bool(ffn % width)  # transformers has whole ratios only
    model_type = OWN if is_own else REGISTERS if registers else PLAIN
    title = {OWN: OWN, PLAIN: "Dinov2", REGISTERS: "Dinov2WithRegisters"}[model_type]
    return {
        "model_type": model_type,
        "architectures": [title + ("ForImageClassification" if settings["classes"] else "Model")],
        **({"ffn_size": ffn} if is_own else {"mlp_ratio": ffn // width}),
        **({"num_register_tokens": registers} if registers else {"use_mask_token": False}),
        **{key: settings[argument] for argument, (key, _) in SETTINGS.items()},
        **(family.label_names(settings["classes"]) if settings["classes"] else {}),
    }


def _rules(arguments: Mapping[str, Any]) -> tuple[Rule, ...]:
    base = REGISTERS if arguments.get("registers") else PLAIN
    token_axes, patches = ("", "", "width"), f"{base}.embeddings.patch_embeddings.projection"
    block = lambda name, hf_name, axes: (rf"blocks/(\d+)/{name}", f"{base}.encoder.layer.{{0}}.{hf_name}", axes)
    layers = [
        *(block(name, hf_name, axes) for name, (hf_name, axes) in BLOCK.items()),
        ("norm", f"{base}.layernorm", ("width",)),
        ("head", "classifier", ("", "")),
    ]
    scale = lambda name, number: Rule(*block(name, f"layer_scale{number}.lambda1", ())[:2], axes=("width",))
    return (
        Rule("embed/conv/kernel", f"{patches}.weight", "conv", ("", "", "", "width")),
        Rule("embed/conv/bias", f"{patches}.bias", axes=("width",)),
        Rule("embed/token", f"{base}.embeddings.cls_token", axes=token_axes),
        Rule("embed/registers", f"{base}.embeddings.register_tokens", axes=token_axes),
        Rule("embed/position", f"{base}.embeddings.position_embeddings", axes=token_axes),
        scale("attention_scale", 1),
        scale("mlp_scale", 2),
        *(rule for layer in layers for rule in weight_and_bias_rules(*layer)),
    )


family.register(
    Family(
        dinov2,
        (PLAIN, REGISTERS, OWN),
        _arguments,
        _config,
        _rules,
        prefix=rf"({PLAIN}|{REGISTERS})\.",
        fresh=r"head/.*",
        ignored=r"embeddings\.mask_token",
    )
)
