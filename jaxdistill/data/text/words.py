"""Text augmentation on the host: replace random tokens of whole batches in numpy."""

import numpy as np

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.registry import transforms
from jaxdistill.data.stream import Batch, Transform
from jaxdistill.data.text import tokenizer as tokenizers


@transforms.register
def replace_tokens(share: float, length: int, tokenizer: str, by: str = "") -> Transform:
    """Replace each token of a text with probability `share`, by a mask token or by a random token.

    The teacher's soft targets for the changed texts are further training data. Special tokens and padding are kept, and
    special tokens are never drawn. Teacher and student receive the same text. `label` is unchanged, although it may be
    wrong for the changed text.

    Args:
        share: probability that a token is replaced, from 0 to 1.
        length: tokens per row (token sequence), the same as in the config key `data.tokens`.
        tokenizer: the tokenizer in the config key `data.tokens`.
        by: the token that replaces others, such as `[MASK]`; if empty, a uniform random token of the vocabulary.

    Raises:
        ValueError: `share` or `length` is out of range, or there is no such tokenizer.
        ConfigError: the tokenizer has no token `by`; or the batch has no tokens, rows of another length, or tokens of a
            second tokenizer.

    References:
        Tang et al.: Distilling task-specific knowledge from BERT into simple neural networks, 2019. Masks one word in
            ten. https://arxiv.org/abs/1903.12136
    """
    if not 0 <= share <= 1 or length < 1:
        raise ValueError(f"share={share}, length={length}; give a share from 0 to 1 and a length of 1 or more.")
    loaded = tokenizers.load(tokenizers.find(tokenizer))
    special = tokenizers.special_ids(loaded)
    words = np.setdiff1d(sorted(loaded.get_vocab().values()), special).astype(np.int32)
    substitutes = np.array([tokenizers.token_id(loaded, by)], np.int32) if by else words

    def apply(batch: Batch, uniforms: np.ndarray) -> Batch:
        ids = _ids(batch, length)
        real = batch.get("attention_mask", batch.get("segment_ids", np.ones_like(ids))) != 0
        replaced = real & (uniforms < share) & np.isin(ids, words)
        # A uniform number below the share is uniform on [0, share), so the same number selects the substitute.
        place = np.minimum(uniforms / max(share, 2.0**-53) * len(substitutes), len(substitutes) - 1)
        drawn = substitutes[place.astype(int)]
        return batch | {"input_ids": np.where(replaced, drawn, ids).astype(ids.dtype)}

    return Transform(length, apply)


def _ids(batch: Batch, length: int) -> np.ndarray:
    ids = batch.get("input_ids")
    if ids is None:
        fields = f"the batch has {', '.join(batch)}"
        raise ConfigError("data.augment", f"'replace_tokens' needs input_ids; {fields}. Remove it, or set data.tokens.")
    if ids.shape[1:] != (length,):
        actual = f"rows have {ids.shape[-1]} tokens. Set length={ids.shape[-1]}"
        raise ConfigError("data.augment", f"'replace_tokens' has length={length}, but {actual}.")
    other = [field for field in batch if field.endswith("/input_ids")]
    if other:
        problem = f"but the teacher reads the text from {other[0]}, which would not change"
        raise ConfigError("data.augment", f"'replace_tokens' supports one tokenizer, {problem}. Remove it.")
    return ids
