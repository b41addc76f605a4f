"""ModernBERT (Warner et al. 2024, arxiv.org/abs/2412.13663), a text encoder for long texts.

Pre-norm blocks with rotary positions, gated perceptrons and norms without bias. Every third block attends to all
tokens, the others to 64 tokens on each side, with rotary wavelengths of their own.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float

from jaxdistill.core.collectives import by_rows
from jaxdistill.core.interfaces import Model
from jaxdistill.core.registry import models
from jaxdistill.core.types import Array, AttentionHeads, Outputs, RowsLike
from jaxdistill.models.bert_network import Pool, Pooled, Real, Tokens, attention_weights
from jaxdistill.models.hub import family
from jaxdistill.models.hub.family import POOLING, Family, Rule
from jaxdistill.models.layers import ACTIVATIONS, lookup, nudged, require_dropout_rate
from jaxdistill.models.layers import dropout as drop
from jaxdistill.models.nnx import from_nnx
from jaxdistill.models.rotary import frequencies, rotate
from jaxdistill.models.transformer import layer_norm

Activation = Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"]
_linear = partial(nnx.Linear, use_bias=False, kernel_init=nnx.initializers.normal(0.02))
_norm = partial(layer_norm, use_bias=False)


class Sizes(NamedTuple):
    """The sizes and options of a ModernBERT block.

    width: width of the residual stream
    heads: number of attention heads
    ffn: width of the gated perceptron
    activation: name of the activation of the perceptron
    epsilon: value added to the variance in the layer norms
    attentions: if true, the block returns the attention probabilities
    """

    width: int
    heads: int
    ffn: int
    activation: str
    epsilon: float
    attentions: bool


class Attention(nnx.Module):
    """Multi-head self-attention with rotary positions, `[batch, length, width] -> [batch, length, width]`."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
        self.qkv = _linear(sizes.width, 3 * sizes.width, rngs=rngs)
        self.out = _linear(sizes.width, sizes.width, rngs=rngs)
        self.heads, self.return_probabilities = sizes.heads, sizes.attentions

    def __call__(
        self, x: Tokens, angles: Float[Array, "1 length half"], mask: Bool[Array, "batch 1 #length length"]
    ) -> tuple[Tokens, AttentionHeads]:
        split = lambda y: by_rows(y.reshape(*y.shape[:-1], self.heads, -1), tensor=-2)
        q, k, v = map(split, jnp.split(self.qkv(x), 3, axis=-1))  # [batch, length, heads, head_size]
        q, k = rotate(q, angles), rotate(k, angles)
        weights = None
        if self.return_probabilities:
            weights = attention_weights(q, k, mask)
            mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        else:
            mixed = jax.nn.dot_product_attention(q, k, v, mask=mask)
        mixed = self.out(by_rows(mixed, tensor=-2).reshape(*x.shape[:-1], -1))
        return by_rows(mixed), AttentionHeads(q, k, v, weights)


class Block(nnx.Module):
    """A pre-norm block: attention, then a gated perceptron; the first block has no norm before its attention."""

    def __init__(self, sizes: Sizes, first: bool, *, rngs: nnx.Rngs):
        norm = partial(_norm, sizes.width, epsilon=sizes.epsilon, rngs=rngs)
        self.attention_norm, self.mlp_norm = (None if first else norm()), norm()
        self.attention = Attention(sizes, rngs=rngs)
        self.up, self.down = _linear(sizes.width, 2 * sizes.ffn, rngs=rngs), _linear(sizes.ffn, sizes.width, rngs=rngs)
        self.activation = ACTIVATIONS[sizes.activation]

    def __call__(
        self, x: Tokens, angles: Float[Array, "1 length half"], mask: Bool[Array, "batch 1 #length length"]
    ) -> tuple[Tokens, AttentionHeads]:
        normalised = x if self.attention_norm is None else by_rows(self.attention_norm(x))
        mixed, heads = self.attention(normalised, angles, mask)
        x = by_rows(x + mixed)
        y, gate = jnp.split(by_rows(self.up(by_rows(self.mlp_norm(x))), tensor=-1), 2, axis=-1)
        return by_rows(x + by_rows(self.down(self.activation(y) * gate))), heads


