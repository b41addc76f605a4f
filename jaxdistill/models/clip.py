"""Two towers, one for images and one for texts, whose embeddings meet.

CLIP: Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021
(arxiv.org/abs/2103.00020). Texts are read causally and pooled at the token that ends them, images at a class token.
SigLIP: Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023 (arxiv.org/abs/2303.15343). Texts are read both
ways and pooled at the last position, images by attention from a learned probe; logits have a bias.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jaxdistill.core.registry import models
from jaxdistill.core.types import Model
from jaxdistill.models.hub import family
from jaxdistill.models.hub.family import Family, Rule
from jaxdistill.models.layers import ACTIVATIONS
from jaxdistill.models.nnx import from_nnx
from jaxdistill.models.towers import Images, Texts, TwoTowers
from jaxdistill.models.transformer import Activation, Stack, pair, require_image, require_squares


@models.register
def clip(
    vocabulary: int,
    patch: int,
    image: int,
    vision_width: int,
    vision_depth: int,
    vision_heads: int,
    vision_ffn: int,
    text_width: int,
    text_depth: int,
    text_heads: int,
    text_ffn: int,
    projection: int,
    positions: int = 77,
    end: int = 49407,
    channels: int = 3,
    activation: Activation = "quick_gelu",
    epsilon: float = 1e-5,
    attentions: bool = False,
) -> Model:
    """CLIP over `image`, `input_ids` and `attention_mask`; logits are `[images, texts]` of the batch.

    Args:
        vocabulary: how many tokens.
        patch: pixels along the side of a patch.
        image: pixels along the side of an image.
        vision_width: of the residual stream of images.
        vision_depth: blocks for images.
        vision_heads: attention heads for images; they must divide the width.
        vision_ffn: width of the perceptron inside a block for images.
        text_width: of the residual stream of texts.
        text_depth: blocks for texts.
        text_heads: attention heads for texts; they must divide the width.
        text_ffn: width of the perceptron inside a block for texts.
        projection: width of the embeddings.
        positions: the most tokens of a text.
        end: the token that ends a text; 2 is the highest one of the text, as in CLIP's first configs.
        channels: of an image.
        activation: inside the blocks.
        epsilon: of the norms.
        attentions: return the probabilities of every block for images, which forms them.
    """
    vision = Stack(vision_width, vision_depth, vision_heads, vision_ffn, 0.0, activation, epsilon, True, attentions)
    text = Stack(text_width, text_depth, text_heads, text_ffn, 0.0, activation, epsilon, True, False)
    scale = math.log(1 / 0.07)
    return _model(vision, text, (patch, image, channels), (vocabulary, positions, projection, end), projection, scale)


@models.register
def siglip(
    vocabulary: int,
    patch: int,
    image: int,
    vision_width: int,
    vision_depth: int,
    vision_heads: int,
    vision_ffn: int,
    text_width: int,
    text_depth: int,
    text_heads: int,
    text_ffn: int,
    positions: int = 64,
    channels: int = 3,
    activation: Activation = "gelu_pytorch_tanh",
    epsilon: float = 1e-6,
    attentions: bool = False,
) -> Model:
    """SigLIP over `image` and `input_ids`; logits are `[images, texts]` of the batch, for a sigmoid each.

    Texts fill all their positions: the last one is pooled, as in training. Args are those of `clip`.
    """
    vision = Stack(vision_width, vision_depth, vision_heads, vision_ffn, 0.0, activation, epsilon, True, attentions)
    text = Stack(text_width, text_depth, text_heads, text_ffn, 0.0, activation, epsilon, True, False)
    return _model(
        vision, text, (patch, image, channels), (vocabulary, positions, vision_width, None), None, math.log(10.0)
    )


def _model(
    vision: Stack,
    text: Stack,
    sizes: tuple[int, int, int],
    texts: tuple[int, int, int, int | None],
    projection: int | None,
    scale: float,
) -> Model:
    """Two towers; without a projection of images they are SigLIP's, whose scalars have an axis of 1."""
    vision.checked(), text.checked()

    def make(rngs: nnx.Rngs, batch) -> TwoTowers:
        patch, image, channels = sizes
        found = batch["image"].shape[1:]
        require_image(found, patch, image, channels)
        towers = Images(vision, found, patch, projection, rngs=rngs), Texts(text, *texts, rngs=rngs)
        if projection is None:
            return TwoTowers(*towers, jnp.full(1, scale, jnp.float32), jnp.full(1, -10.0, jnp.float32))
        return TwoTowers(*towers, jnp.asarray(scale, jnp.float32), None)

    return from_nnx(make)


# of a tower: ours, transformers', and what it means where a config of CLIP or of SigLIP lacks it
VISION = (
    ("vision_width", "hidden_size", 768, 768),
    ("vision_depth", "num_hidden_layers", 12, 12),
    ("vision_heads", "num_attention_heads", 12, 12),
    ("vision_ffn", "intermediate_size", 3072, 3072),
    ("patch", "patch_size", 32, 16),
    ("image", "image_size", 224, 224),
    ("channels", "num_channels", 3, 3),
)
TEXT = (
    ("text_width", "hidden_size", 512, 768),
    ("text_depth", "num_hidden_layers", 12, 12),
    ("text_heads", "num_attention_heads", 8, 12),
    ("text_ffn", "intermediate_size", 2048, 3072),
    ("vocabulary", "vocab_size", 49408, 32000),
    ("positions", "max_position_embeddings", 77, 64),
)
BOTH = (
    ("activation", "hidden_act", "quick_gelu", "gelu_pytorch_tanh"),
    ("epsilon", "layer_norm_eps", 1e-5, 1e-6),
)
BLOCK = {  # ours, transformers', axes
    "attention/query": ("self_attn.q_proj", ("width", "heads")),
    "attention/key": ("self_attn.k_proj", ("width", "heads")),
    "attention/value": ("self_attn.v_proj", ("width", "heads")),
    "attention/out": ("self_attn.out_proj", ("heads", "width")),
    "attention_norm": ("layer_norm1", ("width",)),
    "mlp_norm": ("layer_norm2", ("width",)),
    "up": ("mlp.fc1", ("width", "ffn")),
    "down": ("mlp.fc2", ("ffn", "width")),
}


