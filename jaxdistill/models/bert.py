"""BERT (Devlin et al. 2019, arxiv.org/abs/1810.04805), with RoBERTa and DistilBERT as variants.

All three are text encoders with post-norm blocks and learned position embeddings. RoBERTa (Liu et al. 2019,
arxiv.org/abs/1907.11692) numbers positions from the id of its padding token plus 1. DistilBERT (Sanh et al. 2019,
arxiv.org/abs/1910.01108) has no token types. The classification heads differ too.
"""

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdistill.core.collectives import by_rows
from jaxdistill.core.interfaces import Model
from jaxdistill.core.registry import models
from jaxdistill.core.types import Array, AttentionHeads, Outputs, RowsLike
from jaxdistill.models.hub import family
from jaxdistill.models.hub.family import Family, Layout, Rule
from jaxdistill.models.layers import ACTIVATIONS, nudged, require_dropout_rate
from jaxdistill.models.layers import dropout as drop
from jaxdistill.models.nnx import from_nnx

_normal = nnx.initializers.normal(0.02)
_linear = partial(nnx.Linear, kernel_init=_normal)
_table = partial(nnx.Embed, embedding_init=_normal)
_norm = partial(nnx.LayerNorm, use_fast_variance=False)


def _lookup(table: nnx.Embed, ids: Array) -> Array:
    """Look up the embedding of each id, `[*ids.shape, width]`; an id outside the table gives NaN.

    The result has the table's current dtype. Calling `nnx.Embed` would cast it to the dtype of the table's creation.
    """
    return jnp.take(table.embedding.get_value(), ids, axis=0)


class Embed(nnx.Module):
    """The embedding layer: the normalised sum of token, position and token type embeddings, then dropout at `rate`.

    If `pad` is set (RoBERTa), real tokens are numbered from `pad + 1`, and padding tokens have the position `pad`.
    """

    def __init__(self, vocabulary, positions, token_types, width, epsilon, rate, pad: int | None, *, rngs: nnx.Rngs):
        self.token, self.position = _table(vocabulary, width, rngs=rngs), _table(positions, width, rngs=rngs)
        self.type = _table(token_types, width, rngs=rngs) if token_types else None
        self.norm = _norm(width, epsilon=epsilon, rngs=rngs)
        self.limit = positions if pad is None else positions - pad - 1
        self.pad, self.rate = pad, rate

    def __call__(self, batch: RowsLike, train: bool, key: Array) -> Array:
        ids = batch["input_ids"]
        if ids.shape[1] > self.limit:
            raise ValueError(f"texts of {ids.shape[1]} tokens exceed the {self.limit} positions; truncate the texts")
        x = by_rows(_lookup(self.token, ids)) + by_rows(_lookup(self.position, self._positions(ids)))
        if self.type is not None:
            x = x + by_rows(_lookup(self.type, batch.get("token_type_ids", jnp.zeros_like(ids))))
        return by_rows(drop(self.norm(by_rows(x)), self.rate, train=train, key=key))

    def _positions(self, ids: Array) -> Array:
        """Return the row of the position table for every token, `[batch, length]`."""
        if self.pad is None:
            return jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        real = (ids != self.pad).astype(ids.dtype)
        return jnp.cumsum(real, axis=1) * real + self.pad


class Attention(nnx.Module):
    """Multi-head self-attention, `[batch, length, width] -> [batch, length, width]`.

    `real` `[batch, length]` is false for padding. The attention probabilities, before dropout, are returned if
    `return_probabilities` is true. They take memory only then, or if dropout applies to them (`rate` above 0).
    """

    def __init__(self, width: int, heads: int, rate: float, return_probabilities: bool, *, rngs: nnx.Rngs):
        self.query, self.key, self.value, self.out = (_linear(width, width, rngs=rngs) for _ in range(4))
        self.heads, self.rate, self.return_probabilities = heads, rate, return_probabilities

    def __call__(self, x: Array, real: Array, train: bool, key: Array) -> tuple[Array, AttentionHeads]:
        split = lambda y: by_rows(y.reshape(*y.shape[:-1], self.heads, -1), tensor=-2)
        q, k, v = (split(project(x)) for project in (self.query, self.key, self.value))  # [batch, length, heads, d]
        mask, weights = real[:, None, None, :], None
        if self.return_probabilities or (train and self.rate > 0):
            scores = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
            scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)  # -inf would give NaN for an empty text
            weights = by_rows(jax.nn.softmax(scores).astype(x.dtype), tensor=1)
            mixed = jnp.einsum("bhqk,bkhd->bqhd", drop(weights, self.rate, train=train, key=key), v)
        else:
            mixed = jax.nn.dot_product_attention(q, k, v, mask=mask)
        mixed = self.out(by_rows(mixed, tensor=-2).reshape(x.shape))
        return by_rows(mixed), AttentionHeads(q, k, v, weights if self.return_probabilities else None)


