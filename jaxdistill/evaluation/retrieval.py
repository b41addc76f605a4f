"""Measure how well a model with two towers finds the text of an image, and the images of a text, in a whole test set.

R@k (recall at k) is the share of queries of which a right answer is among the k most similar ones. It depends on the
number of candidates, so that the candidates are those of the whole test set, never those of a batch, and chance is
reported beside it. Images with equal texts are all right answers of that text. Where two texts are a pair
(`siamese`), the first takes the place of the image.
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

    Its values are `image` and `text`, `[rows, width]`, of unit norm; `tokens`, `[rows, length]`, of the text, if the
    model reads tokens; and `image_tokens`, if the first side is a text, too. All rows are needed, so that it cannot be
    a sum over batches.
    """

    def compute(self) -> dict[str, float]:
        """Return R@k in both directions, the numbers of images and of different texts, and chance; see `recalls`."""
        values = {name: np.asarray(value) for name, value in self.values.items()}
        return recalls(values["image"], values["text"], values.get("tokens"), values.get("image_tokens"))


def retrieval(out: Outputs, rows: RowsLike, mask: Array, second_text: str = "") -> Retrieval:
    """Return what a batch adds to the measures of retrieval.

    Args:
        out: outputs of a model with two towers.
        rows: the batch, with `input_ids` and `attention_mask` if texts are tokens.
        mask: 0 for rows that only fill the batch, `[rows]`.
        second_text: of a model of two texts, `Model.second_text`: prefix of the fields of the second.
    """
    values: dict[str, Any] = {"image": out.embedding, "text": out.text_embedding}
    sides = {"image_tokens": "", "tokens": second_text} if second_text else {"tokens": ""}
    if "input_ids" in rows:
        for name, prefix in sides.items():
            real = rows.get(f"{prefix}attention_mask", 1)
            values[name] = rows[f"{prefix}input_ids"] * real + real - 1  # padding is -1, whatever its id is
    return Retrieval(values, mask)


def recalls(
    images: np.ndarray, texts: np.ndarray, tokens: np.ndarray | None = None, image_tokens: np.ndarray | None = None
) -> dict[str, float]:
    """Compute R@1 and R@5 in both directions over all images and all different texts.

    A wrong candidate that is as similar as the right one is ranked before it, so that a model that embeds everything
    alike finds nothing.

    Args:
        images, texts: embeddings of unit norm of the pairs, `[pairs, width]`.
        tokens: tokens of the texts, `[pairs, length]`, by which equal texts are known; None: all texts differ.
        image_tokens: the same for the first side, if it is a text too; None: all images differ.

    Returns:
        `image_text_r1` (the text of an image is the most similar one), `image_text_r5`, `text_image_r1`,
        `text_image_r5`, each with its chance under the same name with `chance_` before it, from 0 to 1; and
        `gallery_images` and `gallery_texts`, the numbers of candidates; of two texts, `gallery_first_texts` in place of
        the first.
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
    """Return one embedding of each different text, `[texts, width]`, and the number of the text of each pair."""
    embeddings = np.asarray(embeddings, np.float32)
    if tokens is None:
        return embeddings, np.arange(len(embeddings))
    _, firsts, numbers = np.unique(tokens, axis=0, return_index=True, return_inverse=True)
    return embeddings[firsts], numbers.ravel()


def _ranks(queries: np.ndarray, candidates: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return how many wrong candidates are at least as similar to each query as its best right one, `[queries]`.

    Args:
        queries, candidates: embeddings, `[queries, width]` and `[candidates, width]`.
        pairs: numbers of a query and of a right candidate, `[pairs, 2]`; each query has at least one.
    """
    ranks = []
    for start in range(0, len(queries), QUERIES):
        similar = queries[start : start + QUERIES] @ candidates.T
        here = pairs[(pairs[:, 0] >= start) & (pairs[:, 0] < start + QUERIES)]
        right = np.zeros(similar.shape, bool)
        right[here[:, 0] - start, here[:, 1]] = True
        best = np.where(right, similar, -np.inf).max(1, keepdims=True)
        ranks.append(np.sum(~(similar < best) & ~right, axis=1))  # what is NaN counts as similar
    return np.concatenate(ranks)


def _chance(right: np.ndarray, count: int, k: int) -> float:
    """Return R@k of a random order of `count` candidates, of which `right` `[queries]` are right for each query."""
    return float(np.mean([_hit(count, each, k) for each in right.tolist()]))


def _hit(count: int, right: int, k: int) -> float:
    """Return the probability that one of `right` right answers is among k of `count` candidates, drawn at random."""
    return 1 - math.comb(count - right, k) / math.comb(count, k) if count >= k else 1.0
