"""Decoder language models: Llama, Qwen2 and Qwen3, which differ by biases and norms of queries and keys alone.

Touvron et al. 2023 (arxiv.org/abs/2302.13971); Yang et al. 2024 (arxiv.org/abs/2407.10671); Yang et al. 2025
(arxiv.org/abs/2505.09388).
"""

from collections.abc import Mapping
from typing import Any, Literal

from flax import nnx

from jaxdistill.core.registry import models
from jaxdistill.core.types import Array, Model
from jaxdistill.models.causal import Decoder, Sizes
from jaxdistill.models.hub import family
from jaxdistill.models.hub.family import Family, Rule
from jaxdistill.models.nnx import from_nnx
from jaxdistill.models.rotary import Llama3


@models.register
def decoder(
    vocabulary: int,
    width: int,
    depth: int,
    heads: int,
    kv_heads: int,
    head_size: int,
    ffn: int,
    positions: int = 2048,
    theta: float = 10000.0,
    epsilon: float = 1e-6,
    tied: bool = True,
    qkv_bias: bool = False,
    qk_norm: bool = False,
    rope_scaling: tuple[float, float, float, int] | None = None,
    scan_layers: bool = True,
    remat: Literal["none", "full", "dots"] = "none",
    attentions: bool = False,
    attention: Literal["xla", "cudnn"] = "xla",
) -> Model:
    """A decoder over `input_ids` `[batch, length]`; its logits are a `Factored` head.

    Of the batch it also reads `attention_mask` (1 for a real token, as transformers means it), `segment_ids` (several
    documents in one row: a token sees its own only, and positions restart with each; padding is a segment too) and
    `positions`, all `[batch, length]`. With `slots`, `[batch, slots]` = 0, 1, 2, ..., it keeps keys and values in its
    state, as `generate` needs it: `init` gives a cache of so many tokens, and `apply` writes the given ones at their
    `positions` and sees all before them.

    Args:
        vocabulary: how many tokens there are, and so logits.
        width: of the residual stream.
        depth: blocks.
        heads: attention heads, for queries.
        kv_heads: heads for keys and values; they must divide `heads`.
        head_size: units of a head, an even number.
        ffn: width of the gated perceptron.
        positions: the longest sequence, in tokens.
        theta: the base of the rotary wavelengths.
        epsilon: added to mean squares.
        tied: the head is the embedding's transpose, without parameters of its own.
        qkv_bias: queries, keys and values have biases, as in Qwen2.
        qk_norm: queries and keys are normalised in every head, as in Qwen3.
        rope_scaling: `(factor, low, high, context)` of Llama 3.1; None: no scaling.
        scan_layers: compile one layer and keep the parameters of all stacked along a first axis; else compile each.
        remat: what a layer keeps for its backward pass: "none" leaves it to the compiler, which keeps everything;
            "dots" keeps the products with kernels; "full" its input alone.
        attentions: return attention probabilities, by a plain path that holds them in memory.
        attention: who computes it otherwise: the compiler, or cuDNN's kernel, which is for NVIDIA's GPUs and bfloat16.

    Raises:
        ValueError: sizes that make no decoder.
    """
    if min(vocabulary, width, depth, heads, kv_heads, ffn) < 1:
        raise ValueError("vocabulary, width, depth, heads, kv_heads and ffn must be positive")
    if heads % kv_heads:
        raise ValueError(f"{kv_heads} kv_heads do not divide {heads} heads")
    if head_size < 2 or head_size % 2:
        raise ValueError(f"head_size must be even, since rotary positions turn pairs of units; got {head_size}")
    if qkv_bias and qk_norm:
        raise ValueError("qkv_bias is of Qwen2 and qk_norm of Qwen3; no architecture has both")
    sizes = Sizes(width, heads, kv_heads, head_size, ffn, epsilon, qkv_bias, qk_norm, attentions, attention)
    rope = (positions, theta, rope_scaling and Llama3(*rope_scaling))

    def make(rngs: nnx.Rngs, batch: Mapping[str, Array]) -> Decoder:
        slots = batch["slots"].shape if "slots" in batch else None
        return Decoder(sizes, vocabulary, depth, tied, rope, scan_layers, remat, slots, rngs=rngs)

    return from_nnx(make)


