"""Interactive contrastive learning (CLIP-KD): the student's images among the teacher's texts, and the reverse.

Yang et al., CLIP-KD, CVPR 2024 (arxiv.org/abs/2307.12732). With the unit embeddings i and t of the student, I and T of
the teacher for the pairs of the global batch, the teacher's scale A, and the cross-entropy CE with the row's own place:

    1 / 2 [CE(A i T') + CE(A t I')]

Student and teacher must embed in one space of one width. The published code forgets to exponentiate this scale (2.66
for 14.3); here it is exponentiated, as in the paper.

Config: objective.interactive.term = "interactive"
When: image-text models whose student has the teacher's embedding width, beside `embedding`.
Checked: by loops; with student and teacher equal it is `contrastive`, which is checked against published code.
"""

from dataclasses import replace

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.pairs.towers import candidates, cross_entropy_to_own, logits_of, own_columns, to_mask_shape
from jaxdistill.losses.term import select_teacher, stateless


@losses.register
def interactive(scale: float = 0.0, teacher: int = 0) -> Term:
    """Build the interactive contrastive loss term of CLIP-KD, [CE(A i T') + CE(A t I')] / 2, per image-text pair.

    i and t are the student's embeddings of images and texts, I and T those of the teacher over the global batch, all
    scaled to unit norm. A is a scale. CE is the softmax cross-entropy whose target is the other half of the pair: the
    teacher's text for the student's image, and the teacher's image for the student's text.

    Args:
        scale: A; 0 uses the teacher's learned scale.
        teacher: index of the teacher, in the order of the config.

    Raises:
        ValueError: `scale` is negative; when the loss is computed, the widths differ, or a model does not have two
            towers.
    """
    if scale < 0:
        raise ValueError(f"scale must be at least 0; got {scale}")

    def values(signals: Signals) -> Array:
        target = candidates(select_teacher(signals.teachers, teacher), signals, "teacher", scale)
        student = replace(signals.student, scale=target.scale)  # the student's own is not used
        seen, places = candidates(student, signals, "student"), own_columns(signals)
        if seen.images.shape[-1] != target.images.shape[-1]:
            widths = f"student {seen.images.shape[-1]}, teacher {target.images.shape[-1]}"
            raise ValueError(f"widths of the embeddings differ ({widths}); give the student the teacher's projection")
        to_texts = cross_entropy_to_own(logits_of(seen.images, target.all_texts, target), places)
        to_images = cross_entropy_to_own(logits_of(seen.texts, target.all_images, target), places)
        return to_mask_shape((to_texts + to_images) / 2, signals)

    return stateless(values, local=False, needs=frozenset({"teacher"}))