class Head(nnx.Module):
    """The classification head: a hidden layer on the pooled token, a norm, dropout, and the logits layer.

    Returns the logits, `[batch, classes]`, and the normalised output of the hidden layer, `[batch, width]`, which is
    the embedding.
    """

    def __init__(self, sizes: Sizes, classes: int, pool: str, rate: float, *, rngs: nnx.Rngs):
        self.dense = _linear(sizes.width, sizes.width, rngs=rngs)
        self.norm = _norm(sizes.width, epsilon=sizes.epsilon, rngs=rngs)
        self.out = _linear(sizes.width, classes, use_bias=True, rngs=rngs)
        self.pool, self.rate = pool, rate

    def __call__(self, x: Tokens, real: Real, train: bool, key: Array) -> Pooled:
        if self.pool == "mean":
            total = jnp.sum(jnp.where(real[:, :, None], x.astype(jnp.float32), 0), axis=1)
            pooled = by_rows((total / jnp.maximum(jnp.sum(real, axis=1), 1)[:, None]).astype(x.dtype))
        else:
            pooled = by_rows(x[:, 0])
        embedding = by_rows(self.norm(by_rows(ACTIVATIONS["gelu"](self.dense(pooled)))))
        return by_rows(self.out(drop(embedding, self.rate, train=train, key=key))), embedding


class ModernBert(nnx.Module):
    """A ModernBERT encoder; hidden states are the outputs of embedding layer and blocks, `[batch, length, width]` each.

    The last hidden state is taken after the final norm, as in the library transformers.

    Args:
        sizes: sizes and options of a block.
        vocabulary: number of tokens in the vocabulary.
        depth: number of blocks.
        positions: maximal length of a text in tokens.
        every: blocks 0, `every`, 2 `every`, ... attend to all tokens.
        window: number of neighbouring tokens, on both sides together, that the other blocks attend to.
        thetas: bases of the rotary wavelengths, of the blocks that attend to all tokens and of the others.
        dropout: dropout rate of the embedding layer.
        head: the head.
        rngs: random streams of the initial parameters.
    """

    def __init__(
        self,
        sizes: Sizes,
        vocabulary: int,
        depth: int,
        positions: int,
        every: int,
        window: int,
        thetas: tuple[float, float],
        dropout: float,
        head: Head | Pool,
        *,
        rngs: nnx.Rngs,
    ):
        self.embed = nnx.Embed(vocabulary, sizes.width, embedding_init=nnx.initializers.normal(0.02), rngs=rngs)
        self.embed_norm = _norm(sizes.width, epsilon=sizes.epsilon, rngs=rngs)
        self.blocks = nnx.List([Block(sizes, number == 0, rngs=rngs) for number in range(depth)])
        self.norm = _norm(sizes.width, epsilon=sizes.epsilon, rngs=rngs)
        self.head, self.rate = head, dropout
        self.positions, self.every, self.window, self.thetas = positions, every, window, thetas
        self.head_size = sizes.width // sizes.heads

    def __call__(self, batch: RowsLike, *, train: bool, key: Array) -> Outputs:
        ids = jnp.asarray(batch["input_ids"])
        length = ids.shape[1]
        if length > self.positions:
            raise ValueError(f"texts of {length} tokens exceed the {self.positions} positions; truncate the texts")
        real = jnp.asarray(batch.get("attention_mask", jnp.ones_like(ids))) > 0
        embed_key, head_key = jax.random.split(key)
        places = jnp.arange(length)
        angles = [places[None, :, None] * frequencies(self.head_size, theta, None) for theta in self.thetas]
        near = jnp.abs(places[:, None] - places[None, :]) <= self.window // 2  # [queries, keys]
        masks = (real[:, None, None, :], real[:, None, None, :] & near)
        x = by_rows(self.embed_norm(by_rows(lookup(self.embed, ids))))
        x = nudged(by_rows(drop(x, self.rate, train=train, key=embed_key)), batch, 0)
        states, attentions = [x], []
        for number, block in enumerate(self.blocks):
            is_local = int(number % self.every > 0)
            x, heads = block(x, angles[is_local], masks[is_local])
            x = by_rows(self.norm(x)) if number + 1 == len(self.blocks) else x
            x = nudged(x, batch, number + 1)
            states.append(x)
            attentions.append(heads)
        logits, embedding = self.head(x, real, train, head_key)
        return Outputs(logits, tuple(states), tuple(attentions), embedding)


