"""Key heads: the teacher's most important attention heads, each taught to one head of the student.

Which heads matter is measured on the teacher, once, before training (Michel et al., Are Sixteen Heads Really Better
than One?, 2019, arxiv.org/abs/1905.10650): `jaxdistill heads --config FILE` prints them as they are written
here, so that a config says which heads its student learned from.

    mean over pairs of heads and over tokens of KL(A_t || A_s), or of (S_s - S_t)^2
    A = softmax(S),  S = q k' / sqrt d

Heads are named (layer, head), the layers from 1 and the heads from 0, the most important first. Each goes to the
student's layer of the same relative depth, and there to the next head that is free; where none is left it is left out.
So a student of fewer heads learns the top ones of each of its layers. With `student_heads` pairs are as they are named.

Padding and what comes later in running text count nothing, as in `minilm`. Grouped keys are repeated for their heads.

Config: objective.heads.term = "heads(((12, 3), (9, 0), (12, 7)))"
When: student and teacher differ in heads, or a few of many heads carry the teacher's task.
Checked: by hand and against `minilm`'s own parts; a shuffled pairing is told from the right one.
"""

from collections import Counter, defaultdict
from typing import Literal

import jax.numpy as jnp

from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, AttentionHeads, Signals, Term
from jaxdistill.losses.attention.self_attention import (
    attentions_of,
    each_head,
    head_divergence,
    over_queries,
    pairs_of_heads,
    products,
    score_distance,
    visible_keys,
)
from jaxdistill.losses.term import stateless

Named = tuple[tuple[int, int], ...]  # (layer, head)
DISTANCES = {"probabilities": head_divergence, "scores": score_distance}


def students_of(teacher_heads: Named, depth: int, height: int, count: int) -> list[tuple[int, int] | None]:
    """The student's head that learns from each: the next free one at its relative depth, or None.

    Args:
        teacher_heads: the most important first.
        depth: layers of the student.
        height: layers of the teacher.
        count: heads of each layer of the student.
    """
    found, taken = [], Counter[int]()
    for layer, _ in teacher_heads:
        own = max(1, round(layer * depth / height))
        found.append((own, taken[own]) if taken[own] < count else None)
        taken[own] += 1
    return found


@losses.register
def heads(
    teacher_heads: Named,
    student_heads: Named = (),
    match: Literal["probabilities", "scores"] = "probabilities",
    teacher: int = 0,
) -> Term:
    """Attention of named heads.

    Args:
        teacher_heads: (layer, head), the most important first; layers count from 1, heads from 0.
        student_heads: who learns from each of them; (): the next free head of the layer at the same relative depth.
        match: "probabilities" by KL, or "scores" before the softmax by their mean squared difference.
        teacher: which teacher.

    Raises:
        ValueError: no heads, a layer below 1 or a head below 0, or not as many students as teachers.
    """
    if not teacher_heads:
        raise ValueError("no heads are named; jaxdistill heads --config FILE finds the important ones")
    for layer, head in (*teacher_heads, *student_heads):
        if layer < 1 or head < 0:
            raise ValueError(f"({layer}, {head}) is no head: layers count from 1, heads from 0")
    if student_heads and len(student_heads) != len(teacher_heads):
        counts = f"{len(student_heads)} student_heads for {len(teacher_heads)} teacher_heads"
        raise ValueError(f"{counts}; give one for each, or none")

    def values(signals: Signals) -> Array:
        ours, theirs = attentions_of(signals, teacher)
        given = student_heads or students_of(teacher_heads, len(ours), len(theirs), ours[0].query.shape[2])
        pairs = [(own, named) for own, named in zip(given, teacher_heads, strict=True) if own is not None]
        by_layers: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for own, named in pairs:
            by_layers[own[0], named[0]].append((own[1], named[1]))
        found = []
        for layers, members in by_layers.items():
            ((student, target),) = pairs_of_heads((layers,), signals, teacher)
            learning, teaching = zip(*members, strict=True)
            scores = _scores(student, learning, f"student's layer {layers[0]}")
            targets = _scores(target, teaching, f"teacher's layer {layers[1]}")
            found.append(len(members) * DISTANCES[match](scores, targets, visible_keys(student, signals)))
        return over_queries(sum(found, jnp.zeros(())) / len(pairs), signals)

    return stateless(values, local=False, needs=frozenset({"teacher"}))


def _scores(heads: AttentionHeads, chosen: tuple[int, ...], where: str) -> Array:
    """Of the chosen heads alone, `[rows, chosen, queries, keys]`."""
    count = heads.query.shape[2]
    if max(chosen) >= count:
        raise ValueError(f"the {where} has no head {max(chosen)}; it has heads 0 to {count - 1}")
    index = jnp.asarray(chosen)
    return products(heads.query[:, :, index], each_head(heads.key, count)[:, :, index])
