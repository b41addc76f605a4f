"""BERT (Devlin et al. 2019, arxiv.org/abs/1810.04805), with RoBERTa, ELECTRA, DistilBERT and others as variants.

All are text encoders with post-norm blocks and learned position embeddings. RoBERTa (Liu et al. 2019,
arxiv.org/abs/1907.11692) numbers positions from the id of its padding token plus 1; XLM-RoBERTa (Conneau et al. 2020,
arxiv.org/abs/1911.02116) and CamemBERT (Martin et al. 2020, arxiv.org/abs/1911.03894) are RoBERTa in other languages,
with tokenizers and config names of their own. ELECTRA (Clark et al. 2020, arxiv.org/abs/2003.10555) is BERT with
narrower embeddings. DistilBERT (Sanh et al. 2019, arxiv.org/abs/1910.01108) has no token types. The classification
heads differ too. The network itself is in `bert_network.py`.
"""

from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdistill.core.interfaces import Model
from jaxdistill.core.registry import models
from jaxdistill.core.types import RowsLike
from jaxdistill.models.bert_network import Bert, Block, Embed, Head, Pool
from jaxdistill.models.hub import family
from jaxdistill.models.hub.family import OWN_PREFIX, POOLING, Family, Rule
from jaxdistill.models.layers import ACTIVATIONS, require_dropout_rate
from jaxdistill.models.nnx import from_nnx
from jaxdistill.models.transformer import Stack, weight_and_bias_rules


@models.register
def bert(
    vocabulary: int,
    width: int,
    depth: int,
    heads: int,
    ffn: int,
    classes: int,
    style: Literal["bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert"] = "bert",
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
    head_size: int | None = None,
    tokens: int | None = None,
    embedding: int | None = None,
) -> Model:
    """Build a BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA or DistilBERT encoder.

    The model reads `input_ids`, `attention_mask` and, if `token_types > 0`, `token_type_ids`, all `[batch, length]`.

    Args:
        vocabulary: number of tokens in the vocabulary.
        width: width of the residual stream.
        depth: number of blocks.
        heads: number of attention heads; must divide the width if `head_size` is None.
        ffn: width of the perceptron inside a block.
        classes: number of classes. 0 builds a sentence embedding model instead of a classifier: the pooled token
            vector, scaled to unit norm, is both embedding and logits.
        style: architecture. "roberta" numbers positions from `pad + 1` and skips padding; "xlm-roberta" and "camembert"
            do the same. The activation of the classification head is relu for "distilbert", gelu for "electra", else
            tanh.
        positions: number of rows of the position table; "roberta" reserves the first `pad + 1` of these rows for
            padding.
        token_types: number of rows of the token type table; 0 builds no such table; "distilbert" requires 0.
        pad: id of the padding token.
        activation: activation inside a block. "gelu" is exact; "gelu_new" and "gelu_pytorch_tanh" approximate it.
        epsilon: value added to the variance in the layer norms.
        dropout: dropout rate of the embeddings, and of the output of each attention layer and perceptron.
        attention_dropout: dropout rate of the attention probabilities; above 0, training keeps these in memory.
        head_dropout: dropout rate in the classification head.
        pool: pooling of the sentence embedding model: "mean", or "cls" (first token); not in Hugging Face configs.
        attentions: return the attention probabilities of every block, which takes additional memory.
        head_size: number of units of an attention head; None means width / heads, the only number that the library
            transformers supports.
        tokens: number of token ids of the tokenizer, if it is larger than `vocabulary`. Several tokens then share a row
            of the embedding table, as `cut(vocabulary=...)` decides; the library transformers has no such model. None
            means that each token has its own row.
        embedding: width of the embeddings, if it differs from `width`: a linear layer then projects them to `width`;
            only for "electra". None means `width`.

    Raises:
        ValueError: `embedding` is the width or set for another style, `tokens` are fewer than the vocabulary, the heads
            do not divide the width, "distilbert" has token types or an epsilon other than 1e-12, or a dropout rate is
            out of range.
    """
    stack = Stack(
        width=width,
        depth=depth,
        heads=heads,
        ffn=ffn,
        dropout=dropout,
        activation=activation,
        epsilon=epsilon,
        bias=True,
        attentions=attentions,
        head_size=head_size,
    )
    stack.validate()
    if style == "distilbert" and (token_types or epsilon != 1e-12):
        raise ValueError(f"style='distilbert' needs token_types=0 and epsilon=1e-12; got {token_types} and {epsilon}")
    if embedding is not None and style != "electra":
        raise ValueError(f"embedding={embedding} is an argument of style='electra'; leave it out for {style!r}")
    if embedding == width:
        raise ValueError(
            f"embedding={embedding} is the width, between which nothing is projected; choose another width"
        )
    if tokens is not None and tokens < vocabulary:
        raise ValueError(f"tokens={tokens} are fewer than vocabulary={vocabulary}")
    for name, rate in (("attention_dropout", attention_dropout), ("head_dropout", head_dropout)):
        require_dropout_rate(name, rate)

    def make(rngs: nnx.Rngs, batch: RowsLike) -> Bert:
        roberta = STYLES[style].base == "roberta"
        pad_row = pad if roberta else None
        embed = Embed(stack, vocabulary, positions, token_types, pad_row, tokens, embedding, rngs=rngs)
        head_activation = {"distilbert": jax.nn.relu, "electra": ACTIVATIONS["gelu"]}.get(style, jnp.tanh)
        drops_input = roberta or style == "electra"
        head = Head(width, classes, head_activation, head_dropout, drops_input, rngs=rngs) if classes else Pool(pool)
        return Bert(embed, [Block(stack, attention_dropout, rngs=rngs) for _ in range(depth)], head)

    return from_nnx(make)


