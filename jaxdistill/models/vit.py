"""Vision transformer (Dosovitskiy et al. 2021, An Image is Worth 16x16 Words, arxiv.org/abs/2010.11929) and DeiT.

Pre-norm blocks and learned positions. The embedding is the mean over the patches (Beyer et al. 2022,
arxiv.org/abs/2205.01580), or the class token as in the ViT paper. DeiT (Touvron et al. 2021,
arxiv.org/abs/2012.12877) has in addition a distillation token with its own head, which learns from a teacher in the
DeiT paper.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx

from jaxdistill.core.collectives import by_rows
from jaxdistill.core.interfaces import Model
from jaxdistill.core.registry import models
from jaxdistill.core.types import Array, Outputs, RowsLike
from jaxdistill.models.hub import family
from jaxdistill.models.hub.family import OWN_PREFIX, Family, Rule
from jaxdistill.models.layers import ACTIVATIONS, nudged
from jaxdistill.models.nnx import from_nnx
from jaxdistill.models.transformer import (
    Activation,
    Block,
    Patches,
    Stack,
    layer_norm,
    require_image,
    require_squares,
    run_blocks,
    weight_and_bias_rules,
)


class ViT(nnx.Module):
    """A ViT or DeiT; hidden states are the outputs of patch embedding and blocks, `[batch, tokens + patches, width]`.

    `tokens` is the number of learned tokens before the patches. With 0, the head reads the mean over the patches. With
    1, the head reads the class token. With 2, one head reads the class token, another one the distillation token, and
    the logits are the mean of the logits of both heads.
    """

    def __init__(
        self, image: tuple[int, int, int], patch: int, stack: Stack, tokens: int, classes: int, *, rngs: nnx.Rngs
    ):
        self.embed = Patches(image, patch, stack.width, tokens, rngs=rngs)
        self.blocks = nnx.List([Block(stack, rngs=rngs) for _ in range(stack.depth)])
        self.norm = layer_norm(stack.width, epsilon=stack.epsilon, rngs=rngs)
        self.head = nnx.Linear(stack.width, classes, rngs=rngs)
        self.distilled_head = nnx.Linear(stack.width, classes, rngs=rngs) if tokens == 2 else None
        self.tokens = tokens

    def __call__(self, batch: RowsLike, *, train: bool, key: Array) -> Outputs:
        x = nudged(self.embed(batch["image"]), batch, 0)
        x, states, attentions = run_blocks(self.blocks, x, batch, train, key)
        x = by_rows(self.norm(x))
        pooled = x[:, 0] if self.tokens else by_rows(jnp.mean(x, axis=1))  # [batch, width]
        logits = by_rows(self.head(pooled))
        if self.distilled_head is not None:
            logits = by_rows((logits + self.distilled_head(x[:, 1])) / 2)
        return Outputs(logits, states, attentions, pooled)


def _model(stack: Stack, patch: int, tokens: int, classes: int, image: int | None, channels: int | None) -> Model:
    stack.validate()

    def make(rngs: nnx.Rngs, batch: RowsLike) -> ViT:
        shape = batch["image"].shape[1:]
        require_image(shape, patch, image, channels)
        return ViT(shape, patch, stack, tokens, classes, rngs=rngs)

    return from_nnx(make)


@models.register
def vit(
    patch: int,
    width: int,
    depth: int,
    heads: int,
    classes: int,
    dropout: float = 0.0,
    ffn: int | None = None,
    pool: Literal["mean", "token"] = "mean",
    image: int | None = None,
    channels: int | None = None,
    activation: Activation = "gelu_pytorch_tanh",
    epsilon: float = 1e-6,
    bias: bool = True,
    attentions: bool = False,
    head_size: int | None = None,
) -> Model:
    """Build a vision transformer, which reads the field `image`, `[batch, height, width, channels]`.

    Args:
        patch: side of a patch in pixels; must divide the image's sides.
        width: width of the residual stream.
        depth: number of blocks.
        heads: number of attention heads; must divide the width if `head_size` is None.
        classes: number of classes.
        dropout: dropout rate of the output of each attention layer and perceptron.
        ffn: width of the perceptron inside a block; None means 4 times the width.
        pool: the input of the head, which is also the embedding: the "mean" over the patches, or a class "token" as in
            the library transformers. "token" needs `image` and `channels`.
        image: side of an image in pixels; None means the size of the batch's images.
        channels: number of channels of an image; None means as many as the batch's images have.
        activation: activation inside a block. "gelu" is exact; "gelu_pytorch_tanh" and "gelu_new" approximate it.
        epsilon: value added to the variance in the layer norms.
        bias: if true, queries, keys and values have a bias.
        attentions: return the attention probabilities of every block, which takes additional memory.
        head_size: number of units of an attention head; None means width / heads, the only number that the library
            transformers supports.

    Raises:
        ValueError: `pool` is "token" without `image` and `channels`, the heads do not divide the width, or the dropout
            rate is out of range.
    """
    if pool == "token" and None in (image, channels):
        raise ValueError("pool='token' needs the sizes of the images; set, for example, image=224, channels=3")
    stack = Stack(
        width=width,
        depth=depth,
        heads=heads,
        ffn=ffn or 4 * width,
        dropout=dropout,
        activation=activation,
        epsilon=epsilon,
        bias=bias,
        attentions=attentions,
        head_size=head_size,
    )
    return _model(stack, patch, int(pool == "token"), classes, image, channels)


@models.register
def deit(
    patch: int,
    width: int,
    depth: int,
    heads: int,
    classes: int,
    image: int,
    channels: int = 3,
    dropout: float = 0.0,
    ffn: int | None = None,
    activation: Activation = "gelu",
    epsilon: float = 1e-12,
    bias: bool = True,
    attentions: bool = False,
    head_size: int | None = None,
) -> Model:
    """Build DeiT, a vision transformer with class token and distillation token, which reads the batch field `image`.

    Each of the two tokens has its own classification head, and the logits are the mean of the logits of both heads.

    Args:
        patch: side of a patch in pixels; must divide `image`.
        width: width of the residual stream.
        depth: number of blocks.
        heads: number of attention heads; must divide the width if `head_size` is None.
        classes: number of classes.
        image: side of an image in pixels.
        channels: number of channels of an image.
        dropout: dropout rate of the output of each attention layer and perceptron.
        ffn: width of the perceptron inside a block; None means 4 times the width.
        activation: activation inside a block. "gelu" is exact; "gelu_pytorch_tanh" and "gelu_new" approximate it.
        epsilon: value added to the variance in the layer norms.
        bias: if true, queries, keys and values have a bias.
        attentions: return the attention probabilities of every block, which takes additional memory.
        head_size: number of units of an attention head; None means width / heads, the only number that the library
            transformers supports.
    """
    stack = Stack(
        width=width,
        depth=depth,
        heads=heads,
        ffn=ffn or 4 * width,
        dropout=dropout,
        activation=activation,
        epsilon=epsilon,
        bias=bias,
        attentions=attentions,
        head_size=head_size,
    )
    return _model(stack, patch, 2, classes, image, channels)


SETTINGS = {  # argument of `vit`: (Hugging Face config key, default of the config)
    "patch": ("patch_size", 16),
    "width": ("hidden_size", 768),
    "depth": ("num_hidden_layers", 12),
    "heads": ("num_attention_heads", 12),
    "dropout": ("hidden_dropout_prob", 0.0),
    "ffn": ("intermediate_size", 3072),
    "image": ("image_size", 224),
    "channels": ("num_channels", 3),
    "activation": ("hidden_act", "gelu"),
    "epsilon": ("layer_norm_eps", 1e-12),
    "bias": ("qkv_bias", True),
}
BLOCK = {  # our layer name: (layer name in the checkpoint, axes)
    "attention/query": ("attention.attention.query", ("width", "heads")),
    "attention/key": ("attention.attention.key", ("width", "heads")),
    "attention/value": ("attention.attention.value", ("width", "heads")),
    "attention/out": ("attention.output.dense", ("heads", "width")),
    "attention_norm": ("layernorm_before", ("width",)),
    "mlp_norm": ("layernorm_after", ("width",)),
    "up": ("intermediate.dense", ("width", "ffn")),
    "down": ("output.dense", ("ffn", "width")),
}


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a Hugging Face config to arguments of `vit` or `deit`.

    Attention dropout of the config is ignored, because it only mattered for the pretraining, which is finished.
    """
    family.require_supported(config, {"hidden_act": ACTIVATIONS})
    require_squares(config)
    arguments = {argument: config.get(key, default) for argument, (key, default) in SETTINGS.items()}
    model_type = config["model_type"]
    added = {"head_size": config.get("head_dim")} if model_type.startswith(OWN_PREFIX) else {}
    pool = {"vit": {"pool": "token"}, f"{OWN_PREFIX}vit": {"pool": config.get("pool", "mean")}}
    return arguments | {"classes": family.num_classes(config)} | added | pool.get(model_type, {})


