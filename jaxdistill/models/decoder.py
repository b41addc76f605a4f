"""Decoder language models: Llama (Touvron et al. 2023, arxiv.org/abs/2302.13971), Mistral, Qwen2 and Qwen3.

Qwen2 (Yang et al. 2024, arxiv.org/abs/2407.10671) is Llama with biases of queries, keys and values. Qwen3 (Yang et al.
2025, arxiv.org/abs/2505.09388) is Llama with norms of queries and keys. Mistral (Jiang et al. 2023,
arxiv.org/abs/2310.06825) is Llama whose tokens attend to the last 4096 tokens only; later versions have no such window.
The network itself is in `decoder_network.py`.
"""

from collections.abc import Mapping
from typing import Any, Literal

from flax import nnx

from jaxdistill.core.interfaces import Model
from jaxdistill.core.registry import models
from jaxdistill.core.types import RowsLike
from jaxdistill.models.decoder_attention import Sizes
from jaxdistill.models.decoder_network import Decoder
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
    window: int | None = None,
    scan_layers: bool = True,
    remat: Literal["none", "full", "dots"] = "none",
    attentions: bool = False,
    attention: Literal["xla", "cudnn"] = "xla",
) -> Model:
    """Build a decoder language model, which reads the batch field `input_ids`, `[batch, length]`.

    The logits are a `Factored` head: features and a kernel, which the loss multiplies for one chunk of the sequence at
    a time.

    Optional fields of the batch, `[batch, length]` each:

    - `attention_mask`: 1 for a real token, 0 for padding, as in the library transformers.
    - `segment_ids`: number of the document of each token, if a sequence holds several documents. A token attends only
      to its own document, and positions restart with each document. Padding tokens have a number of their own, such as
      0.
    - `positions`: the position of each token.

    For text generation (`generate`), the batch has the field `slots`, `[batch, slots]` = 0, 1, 2, ... The model's state
    is then a cache of keys and values for this number of tokens, which `init` creates. `apply` writes the keys and
    values of the new tokens at their `positions`, and the new tokens attend to all tokens before them.

    Args:
        vocabulary: number of tokens in the vocabulary, and of logits.
        width: width of the residual stream.
        depth: number of blocks.
        heads: number of attention heads of the queries.
        kv_heads: number of heads of keys and values; must divide `heads`.
        head_size: number of units of a head, which must be even.
        ffn: width of the gated perceptron.
        positions: maximal length of a sequence in tokens.
        theta: base of the wavelengths of the rotary position embedding.
        epsilon: value added to the mean square in the norms.
        tied: if true, the kernel of the head is the transposed embedding table, so that the head has no parameters.
        qkv_bias: if true, queries, keys and values have biases, as in Qwen2.
        qk_norm: if true, queries and keys are normalised in every head, as in Qwen3.
        rope_scaling: scaling of the rotary wavelengths to longer contexts in Llama 3.1, `(factor, low_freq_factor,
            high_freq_factor, original_max_position_embeddings)` of the Hugging Face config; None means no scaling.
        window: number of most recent tokens, itself included, that a token attends to (sliding window), as in Mistral;
            None means all tokens up to itself.
        scan_layers: True compiles one layer, and stacks the parameters of all layers along a leading axis; False
            compiles each layer.
        remat: values that a layer saves for its backward pass: "full" saves its input only; "dots" also saves the
            products with kernels; "none" leaves the choice to the compiler, which saves everything.
        attentions: return the attention probabilities of every layer, which takes additional memory.
        attention: implementation of attention: "xla", or "cudnn" for bfloat16 on NVIDIA GPUs. It has no effect if
            `attentions` is True.

    Raises:
        ValueError: a size or the window is not positive, `kv_heads` does not divide `heads`, `head_size` is odd, or
            both `qkv_bias` and `qk_norm` are set.
    """
    if min(vocabulary, width, depth, heads, kv_heads, ffn, window or 1) < 1 or window == 0:
        raise ValueError("vocabulary, width, depth, heads, kv_heads, ffn and window must be positive")
    if heads % kv_heads:
        raise ValueError(f"kv_heads={kv_heads} does not divide heads={heads}; choose a divisor")
    if head_size < 2 or head_size % 2:
        raise ValueError(f"head_size must be even, because rotary positions rotate pairs of units; got {head_size}")
    if qkv_bias and qk_norm:
        raise ValueError("qkv_bias (Qwen2) and qk_norm (Qwen3) are both set; no architecture has both, so choose one")
    sizes = Sizes(
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        ffn=ffn,
        epsilon=epsilon,
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
        attentions=attentions,
        attention=attention,
    )
    rope = (positions, theta, rope_scaling and Llama3(*rope_scaling))

    def make(rngs: nnx.Rngs, batch: RowsLike) -> Decoder:
        slots = batch["slots"].shape if "slots" in batch else None
        return Decoder(
            sizes,
            vocabulary=vocabulary,
            depth=depth,
            tied=tied,
            rope=rope,
            window=window,
            scan_layers=scan_layers,
            remat=remat,
            slots=slots,
            rngs=rngs,
        )

    return from_nnx(make)