@models.register
def modernbert(
    vocabulary: int,
    width: int,
    depth: int,
    heads: int,
    ffn: int,
    classes: int,
    positions: int = 8192,
    every: int = 3,
    window: int = 128,
    thetas: tuple[float, float] = (160_000.0, 10_000.0),
    activation: Activation = "gelu",
    epsilon: float = 1e-5,
    dropout: float = 0.0,
    head_dropout: float = 0.0,
    pool: Literal["mean", "cls"] = "cls",
    attentions: bool = False,
) -> Model:
    """Build a ModernBERT encoder, which reads the batch fields `input_ids` and `attention_mask`, `[batch, length]`.

    Args:
        vocabulary: number of tokens in the vocabulary.
        width: width of the residual stream.
        depth: number of blocks.
        heads: number of attention heads; must divide the width, into heads of an even size.
        ffn: width of the gated perceptron.
        classes: number of classes. 0 builds a sentence embedding model instead of a classifier: the pooled token
            vector, scaled to unit norm, is both embedding and logits.
        positions: maximal length of a text in tokens.
        every: blocks 0, `every`, 2 `every`, ... attend to all tokens, the others to neighbouring tokens only.
        window: number of neighbouring tokens, on both sides together, that these other blocks attend to.
        thetas: bases of the rotary wavelengths of the blocks that attend to all tokens, and of the others.
        activation: activation of the perceptron. "gelu" is exact; "gelu_new" and "gelu_pytorch_tanh" approximate it.
        epsilon: value added to the variance in the layer norms.
        dropout: dropout rate of the embedding layer.
        head_dropout: dropout rate in the classification head.
        pool: pooling of the tokens for the head or embedding: "cls" (first token), or "mean" over the tokens.
        attentions: return the attention probabilities of every block, which takes additional memory.

    Raises:
        ValueError: a size is not positive, the heads do not divide the width into even sizes, or a dropout rate is out
            of range.
    """
    if min(vocabulary, width, depth, heads, ffn, positions, every, window) < 1:
        raise ValueError("vocabulary, width, depth, heads, ffn, positions, every and window must be positive")
    if width % (2 * heads):
        raise ValueError(f"heads={heads} must divide width={width} into heads of an even size, which positions rotate")
    for name, rate in (("dropout", dropout), ("head_dropout", head_dropout)):
        require_dropout_rate(name, rate)
    sizes = Sizes(width, heads, ffn, activation, epsilon, attentions)

    def make(rngs: nnx.Rngs, batch: RowsLike) -> ModernBert:
        head = Head(sizes, classes, pool, head_dropout, rngs=rngs) if classes else Pool(pool)
        return ModernBert(sizes, vocabulary, depth, positions, every, window, thetas, dropout, head, rngs=rngs)

    return from_nnx(make)


