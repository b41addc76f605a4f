"""CLIP (Radford et al. 2021, arxiv.org/abs/2103.00020) and SigLIP (Zhai et al. 2023, arxiv.org/abs/2303.15343).

Both have two encoders (towers), one for images and one for texts, which embed into the same space. The papers are
Learning Transferable Visual Models From Natural Language Supervision, and Sigmoid Loss for Language Image Pre-Training.

CLIP encodes texts causally and pools them at the end token; it pools images at a class token. SigLIP encodes texts
without any mask and pools them at the last position; it pools images by attention from a learned probe, and its
logits have a bias.
"""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jaxdistill.core.interfaces import Model
from jaxdistill.core.registry import models
from jaxdistill.core.types import RowsLike
from jaxdistill.models.clip_network import ImageTower, TextTower, TwoTowers
from jaxdistill.models.hub import family
from jaxdistill.models.hub.family import Family, Rule
from jaxdistill.models.layers import ACTIVATIONS
from jaxdistill.models.nnx import from_nnx
from jaxdistill.models.transformer import Activation, Stack, require_image, require_squares, weight_and_bias_rules


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
    """Build CLIP, which reads the batch fields `image`, `input_ids` and `attention_mask`.

    One encoder (tower) embeds the images, and another one the texts. The logits, `[images, texts]`, are
    `exp(s) * image_embeddings @ text_embeddings.T` over all images and texts of the batch, with unit-norm embeddings
    and a learned s.

    Args:
        vocabulary: number of tokens in the vocabulary.
        patch: side of a patch in pixels.
        image: side of an image in pixels.
        vision_width: width of the image tower's residual stream.
        vision_depth: number of blocks in the image tower.
        vision_heads: number of attention heads in the image tower; must divide `vision_width`.
        vision_ffn: width of the perceptron inside a block of the image tower.
        text_width: width of the text tower's residual stream.
        text_depth: number of blocks in the text tower.
        text_heads: number of attention heads in the text tower; must divide `text_width`.
        text_ffn: width of the perceptron inside a block of the text tower.
        projection: width of the embeddings.
        positions: maximal number of tokens of a text.
        end: id of the end token, at which a text is pooled. If it is 2, as in the first Hugging Face configs of CLIP, a
            text is pooled at the token with the highest id instead.
        channels: number of channels of an image.
        activation: activation inside the blocks.
        epsilon: value added to the variance in the layer norms.
        attentions: return the attention probabilities of every block of the image tower, which takes additional memory.
    """
    stack = partial(Stack, dropout=0.0, activation=activation, epsilon=epsilon, bias=True)
    vision = stack(width=vision_width, depth=vision_depth, heads=vision_heads, ffn=vision_ffn, attentions=attentions)
    text = stack(width=text_width, depth=text_depth, heads=text_heads, ffn=text_ffn, attentions=False)
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
    """Build SigLIP, which reads the batch fields `image` and `input_ids`.

    One encoder (tower) embeds the images, and another one the texts. The logits, `[images, texts]`, are
    `exp(s) * image_embeddings @ text_embeddings.T + b` over all images and texts of the batch, with unit-norm
    embeddings and learned s and b. The sigmoid of a logit is the probability that the pair matches. Texts are padded to
    `positions` tokens (`length` in `data.tokens`), because the text tower pools a text at the last position. It attends
    to padding too, as in the authors' code (github.com/google-research/big_vision).

    Args:
        vocabulary: number of tokens in the vocabulary.
        patch: side of a patch in pixels.
        image: side of an image in pixels.
        vision_width: width of the image tower's residual stream, and of the embeddings.
        vision_depth: number of blocks in the image tower.
        vision_heads: number of attention heads in the image tower; must divide `vision_width`.
        vision_ffn: width of the perceptron inside a block of the image tower.
        text_width: width of the text tower's residual stream.
        text_depth: number of blocks in the text tower.
        text_heads: number of attention heads in the text tower; must divide `text_width`.
        text_ffn: width of the perceptron inside a block of the text tower.
        positions: number of tokens of a padded text.
        channels: number of channels of an image.
        activation: activation inside the blocks.
        epsilon: value added to the variance in the layer norms.
        attentions: return the attention probabilities of every block of the image tower, which takes additional memory.
    """
    stack = partial(Stack, dropout=0.0, activation=activation, epsilon=epsilon, bias=True)
    vision = stack(width=vision_width, depth=vision_depth, heads=vision_heads, ffn=vision_ffn, attentions=attentions)
    text = stack(width=text_width, depth=text_depth, heads=text_heads, ffn=text_ffn, attentions=False)
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
    """Build CLIP if `projection` is set, else SigLIP, whose logit scale and logit bias have shape `[1]`.

    Args:
        vision: sizes and options of the image tower.
        text: sizes and options of the text tower.
        sizes: side of a patch, side of an image, and channels of an image.
        texts: vocabulary size, maximal number of tokens, width of the embeddings, and id of the end token.
        projection: width of the image projection; None means no projection.
        scale: initial value of `logit_scale`, the logarithm of the factor on all logits.
    """
    vision.validate(), text.validate()

    def make(rngs: nnx.Rngs, batch: RowsLike) -> TwoTowers:
        patch, image, channels = sizes
        shape = batch["image"].shape[1:]
        require_image(shape, patch, image, channels)
        towers = ImageTower(vision, shape, patch, projection, rngs=rngs), TextTower(text, *texts, rngs=rngs)
        if projection is None:
            return TwoTowers(*towers, jnp.full(1, scale, jnp.float32), jnp.full(1, -10.0, jnp.float32))
        return TwoTowers(*towers, jnp.asarray(scale, jnp.float32), None)

    return from_nnx(make)


