"""BERT (Devlin et al. 2019, arxiv.org/abs/1810.04805) and two of its kind that differ in positions and head.

RoBERTa (Liu et al. 2019, arxiv.org/abs/1907.11692) counts positions from the number of its padding token on; DistilBERT
(Sanh et al. 2019, arxiv.org/abs/1910.01108) has no token types. Post-norm blocks, learned positions.
"""

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdistill.core.collectives import by_rows
from jaxdistill.core.registry import models
from jaxdistill.core.types import Array, AttentionHeads, Model, Outputs
from jaxdistill.models.hub import family
from jaxdistill.models.hub.family import Family, Rule
from jaxdistill.models.layers import ACTIVATIONS, nudged, require_share
from jaxdistill.models.layers import dropout as drop
from jaxdistill.models.nnx import from_nnx

_normal = nnx.initializers.normal(0.02)
_linear = partial(nnx.Linear, kernel_init=_normal)
_table = partial(nnx.Embed, embedding_init=_normal)
_norm = partial(nnx.LayerNorm, use_fast_variance=False)


def _rows(table: nnx.Embed, numbers: Array) -> Array:
    """In the table's dtype, where `nnx.Embed` keeps the one it was made with. NaN for a number beyond the table."""
    return jnp.take(table.embedding.get_value(), numbers, axis=0)


class Embed(nnx.Module):
    """Tokens, their positions and their types, added up and normalised: `[batch, length, width]`.

    With a padding token, positions are counted over the other tokens and begin behind its number, as RoBERTa's do.
    """

    def __init__(self, vocabulary, positions, token_types, width, epsilon, rate, pad: int | None, *, rngs: nnx.Rngs):
        self.token, self.position = _table(vocabulary, width, rngs=rngs), _table(positions, width, rngs=rngs)
        self.type = _table(token_types, width, rngs=rngs) if token_types else None
        self.norm = _norm(width, epsilon=epsilon, rngs=rngs)
        self.limit = positions if pad is None else positions - pad - 1
        self.pad, self.rate = pad, rate

    def __call__(self, batch: Mapping[str, Array], train: bool, key: Array) -> Array:
        ids = batch["input_ids"]
        if ids.shape[1] > self.limit:
            raise ValueError(f"texts of {ids.shape[1]} tokens, and positions for {self.limit}; cut the texts")
        x = by_rows(_rows(self.token, ids)) + by_rows(_rows(self.position, self._positions(ids)))
        if self.type is not None:
            x = x + by_rows(_rows(self.type, batch.get("token_type_ids", jnp.zeros_like(ids))))
        return by_rows(drop(self.norm(by_rows(x)), self.rate, train=train, key=key))

    def _positions(self, ids: Array) -> Array:
        if self.pad is None:
            return jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        real = (ids != self.pad).astype(ids.dtype)
        return jnp.cumsum(real, axis=1) * real + self.pad


class Attention(nnx.Module):
    """Multi-head self-attention over the tokens that are `real`, `[batch, length]`.

    Its probabilities, before dropout, are formed where they are returned or dropped.
    """

    def __init__(self, width: int, heads: int, rate: float, returned: bool, *, rngs: nnx.Rngs):
        self.query, self.key, self.value, self.out = (_linear(width, width, rngs=rngs) for _ in range(4))
        self.heads, self.rate, self.returned = heads, rate, returned

    def __call__(self, x: Array, real: Array, train: bool, key: Array) -> tuple[Array, AttentionHeads]:
        split = lambda y: by_rows(y.reshape(*y.shape[:-1], self.heads, -1), tensor=-2)
        q, k, v = (split(project(x)) for project in (self.query, self.key, self.value))
        mask, weights = real[:, None, None, :], None
        if self.returned or (train and self.rate > 0):
            scores = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
            scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)  # -inf: NaN for a text without any token
            weights = by_rows(jax.nn.softmax(scores).astype(x.dtype), tensor=1)
            mixed = jnp.einsum("bhqk,bkhd->bqhd", drop(weights, self.rate, train=train, key=key), v)
        else:
            mixed = jax.nn.dot_product_attention(q, k, v, mask=mask)
        mixed = self.out(by_rows(mixed, tensor=-2).reshape(x.shape))
        return by_rows(mixed), AttentionHeads(q, k, v, weights if self.returned else None)