def _arguments(column: int, config: Mapping[str, Any]) -> dict[str, Any]:
    """What both kinds have; `column` is that of the defaults above."""
    vision, text = config.get("vision_config") or {}, config.get("text_config") or {}
    require_squares(vision)
    found = {row[0]: tower.get(row[1], row[column]) for tower, rows in ((vision, VISION), (text, TEXT)) for row in rows}
    for row in BOTH:
        seen, read = (tower.get(row[1], row[column]) for tower in (vision, text))
        if seen != read:
            cure = "this network has one for both; take another checkpoint"
            raise ValueError(f"{row[1]} is {seen!r} for images and {read!r} for texts: {cure}")
        found[row[0]] = seen
    family.require({"hidden_act": found["activation"]}, {"hidden_act": ACTIVATIONS})
    return found


def _clip_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    end = (config.get("text_config") or {}).get("eos_token_id", 49407)
    if not isinstance(end, int):
        raise ValueError(f"eos_token_id={end!r}: this network knows one token that ends a text; name it")
    return _arguments(2, config) | {"projection": config.get("projection_dim", 512), "end": end}


def _siglip_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    found = _arguments(3, config)
    family.require(config.get("vision_config") or {}, {"vision_use_head": (True,)})
    family.require(config.get("text_config") or {}, {"projection_size": (None, found["vision_width"])})
    return found


def _config(model_type: str, title: str, full: Mapping[str, Any]) -> dict[str, Any]:
    tower = lambda rows: {row[1]: full[row[0]] for row in (*rows, *BOTH)}
    towers = {"vision_config": tower(VISION), "text_config": tower(TEXT)}
    return {"model_type": model_type, "architectures": [title], **towers}


def _clip_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    full = family.complete(clip, arguments)
    config = _config("clip", "CLIPModel", full)
    config["text_config"]["eos_token_id"] = full["end"]
    for part in (config, config["vision_config"], config["text_config"]):
        part["projection_dim"] = full["projection"]
    return config


def _siglip_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    full = family.complete(siglip, arguments)
    config = _config("siglip", "SiglipModel", full)
    config["text_config"]["projection_size"] = full["vision_width"]
    return config


def _blocks(ours: str, theirs: str, tower: str) -> Iterator[Rule]:
    for mine, (yours, axes) in BLOCK.items():
        names = tuple(f"{tower}_{axis}" for axis in axes)
        yield from pair(rf"{ours}/blocks/(\d+)/{mine}", f"{theirs}.encoder.layers.{{0}}.{yours}", names)


def _rules(arguments: Mapping[str, Any]) -> tuple[Rule, ...]:
    seen, read, head = "vision_model", "text_model", "vision_model.head"
    wide, long = ("vision_width",), ("text_width",)
    return (
        Rule("images/embed/conv/kernel", f"{seen}.embeddings.patch_embedding.weight", "conv", ("", "", "", *wide)),
        Rule("images/embed/conv/bias", f"{seen}.embeddings.patch_embedding.bias", axes=wide),
        Rule("images/embed/tokens/0", f"{seen}.embeddings.class_embedding", axes=wide),
        Rule("images/embed/position", f"{seen}.embeddings.position_embedding.weight", axes=("", *wide)),
        *_blocks("images", seen, "vision"),
        *pair("images/before", f"{seen}.pre_layrnorm", wide),
        *pair("images/norm", f"{seen}.post_layernorm", wide),
        Rule("images/projection/kernel", "visual_projection.weight", "linear", (*wide, "")),
        Rule("images/pool/probe", f"{head}.probe", axes=("", "", *wide)),
        Rule("images/pool/project/kernel", f"{head}.attention.in_proj_weight", "linear", (*wide, "")),
        Rule("images/pool/project/bias", f"{head}.attention.in_proj_bias", axes=("",)),
        *pair("images/pool/out", f"{head}.attention.out_proj", ("", *wide)),
        *pair("images/pool/norm", f"{head}.layernorm", wide),
        *pair("images/pool/up", f"{head}.mlp.fc1", (*wide, "vision_ffn")),
        *pair("images/pool/down", f"{head}.mlp.fc2", ("vision_ffn", *wide)),
        Rule("texts/token/embedding", f"{read}.embeddings.token_embedding.weight", axes=("vocabulary", *long)),
        Rule("texts/position/embedding", f"{read}.embeddings.position_embedding.weight", axes=("", *long)),
        *_blocks("texts", read, "text"),
        *pair("texts/norm", f"{read}.final_layer_norm", long),
        *pair("texts/projection", "text_projection" if "projection" in arguments else f"{read}.head", (*long, "")),
        Rule("logit_(scale|bias)", "logit_{0}"),
    )


family.add(Family(clip, ("clip",), _clip_arguments, _clip_config, _rules, ignored=r".*position_ids"))
family.add(Family(siglip, ("siglip",), _siglip_arguments, _siglip_config, _rules, ignored=r".*position_ids"))
