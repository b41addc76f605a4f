"""Layer maps: pairs of a student layer and the teacher layer that it learns from.

Layers are numbered as in `Outputs.hidden_states`: 0 is the embedding (or stem), 1 the first layer. In TinyBERT's
ablation a uniform map beat the top and the bottom layers (75.6 / 70.9 / 71.3).
"""

import re

from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.term import mask_padding, mean_over_positions, select_teacher

LayerMap = str | tuple[tuple[int, int], ...]


def layer_pairs(layers: LayerMap, student_states: int, teacher_states: int) -> list[tuple[int, int]]:
    """Resolve a layer map to pairs (student layer, teacher layer).

    Args:
        layers: "uniform" (student layer i of n learns from teacher layer round(i N / n)), "skip" (the same without its
            last pair, as in Patient KD), "last", a range of teacher layers such as "6-9" (each paired with the
            student's layer at the same relative depth), or explicit pairs `((1, 2), (2, 4))`; negative numbers count
            from the end.
        student_states: number of hidden states of the student, including the embedding.
        teacher_states: number of hidden states of the teacher, including the embedding.

    Raises:
        ValueError: a layer does not exist, or the map is unknown.
    """
    student_depth, teacher_depth = student_states - 1, teacher_states - 1
    if student_depth < 1 or teacher_depth < 1:
        counts = f"the student has {student_states} and the teacher {teacher_states} hidden states"
        raise ValueError(f"{counts}; each needs at least an embedding and a layer")
    if not layers:
        raise ValueError("no layers are named; at least one pair is needed")
    if not isinstance(layers, str):
        return [(_index(i, student_states, "student"), _index(j, teacher_states, "teacher")) for i, j in layers]
    if layers == "last":
        return [(student_depth, teacher_depth)]
    if layers in ("uniform", "skip"):
        pairs = [(i, max(1, round(i * teacher_depth / student_depth))) for i in range(1, student_states)]
        if layers == "skip" and student_depth == 1:
            raise ValueError("layers='skip' leaves the last layer out, and the student has no other; use 'last'")
        return pairs if layers == "uniform" else pairs[:-1]
    span = re.fullmatch(r"(\d+)-(\d+)", layers)
    if not span or int(span[1]) > int(span[2]):
        known = "'uniform', 'skip', 'last', a range like '6-9', pairs like ((1, 2), (2, 4))"
        raise ValueError(f"unknown layer map {layers!r}. Known: {known}")
    teacher_layers = [_index(j, teacher_states, "teacher") for j in range(int(span[1]), int(span[2]) + 1)]
    return [(max(1, round(j * student_depth / teacher_depth)), j) for j in teacher_layers]


def check_layers(layers: LayerMap) -> None:
    """Check the spelling of a layer map before any model exists.

    Raises:
        ValueError: the map is unknown.
    """
    layer_pairs(layers, 10**4, 10**4)


def chosen_pairs(signals: Signals, layers: LayerMap, teacher: int) -> list[tuple[int, int]]:
    """Resolve a layer map for the models of these signals: pairs (student layer, teacher layer), counted from 0.

    Raises:
        ValueError: a layer does not exist, or the teacher's cache or placement does not list it.
    """
    states = select_teacher(signals.teachers, teacher).hidden_states
    pairs = layer_pairs(layers, len(signals.student.hidden_states), len(states))
    if missing := [j for _, j in pairs if states[j] is None]:
        listed = [number for number, state in enumerate(states) if state is not None]
        problem = f"the teacher's outputs lack layers {missing}; its cache or placement lists {listed}"
        raise ValueError(f"{problem}. Add the layers there, or choose listed ones")
    return pairs


def paired_states(signals: Signals, layers: LayerMap, teacher: int) -> list[tuple[Array, Array]]:
    """Return the hidden states (student, teacher) of each layer pair; padding tokens of the student are set to 0.

    Otherwise a convolution would carry the contents of padding into neighbouring tokens.
    """
    students, teachers = signals.student.hidden_states, select_teacher(signals.teachers, teacher).hidden_states
    pairs = chosen_pairs(signals, layers, teacher)
    return [(mask_padding(students[i], signals.batch), teachers[j]) for i, j in pairs]


def average_if_extents_differ(student: Array, teacher: Array, signals: Signals) -> tuple[Array, Array]:
    """Return both states `[*batch, *extent, width]` unchanged, or, if their extents differ, their means over these.

    Means over a text leave out its padding tokens.
    """
    if student.shape[:-1] == teacher.shape[:-1]:
        return student, teacher
    average = lambda x: mean_over_positions(x, signals.batch, signals.mask.ndim, trailing=1)
    return average(student), average(teacher)


def _index(layer: int, count: int, whose: str) -> int:
    if not -count <= layer < count:
        raise ValueError(f"the {whose} has no layer {layer}; it has layers 0 (the embedding) to {count - 1}")
    return layer % count