SETTINGS = {  # argument of `modernbert`: (Hugging Face config key, its default in transformers)
    "vocabulary": ("vocab_size", 50368),
    "width": ("hidden_size", 768),
    "depth": ("num_hidden_layers", 22),
    "heads": ("num_attention_heads", 12),
    "ffn": ("intermediate_size", 1152),
    "positions": ("max_position_embeddings", 8192),
    "every": ("global_attn_every_n_layers", 3),
    "window": ("local_attention", 128),
    "activation": ("hidden_activation", "gelu"),
    "epsilon": ("norm_eps", 1e-5),
    "dropout": ("embedding_dropout", 0.0),
    "head_dropout": ("classifier_dropout", 0.0),
    "pool": ("classifier_pooling", "cls"),
}
SUPPORTED = {
    "hidden_activation": get_args(Activation),
    "classifier_activation": ("gelu",),
    "classifier_pooling": ("cls", "mean"),
    **dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), (False,)),
    **dict.fromkeys(("attention_dropout", "mlp_dropout"), (0.0,)),
}
THETAS = {"full_attention": ("global_rope_theta", 160_000.0), "sliding_attention": ("local_rope_theta", 10_000.0)}
HEADS: Mapping[str, str] = {  # end of an architecture's name -> regex of the arrays that only this architecture has
    "Model": r"(?!)",
    "ForSequenceClassification": r"(?:head|classifier)\..*",
    "ForMaskedLM": r"(?:head|decoder)\..*",
    "ForTokenClassification": r"(?:head|classifier)\..*",
    "ForQuestionAnswering": r"(?:head|classifier)\..*",
    "ForMultipleChoice": r"(?:head|classifier)\..*",
}


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    family.require_supported(config, SUPPORTED)
    arguments = {argument: config.get(key, default) for argument, (key, default) in SETTINGS.items()}
    every, kinds = arguments["every"], config.get("layer_types")
    if kinds and list(kinds) != [("sliding_attention", "full_attention")[n % every == 0] for n in range(len(kinds))]:
        raise ValueError(f"layer_types={kinds} is not supported, only full attention in every {every}-th layer")
    rope = config.get("rope_parameters") or {}  # transformers 5; earlier versions wrote two keys
    if not all(isinstance(entry, Mapping) for entry in rope.values()):
        raise ValueError(f"rope_parameters={dict(rope)} has no entry for each kind of layer; use another checkpoint")
    thetas = tuple(rope.get(kind, {}).get("rope_theta", config.get(*old)) for kind, old in THETAS.items())
    # null means the value of the other layers
    thetas = tuple(thetas[0] if theta is None else theta for theta in thetas)
    if other := {entry.get("rope_type", "default") for entry in rope.values() if entry} - {"default"}:
        raise ValueError(f"rope_type={min(other)!r} is not supported, only 'default'; use another checkpoint")
    classifies = any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or ())
    classes = family.num_classes(config) if classifies else 0
    arguments["head_dropout"] = arguments["head_dropout"] or 0.0
    arguments["pool"] = arguments["pool"] if classes else config.get(POOLING, arguments["pool"])
    return {**arguments, "thetas": thetas, "classes": classes}


def _config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    settings = family.with_defaults(modernbert, arguments)
    classes = settings["classes"]
    return {
        "model_type": "modernbert",
        "architectures": ["ModernBertForSequenceClassification" if classes else "ModernBertModel"],
        **{key: settings[argument] for argument, (key, _) in SETTINGS.items()},
        **{key: values[0] for key, values in SUPPORTED.items() if len(values) == 1},
        **{old: theta for (old, _), theta in zip(THETAS.values(), settings["thetas"], strict=True)},
        **(family.label_names(classes) if classes else {}),
    }


def _rules(arguments: Mapping[str, Any]) -> tuple[Rule, ...]:
    block = lambda name, theirs, *rest: Rule(rf"blocks/(\d+)/{name}", f"model.layers.{{0}}.{theirs}.weight", *rest)
    return (
        Rule("embed/embedding", "model.embeddings.tok_embeddings.weight", axes=("vocabulary", "width")),
        Rule("embed_norm/scale", "model.embeddings.norm.weight", axes=("width",)),
        block("attention_norm/scale", "attn_norm", "same", ("width",)),
        block("attention/qkv/kernel", "attn.Wqkv", "linear", ("width", "")),  # heads cannot be left out
        block("attention/out/kernel", "attn.Wo", "linear", ("", "width")),
        block("mlp_norm/scale", "mlp_norm", "same", ("width",)),
        block("up/kernel", "mlp.Wi", "linear", ("width", "")),  # two kernels side by side
        block("down/kernel", "mlp.Wo", "linear", ("", "width")),
        Rule("norm/scale", "model.final_norm.weight", axes=("width",)),
        Rule("head/dense/kernel", "head.dense.weight", "linear", ("width", "width")),
        Rule("head/norm/scale", "head.norm.weight", axes=("width",)),
        Rule("head/out/kernel", "classifier.weight", "linear", ("width", "")),
        Rule("head/out/bias", "classifier.bias", axes=("",)),
    )


family.register(
    Family(
        factory=modernbert,
        model_types=("modernbert",),
        arguments=_arguments,
        config=_config,
        rules=_rules,
        prefix=r"model\.",
        fresh=r"head/.*",
        heads=HEADS,
        own_heads=("Model", "ForSequenceClassification"),
    )
)