# Settings of a tower: our argument, Hugging Face config key, default of CLIP's configs, default of SigLIP's configs
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
BLOCK = {  # our layer name: (Hugging Face layer name, axes)
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
    """Convert a Hugging Face config to the factory arguments that CLIP and SigLIP share.

    `column` is the index of the default value in the rows of `VISION`, `TEXT` and `BOTH`: 2 for CLIP, 3 for SigLIP.
    """
    vision, text = config.get("vision_config") or {}, config.get("text_config") or {}
    require_squares(vision)
    towers = ((vision, VISION), (text, TEXT))
    arguments = {row[0]: tower.get(row[1], row[column]) for tower, rows in towers for row in rows}
    for row in BOTH:
        vision_value, text_value = (tower.get(row[1], row[column]) for tower in (vision, text))
        if vision_value != text_value:
            cure = "both towers must use the same value; use another checkpoint"
            raise ValueError(f"{row[1]} is {vision_value!r} for images and {text_value!r} for texts: {cure}")
        arguments[row[0]] = vision_value
    family.require_supported({"hidden_act": arguments["activation"]}, {"hidden_act": ACTIVATIONS})
    return arguments


def _clip_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    end = (config.get("text_config") or {}).get("eos_token_id", 49407)
    if not isinstance(end, int):
        raise ValueError(f"eos_token_id={end!r}: this model needs one end token; set eos_token_id to one integer")
    return _arguments(2, config) | {"projection": config.get("projection_dim", 512), "end": end}


def _siglip_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    arguments = _arguments(3, config)
    family.require_supported(config.get("vision_config") or {}, {"vision_use_head": (True,)})
    family.require_supported(config.get("text_config") or {}, {"projection_size": (None, arguments["vision_width"])})
    return arguments


def _config(model_type: str, title: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    tower = lambda rows: {row[1]: arguments[row[0]] for row in (*rows, *BOTH)}
    towers = {"vision_config": tower(VISION), "text_config": tower(TEXT)}
    return {"model_type": model_type, "architectures": [title], **towers}


def _clip_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    settings = family.with_defaults(clip, arguments)
    config = _config("clip", "CLIPModel", settings)
    config["text_config"]["eos_token_id"] = settings["end"]
    for part in (config, config["vision_config"], config["text_config"]):
        part["projection_dim"] = settings["projection"]
    return config


def _siglip_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    settings = family.with_defaults(siglip, arguments)
    config = _config("siglip", "SiglipModel", settings)
    config["text_config"]["projection_size"] = settings["vision_width"]
    return config


def _block_rules(name: str, hf_name: str, prefix: str) -> Iterator[Rule]:
    """Yield the rules that map arrays of a tower's (encoder's) blocks to arrays of a Hugging Face checkpoint.

    Args:
        name: name of the tower in the model, "images" or "texts".
        hf_name: name of the tower in the checkpoint.
        prefix: "vision" or "text", for the names of the axes: "vision_width", ...
    """
    for layer, (hf_layer, axes) in BLOCK.items():
        prefixed = tuple(f"{prefix}_{axis}" for axis in axes)
        pattern = rf"{name}/blocks/(\d+)/{layer}"
        yield from weight_and_bias_rules(pattern, f"{hf_name}.encoder.layers.{{0}}.{hf_layer}", prefixed)


def _rules(arguments: Mapping[str, Any]) -> tuple[Rule, ...]:
    vision, text, head = "vision_model", "text_model", "vision_model.head"
    width, text_width = ("vision_width",), ("text_width",)
    return (
        Rule("images/embed/conv/kernel", f"{vision}.embeddings.patch_embedding.weight", "conv", ("", "", "", *width)),
        Rule("images/embed/conv/bias", f"{vision}.embeddings.patch_embedding.bias", axes=width),
        Rule("images/embed/tokens/0", f"{vision}.embeddings.class_embedding", axes=width),
        Rule("images/embed/position", f"{vision}.embeddings.position_embedding.weight", axes=("", *width)),
        *_block_rules("images", vision, "vision"),
        *weight_and_bias_rules("images/before", f"{vision}.pre_layrnorm", width),
        *weight_and_bias_rules("images/norm", f"{vision}.post_layernorm", width),
        Rule("images/projection/kernel", "visual_projection.weight", "linear", (*width, "")),
        Rule("images/pool/probe", f"{head}.probe", axes=("", "", *width)),
        Rule("images/pool/project/kernel", f"{head}.attention.in_proj_weight", "linear", (*width, "")),
        Rule("images/pool/project/bias", f"{head}.attention.in_proj_bias", axes=("",)),
        *weight_and_bias_rules("images/pool/out", f"{head}.attention.out_proj", ("", *width)),
        *weight_and_bias_rules("images/pool/norm", f"{head}.layernorm", width),
        *weight_and_bias_rules("images/pool/up", f"{head}.mlp.fc1", (*width, "vision_ffn")),
        *weight_and_bias_rules("images/pool/down", f"{head}.mlp.fc2", ("vision_ffn", *width)),
        Rule("texts/token/embedding", f"{text}.embeddings.token_embedding.weight", axes=("vocabulary", *text_width)),
        Rule("texts/position/embedding", f"{text}.embeddings.position_embedding.weight", axes=("", *text_width)),
        *_block_rules("texts", text, "text"),
        *weight_and_bias_rules("texts/norm", f"{text}.final_layer_norm", text_width),
        *weight_and_bias_rules(
            "texts/projection", "text_projection" if "projection" in arguments else f"{text}.head", (*text_width, "")
        ),
        Rule("logit_(scale|bias)", "logit_{0}"),
    )


family.register(Family(clip, ("clip",), _clip_arguments, _clip_config, _rules, ignored=r".*position_ids"))
family.register(Family(siglip, ("siglip",), _siglip_arguments, _siglip_config, _rules, ignored=r".*position_ids"))
