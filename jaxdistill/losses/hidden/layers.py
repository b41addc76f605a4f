"""Layer maps: which of the student's layers learns from which of the teacher's.

Layers count as in `Outputs.hidden_states`: 0 is the embedding (or stem), 1 the first layer. A uniform map beat top
and bottom layers in TinyBERT's ablation (75.6 / 70.9 / 71.3).
"""

import re

from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.term import extent_mean, one_of, without_padding

LayerMap = str | tuple[tuple[int, int], ...]


def layer_pairs(layers: LayerMap, students: int, teachers: int) -> list[tuple[int, int]]:
    """Pairs (student layer, teacher layer).

    Args:
        layers: "uniform" (student layer i of n learns from teacher layer round(i N / n)), "skip" (the same without its
            last pair, as in Patient KD), "last", a range of teacher layers such as "6-9" (each taught to the student's
            layer at the same relative depth), or explicit pairs `((1, 2), (2, 4))`; negative numbers count from the
            end.
        students: how many hidden states the student returns, the embedding included.
        teachers: the same for the teacher.

    Raises:
        ValueError: for a layer that does not exist, or another word.
    """
    depth, height = students - 1, teachers - 1
    if depth < 1 or height < 1:
        raise ValueError(
            f"student has {students} and teacher {teachers} hidden states; at least an embedding and a layer are needed"
        )
    if not layers:
        raise ValueError("no layers are named; at least one pair is needed")
    if not isinstance(layers, str):
        return [(_at(i, students, "student"), _at(j, teachers, "teacher")) for i, j in layers]
    if layers == "last":
        return [(depth, height)]
    if layers in ("uniform", "skip"):
        pairs = [(i, max(1, round(i * height / depth))) for i in range(1, students)]
        if layers == "skip" and depth == 1:
            raise ValueError("layers='skip' leaves the last layer out, and the student has no other; use 'last'")
        return pairs if layers == "uniform" else pairs[:-1]
    span = re.fullmatch(r"(\d+)-(\d+)", layers)
    if not span or int(span[1]) > int(span[2]):
        known = "'uniform', 'skip', 'last', a range like '6-9', pairs like ((1, 2), (2, 4))"
        raise ValueError(f"unknown layer map {layers!r}. Known: {known}")
    chosen = [_at(j, teachers, "teacher") for j in range(int(span[1]), int(span[2]) + 1)]
    return [(max(1, round(j * depth / height)), j) for j in chosen]


def check_layers(layers: LayerMap) -> None:
    """A misspelt layer map fails here, before any model exists.

    Raises:
        ValueError: for a word that is no layer map.
    """
    layer_pairs(layers, 10**4, 10**4)


def chosen_pairs(signals: Signals, layers: LayerMap, teacher: int) -> list[tuple[int, int]]:
    """The pairs (student layer, teacher layer) that a map names, counted from 0.

    Raises:
        ValueError: a layer does not exist, or is not among those that the teacher's cache or placement names.
    """
    states = one_of(signals.teachers, teacher).hidden_states
    pairs = layer_pairs(layers, len(signals.student.hidden_states), len(states))
    if lost := [j for _, j in pairs if states[j] is None]:
        kept = [number for number, state in enumerate(states) if state is not None]
        raise ValueError(f"layers {lost} of the teacher are not sent; its cache or placement names {kept}")
    return pairs


def paired_states(signals: Signals, layers: LayerMap, teacher: int) -> list[tuple[Array, Array]]:
    """The hidden states (student, teacher) of `chosen_pairs`, the student's with zeros where its text is padded.

    A window, such as a convolution's, would carry what stands there into its neighbours.
    """
    students, teachers = signals.student.hidden_states, one_of(signals.teachers, teacher).hidden_states
    pairs = chosen_pairs(signals, layers, teacher)
    return [(without_padding(students[i], signals.batch), teachers[j]) for i, j in pairs]


def aligned(student: Array, teacher: Array, signals: Signals) -> tuple[Array, Array]:
    """Both `[*batch, *extent, width]` with the same extent: averaged over the extent where it differs."""
    if student.shape[:-1] == teacher.shape[:-1]:
        return student, teacher
    pool = lambda x: extent_mean(x, signals.batch, signals.mask.ndim, trailing=1)
    return pool(student), pool(teacher)


def _at(layer: int, count: int, whose: str) -> int:
    if not -count <= layer < count:
        raise ValueError(f"the {whose} has no layer {layer}; it has layers 0 (the embedding) to {count - 1}")
    return layer % count
