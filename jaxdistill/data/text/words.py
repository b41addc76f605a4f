"""Augmentation of text on the host: tokens replaced, whole batches in numpy."""

import numpy as np

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.registry import transforms
from jaxdistill.data.stream import Batch, Transform
from jaxdistill.data.text import tokenizer as tokenizers


@transforms.register
def replace_tokens(share: float, length: int, tokenizer: str, by: str = "") -> Transform:
    """Replaces each token with probability `share`, by one that stands for nothing or by any other: text for a teacher.

    Special tokens and padding stay, and no special token is drawn. Teacher and student see the same text, and what it
    says now only the teacher knows: `label` stays what it was, so that its loss is one of a damaged text.

    Args:
        share: from 0 to 1.
        length: tokens of a row, as of `data.tokens`.
        tokenizer: as of `data.tokens`, whose special tokens these are.
        by: a token such as `[MASK]`; empty: each of the vocabulary is as likely.

    Raises:
        ValueError: `share` or `length` is out of range, or there is no such tokenizer.
        ConfigError: no such token; on a batch without tokens, of another length, or with those of a second tokenizer.

    References:
        Tang et al.: Distilling task-specific knowledge from BERT into simple neural networks, 2019: masks one word in
        ten. https://arxiv.org/abs/1903.12136
    """
    if not 0 <= share <= 1 or length < 1:
        raise ValueError(f"share {share} lies between 0 and 1, length {length} is 1 or more.")
    loaded = tokenizers.load(tokenizers.find(tokenizer))
    special = tokenizers.special(loaded)
    words = np.setdiff1d(sorted(loaded.get_vocab().values()), special).astype(np.int32)
    substitutes = np.array([tokenizers.number(loaded, by)], np.int32) if by else words

    def apply(batch: Batch, uniforms: np.ndarray) -> Batch:
        ids = _ids(batch, length)
        real = batch.get("attention_mask", batch.get("segment_ids", np.ones_like(ids))) != 0
        replaced = real & (uniforms < share) & np.isin(ids, words)
        # below the share, what is drawn is uniform still: the same number says which
        place = np.minimum(uniforms / max(share, 2.0**-53) * len(substitutes), len(substitutes) - 1)
        drawn = substitutes[place.astype(int)]
        return batch | {"input_ids": np.where(replaced, drawn, ids).astype(ids.dtype)}

    return Transform(length, apply)


def _ids(batch: Batch, length: int) -> np.ndarray:
    ids = batch.get("input_ids")
    if ids is None:
        found = f"the batch has {', '.join(batch)}"
        raise ConfigError("data.augment", f"'replace_tokens' needs input_ids; {found}. Remove it, or set data.tokens.")
    if ids.shape[1:] != (length,):
        found = f"rows have {ids.shape[-1]} tokens. Set length={ids.shape[-1]}"
        raise ConfigError("data.augment", f"'replace_tokens' of length {length}, and {found}.")
    other = [field for field in batch if field.endswith("/input_ids")]
    if other:
        why = f"the teacher reads {other[0]}, which would say something else"
        raise ConfigError("data.augment", f"'replace_tokens' has one tokenizer, and {why}. Remove it.")
    return ids
