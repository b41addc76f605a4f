"""Layer maps: which student layer learns from which teacher layer.

Layers are numbered as in `Outputs.hidden_states`: 0 is the embedding (or stem), 1 the first layer. `layer_pairs` lists
the forms of a layer map. In TinyBERT's ablation, pairing with evenly spaced teacher layers (a uniform map) gave a mean
score of 75.6, the teacher's top layers 70.9 and its bottom layers 71.3.
"""

import re

from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.term import mask_padding, mean_over_positions, select_teacher

LayerMap = str | tuple[tuple[int, int], ...]


def layer_pairs(layers: LayerMap, student_states: int, teacher_states: int) -> list[tuple[int, int]]:
    """Resolve a layer map to pairs of layer numbers (student layer, teacher layer); 0 is the embedding.

    A layer map defines which student layer learns from which teacher layer. For n student and N teacher layers, it is
    one of these:

    - "uniform": student layer i learns from teacher layer max(1, round(i N / n)).
    - "skip": "uniform" without its last pair, as in the paper Patient KD.
    - "last": the last student layer learns from the last teacher layer.
    - a range of teacher layers, such as "6-9": student layer max(1, round(j n / N)) learns from teacher layer j.
    - the pairs, such as `((1, 2), (2, 4))`; negative numbers count from the end.

    Args:
        layers: the layer map.
        student_states: number of hidden states of the student, including the embedding: n + 1.
        teacher_states: number of hidden states of the teacher, including the embedding: N + 1.

    Raises:
        ValueError: a layer does not exist, a model has no layer, or the map is empty or has none of these forms.
    """
    student_depth, teacher_depth = student_states - 1, teacher_states - 1
    if student_depth < 1 or teacher_depth < 1:
        counts = f"the student has {student_states} and the teacher {teacher_states} hidden states"
        cure = "choose a deeper network, such as mlp(widths=(64, 64), ...)"
        raise ValueError(f"{counts}; each needs at least an embedding and a layer: {cure}")
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
    """Require that a layer map has one of the forms that `layer_pairs` lists, whatever the models' depths are.

    Raises:
        ValueError: the map is empty or has none of these forms.
    """
    layer_pairs(layers, 10**4, 10**4)


def chosen_pairs(signals: Signals, layers: LayerMap, teacher: int) -> list[tuple[int, int]]:
    """Resolve a layer map to pairs (i, j): hidden state i of the student learns from hidden state j of a teacher.

    Args:
        signals: the inputs of a loss term: outputs of student and teachers, the batch and its mask.
        layers: which student layer learns from which teacher layer: "uniform", "skip", "last", a range of teacher
            layers such as "6-9", or pairs such as ((1, 2), (2, 4)); see `layer_pairs`.
        teacher: index of the teacher, in the order of the config.

    Raises:
        ValueError: a layer does not exist, or it is missing from the teacher's outputs. The outputs of a teacher that
            is read from a cache, or that runs on separate devices, have only the layers that the config lists for it.
    """
    states = select_teacher(signals.teachers, teacher).hidden_states
    pairs = layer_pairs(layers, len(signals.student.hidden_states), len(states))
    if missing := [j for _, j in pairs if states[j] is None]:
        listed = [number for number, state in enumerate(states) if state is not None]
        problem = f"the teacher's outputs lack layers {missing}; its cache or placement lists {listed}"
        raise ValueError(f"{problem}. Add the layers there, or choose listed ones")
    return pairs


def paired_states(signals: Signals, layers: LayerMap, teacher: int) -> list[tuple[Array, Array]]:
    """Return the hidden states (student, teacher) of each layer pair, each `[*batch, *extent, width]`.

    `*extent` are the spatial or sequence axes. The student's states are set to 0 at padding tokens. Otherwise a
    projector with a convolution would mix padding into the neighbouring tokens.

    Args:
        signals: the inputs of a loss term: outputs of student and teachers, the batch and its mask.
        layers: which student layer learns from which teacher layer: "uniform", "skip", "last", a range of teacher
            layers such as "6-9", or pairs such as ((1, 2), (2, 4)); see `layer_pairs`.
        teacher: index of the teacher, in the order of the config.
    """
    students, teachers = signals.student.hidden_states, select_teacher(signals.teachers, teacher).hidden_states
    pairs = chosen_pairs(signals, layers, teacher)
    return [(mask_padding(students[i], signals.batch), teachers[j]) for i, j in pairs]


def average_if_extents_differ(student: Array, teacher: Array, signals: Signals) -> tuple[Array, Array]:
    """Average two hidden states over their positions if their spatial or sequence axes differ in size.

    Otherwise both states are returned unchanged. An average is `[*batch, *extent, width] -> [*batch, width]`, without
    padding tokens; `*extent` are the spatial or sequence axes.
    """
    if student.shape[:-1] == teacher.shape[:-1]:
        return student, teacher
    average = lambda x: mean_over_positions(x, signals.batch, signals.mask.ndim, trailing=1)
    return average(student), average(teacher)


def _index(layer: int, count: int, whose: str) -> int:
    """Require that a layer exists among `count` hidden states of a model, and make a negative number positive."""
    if not -count <= layer < count:
        raise ValueError(f"the {whose} has no layer {layer}; it has layers 0 (the embedding) to {count - 1}")
    return layer % count
