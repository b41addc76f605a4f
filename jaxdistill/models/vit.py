"""Vision transformer: Dosovitskiy et al., An Image is Worth 16x16 Words, 2021 (arxiv.org/abs/2010.11929).

Pre-norm blocks and learned positions. Its embedding is the mean over patches (Beyer et al. 2022,
arxiv.org/abs/2205.01580) or, as first published, the token of the class. DeiT has a second token that learns from a
teacher, with a head of its own (Touvron et al. 2021, arxiv.org/abs/2012.12877).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdistill.core.collectives import by_rows
from jaxdistill.core.registry import models
from jaxdistill.core.types import Model, Outputs
from jaxdistill.models.hub import family
from jaxdistill.models.hub.family import Family, Rule
from jaxdistill.models.layers import ACTIVATIONS, nudged
from jaxdistill.models.nnx import from_nnx
from jaxdistill.models.transformer import (
    Activation,
    Block,
    Patches,
    Stack,
    layer_norm,
    pair,
    require_image,
    require_squares,
)


class ViT(nnx.Module):
    """Hidden states: the patch embeddings, then every block, `[batch, tokens + patches, width]`."""

    def __init__(self, image, patch: int, stack: Stack, tokens: int, classes: int, *, rngs: nnx.Rngs):
        self.embed = Patches(image, patch, stack.width, tokens, rngs=rngs)
        self.blocks = nnx.List([Block(stack, rngs=rngs) for _ in range(stack.depth)])
        self.norm = layer_norm(stack.width, epsilon=stack.epsilon, rngs=rngs)
        self.head = nnx.Linear(stack.width, classes, rngs=rngs)
        self.distilled_head = nnx.Linear(stack.width, classes, rngs=rngs) if tokens == 2 else None
        self.tokens = tokens

    def __call__(self, batch, *, train: bool, key) -> Outputs:
        x = nudged(self.embed(batch["image"]), batch, 0)
        states, attentions = [x], []
        for number, block in enumerate(self.blocks):
            x, heads = block(x, train, jax.random.fold_in(key, number))
            x = nudged(x, batch, number + 1)
            states.append(x)
            attentions.append(heads)
        x = by_rows(self.norm(x))
        pooled = x[:, 0] if self.tokens else by_rows(jnp.mean(x, axis=1))
        logits = by_rows(self.head(pooled))
        if self.distilled_head is not None:
            logits = by_rows((logits + self.distilled_head(x[:, 1])) / 2)
        return Outputs(logits, tuple(states), tuple(attentions), pooled)


def _model(stack: Stack, patch: int, tokens: int, classes: int, image: int | None, channels: int | None) -> Model:
    stack.checked()

    def make(rngs: nnx.Rngs, batch) -> ViT:
        found = batch["image"].shape[1:]
        require_image(found, patch, image, channels)
        return ViT(found, patch, stack, tokens, classes, rngs=rngs)

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
) -> Model:
    """A vision transformer over `image`.

    Args:
        patch: pixels along the side of a patch; it must divide the image's sides.
        width: of the residual stream.
        depth: blocks.
        heads: attention heads; they must divide the width.
        classes: how many logits.
        dropout: the share of each branch's output dropped in training.
        ffn: width of the perceptron inside a block; None: 4 times the width.
        pool: "mean" over the patches, or the "token" of the class, which is transformers' form and needs `image` and
            `channels`.
        image: pixels along the side of an image; None: whatever the batch holds.
        channels: of an image; None: whatever the batch holds.
        activation: inside a block. "gelu" is the exact one, "gelu_pytorch_tanh" and "gelu_new" its approximation.
        epsilon: of the norms.
        bias: whether queries, keys and values have one.
        attentions: return the probabilities of every block, which forms them.
    """
    if pool == "token" and None in (image, channels):
        raise ValueError("pool='token' is transformers' form and needs its sizes: image=224, channels=3")
    stack = Stack(width, depth, heads, ffn or 4 * width, dropout, activation, epsilon, bias, attentions)
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
) -> Model:
    """DeiT: a vision transformer with a token of the class and one of the teacher; logits are the mean of their heads.

    Args are those of `vit`.
    """
    stack = Stack(width, depth, heads, ffn or 4 * width, dropout, activation, epsilon, bias, attentions)
    return _model(stack, patch, 2, classes, image, channels)


SETTINGS = {  # ours, transformers', and what it means where a config lacks it
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
BLOCK = {  # ours, transformers' on disk, axes
    "attention/query": ("attention.attention.query", ("width", "heads")),
    "attention/key": ("attention.attention.key", ("width", "heads")),
    "attention/value": ("attention.attention.value", ("width", "heads")),
    "attention/out": ("attention.output.dense", ("heads", "width")),
    "attention_norm": ("layernorm_before", ("width",)),
    "mlp_norm": ("layernorm_after", ("width",)),
    "up": ("intermediate.dense", ("width", "ffn")),
    "down": ("output.dense", ("ffn", "width")),
}
OWN = "jaxdistill_vit"  # the mean over patches: transformers has no such network


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Attention dropout is left out: it belongs to a training that is over."""
    family.require(config, {"hidden_act": ACTIVATIONS})
    require_squares(config)
    found = {ours: config.get(theirs, default) for ours, (theirs, default) in SETTINGS.items()}
    pool = {"vit": {"pool": "token"}, OWN: {"pool": "mean"}}
    return found | {"classes": family.classes(config)} | pool.get(config["model_type"], {})