def _config(factory: Any, model_type: str, title: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    settings = family.with_defaults(factory, arguments)
    is_own = settings.get("pool") == "mean" or settings["head_size"] is not None
    added = {"pool": settings.get("pool", "token"), "head_dim": settings["head_size"]} if is_own else {}
    return {
        "model_type": OWN_PREFIX + model_type if is_own else model_type,
        "architectures": [OWN_PREFIX + title if is_own else title],
        **added,
        **{key: settings[argument] for argument, (key, _) in SETTINGS.items()},
        "intermediate_size": settings["ffn"] or 4 * settings["width"],
        **family.label_names(settings["classes"]),
    }


def _rules(base: str, heads: Mapping[str, str], arguments: Mapping[str, Any]) -> tuple[Rule, ...]:
    token_axes, patches = ("", "", "width"), f"{base}.embeddings.patch_embeddings.projection"
    block = lambda name, hf_name, axes: (rf"blocks/(\d+)/{name}", f"{base}.encoder.layer.{{0}}.{hf_name}", axes)
    layers = [
        *(block(name, hf_name, axes) for name, (hf_name, axes) in BLOCK.items()),
        ("norm", f"{base}.layernorm", ("width",)),
        *((name, hf_name, ("width", "")) for name, hf_name in heads.items()),
    ]
    return (
        Rule("embed/conv/kernel", f"{patches}.weight", "conv", ("", "", "", "width")),
        Rule("embed/conv/bias", f"{patches}.bias", axes=("width",)),
        Rule("embed/tokens/0", f"{base}.embeddings.cls_token", axes=token_axes),
        Rule("embed/tokens/1", f"{base}.embeddings.distillation_token", axes=token_axes),
        Rule("embed/position", f"{base}.embeddings.position_embeddings", axes=token_axes),
        *(rule for layer in layers for rule in weight_and_bias_rules(*layer)),
    )


family.register(
    Family(
        vit,
        ("vit", f"{OWN_PREFIX}vit"),
        _arguments,
        partial(_config, vit, "vit", "ViTForImageClassification"),
        partial(_rules, "vit", {"head": "classifier"}),
        prefix=r"vit\.",
        fresh=r"head/.*",
        ignored=r"pooler\..*|embeddings\.mask_token",
    )
)
family.register(
    Family(
        deit,
        ("deit", f"{OWN_PREFIX}deit"),
        _arguments,
        partial(_config, deit, "deit", "DeiTForImageClassificationWithTeacher"),
        partial(_rules, "deit", {"head": "cls_classifier", "distilled_head": "distillation_classifier"}),
        prefix=r"deit\.",
        fresh=r"(distilled_)?head/.*",
        ignored=r"pooler\..*|embeddings\.mask_token",
    )
)