ONLY = {  # settings that are one thing here
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "mlp_bias": False,
    "use_sliding_window": False,
}
NUMBERS = {  # our counts, by their names
    "vocabulary": "vocab_size",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
    "positions": "max_position_embeddings",
}
SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    for key, only in ONLY.items():
        if config.get(key, only) != only:
            raise ValueError(f"{key} = {config[key]!r}, and our decoder has {only!r} alone; take another checkpoint")
    missing = sorted(key for key in NUMBERS.values() if key not in config)
    if missing:
        raise ValueError(f"the config lacks {', '.join(missing)}; write what the checkpoint was made with")
    kind, heads, width = config["model_type"], config["num_attention_heads"], config["hidden_size"]
    head_size = config.get("head_dim") or (128 if kind == "qwen3" else width // heads)
    if not config.get("head_dim") and kind != "qwen3" and width % heads:
        raise ValueError(f"num_attention_heads = {heads} does not divide hidden_size = {width}; write head_dim")
    theta, scaling = _rope(config)
    return {
        **{ours: int(config[theirs]) for ours, theirs in NUMBERS.items()},
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_size": head_size,
        "theta": theta,
        "epsilon": float(config.get("rms_norm_eps", 1e-6)),
        "tied": bool(config.get("tie_word_embeddings", False)),
        "qkv_bias": kind == "qwen2",
        "qk_norm": kind == "qwen3",
        "rope_scaling": scaling,
    }


def _rope(config: Mapping[str, Any]) -> tuple[float, tuple[float, ...] | None]:
    """Base and scaling; transformers 5 keeps both in `rope_parameters`, and kept them in two keys before."""
    rope = {
        "rope_theta": config.get("rope_theta", 10000.0),
        **(config.get("rope_scaling") or {}),
        **(config.get("rope_parameters") or {}),
    }
    kind, share = rope.get("rope_type", rope.get("type", "default")), rope.get("partial_rotary_factor", 1.0)
    if kind not in ("default", "llama3"):
        raise ValueError(f"rope_type = {kind!r}, and our decoder has default and llama3; take another checkpoint")
    if share != 1.0:
        raise ValueError(f"partial_rotary_factor = {share}, and our decoder turns whole heads; take another checkpoint")
    return float(rope["rope_theta"]), tuple(rope[key] for key in SCALING) if kind == "llama3" else None


def _config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    ours = family.complete(decoder, arguments)
    kind = "qwen2" if ours["qkv_bias"] else "qwen3" if ours["qk_norm"] else "llama"
    scaling = ours["rope_scaling"]
    return {
        "model_type": kind,
        "architectures": [f"{kind.capitalize()}ForCausalLM"],
        **{theirs: ours[each] for each, theirs in NUMBERS.items()},
        "num_key_value_heads": ours["kv_heads"],
        "head_dim": ours["head_size"],
        "rms_norm_eps": ours["epsilon"],
        "tie_word_embeddings": ours["tied"],
        "rope_theta": ours["theta"],  # the older form, which transformers 5 reads too
        "rope_scaling": scaling and {"rope_type": "llama3", **dict(zip(SCALING, scaling, strict=True))},
        **ONLY,
    }


IN_LAYER = (
    Rule("attention_norm/scale", "input_layernorm.weight", axes=("width",)),
    Rule("attention/query/kernel", "self_attn.q_proj.weight", "linear", ("width", "heads")),
    Rule("attention/key/kernel", "self_attn.k_proj.weight", "linear", ("width", "kv_heads")),
    Rule("attention/value/kernel", "self_attn.v_proj.weight", "linear", ("width", "kv_heads")),
    Rule("attention/query/bias", "self_attn.q_proj.bias", axes=("heads",)),
    Rule("attention/key/bias", "self_attn.k_proj.bias", axes=("kv_heads",)),
    Rule("attention/value/bias", "self_attn.v_proj.bias", axes=("kv_heads",)),
    Rule("attention/query_norm/scale", "self_attn.q_norm.weight", axes=("",)),
    Rule("attention/key_norm/scale", "self_attn.k_norm.weight", axes=("",)),
    Rule("attention/out/kernel", "self_attn.o_proj.weight", "linear", ("heads", "width")),
    Rule("mlp_norm/scale", "post_attention_layernorm.weight", axes=("width",)),
    Rule("gate/kernel", "mlp.gate_proj.weight", "linear", ("width", "ffn")),
    Rule("up/kernel", "mlp.up_proj.weight", "linear", ("width", "ffn")),
    Rule("down/kernel", "mlp.down_proj.weight", "linear", ("ffn", "width")),
)


def _rules(arguments: Mapping[str, Any]) -> tuple[Rule, ...]:
    stacked = arguments.get("scan_layers", True)
    ours, theirs = ("blocks/", "model.layers.{layer}.") if stacked else (r"blocks/(\d+)/", "model.layers.{0}.")
    return (
        Rule("embed/embedding", "model.embed_tokens.weight", axes=("vocabulary", "width")),
        *(rule._replace(ours=ours + rule.ours, theirs=theirs + rule.theirs) for rule in IN_LAYER),
        Rule("norm/scale", "model.norm.weight", axes=("width",)),
        Rule("head/kernel", "lm_head.weight", "linear", ("width", "vocabulary")),
    )


family.add(
    Family(
        factory=decoder,
        model_types=("llama", "qwen2", "qwen3"),
        arguments=_arguments,
        config=_config,
        rules=_rules,
        prefix=r"model\.",
        ignored=r"lm_head\.weight|(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",  # the head of a tied one: a copy
    )
)
