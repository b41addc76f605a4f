"""Measure how well a model with two towers finds the text of an image, and the images of a text, in a whole test set.

R@k (recall at k) is the share of queries of which a right answer is among the k most similar ones. It depends on the
number of candidates, so that the candidates are those of the whole test set, never those of a batch, and chance is
reported beside it. Images with equal texts are all right answers of that text.
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
    """The embeddings of the image and of the text of each row, and the tokens by which equal texts are known.

    Its values are `image` and `text`, `[rows, width]`, of unit norm, and `tokens`, `[rows, length]`, if the text tower
    reads tokens. All rows are needed, so that it cannot be a sum over batches.
    """

    def compute(self) -> dict[str, float]:
        """Return R@k in both directions, the numbers of images and of different texts, and chance; see `recalls`."""
        values = {name: np.asarray(value) for name, value in self.values.items()}
        return recalls(values["image"], values["text"], values.get("tokens"))


def retrieval(out: Outputs, rows: RowsLike, mask: Array) -> Retrieval:
    """Return what a batch adds to the measures of retrieval.

    Args:
        out: outputs of a model with two towers.
        rows: the batch, with `input_ids` and `attention_mask` if texts are tokens.
        mask: 0 for rows that only fill the batch, `[rows]`.
    """
    values: dict[str, Any] = {"image": out.embedding, "text": out.text_embedding}
    if "input_ids" in rows:
        real = rows.get("attention_mask", 1)
        values["tokens"] = rows["input_ids"] * real + real - 1  # padding is -1, whatever its id is
    return Retrieval(values, mask)


def recalls(images: np.ndarray, texts: np.ndarray, tokens: np.ndarray | None = None) -> dict[str, float]:
    """Compute R@1 and R@5 in both directions over all images and all different texts.

    A wrong candidate that is as similar as the right one is ranked before it, so that a model that embeds everything
    alike finds nothing.

    Args:
        images, texts: embeddings of unit norm of the pairs, `[pairs, width]`.
        tokens: tokens of the texts, `[pairs, length]`, by which equal texts are known; None: all texts differ.

    Returns:
        `image_text_r1` (the text of an image is the most similar one), `image_text_r5`, `text_image_r1`,
        `text_image_r5`, each with its chance under the same name with `chance_` before it, from 0 to 1; and
        `gallery_images` and `gallery_texts`, the numbers of candidates.
    """
    of_pair = np.arange(len(images)) if tokens is None else np.unique(tokens, axis=0, return_inverse=True)[1].ravel()
    firsts = np.unique(of_pair, return_index=True)[1]  # one pair of each different text, by its number
    images, texts = np.asarray(images, np.float32), np.asarray(texts[firsts], np.float32)
    count, different, of_text = len(images), len(firsts), np.arange(len(firsts))
    copies = np.bincount(of_pair, minlength=different).tolist()
    found = {
        IMAGE_TO_TEXT: (_ranks(images, texts, of_pair, of_text), lambda k: min(k, different) / different),
        TEXT_TO_IMAGE: (
            _ranks(texts, images, of_text, of_pair),
            lambda k: float(np.mean([_hit(count, c, k) for c in copies])),
        ),
    }
    shares = {f"{name}_r{k}": float((ranks < k).mean()) for name, (ranks, _) in found.items() for k in CUTOFFS}
    chances = {f"chance_{name}_r{k}": chance(k) for name, (_, chance) in found.items() for k in CUTOFFS}
    return {**shares, **chances, "gallery_images": float(count), "gallery_texts": float(different)}


def _ranks(queries: np.ndarray, candidates: np.ndarray, of_query: np.ndarray, of_candidate: np.ndarray) -> np.ndarray:
    """Return how many wrong candidates are at least as similar to each query as its best right one, `[queries]`.

    Args:
        queries, candidates: embeddings, `[queries, width]` and `[candidates, width]`.
        of_query, of_candidate: the pair, as a number, that each belongs to; a candidate of a query's pair is a right
            answer, and each query has at least one.
    """
    ranks = []
    for start in range(0, len(queries), QUERIES):
        part = slice(start, start + QUERIES)
        similar, right = queries[part] @ candidates.T, of_query[part, None] == of_candidate
        best = np.where(right, similar, -np.inf).max(1, keepdims=True)
        ranks.append(np.sum(~(similar < best) & ~right, axis=1))  # what is NaN counts as similar
    return np.concatenate(ranks)


def _hit(count: int, right: int, k: int) -> float:
    """Return the probability that one of `right` right answers is among k of `count` candidates, drawn at random."""
    return 1 - math.comb(count - right, k) / math.comb(count, k) if count >= k else 1.0