class Style(NamedTuple):
    """The names and defaults that Hugging Face checkpoints have for one variant of BERT, such as RoBERTa."""

    base: str  # prefix of the names of the arrays
    title: str  # prefix of the architecture's class name
    blocks: str  # name of the list of blocks
    head: tuple[str, str]  # names of the two layers of the classification head
    pad: int  # id of the padding token if the config does not set one


ROBERTA_HEAD = ("classifier.dense", "classifier.out_proj")
STYLES = {
    "bert": Style("bert", "Bert", "encoder.layer", ("bert.pooler.dense", "classifier"), 0),
    "roberta": Style("roberta", "Roberta", "encoder.layer", ROBERTA_HEAD, 1),
    "xlm-roberta": Style("roberta", "XLMRoberta", "encoder.layer", ROBERTA_HEAD, 1),
    "camembert": Style("roberta", "Camembert", "encoder.layer", ROBERTA_HEAD, 1),
    "electra": Style("electra", "Electra", "encoder.layer", ROBERTA_HEAD, 0),
    "distilbert": Style("distilbert", "DistilBert", "transformer.layer", ("pre_classifier", "classifier"), 0),
}


class Setting(NamedTuple):
    """An argument of `bert`, and its Hugging Face config key for BERT and for DistilBERT ("" if there is none)."""

    argument: str
    bert: str  # all but DistilBERT
    distilbert: str


class Part(NamedTuple):
    """A layer of a transformer block: its name here, for BERT and for DistilBERT checkpoints, and its weight's axes."""

    layer: str
    bert: str  # all but DistilBERT
    distilbert: str
    axes: tuple[str, ...]


SETTINGS = (
    Setting("vocabulary", "vocab_size", "vocab_size"),
    Setting("width", "hidden_size", "dim"),
    Setting("depth", "num_hidden_layers", "n_layers"),
    Setting("heads", "num_attention_heads", "n_heads"),
    Setting("ffn", "intermediate_size", "hidden_dim"),
    Setting("positions", "max_position_embeddings", "max_position_embeddings"),
    Setting("token_types", "type_vocab_size", ""),
    Setting("pad", "pad_token_id", "pad_token_id"),
    Setting("activation", "hidden_act", "activation"),
    Setting("epsilon", "layer_norm_eps", ""),
    Setting("dropout", "hidden_dropout_prob", "dropout"),
    Setting("attention_dropout", "attention_probs_dropout_prob", "attention_dropout"),
    Setting("head_dropout", "classifier_dropout", "seq_classif_dropout"),
)
PARTS = (
    Part("attention/query", "attention.self.query", "attention.q_lin", ("width", "heads")),
    Part("attention/key", "attention.self.key", "attention.k_lin", ("width", "heads")),
    Part("attention/value", "attention.self.value", "attention.v_lin", ("width", "heads")),
    Part("attention/out", "attention.output.dense", "attention.out_lin", ("heads", "width")),
    Part("attention_norm", "attention.output.LayerNorm", "sa_layer_norm", ("width",)),
    Part("up", "intermediate.dense", "ffn.lin1", ("width", "ffn")),
    Part("down", "output.dense", "ffn.lin2", ("ffn", "width")),
    Part("mlp_norm", "output.LayerNorm", "output_layer_norm", ("width",)),
)
SUPPORTED: Mapping[str, Collection[Any]] = {  # config keys, and the values that `bert` supports
    "hidden_act": ACTIVATIONS,
    "activation": ACTIVATIONS,
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}