class Block(nnx.Module):
    """A post-norm transformer block: attention, then a perceptron, each with a residual addition and then a norm."""

    def __init__(self, attention: Attention, width, ffn, activation, epsilon, rate, *, rngs: nnx.Rngs):
        self.attention = attention
        self.attention_norm, self.mlp_norm = (_norm(width, epsilon=epsilon, rngs=rngs) for _ in range(2))
        self.up, self.down = _linear(width, ffn, rngs=rngs), _linear(ffn, width, rngs=rngs)
        self.activation, self.rate = activation, rate

    def __call__(self, x: Array, real: Array, train: bool, key: Array) -> tuple[Array, AttentionHeads]:
        first, second, third = jax.random.split(key, 3)
        mixed, heads = self.attention(x, real, train, first)
        x = by_rows(self.attention_norm(x + drop(mixed, self.rate, train=train, key=second)))
        y = by_rows(self.down(by_rows(self.activation(self.up(x)), tensor=-1)))
        return by_rows(self.mlp_norm(x + drop(y, self.rate, train=train, key=third))), heads


class Head(nnx.Module):
    """The classification head: a hidden layer on the first token, then dropout and the logits layer.

    Returns the logits, `[batch, classes]`, and the output of the hidden layer, `[batch, width]`, which is the
    embedding. If `drop_input` is true, dropout is also applied before the hidden layer.
    """

    def __init__(self, width, classes, activation, rate, drop_input: bool, *, rngs: nnx.Rngs):
        self.dense, self.out = _linear(width, width, rngs=rngs), _linear(width, classes, rngs=rngs)
        self.activation, self.rate, self.drop_input = activation, rate, drop_input

    def __call__(self, x: Array, real: Array, train: bool, key: Array) -> tuple[Array, Array]:
        first, second = jax.random.split(key)
        x = by_rows(x[:, 0])  # [batch, width]
        x = drop(x, self.rate, train=train, key=first) if self.drop_input else x
        pooled = by_rows(self.activation(self.dense(x)))
        return by_rows(self.out(drop(pooled, self.rate, train=train, key=second))), pooled


class Pool(nnx.Module):
    """The head of a sentence embedding model: the mean over the tokens, or the first token ("cls"), at unit norm.

    This vector, `[batch, width]`, is returned twice: as the logits and as the embedding.
    """

    def __init__(self, pool: str):
        self.pool = pool

    def __call__(self, x: Array, real: Array, train: bool, key: Array) -> tuple[Array, Array]:
        pooled = real if self.pool == "mean" else real & (jnp.arange(real.shape[1]) == 0)
        total = jnp.sum(jnp.where(pooled[:, :, None], x.astype(jnp.float32), 0), axis=1)  # [batch, width]
        # A sum and a mean have the same direction. The lower bound keeps the gradient finite for an empty text
        square = jnp.sum(total**2, axis=-1, keepdims=True)
        embedding = by_rows((total * jax.lax.rsqrt(jnp.maximum(square, 1e-24))).astype(x.dtype))
        return embedding, embedding


class Bert(nnx.Module):
    """A BERT encoder; hidden states are the outputs of embedding layer and blocks, `[batch, length, width]` each."""

    def __init__(self, embed: Embed, blocks: list[Block], head: Head | Pool):
        self.embed, self.blocks, self.head = embed, nnx.List(blocks), head

    def __call__(self, batch, *, train: bool, key) -> Outputs:
        real = batch.get("attention_mask", jnp.ones_like(batch["input_ids"])) > 0
        embed_key, block_key, head_key = jax.random.split(key, 3)
        x = nudged(self.embed(batch, train, embed_key), batch, 0)
        states, attentions = [x], []
        for number, block in enumerate(self.blocks):
            x, heads = block(x, real, train, jax.random.fold_in(block_key, number))
            x = nudged(x, batch, number + 1)
            states.append(x)
            attentions.append(heads)
        logits, embedding = self.head(x, real, train, head_key)
        return Outputs(logits, tuple(states), tuple(attentions), embedding)