class Block(nnx.Module):
    """Attention and a two-layer perceptron, each added to its input and normalised after that."""

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
    """Logits from the first token through one hidden layer, whose values are the embedding."""

    def __init__(self, width, classes, activation, rate, drops_input: bool, *, rngs: nnx.Rngs):
        self.dense, self.out = _linear(width, width, rngs=rngs), _linear(width, classes, rngs=rngs)
        self.activation, self.rate, self.drops_input = activation, rate, drops_input

    def __call__(self, x: Array, real: Array, train: bool, key: Array) -> tuple[Array, Array]:
        first, second = jax.random.split(key)
        x = by_rows(x[:, 0])
        x = drop(x, self.rate, train=train, key=first) if self.drops_input else x
        pooled = by_rows(self.activation(self.dense(x)))
        return by_rows(self.out(drop(pooled, self.rate, train=train, key=second))), pooled


class Pool(nnx.Module):
    """One vector of length 1 for a text: the mean over its tokens, or the first token. It stands for logits too."""

    def __init__(self, pool: str):
        self.pool = pool

    def __call__(self, x: Array, real: Array, train: bool, key: Array) -> tuple[Array, Array]:
        counts = real if self.pool == "mean" else real & (jnp.arange(real.shape[1]) == 0)
        total = jnp.sum(jnp.where(counts[:, :, None], x.astype(jnp.float32), 0), axis=1)
        # of a sum and of a mean the direction is the same; the bound keeps the gradient of a text without tokens finite
        square = jnp.sum(total**2, axis=-1, keepdims=True)
        embedding = by_rows((total * jax.lax.rsqrt(jnp.maximum(square, 1e-24))).astype(x.dtype))
        return embedding, embedding


class Bert(nnx.Module):
    """Hidden states: the embedding, then every block, `[batch, length, width]`."""

    def __init__(self, embed: Embed, blocks: list[Block], head: Head | Pool):
        self.embed, self.blocks, self.head = embed, nnx.List(blocks), head

    def __call__(self, batch, *, train: bool, key) -> Outputs:
        real = batch.get("attention_mask", jnp.ones_like(batch["input_ids"])) > 0
        before, within, after = jax.random.split(key, 3)
        x = nudged(self.embed(batch, train, before), batch, 0)
        states, attentions = [x], []
        for number, block in enumerate(self.blocks):
            x, heads = block(x, real, train, jax.random.fold_in(within, number))
            x = nudged(x, batch, number + 1)
            states.append(x)
            attentions.append(heads)
        logits, embedding = self.head(x, real, train, after)
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
    """A text encoder over `input_ids`, `attention_mask` and, where there are types, `token_type_ids`.

    Args:
        vocabulary: how many tokens.
        width: of the residual stream.
        depth: blocks.
        heads: attention heads; they must divide the width.
        ffn: width of the perceptron inside a block.
        classes: how many logits. 0 is the embedding model: the pooled tokens at length 1 are `embedding`, and stand
            for the logits too.
        style: "roberta" counts positions from `pad + 1` on, over what is not padding; the head is that of each style:
            tanh after one layer, or relu for "distilbert".
        positions: rows of the table of positions; "roberta" leaves the first `pad + 1` to padding.
        token_types: rows of the table of types; 0 where there is none, as in "distilbert".
        pad: the number of the padding token.
        activation: inside a block. "gelu" is the exact one, "gelu_new" and "gelu_pytorch_tanh" its approximation.
        epsilon: of the norms.
        dropout: the share of the embedding and of each branch's output dropped in training.
        attention_dropout: the share of attention probabilities dropped in training, which forms them.
        head_dropout: the share of the head's inputs dropped in training.
        pool: what the embedding model pools: the mean over a text's tokens, or its first; a config does not tell.
        attentions: return the probabilities of every block, which forms them.
    """
    if heads < 1 or width % heads:
        raise ValueError(f"{heads} heads do not divide a width of {width}")
    if style == "distilbert" and (token_types or epsilon != 1e-12):
        raise ValueError(f"distilbert has token_types=0 and epsilon=1e-12; got {token_types} and {epsilon}")
    for name, share in (("dropout", dropout), ("attention_dropout", attention_dropout), ("head_dropout", head_dropout)):
        require_share(name, share)

    def make(rngs: nnx.Rngs, batch) -> Bert:
        first = pad if style == "roberta" else None
        embed = Embed(vocabulary, positions, token_types, width, epsilon, dropout, first, rngs=rngs)
        attention = lambda: Attention(width, heads, attention_dropout, attentions, rngs=rngs)
        block = lambda: Block(attention(), width, ffn, ACTIVATIONS[activation], epsilon, dropout, rngs=rngs)
        last = jax.nn.relu if style == "distilbert" else jnp.tanh
        head = Head(width, classes, last, head_dropout, style == "roberta", rngs=rngs) if classes else Pool(pool)
        return Bert(embed, [block() for _ in range(depth)], head)

    return from_nnx(make)


