"""Measure how well a model with two towers finds the text of an image, and the images of a text, in a whole test set.

R@k (recall at k) is the share of queries that have a right answer among their k most similar candidates. It depends on
the number of candidates. Therefore the candidates are those of the whole test set, never those of a batch, and the R@k
of a random order is reported as chance. If several images have the same text, all of them are right answers to it.
For pairs of two texts (`siamese`), the first text takes the place of the image.
"""

import math
from typing import Any

import numpy as np

from jaxdistill.core.sums import PerRow
from jaxdistill.core.types import Array, Outputs, RowsLike, struct

CUTOFFS = (1, 5)
QUERIES = 1024  # that are compared with all candidates at once; all of 100,000 pairs at once would take 90 GB
IMAGE_TO_TEXT, TEXT_TO_IMAGE = "image_text", "text_image"


@struct
class Retrieval(PerRow):
    """The image and text embeddings of each row, and the tokens of its text, from which R@k (recall at k) is computed.

    `values` has the embeddings `image` and `text`, `[rows, width]`, of unit norm. If the model reads tokens, it has the
    text's `tokens`, `[rows, length]`, which tell equal texts. If the first side is a text too, it also has
    `image_tokens`. R@k needs the rows of the whole test set, so it cannot be added up over batches.
    """

    def compute(self) -> dict[str, float]:
        """Return R@k (recall at k) in both directions, its chance level and the numbers of candidates, as `recalls`."""
        values = {name: np.asarray(value) for name, value in self.values.items()}
        return recalls(values["image"], values["text"], values.get("tokens"), values.get("image_tokens"))


def retrieval(out: Outputs, rows: RowsLike, mask: Array, second_prefix: str = "") -> Retrieval:
    """Collect the embeddings and tokens of a batch, from which R@k (recall at k) over the test set is computed later.

    Args:
        out: outputs of a model with two towers.
        rows: the batch, with `input_ids` and `attention_mask` if texts are tokens.
        mask: 0 for rows that only fill the batch, `[rows]`.
        second_prefix: prefix of the second text's fields, for a model of two texts (`Model.second_prefix`); else empty.
    """
    values: dict[str, Any] = {"image": out.embedding, "text": out.text_embedding}
    sides = {"image_tokens": "", "tokens": second_prefix} if second_prefix else {"tokens": ""}
    if "input_ids" in rows:
        for name, prefix in sides.items():
            real = rows.get(f"{prefix}attention_mask", 1)
            values[name] = rows[f"{prefix}input_ids"] * real + real - 1  # padding is -1, whatever its id is
    return Retrieval(values, mask)


def recalls(
    images: np.ndarray, texts: np.ndarray, tokens: np.ndarray | None = None, image_tokens: np.ndarray | None = None
) -> dict[str, float]:
    """Compute the recall at 1 and at 5 (R@1, R@5) from image to text and from text to image, over a whole test set.

    A wrong candidate that is as similar as the right one is ranked before it. So a model that gives all inputs the same
    embedding finds nothing.

    Args:
        images, texts: embeddings of the pairs, of unit norm, `[pairs, width]`.
        tokens: tokens of the texts, `[pairs, length]`, which tell equal texts; None if all texts differ.
        image_tokens: tokens of the first side if it is a text too, `[pairs, length]`; None if all images differ.

    Returns:
        A dict. `image_text_r1`, `image_text_r5`, `text_image_r1` and `text_image_r5` are shares from 0 to 1, where
        `image_text` means that images are the queries. The R@k of a random order has the same name after `chance_`.
        `gallery_images` and `gallery_texts` are the numbers of candidates; with `image_tokens`, `gallery_first_texts`
        replaces `gallery_images`.
    """
    (images, of_image), (texts, of_text) = _different(images, image_tokens), _different(texts, tokens)
    pairs = np.unique(np.stack([of_image, of_text], axis=1), axis=0)
    ranks = {IMAGE_TO_TEXT: _ranks(images, texts, pairs), TEXT_TO_IMAGE: _ranks(texts, images, pairs[:, ::-1])}
    chances = {
        IMAGE_TO_TEXT: lambda k: _chance(np.bincount(pairs[:, 0]), len(texts), k),
        TEXT_TO_IMAGE: lambda k: _chance(np.bincount(pairs[:, 1]), len(images), k),
    }
    shares = {f"{name}_r{k}": float((each < k).mean()) for name, each in ranks.items() for k in CUTOFFS}
    shares |= {f"chance_{name}_r{k}": chance(k) for name, chance in chances.items() for k in CUTOFFS}
    first = "gallery_images" if image_tokens is None else "gallery_first_texts"
    return {**shares, first: float(len(images)), "gallery_texts": float(len(texts))}


def _different(embeddings: np.ndarray, tokens: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return one embedding for each distinct text, `[texts, width]`, and for each pair the number of its text."""
    embeddings = np.asarray(embeddings, np.float32)
    if tokens is None:
        return embeddings, np.arange(len(embeddings))
    _, firsts, numbers = np.unique(tokens, axis=0, return_index=True, return_inverse=True)
    return embeddings[firsts], numbers.ravel()


def _ranks(queries: np.ndarray, candidates: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Count for each query the wrong candidates that are at least as similar as its best right one, `[queries]`.

    Args:
        queries, candidates: embeddings, `[queries, width]` and `[candidates, width]`.
        pairs: `[pairs, 2]`, the number of a query and the number of a right candidate; each query has at least one.
    """
    ranks = []
    for start in range(0, len(queries), QUERIES):
        similar = queries[start : start + QUERIES] @ candidates.T
        here = pairs[(pairs[:, 0] >= start) & (pairs[:, 0] < start + QUERIES)]
        right = np.zeros(similar.shape, bool)
        right[here[:, 0] - start, here[:, 1]] = True
        best = np.where(right, similar, -np.inf).max(1, keepdims=True)
        ranks.append(np.sum(~(similar < best) & ~right, axis=1))  # a NaN counts as similar, so it never helps a model
    return np.concatenate(ranks)


def _chance(right: np.ndarray, count: int, k: int) -> float:
    """Return the expected R@k of `count` candidates in random order, of which `right[q]` are right for query q."""
    return float(np.mean([_hit(count, each, k) for each in right.tolist()]))


def _hit(count: int, right: int, k: int) -> float:
    """Return the probability that k of `count` candidates, drawn at random, include one of the `right` right ones."""
    return 1 - math.comb(count - right, k) / math.comb(count, k) if count >= k else 1.0