SUPPORTED = {  # config keys, and the only value that `decoder` supports
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "mlp_bias": False,
    "use_sliding_window": False,
}
SIZES = {  # argument of `decoder`: Hugging Face config key
    "vocabulary": "vocab_size",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
    "positions": "max_position_embeddings",
}
SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    for key, supported in SUPPORTED.items():
        if config.get(key, supported) != supported:
            raise ValueError(f"{key} = {config[key]!r} is not supported, only {supported!r}; use another checkpoint")
    missing = sorted(key for key in SIZES.values() if key not in config)
    if missing:
        raise ValueError(f"the config lacks {', '.join(missing)}; add the values that the model was trained with")
    model_type, heads, width = config["model_type"], config["num_attention_heads"], config["hidden_size"]
    head_size = config.get("head_dim") or (128 if model_type == "qwen3" else width // heads)
    if not config.get("head_dim") and model_type != "qwen3" and width % heads:
        raise ValueError(f"num_attention_heads = {heads} does not divide hidden_size = {width}; set head_dim")
    theta, scaling = _rope(config)
    # missing keys: transformers assumes 4096, and 8 heads of keys; null stands for no window, and for all heads
    window = config.get("sliding_window", 4096) if model_type == "mistral" else None
    return {
        **{argument: int(config[key]) for argument, key in SIZES.items()},
        "kv_heads": config.get("num_key_value_heads", 8 if model_type == "mistral" else None) or heads,
        "head_size": head_size,
        "theta": theta,
        "epsilon": float(config.get("rms_norm_eps", 1e-6)),
        "tied": bool(config.get("tie_word_embeddings", False)),
        "qkv_bias": model_type == "qwen2",
        "qk_norm": model_type == "qwen3",
        "rope_scaling": scaling,
        "window": window,
    }


def _rope(config: Mapping[str, Any]) -> tuple[float, tuple[float, ...] | None]:
    """Read from a Hugging Face config the base of the rotary wavelengths, and their Llama 3.1 scaling (or None).

    transformers 5 writes both into `rope_parameters` of a config; earlier versions wrote `rope_theta` and
    `rope_scaling`.
    """
    rope = {
        "rope_theta": config.get("rope_theta", 10000.0),
        **(config.get("rope_scaling") or {}),
        **(config.get("rope_parameters") or {}),
    }
    rope_type, fraction = rope.get("rope_type", rope.get("type", "default")), rope.get("partial_rotary_factor", 1.0)
    if rope_type not in ("default", "llama3"):
        raise ValueError(f"rope_type = {rope_type!r} is not supported, only default and llama3; use another checkpoint")
    if fraction != 1.0:
        raise ValueError(f"partial_rotary_factor = {fraction} is not supported, only 1.0; use another checkpoint")
    return float(rope["rope_theta"]), tuple(rope[key] for key in SCALING) if rope_type == "llama3" else None


def _config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    settings = family.with_defaults(decoder, arguments)
    model_type = "qwen2" if settings["qkv_bias"] else "qwen3" if settings["qk_norm"] else "llama"
    if settings["window"] is not None:
        if model_type != "llama":
            raise ValueError(f"transformers has no {model_type} with a window in all layers")
        model_type = "mistral"
    scaling = settings["rope_scaling"]
    return {
        "model_type": model_type,
        "architectures": [f"{model_type.capitalize()}ForCausalLM"],
        **{key: settings[argument] for argument, key in SIZES.items()},
        "num_key_value_heads": settings["kv_heads"],
        "head_dim": settings["head_size"],
        "rms_norm_eps": settings["epsilon"],
        "tie_word_embeddings": settings["tied"],
        "rope_theta": settings["theta"],  # the form of transformers 4, which transformers 5 reads too
        "rope_scaling": scaling and {"rope_type": "llama3", **dict(zip(SCALING, scaling, strict=True))},
        **SUPPORTED,
        **({"sliding_window": settings["window"]} if model_type == "mistral" else {}),
    }


LAYER_RULES = (
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
    name, stored_name = ("blocks/", "model.layers.{layer}.") if stacked else (r"blocks/(\d+)/", "model.layers.{0}.")
    return (
        Rule("embed/embedding", "model.embed_tokens.weight", axes=("vocabulary", "width")),
        *(rule._replace(name=name + rule.name, stored_name=stored_name + rule.stored_name) for rule in LAYER_RULES),
        Rule("norm/scale", "model.norm.weight", axes=("width",)),
        Rule("head/kernel", "lm_head.weight", "linear", ("width", "vocabulary")),
    )


family.register(
    Family(
        factory=decoder,
        model_types=("llama", "mistral", "qwen2", "qwen3"),
        arguments=_arguments,
        config=_config,
        rules=_rules,
        prefix=r"model\.",
        # if the head is tied, `lm_head.weight` is a copy of the embedding table
        ignored=r"lm_head\.weight|(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
    )
)