@models.register
def bert(
    vocabulary: int,
    width: int,
    depth: int,
    heads: int,
    ffn: int,
    classes: int,
    style: Literal["bert", "roberta", "distilbert"] = "bert",
    positions: int = 512,
    token_types: int = 2,
    pad: int = 0,
    activation: Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"] = "gelu",
    epsilon: float = 1e-12,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    head_dropout: float = 0.0,
    pool: Literal["mean", "cls"] = "mean",
    attentions: bool = False,
) -> Model:
    """Build a BERT, RoBERTa or DistilBERT encoder.

    The model reads `input_ids`, `attention_mask` and, if `token_types > 0`, `token_type_ids`, all `[batch, length]`.

    Args:
        vocabulary: number of tokens in the vocabulary.
        width: width of the residual stream.
        depth: number of blocks.
        heads: number of attention heads; must divide the width.
        ffn: width of the perceptron inside a block.
        classes: number of classes. 0 builds a sentence embedding model instead of a classifier: the pooled token
            vector, scaled to unit norm, is both embedding and logits.
        style: architecture. "roberta" numbers positions from `pad + 1` and skips padding. The activation of the
            classification head is relu for "distilbert", else tanh.
        positions: rows of the position table; "roberta" reserves the first `pad + 1` of these rows for padding.
        token_types: rows of the token type table; 0 builds no such table, which "distilbert" requires.
        pad: id of the padding token.
        activation: activation inside a block. "gelu" is exact; "gelu_new" and "gelu_pytorch_tanh" approximate it.
        epsilon: value added to the variance in the layer norms.
        dropout: dropout rate of the embeddings, and of the output of each attention layer and perceptron.
        attention_dropout: dropout rate of the attention probabilities; above 0, training keeps these in memory.
        head_dropout: dropout rate in the classification head.
        pool: pooling of the sentence embedding model: "mean", or "cls" (first token); not in Hugging Face configs.
        attentions: return the attention probabilities of every block, which takes additional memory.

    Raises:
        ValueError: the heads do not divide the width, "distilbert" has token types or an epsilon other than 1e-12, or a
            dropout rate is out of range.
    """
    if heads < 1 or width % heads:
        raise ValueError(f"heads={heads} does not divide width={width}; choose a divisor")
    if style == "distilbert" and (token_types or epsilon != 1e-12):
        raise ValueError(f"style='distilbert' needs token_types=0 and epsilon=1e-12; got {token_types} and {epsilon}")
    for name, rate in (("dropout", dropout), ("attention_dropout", attention_dropout), ("head_dropout", head_dropout)):
        require_dropout_rate(name, rate)

    def make(rngs: nnx.Rngs, batch) -> Bert:
        roberta = style == "roberta"
        embed = Embed(vocabulary, positions, token_types, width, epsilon, dropout, pad if roberta else None, rngs=rngs)
        attention = lambda: Attention(width, heads, attention_dropout, attentions, rngs=rngs)
        block = lambda: Block(attention(), width, ffn, ACTIVATIONS[activation], epsilon, dropout, rngs=rngs)
        head_activation = jax.nn.relu if style == "distilbert" else jnp.tanh
        head = Head(width, classes, head_activation, head_dropout, roberta, rngs=rngs) if classes else Pool(pool)
        return Bert(embed, [block() for _ in range(depth)], head)

    return from_nnx(make)


class Style(NamedTuple):
    """The names and defaults in Hugging Face checkpoints of one style: BERT, RoBERTa or DistilBERT."""

    title: str  # prefix of the architecture's class name
    column: int  # index of the style's column in `SETTINGS` and `PARTS`
    blocks: str  # name of the list of blocks
    head: tuple[str, str]  # names of the two layers of the classification head
    pad: int  # id of the padding token if the config does not set one