HEADS: Mapping[str, str] = {  # end of an architecture's name -> regex of the arrays that only this architecture has
    "Model": r"pooler\..*",
    "ForSequenceClassification": r"(?:pooler|pre_classifier|classifier)\..*",
    "ForMultipleChoice": r"(?:pooler|pre_classifier|classifier)\..*",
    "ForTokenClassification": r"(?:pooler|classifier)\..*",
    "ForQuestionAnswering": r"(?:pooler|qa_outputs)\..*",
    "ForMaskedLM": r"(?:pooler|cls|lm_head|vocab_\w+|generator_\w+)\..*",
    "LMHeadModel": r"(?:pooler|cls|lm_head)\..*",
    "ForPreTraining": r"(?:pooler|cls|discriminator_predictions)\..*",
    "ForNextSentencePrediction": r"(?:pooler|cls)\..*",
}


def _keys(style: str) -> dict[str, str]:
    """Return a dict from each argument of `bert` to its Hugging Face config key, for a variant such as "roberta"."""
    keys = {row.argument: row.distilbert if style == "distilbert" else row.bert for row in SETTINGS}
    return {argument: key for argument, key in keys.items() if key}


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    style = config["model_type"].removeprefix(OWN_PREFIX)
    family.require_supported(config, SUPPORTED)
    settings = {"pad_token_id": STYLES[style].pad, "classifier_dropout": config.get("hidden_dropout_prob")}
    settings |= {key: value for key, value in config.items() if value is not None}
    missing = [key for key in _keys(style).values() if key not in settings]
    if missing:
        raise ValueError(f"the config has no {', '.join(missing)}; add the values that the model was trained with")
    classifies = any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or ())
    classes = family.num_classes(config) if classifies else 0
    fixed: dict[str, Any] = {"token_types": 0} if style == "distilbert" else {}
    if config["model_type"].startswith(OWN_PREFIX):
        fixed["head_size"] = config["head_dim"]
    if style == "electra" and (size := config.get("embedding_size", 128)) != config["hidden_size"]:
        fixed["embedding"] = size
    if POOLING in config:
        fixed["pool"] = config[POOLING]
    return fixed | {"style": style, "classes": classes} | {name: settings[key] for name, key in _keys(style).items()}


def _config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    settings = family.with_defaults(bert, arguments)
    style, classes, head_size = settings["style"], settings["classes"], settings["head_size"]
    added = {"model_type": OWN_PREFIX + style, "head_dim": head_size} if head_size else {}
    return {
        "model_type": style,
        **added,
        "architectures": [STYLES[style].title + ("ForSequenceClassification" if classes else "Model")],
        **{key: settings[argument] for argument, key in _keys(style).items()},
        **({"embedding_size": settings["embedding"] or settings["width"]} if style == "electra" else {}),
        **(family.label_names(classes) if classes else {}),
    }


def _rules(arguments: Mapping[str, Any]) -> tuple[Rule, ...]:
    name = arguments.get("style", "bert")
    style = STYLES[name]
    embeddings, width = f"{style.base}.embeddings", "" if arguments.get("embedding") else "width"
    layers: list[tuple[str, str, tuple[str, ...]]] = [
        ("embed/norm", f"{embeddings}.LayerNorm", (width,)),
        ("embed/project", f"{style.base}.embeddings_project", ("", "width")),
        ("head/dense", style.head[0], ("width", "width")),
        ("head/out", style.head[1], ("width", "")),
    ]
    for part in PARTS:
        hf_part = part.distilbert if name == "distilbert" else part.bert
        layers.append((rf"blocks/(\d+)/{part.layer}", f"{style.base}.{style.blocks}.{{0}}.{hf_part}", part.axes))
    return (
        Rule("embed/token/embedding", f"{embeddings}.word_embeddings.weight", axes=("vocabulary", width)),
        Rule("embed/position/embedding", f"{embeddings}.position_embeddings.weight", axes=("", width)),
        Rule("embed/type/embedding", f"{embeddings}.token_type_embeddings.weight", axes=("", width)),
        *(rule for layer in layers for rule in weight_and_bias_rules(*layer)),
    )


family.register(
    Family(
        factory=bert,
        model_types=(*STYLES, *(OWN_PREFIX + style for style in STYLES)),
        arguments=_arguments,
        config=_config,
        rules=_rules,
        prefix=r"(?:distil)?bert\.|roberta\.|electra\.",
        fresh=r"head/.*",
        ignored=r"embeddings\.position_ids",
        heads=HEADS,
        own_heads=("Model", "ForSequenceClassification"),
    )
)