class Style(NamedTuple):
    """What the world calls the parts of one style. column: of the tables below; pad: where a config names none."""

    title: str
    column: int
    blocks: str
    head: tuple[str, str]
    pad: int


STYLES = {
    "bert": Style("Bert", 1, "encoder.layer", ("bert.pooler.dense", "classifier"), 0),
    "roberta": Style("Roberta", 1, "encoder.layer", ("classifier.dense", "classifier.out_proj"), 1),
    "distilbert": Style("DistilBert", 2, "transformer.layer", ("pre_classifier", "classifier"), 0),
}
SETTINGS = (  # ours, BERT's and RoBERTa's, DistilBERT's
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
# of a block: ours, BERT's and RoBERTa's, DistilBERT's, axes
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
ONLY: Mapping[str, Collection[Any]] = {  # of a config's settings, where it has them
    "hidden_act": ACTIVATIONS,
    "activation": ACTIVATIONS,
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}


def _keys(style: str) -> dict[str, str]:
    """Key of a config by our argument."""
    return {row[0]: row[STYLES[style].column] for row in SETTINGS if row[STYLES[style].column]}


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    style = config["model_type"]
    family.require(config, ONLY)
    known = {"pad_token_id": STYLES[style].pad, "classifier_dropout": config.get("hidden_dropout_prob")}
    known |= {key: value for key, value in config.items() if value is not None}
    missing = [key for key in _keys(style).values() if key not in known]
    if missing:
        raise ValueError(f"the config has no {', '.join(missing)}; add what the network was trained with")
    classifies = any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or ())
    own = {"token_types": 0} if style == "distilbert" else {}
    return own | {
        "style": style,
        "classes": family.classes(config) if classifies else 0,
        **{ours: known[theirs] for ours, theirs in _keys(style).items()},
    }


def _config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    full = family.complete(bert, arguments)
    style, labels = full["style"], full["classes"]
    return {
        "model_type": style,
        "architectures": [STYLES[style].title + ("ForSequenceClassification" if labels else "Model")],
        **{theirs: full[ours] for ours, theirs in _keys(style).items()},
        **(family.labels(labels) if labels else {}),
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
    for ours, theirs, axes in layers:
        rules.append(Rule(f"{ours}/(?:kernel|scale)", f"{theirs}.weight", "linear" if len(axes) > 1 else "same", axes))
        rules.append(Rule(f"{ours}/bias", f"{theirs}.bias", axes=axes[-1:]))
    return tuple(rules)


family.add(
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