STYLES = {
    "bert": Style("Bert", 1, "encoder.layer", ("bert.pooler.dense", "classifier"), 0),
    "roberta": Style("Roberta", 1, "encoder.layer", ("classifier.dense", "classifier.out_proj"), 1),
    "distilbert": Style("DistilBert", 2, "transformer.layer", ("pre_classifier", "classifier"), 0),
}
SETTINGS = (  # argument of `bert`, config key of BERT and RoBERTa, config key of DistilBERT
    ("vocabulary", "vocab_size", "vocab_size"),
    ("width", "hidden_size", "dim"),
    ("depth", "num_hidden_layers", "n_layers"),
    ("heads", "num_attention_heads", "n_heads"),
    ("ffn", "intermediate_size", "hidden_dim"),
    ("positions", "max_position_embeddings", "max_position_embeddings"),
    ("token_types", "type_vocab_size", ""),
    ("pad", "pad_token_id", "pad_token_id"),
    ("activation", "hidden_act", "activation"),
    ("epsilon", "layer_norm_eps", ""),
    ("dropout", "hidden_dropout_prob", "dropout"),
    ("attention_dropout", "attention_probs_dropout_prob", "attention_dropout"),
    ("head_dropout", "classifier_dropout", "seq_classif_dropout"),
)
# Layers of a block: our name, name in BERT and RoBERTa, name in DistilBERT, axes
PARTS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("attention/query", "attention.self.query", "attention.q_lin", ("width", "heads")),
    ("attention/key", "attention.self.key", "attention.k_lin", ("width", "heads")),
    ("attention/value", "attention.self.value", "attention.v_lin", ("width", "heads")),
    ("attention/out", "attention.output.dense", "attention.out_lin", ("heads", "width")),
    ("attention_norm", "attention.output.LayerNorm", "sa_layer_norm", ("width",)),
    ("up", "intermediate.dense", "ffn.lin1", ("width", "ffn")),
    ("down", "output.dense", "ffn.lin2", ("ffn", "width")),
    ("mlp_norm", "output.LayerNorm", "output_layer_norm", ("width",)),
)
SUPPORTED: Mapping[str, Collection[Any]] = {  # config keys, and the values that `bert` supports
    "hidden_act": ACTIVATIONS,
    "activation": ACTIVATIONS,
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}


def _keys(style: str) -> dict[str, str]:
    """Map each argument of `bert` to its Hugging Face config key."""
    return {row[0]: row[STYLES[style].column] for row in SETTINGS if row[STYLES[style].column]}


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    style = config["model_type"]
    family.require_supported(config, SUPPORTED)
    settings = {"pad_token_id": STYLES[style].pad, "classifier_dropout": config.get("hidden_dropout_prob")}
    settings |= {key: value for key, value in config.items() if value is not None}
    missing = [key for key in _keys(style).values() if key not in settings]
    if missing:
        raise ValueError(f"the config has no {', '.join(missing)}; add the values that the model was trained with")
    classifies = any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or ())
    classes = family.num_classes(config) if classifies else 0
    fixed = {"token_types": 0} if style == "distilbert" else {}
    return fixed | {"style": style, "classes": classes} | {name: settings[key] for name, key in _keys(style).items()}


def _config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    settings = family.with_defaults(bert, arguments)
    style, classes = settings["style"], settings["classes"]
    return {
        "model_type": style,
        "architectures": [STYLES[style].title + ("ForSequenceClassification" if classes else "Model")],
        **{key: settings[argument] for argument, key in _keys(style).items()},
        **(family.label_names(classes) if classes else {}),
    }


def _rules(arguments: Mapping[str, Any]) -> tuple[Rule, ...]:
    name = arguments.get("style", "bert")
    style, embeddings = STYLES[name], f"{name}.embeddings"
    layers: list[tuple[str, str, tuple[str, ...]]] = [
        ("embed/norm", f"{embeddings}.LayerNorm", ("width",)),
        ("head/dense", style.head[0], ("width", "width")),
        ("head/out", style.head[1], ("width", "")),
        *((rf"blocks/(\d+)/{row[0]}", f"{name}.{style.blocks}.{{0}}.{row[style.column]}", row[3]) for row in PARTS),
    ]
    rules = [
        Rule("embed/token/embedding", f"{embeddings}.word_embeddings.weight", axes=("vocabulary", "width")),
        Rule("embed/position/embedding", f"{embeddings}.position_embeddings.weight", axes=("", "width")),
        Rule("embed/type/embedding", f"{embeddings}.token_type_embeddings.weight", axes=("", "width")),
    ]
    for layer, hf_layer, axes in layers:
        layout: Layout = "linear" if len(axes) > 1 else "same"
        rules.append(Rule(f"{layer}/(?:kernel|scale)", f"{hf_layer}.weight", layout, axes))
        rules.append(Rule(f"{layer}/bias", f"{hf_layer}.bias", axes=axes[-1:]))
    return tuple(rules)


family.register(
    Family(
        bert,
        tuple(STYLES),
        _arguments,
        _config,
        _rules,
        prefix=r"(?:distil)?bert\.|roberta\.",
        fresh=r"head/.*",
        ignored=r"embeddings\.position_ids|(?:cls|pooler|lm_head|vocab_\w+|pre_classifier|classifier|qa_outputs)\..*",
    )
)
