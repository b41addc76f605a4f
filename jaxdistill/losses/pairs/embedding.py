"""Embedding matching: the student's embeddings of images and of texts match the teacher's.

Yang et al., CLIP-KD, CVPR 2024 (arxiv.org/abs/2307.12732), feature distillation. With the unit embeddings i and t of
the student, I and T of the teacher, and a projector P to the teacher's width, followed by division by the length:

    ||P i - I||^2 + ||Q t - T||^2

The sum is over the width, the mean over the pairs. CLIP-KD has the weight 2000 for a mean over the width too, about 4
here at a width of 512. It is their strongest single term. The sides do not meet, so that a stream of images without
texts serves (`side='images'`), and one of texts without images (Sun et al., DIME-FM, 2023,
arxiv.org/abs/2303.18232).

Config: objective.embedding.term = "embedding"; objective.embedding.weight = 4
When: image-text models, beside `affinity`; where an index of the teacher's embeddings must be kept.
Checked: by hand; against `hidden(distance='cosine')`, which is half of it for one side.
"""

from typing import Literal

import jax.numpy as jnp

from jaxdistill.core.interfaces import Term, Values
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Key, Params, Signals, State
from jaxdistill.losses.hidden.projectors import ProjectorKind, init_each, project_each
from jaxdistill.losses.pairs.towers import counted_rows, to_mask_shape
from jaxdistill.losses.term import precise, select_teacher, unit

Side = Literal["both", "images", "texts"]


@losses.register
def embedding(side: Side = "both", projector: ProjectorKind = "linear", teacher: int = 0) -> Term:
    """Build the loss term ||P(i) - I||^2 + ||Q(t) - T||^2, which compares image and text embeddings, per pair.

    i and t are the student's embeddings of an image and its text, I and T are the teacher's. The projectors P and Q map
    them to the teacher's width. All four vectors are scaled to unit norm before they are compared.

    Args:
        side: which embeddings are compared: "both", those of "images" or those of "texts".
        projector: "linear" or "mlp" learns P and Q; "none" leaves them out and needs equal widths.
        teacher: index of the teacher, in the order of the config.

    Raises:
        ValueError: when the loss is computed, a model lacks an embedding, or the widths differ and the projector is
            "none".
    """

    def pairs(signals: Signals) -> list[tuple[Array, Array]]:
        target = select_teacher(signals.teachers, teacher)
        sides = {"images": lambda x: x.embedding, "texts": lambda x: x.text_embedding}
        of_side = lambda name, model, who: _present(sides[name](model), name, who)
        names = tuple(sides) if side == "both" else (side,)
        return [(of_side(name, signals.student, "student"), of_side(name, target, "teacher")) for name in names]

    def init(key: Key, signals: Signals) -> tuple[Params, State]:
        return init_each(projector, key, pairs(signals), 1), {}

    def apply(params: Params, state: State, signals: Signals, *, key: Key) -> tuple[Values, State]:
        counted = counted_rows(signals)[:, None]
        shown = [(jnp.where(counted, x, 0), y) for x, y in pairs(signals)]
        distances = [jnp.sum((unit(x) - unit(y)) ** 2, axis=-1) for x, y in project_each(projector, params, shown)]
        return to_mask_shape(jnp.sum(jnp.stack(distances), axis=0), signals), state

    return Term(init, apply, local=False, needs=frozenset({"teacher"}))


def _present(x: Array | None, name: str, who: str) -> Array:
    if x is None:
        raise ValueError(f"the {who} has no embedding of {name}")
    return precise(jnp.asarray(x))
