"""Embed two texts of each record with one network, such as a text and its translation, or two names of one thing.

Reimers and Gurevych, Sentence-BERT, 2019 (arxiv.org/abs/1908.10084); Liu et al., SapBERT: Self-Alignment Pretraining
for Biomedical Entity Representations, 2021 (arxiv.org/abs/2010.11784), for pairs of synonyms.
"""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxdistill.core.fields import TEACHER
from jaxdistill.core.interfaces import Model
from jaxdistill.core.registry import models
from jaxdistill.core.types import Key, Outputs, Params, RowsLike, State
from jaxdistill.models.combinators import strip_prefix
from jaxdistill.models.towers import pair_outputs


@models.register
def siamese(network: Model, scale: float = 20.0, other: str = TEACHER) -> Model:
    """Build a siamese model: one network embeds both texts of a record, such as a text and its translation.

    The network reads the fields of the batch as they are, such as `input_ids`, and then the fields whose names begin
    with `other`, such as `teacher/input_ids`, which `sentences(teacher_fields=...)` makes. The outputs have the first
    embedding as `embedding`, in the place of an image embedding, and the second as `text_embedding`; losses of pairs,
    such as `contrastive`, compare the two. A batch without the second text, as in a prediction, has the outputs of the
    network alone.

    The parameters are those of the network, so a checkpoint of this model is also a checkpoint of the network. To use
    it as a teacher, set `teachers.NAME.model` to the spec string of the network.

    Args:
        network: a network that returns an embedding, such as `pretrained('FOLDER', classes=0)`.
        scale: fixed factor of the cosine similarities; sentence-transformers uses 20.
        other: prefix of the fields of the second text.

    Raises:
        ValueError: `scale` is not positive, or `other` is no prefix of fields; or, when the model is applied, the
            network returns no embedding, or a batch for training has no second text.
    """
    if scale <= 0:
        raise ValueError(f"scale={scale} must be positive")
    if not other.endswith("/"):  # the empty prefix, or that of half a name, would read the first text twice
        raise ValueError(f"other={other!r} must end with a slash, such as {TEACHER!r}")

    def apply(params: Params, state: State, batch: RowsLike, *, train: bool, key: Key) -> tuple[Outputs, State]:
        first_key, second_key = jax.random.split(key)
        first, state = network.apply(params, state, batch, train=train, key=first_key)
        if not any(field.startswith(other) for field in batch):
            if train:
                made = "data.tokens = \"sentences(..., teacher_fields=...)\" makes 'teacher/'"
                raise ValueError(f"the records have no second text: no field begins with {other!r}; {made}")
            return first, state
        second, state = network.apply(params, state, strip_prefix(batch, other), train=train, key=second_key)
        if first.embedding is None or second.embedding is None:
            raise ValueError("the network returns no embedding; choose another one")
        log_scale = jnp.asarray(math.log(scale), jnp.float32)
        pairs = pair_outputs(first.embedding, second.embedding, log_scale, None, batch["mask"])
        return replace(pairs, hidden_states=first.hidden_states, attentions=first.attentions), state

    return network._replace(apply=apply, second_prefix=other)