def _config(factory: Any, model_type: str, title: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    full = family.complete(factory, arguments)
    own = full.get("pool") == "mean"
    return {
        "model_type": OWN if own else model_type,
        "architectures": ["MeanViT" if own else title],
        **{theirs: full[ours] for ours, (theirs, _) in SETTINGS.items()},
        "intermediate_size": full["ffn"] or 4 * full["width"],
        **family.labels(full["classes"]),
    }


def _rules(base: str, heads: Mapping[str, str], arguments: Mapping[str, Any]) -> tuple[Rule, ...]:
    every, patches = ("", "", "width"), f"{base}.embeddings.patch_embeddings.projection"
    block = lambda ours, theirs, axes: (rf"blocks/(\d+)/{ours}", f"{base}.encoder.layer.{{0}}.{theirs}", axes)
    layers = [
        *(block(ours, theirs, axes) for ours, (theirs, axes) in BLOCK.items()),
        ("norm", f"{base}.layernorm", ("width",)),
        *((ours, theirs, ("width", "")) for ours, theirs in heads.items()),
    ]
    return (
        Rule("embed/conv/kernel", f"{patches}.weight", "conv", ("", "", "", "width")),
        Rule("embed/conv/bias", f"{patches}.bias", axes=("width",)),
        Rule("embed/tokens/0", f"{base}.embeddings.cls_token", axes=every),
        Rule("embed/tokens/1", f"{base}.embeddings.distillation_token", axes=every),
        Rule("embed/position", f"{base}.embeddings.position_embeddings", axes=every),
        *(rule for layer in layers for rule in pair(*layer)),
    )


family.add(
    Family(
        vit,
        ("vit", OWN),
        _arguments,
        partial(_config, vit, "vit", "ViTForImageClassification"),
        partial(_rules, "vit", {"head": "classifier"}),
        prefix=r"vit\.",
        fresh=r"head/.*",
        ignored=r"pooler\..*|embeddings\.mask_token",
    )
)
family.add(
    Family(
        deit,
        ("deit",),
        _arguments,
        partial(_config, deit, "deit", "DeiTForImageClassificationWithTeacher"),
        partial(_rules, "deit", {"head": "cls_classifier", "distilled_head": "distillation_classifier"}),
        prefix=r"deit\.",
        fresh=r"(distilled_)?head/.*",
        ignored=r"pooler\..*|embeddings\.mask_token",
    )
)
