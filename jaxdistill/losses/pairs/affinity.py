"""Affinity mimicking: the student compares the images and texts of a batch as its teacher does.

Wu et al., TinyCLIP, ICCV 2023 (arxiv.org/abs/2309.12314). With the unit embeddings i and t of the student and I and T
of the teacher for the pairs of the global batch, and the scales a and A:

    1 / 2 [CE(softmax(A I T'), a i t') + CE(softmax(A T I'), a t i')]

Each model has its OWN scale. With a trained scale near 100 the target is almost one-hot; a smaller `scale` of the
teacher softens it, as a temperature does (MobileCLIP2, arxiv.org/abs/2508.20691, has 70 and 60). The loss is `kd` of
both directions at T = 1, plus the teacher's entropy. The target needs no pairing: the teacher makes it for any images
and texts, so a stream whose texts are permuted against its images can be used too.

Several teachers: the mean of their softmaxes (MobileCLIP, CVPR 2024, arxiv.org/abs/2311.17049), never of their logits,
whose scales differ.

Config: objective.affinity.term = "affinity"; objective.affinity.term = "affinity(scale=70.0, of=(0, 1))"
When: image-text models with a teacher; first where pairs are few, and images and texts without a partner are many.
Checked: against published code (open_clip's DistillClipLoss), in value and gradient; equal to `kd` plus entropy; by
loops.
"""

import jax
import jax.numpy as jnp

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.pairs.towers import candidates, cross_entropy_to, logits_of, to_mask_shape
from jaxdistill.losses.term import select_teacher, stateless


@losses.register
def affinity(scale: float = 0.0, of: tuple[int, ...] = (0,)) -> Term:
    """Build the affinity loss term [CE(softmax(A I T'), a i t') + CE(softmax(A T I'), a t i')] / 2, per image-text row.

    The loss compares the student's image-text similarities with the teacher's, in both directions. i and t are the
    student's embeddings of the images and texts of the global batch, scaled to unit norm, and a is its learned scale.
    I, T and A are those of the teacher. CE(p, z) is the cross-entropy of softmax(z) with the distribution p.

    Args:
        scale: A of every teacher; 0 uses each teacher's learned scale.
        of: indices of the teachers, in the order of the config; their softmaxes are averaged.

    Raises:
        ValueError: `scale` is negative, or no teacher is named; when the loss is computed, a model does not have two
            towers.
    """
    if scale < 0 or not of:
        raise ValueError(f"set scale to at least 0, and name a teacher; got scale={scale}, of={of}")

    def values(signals: Signals) -> Array:
        seen = candidates(signals.student, signals, "student")
        chosen = [select_teacher(signals.teachers, number) for number in of]
        targets = [candidates(teacher, signals, "teacher", scale) for teacher in chosen]
        mean = lambda logits: jnp.mean(jnp.stack([jax.nn.softmax(each, axis=-1) for each in logits]), axis=0)
        to_texts = mean([logits_of(each.images, each.all_texts, each) for each in targets])
        to_images = mean([logits_of(each.texts, each.all_images, each) for each in targets])
        of_images = cross_entropy_to(logits_of(seen.images, seen.all_texts, seen), to_texts)
        of_texts = cross_entropy_to(logits_of(seen.texts, seen.all_images, seen), to_images)
        return to_mask_shape((of_images + of_texts) / 2, signals)

    return stateless(values, local=False, needs=frozenset({"teacher"}))
