"""GPT-2 (Radford et al. 2019, Language Models are Unsupervised Multitask Learners), with DistilGPT2.

A decoder like those in `decoder.py`, with layer norms, learned positions, biases, a plain perceptron, and one product
for queries, keys and values. The checkpoints store kernels as [in, out], as they are here.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from jaxdistill.core.collectives import by_rows
from jaxdistill.core.interfaces import Model
from jaxdistill.core.registry import models
from jaxdistill.core.types import Array, AttentionHeads, RowsLike
from jaxdistill.models.decoder_attention import SharedInputs, Sizes, attend_cached, empty_cache
from jaxdistill.models.decoder_network import Decoder
from jaxdistill.models.hub import family
from jaxdistill.models.hub.family import Family, Rule
from jaxdistill.models.layers import ACTIVATIONS
from jaxdistill.models.nnx import from_nnx
from jaxdistill.models.transformer import layer_norm

Activation = Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"]
Tokens = Float[Array, "batch length width"]


class Attention(nnx.Module):
    """Causal self-attention with one product for queries, keys and values, `[batch, length, width]` in and out.

    Args:
        sizes: sizes and options of the block.
        slots: `(batch, tokens)` of the key-value cache; None means that keys and values are not cached.
        rngs: random streams of the initial parameters.
    """

    def __init__(self, sizes: Sizes, slots: tuple[int, ...] | None, *, rngs: nnx.Rngs):
        self.qkv = nnx.Linear(sizes.width, 3 * sizes.width, rngs=rngs)
        self.out = nnx.Linear(sizes.width, sizes.width, rngs=rngs)
        self.keys, self.values = empty_cache(sizes, slots), empty_cache(sizes, slots)
        self.sizes = sizes

    def __call__(self, x: Tokens, shared: SharedInputs) -> tuple[Tokens, AttentionHeads]:
        split = lambda y: by_rows(y.reshape(*y.shape[:-1], -1, self.sizes.head_size), tensor=-2)
        q, k, v = map(split, jnp.split(self.qkv(x), 3, axis=-1))  # [batch, length, heads, head_size]
        mixed, heads = attend_cached(AttentionHeads(q, k, v), (self.keys, self.values), shared, self.sizes)
        return by_rows(self.out(by_rows(mixed, tensor=-2).reshape(*x.shape[:-1], -1))), heads


class Block(nnx.Module):
    """A pre-norm block: attention, then a perceptron; the output of each is added to its input."""

    def __init__(self, sizes: Sizes, slots: tuple[int, ...] | None, activation: str, *, rngs: nnx.Rngs):
        self.attention_norm = layer_norm(sizes.width, epsilon=sizes.epsilon, rngs=rngs)
        self.mlp_norm = layer_norm(sizes.width, epsilon=sizes.epsilon, rngs=rngs)
        self.attention = Attention(sizes, slots, rngs=rngs)
        self.up, self.down = (
            nnx.Linear(sizes.width, sizes.ffn, rngs=rngs),
            nnx.Linear(sizes.ffn, sizes.width, rngs=rngs),
        )
        self.activation = ACTIVATIONS[activation]

    def __call__(self, x: Tokens, shared: SharedInputs) -> tuple[Tokens, AttentionHeads]:
        mixed, heads = self.attention(by_rows(self.attention_norm(x)), shared)
        x = by_rows(x + mixed)
        y = by_rows(self.activation(self.up(by_rows(self.mlp_norm(x)))), tensor=-1)
        return by_rows(x + by_rows(self.down(y))), heads


@models.register
def gpt2(
    vocabulary: int,
    width: int,
    depth: int,
    heads: int,
    ffn: int | None = None,
    positions: int = 1024,
    activation: Activation = "gelu_new",
    epsilon: float = 1e-5,
    tied: bool = True,
    scan_layers: bool = True,
    remat: Literal["none", "full", "dots"] = "none",
    attentions: bool = False,
    attention: Literal["xla", "cudnn"] = "xla",
) -> Model:
    """Build GPT-2, a decoder language model, which reads the batch field `input_ids`, `[batch, length]`.

    The batch may have the other fields that `decoder` reads, and the logits are a `Factored` head (features and a
    kernel that are not yet multiplied), as there. The network has no dropout; the rates in the config of a checkpoint
    are ignored.

    Args:
        vocabulary: number of tokens in the vocabulary, and of logits.
        width: width of the residual stream.
        depth: number of blocks.
        heads: number of attention heads; must divide the width.
        ffn: width of the perceptron; None means 4 times the width.
        positions: number of rows of the position table, which is the maximal length of a sequence in tokens.
        activation: activation of the perceptron. "gelu" is exact; "gelu_new" and "gelu_pytorch_tanh" approximate it.
        epsilon: value added to the variance in the layer norms.
        tied: if true, the kernel of the head is the transposed embedding table, so that the head has no parameters.
        scan_layers: True compiles one layer, and stacks the parameters of all layers along a leading axis; False
            compiles each layer.
        remat: values that a layer saves for its backward pass: "full" saves its input only; "dots" also saves the
            products with kernels; "none" leaves the choice to the compiler, which saves everything.
        attentions: return the attention probabilities of every layer, which takes additional memory.
        attention: implementation of attention: "xla", or "cudnn" for bfloat16 on NVIDIA GPUs. It has no effect if
            `attentions` is True.

    Raises:
        ValueError: a size is not positive, or `heads` does not divide the width.
    """
    if min(vocabulary, width, depth, heads, positions, 1 if ffn is None else ffn) < 1:
        raise ValueError("vocabulary, width, depth, heads, positions and ffn must be positive")
    if width % heads:
        raise ValueError(f"heads={heads} does not divide width={width}; choose a divisor")
    sizes = Sizes(
        width=width,
        heads=heads,
        kv_heads=heads,
        head_size=width // heads,
        ffn=ffn or 4 * width,
        epsilon=epsilon,
        qkv_bias=True,
        qk_norm=False,
        attentions=attentions,
        attention=attention,
    )

    def make(rngs: nnx.Rngs, batch: RowsLike) -> Decoder:
        return Decoder(
            sizes,
            vocabulary=vocabulary,
            depth=depth,
            tied=tied,
            rope=(positions, 10_000.0, None),  # only the length counts: no block rotates
            window=None,
            scan_layers=scan_layers,
            remat=remat,
            slots=batch["slots"].shape if "slots" in batch else None,
            rngs=rngs,
            make_block=lambda sizes, slots, rngs: Block(sizes, slots, activation, rngs=rngs),
            norm=layer_norm,
            position_table=True,
        )

    return from_nnx(make)


SETTINGS = {  # argument of `gpt2`: Hugging Face config key
    "vocabulary": "vocab_size",
    "width": "n_embd",
    "depth": "n_layer",
    "heads": "n_head",
    "ffn": "n_inner",
    "positions": "n_positions",
    "activation": "activation_function",
    "epsilon": "layer_norm_epsilon",
    "tied": "tie_word_embeddings",
}
DEFAULTS = {"n_inner": None, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}
SUPPORTED = {
    "activation_function": get_args(Activation),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,),
}


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    family.require_supported(config, SUPPORTED)
    settings = {**DEFAULTS, **config}
    if missing := sorted(key for key in SETTINGS.values() if key not in settings):
        raise ValueError(f"the config lacks {', '.join(missing)}; add the values that the model was trained with")
    return {argument: settings[key] for argument, key in SETTINGS.items()}


def _config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    settings = family.with_defaults(gpt2, arguments)
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        **{key: settings[argument] for argument, key in SETTINGS.items()},
        **{key: values[0] for key, values in SUPPORTED.items() if key != "activation_function"},
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }


LAYERS = {  # our layer name: (layer name in the checkpoint, axes of the kernel)
    "attention_norm": ("ln_1", ("width",)),
    "attention/qkv": ("attn.c_attn", ("width", "")),  # three kernels side by side: heads cannot be left out
    "attention/out": ("attn.c_proj", ("", "width")),
    "mlp_norm": ("ln_2", ("width",)),
    "up": ("mlp.c_fc", ("width", "ffn")),
    "down": ("mlp.c_proj", ("ffn", "width")),
}


def _layer_rules(name: str, stored: str, axes: tuple[str, ...]) -> tuple[Rule, Rule]:
    weight = "scale" if len(axes) == 1 else "kernel"
    return (
        Rule(f"{name}/{weight}", f"{stored}.weight", axes=axes),
        Rule(f"{name}/bias", f"{stored}.bias", axes=axes[-1:]),
    )


def _rules(arguments: Mapping[str, Any]) -> tuple[Rule, ...]:
    stacked = arguments.get("scan_layers", True)
    name, stored = ("blocks/", "transformer.h.{layer}.") if stacked else (r"blocks/(\d+)/", "transformer.h.{0}.")
    return (
        Rule("embed/embedding", "transformer.wte.weight", axes=("vocabulary", "width")),
        Rule("position/embedding", "transformer.wpe.weight", axes=("", "width")),
        *(
            rule
            for layer, (theirs, axes) in LAYERS.items()
            for rule in _layer_rules(name + layer, stored + theirs, axes)
        ),
        *_layer_rules("norm", "transformer.ln_f", ("width",)),
        Rule("head/kernel", "lm_head.weight", "linear", ("width", "vocabulary")),
    )


family.register(
    Family(
        factory=gpt2,
        model_types=("gpt2",),
        arguments=_arguments,
        config=_config,
        rules=_rules,
        prefix=r"transformer\.",
        # if the head is tied, `lm_head.weight` is a copy of the embedding table; the others are masks
        ignored=r"lm_head\.weight|h\.\d+\.attn\.(masked_)?bias",
    )
)
