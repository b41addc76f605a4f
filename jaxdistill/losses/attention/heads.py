"""Important heads: match the teacher's most important attention heads, each to one head of the student.

The importance of a head is measured on the teacher, once, before training (Michel et al., Are Sixteen Heads Really
Better than One?, 2019, arxiv.org/abs/1905.10650): `jaxdistill heads --config FILE` prints the heads in the form that
this loss takes, so that a config states which heads its student learned from.

    mean over pairs of heads and over tokens of KL(A_t || A_s), or of (S_s - S_t)^2
    A = softmax(S),  S = q k' / sqrt d

q and k are the queries and keys of one head of width d. Heads are written (layer, head), with layers counted from 1 and
heads from 0, the most important first. Each teacher head is assigned to the student layer at the same relative depth,
and there to the next free head; if no head is left, the teacher head is skipped. A student with fewer heads thus learns
the most important teacher heads in each of its layers. `student_heads` sets the pairs explicitly.

Padding, and in a decoder later tokens, are ignored, as in `minilm`. In grouped-query attention, keys are repeated for
the query heads that share them.

Config: objective.heads.term = "heads(((12, 3), (9, 0), (12, 7)))"
When: student and teacher have different numbers of heads, or a few heads carry the teacher's task.
Checked: by hand and against the parts of `minilm`; a wrong pairing gives a larger loss than the right one.
"""

from collections import Counter, defaultdict
from typing import Literal

import jax.numpy as jnp

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, AttentionHeads, Signals
from jaxdistill.losses.attention.self_attention import (
    get_attentions,
    head_divergence,
    mean_over_queries,
    paired_attentions,
    repeat_grouped_heads,
    scaled_dot_products,
    score_distance,
    visible_keys,
)
from jaxdistill.losses.term import stateless

Heads = tuple[tuple[int, int], ...]  # (layer, head)
DISTANCES = {"probabilities": head_divergence, "scores": score_distance}


def assign_student_heads(
    teacher_heads: Heads, student_depth: int, teacher_depth: int, heads_per_layer: int
) -> list[tuple[int, int] | None]:
    """Choose a student head (layer, head) for each teacher head, without choosing a student head twice.

    A head of teacher layer n gets the first unused head of the student layer at the same relative depth, which is
    `max(1, round(n * student_depth / teacher_depth))`. It gets None if all heads of that student layer are used.

    Args:
        teacher_heads: the teacher's heads (layer, head), the most important first; layers count from 1.
        student_depth: number of layers of the student.
        teacher_depth: number of layers of the teacher.
        heads_per_layer: number of heads in each layer of the student.
    """
    assigned, used = [], Counter[int]()
    for teacher_layer, _ in teacher_heads:
        layer = max(1, round(teacher_layer * student_depth / teacher_depth))
        assigned.append((layer, used[layer]) if used[layer] < heads_per_layer else None)
        used[layer] += 1
    return assigned


@losses.register
def heads(
    teacher_heads: Heads,
    student_heads: Heads = (),
    match: Literal["probabilities", "scores"] = "probabilities",
    teacher: int = 0,
) -> Term:
    """Build the loss term that compares selected attention heads of the teacher, each with one head of the student.

    The loss is the mean over the head pairs and tokens of a distance between the student's and the teacher's attention
    scores S = q k / sqrt(d), for queries q and keys k of size d.

    Args:
        teacher_heads: the teacher's heads (layer, head), the most important first; layers count from 1, heads from 0.
        student_heads: the student's head (layer, head) for each teacher head, in the same order. If empty, they are
            chosen by `assign_student_heads`, and a teacher head for which no student head is left is skipped.
        match: the distance: "probabilities" is KL(softmax(S_teacher) || softmax(S_student)), "scores" is
            `mean((S_student - S_teacher)**2)` over the keys.
        teacher: index of the teacher, in the order of the config.

    Raises:
        ValueError: there are no teacher heads, a layer is below 1 or a head below 0, or the numbers of student and
            teacher heads differ.
    """
    if not teacher_heads:
        raise ValueError("teacher_heads is empty; jaxdistill heads --config FILE finds the important heads")
    for layer, head in (*teacher_heads, *student_heads):
        if layer < 1 or head < 0:
            raise ValueError(f"({layer}, {head}) is not a head; layers count from 1, heads from 0")
    if student_heads and len(student_heads) != len(teacher_heads):
        counts = f"{len(student_heads)} student_heads for {len(teacher_heads)} teacher_heads"
        raise ValueError(f"{counts}; give one for each, or none")

    def values(signals: Signals) -> Array:
        students, teachers = get_attentions(signals, teacher)
        heads_per_layer = students[0].query.shape[2]
        assigned = student_heads or assign_student_heads(teacher_heads, len(students), len(teachers), heads_per_layer)
        pairs = [(ours, theirs) for ours, theirs in zip(assigned, teacher_heads, strict=True) if ours is not None]
        by_layers: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for (student_layer, student_head), (teacher_layer, teacher_head) in pairs:
            by_layers[student_layer, teacher_layer].append((student_head, teacher_head))
        distances = []
        for layers, head_pairs in by_layers.items():
            ((student, target),) = paired_attentions((layers,), signals, teacher)
            student_indices, teacher_indices = zip(*head_pairs, strict=True)
            scores = _scores(student, student_indices, f"student's layer {layers[0]}")
            targets = _scores(target, teacher_indices, f"teacher's layer {layers[1]}")
            distances.append(len(head_pairs) * DISTANCES[match](scores, targets, visible_keys(student, signals)))
        return mean_over_queries(sum(distances, jnp.zeros(())) / len(pairs), signals)

    return stateless(values, local=False, needs=frozenset({"teacher"}))


def _scores(layer_heads: AttentionHeads, indices: tuple[int, ...], layer_name: str) -> Array:
    """Compute the attention scores of some heads of a layer before the softmax, `[rows, chosen, queries, keys]`.

    Args:
        layer_heads: queries and keys of all heads of the layer.
        indices: the chosen heads.
        layer_name: name of the layer in the error message.

    Raises:
        ValueError: a chosen head does not exist.
    """
    count = layer_heads.query.shape[2]
    if max(indices) >= count:
        raise ValueError(f"the {layer_name} has no head {max(indices)}; it has heads 0 to {count - 1}")
    index = jnp.asarray(indices)
    keys = repeat_grouped_heads(layer_heads.key, count)
    return scaled_dot_products(layer_heads.query[:, :, index], keys[:, :, index])
