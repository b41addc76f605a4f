"""Contrastive learning of image and text (CLIP): each image finds its text in the batch, and each text its image.

Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021 (arxiv.org/abs/2103.00020).
With the unit embeddings i and t of the B images and texts of the global batch, the student's scale a, and the
cross-entropy CE with the row's own place in the batch:

    1 / 2 [CE(a i t') + CE(a t i')]

It needs no teacher: it is the task of a model with two towers, as cross-entropy is that of a classifier. More rows make
it harder, so a loss is comparable for one batch size alone.

Config: objective.contrastive.term = "contrastive"; task.contrastive = {}
When: image-text pairs; beside `affinity` if few pairs are at hand, instead of it if there is no teacher.
Checked: against published code (open_clip's ClipLoss), in value and gradient; by loops.
"""

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.pairs.towers import candidates, cross_entropy_to_own, logits_of, own_columns, to_mask_shape
from jaxdistill.losses.term import stateless


@losses.register
def contrastive() -> Term:
    """Build the contrastive loss term of CLIP, [CE(a i t') + CE(a t i')] / 2, per image-text pair.

    i and t are the student's embeddings of the images and texts of the global batch, scaled to unit norm, and a is the
    student's learned scale. CE is the softmax cross-entropy whose target is the other half of the pair. No teacher is
    needed.
    """

    def values(signals: Signals) -> Array:
        seen, places = candidates(signals.student, signals, "student"), own_columns(signals)
        to_texts = cross_entropy_to_own(logits_of(seen.images, seen.all_texts, seen), places)
        to_images = cross_entropy_to_own(logits_of(seen.texts, seen.all_images, seen), places)
        return to_mask_shape((to_texts + to_images) / 2, signals)

    return stateless(values, local=False)
