"""Tiny BERT models, variants of BERT, and ModernBERT of transformers, on texts of uneven lengths."""

import json
from functools import partial

import numpy as np
from weights import tokens

VOCABULARY, LENGTHS = 60, (9, 4, 7, 1)
BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
    "num_labels": 3,
}
DISTILBERT = {"vocab_size": VOCABULARY, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "num_labels": 3}


def inputs(pad: int, types: int = 1) -> dict[str, np.ndarray]:
    """Draw texts, padded at the end by a token that none contains; the second half of each has the last type."""
    real = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    ids = 2 + tokens(len(LENGTHS), max(LENGTHS), VOCABULARY - 2)
    found = {"input_ids": np.where(real, ids, pad).astype(np.int32), "attention_mask": real.astype(np.int32)}
    if types > 1:
        second = np.arange(max(LENGTHS)) >= np.array(LENGTHS)[:, None] // 2
        found["token_type_ids"] = ((types - 1) * (second & real)).astype(np.int32)
    return found


def reference(kind, config, batch, **outputs):
    """Return the arguments of `record.keep`; logits of a model without a head are the normalised mean of its tokens."""
    import torch

    model = kind._from_config(config, attn_implementation="eager")
    config.architectures = [kind.__name__]
    given = {name: torch.from_numpy(x).long() for name, x in batch.items()}

    def run():
        out = model(**given, output_hidden_states=True, **outputs)
        if "logits" in out:
            found = {"logits": out.logits}
        else:
            real = given["attention_mask"][:, :, None].float()
            mean = (out.last_hidden_state * real).sum(1) / real.sum(1).clamp(min=1e-9)
            embedding = torch.nn.functional.normalize(mean)
            found = {"logits": embedding, "embedding": embedding}
        found |= {f"hidden/{i}": x for i, x in enumerate(out.hidden_states)}
        return found | {f"attention/{i}": x for i, x in enumerate(out.attentions or ())}

    return model, json.loads(config.to_json_string()), batch, run


def bert_classifier():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(**BERT)
    return reference(BertForSequenceClassification, config, inputs(pad=0, types=2), output_attentions=True)


def bert_embedding():
    from transformers import BertConfig, BertModel

    config = BertConfig(**BERT | {"num_hidden_layers": 3, "hidden_act": "gelu_new"})
    return reference(BertModel, config, inputs(pad=0))


def roberta_classifier():
    from transformers import RobertaConfig, RobertaForSequenceClassification

    config = RobertaConfig(**BERT, type_vocab_size=1, layer_norm_eps=1e-5)
    return reference(RobertaForSequenceClassification, config, inputs(pad=1))


def distilbert_classifier():
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(**DISTILBERT, max_position_embeddings=16)
    return reference(DistilBertForSequenceClassification, config, inputs(pad=0))


def of_roberta(name):
    import transformers

    config = getattr(transformers, f"{name}Config")(**BERT, type_vocab_size=1, layer_norm_eps=1e-5)
    return reference(getattr(transformers, f"{name}ForSequenceClassification"), config, inputs(pad=1))


MODERNBERT = {key: value for key, value in BERT.items() if key != "max_position_embeddings"}
MODERNBERT |= {"num_hidden_layers": 4, "pad_token_id": 0, "local_attention": 4, "max_position_embeddings": 32}


def modernbert_classifier(pool):
    from transformers import ModernBertConfig, ModernBertForSequenceClassification

    config = ModernBertConfig(**MODERNBERT, classifier_pooling=pool)
    return reference(ModernBertForSequenceClassification, config, inputs(pad=0), output_attentions=True)


def modernbert_embedding():
    from transformers import ModernBertConfig, ModernBertModel

    config = ModernBertConfig(**MODERNBERT | {"local_attention": 6, "classifier_pooling": "mean"})
    return reference(ModernBertModel, config, inputs(pad=0))


def electra(name, **settings):
    import transformers

    config = transformers.ElectraConfig(**BERT | {"embedding_size": 24, **settings})
    return reference(getattr(transformers, name), config, inputs(pad=0, types=2))


REFERENCES = {
    "electra_classifier": partial(electra, "ElectraForSequenceClassification"),
    "electra_embedding": partial(electra, "ElectraModel", embedding_size=32),
    "xlm_roberta_classifier": partial(of_roberta, "XLMRoberta"),
    "camembert_classifier": partial(of_roberta, "Camembert"),
    "modernbert_cls": partial(modernbert_classifier, "cls"),
    "modernbert_mean": partial(modernbert_classifier, "mean"),
    "modernbert_embedding": modernbert_embedding,
    "bert_classifier": bert_classifier,
    "bert_embedding": bert_embedding,
    "roberta_classifier": roberta_classifier,
    "distilbert_classifier": distilbert_classifier,
}
