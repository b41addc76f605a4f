"""Compare image and text embeddings of the rows of this device with those of the global batch.

Row i of a batch is a pair: image i belongs to text i. Each image is compared with the texts of the GLOBAL batch and
each text with its images, so that 8 devices give what 1 gives. Rows that the mask excludes are no candidates.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jaxdistill.core.collectives import gather, row_numbers
from jaxdistill.core.types import NO_CANDIDATE, Array, Outputs, Signals
from jaxdistill.losses.term import precise, unit


class Candidates(NamedTuple):
    """The image and text embeddings of one model, scaled to unit norm, for a batch of image-text pairs.

    images, texts: `[rows, width]`, the embeddings of the rows on this device
    all_images, all_texts: `[all rows, width]`, the embeddings of the global batch
    valid: `[all rows]`, True for the rows of the global batch that are not masked
    scale: `[rows]`, the factor by which similarities are multiplied in each row
    """

    images: Float[Array, "rows width"]
    texts: Float[Array, "rows width"]
    all_images: Float[Array, "all width"]
    all_texts: Float[Array, "all width"]
    valid: Bool[Array, " all"]
    scale: Float[Array, " rows"]


def candidates(outputs: Outputs, signals: Signals, who: str, scale: float = 0.0) -> Candidates:
    """Return a model's unit image and text embeddings for a batch of pairs, gathered from all devices.

    Args:
        outputs: outputs of the model.
        signals: the inputs of a loss term; only the batch's mask is used.
        who: name of the model, for error messages.
        scale: factor by which similarities are multiplied; 0 uses the model's learned scale.

    Raises:
        ValueError: the model does not have two towers, or it has no scale and `scale` is 0.
    """
    if outputs.embedding is None or outputs.text_embedding is None:
        raise ValueError(
            f"the {who} does not have two towers, as towers(...), clip(...), siglip(...) and siamese(...) do"
        )
    if not scale and outputs.scale is None:
        raise ValueError(f"the {who} has no scale of its own; set scale=")
    counted = counted_rows(signals)
    rows = lambda x: unit(jnp.where(counted[:, None], precise(x), 0))
    images, texts = rows(outputs.embedding), rows(outputs.text_embedding)
    factor = precise(jnp.full(counted.shape, scale) if outputs.scale is None or scale else outputs.scale)
    return Candidates(images, texts, gather(images), gather(texts), gather(counted), jnp.where(counted, factor, 1))


def logits_of(
    rows: Float[Array, "rows width"], columns: Float[Array, "all width"], seen: Candidates
) -> Float[Array, "rows all"]:
    """Compute the similarity logits `scale * rows @ columns.T`; masked columns get the logit `NO_CANDIDATE`.

    Args:
        rows: embeddings of this device.
        columns: embeddings of the global batch.
        seen: embeddings of a model, of which only the scale and the mask of the columns are used.
    """
    return jnp.where(seen.valid, seen.scale[:, None] * (rows @ columns.T), NO_CANDIDATE)


def counted_rows(signals: Signals) -> Bool[Array, " rows"]:
    """Return a boolean mask of the rows on this device; a row of tokens is True if any of its tokens is unmasked."""
    return jnp.any(signals.mask != 0, axis=tuple(range(1, signals.mask.ndim)))


def to_mask_shape(values: Float[Array, " rows"], signals: Signals) -> Array:
    """Broadcast one value per row to the shape of the batch's mask, so that all tokens of a row get its value."""
    return jnp.broadcast_to(values.reshape(-1, *[1] * (signals.mask.ndim - 1)), signals.mask.shape)


def own_columns(signals: Signals) -> Int[Array, " rows"]:
    """Return each local row's index in the global batch, which is the column of its matching text or image."""
    return row_numbers(signals.mask.shape[0])


def cross_entropy_to_own(logits: Float[Array, "rows all"], places: Int[Array, " rows"]) -> Float[Array, " rows"]:
    """Compute -log softmax(logits)[i, places[i]], the cross-entropy of each row i with its matching column."""
    right = jnp.take_along_axis(logits, places[:, None], axis=-1)[:, 0]
    return jax.nn.logsumexp(logits, axis=-1) - right


def cross_entropy_to(logits: Float[Array, "rows all"], target: Float[Array, "rows all"]) -> Float[Array, " rows"]:
    """Compute the cross-entropy of softmax(logits) with target distributions over the columns."""
    return -jnp.sum(target * jax.nn.log_softmax(logits, axis=-1), axis=-1)
