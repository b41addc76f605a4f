"""Structured pruning: a student made of a teacher's most important layers, heads, neurons, channels and width.

When: the student should start as a smaller copy of a trained model, and be faster on any device: what is removed is no
longer stored nor computed.
Config: student.model = "cut(teacher='minilm', layers=2, heads=0.5, neurons=0.5)"
Checked: a removed unit whose outgoing weights are zero changes no output; scores by hand; parameters and FLOPs fall as
computed.

With the inputs x of a product of a trained model on some training records, t running over tokens or pixels:

    layers      1 - mean_t cos(h_l[t], h_l+1[t])      block influence: how much a layer changes its hidden state
    heads       mean |dL / dm_h|                      importance: gradient of a mask over a head (`head_importance.py`)
                mean_t || x[t, h] ||                  without labels: the size of the head's output
    neurons, channels, width    mean_t |x[t, i]|      mean activation, summed over all products that read the unit
    vocabulary                  occurrences           how often the token is in the training records

The largest scores stay, in each layer for itself, and in the teacher's order. `jaxdistill train` decides this once,
before the student's training, and keeps it in RUN/cut/units.json. The controls of the run start with the same weights:
they tell what the teacher's answers add, not what its weights do. To cut, distil and cut again, give the folder of the
first run's student as `source`; a vocabulary is cut last, as such a model has no Hugging Face format. To reduce
vocabulary and tokenizer alike, see `jaxdistill vocabulary` and `pretrained(..., keep=FOLDER)`.

Sources: block influence: Men et al., ShortGPT, 2024 (arxiv.org/abs/2403.03853); activations: Muralidharan et al.,
Compact Language Models via Pruning and Knowledge Distillation (Minitron), 2024 (arxiv.org/abs/2407.14679); heads:
Michel et al., Are Sixteen Heads Really Better than One?, 2019 (arxiv.org/abs/1905.10650).
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxdistill.compress.axes import BLOCK, CUTTABLE, VOCABULARY, Arguments, Cuttable, Sizes, array_axes
from jaxdistill.core.registry import cuts
from jaxdistill.core.types import Array, Variables

Share = int | float
KINDS = {  # argument: name of the axis
    "heads": "heads",
    "neurons": "ffn",
    "channels": "channels",
    "width": "width",
    "vocabulary": VOCABULARY,
}
ROWS = "embed/rows"  # array with the row of the embedding table of each token


class Cut(NamedTuple):
    """The parts of a model that a cut keeps.

    teacher: name of the teacher that is cut; empty: `source`
    source: checkpoint that is cut; empty: `teacher`
    layers: number or share of the layers that stay, or their numbers
    shares: number or share of the units that stay, by name of the axis
    records: number of training records that are read
    options: arguments of the smaller model that replace those of the source
    """

    teacher: str
    source: str
    layers: Share | tuple[int, ...]
    shares: Mapping[str, Share]
    records: int
    options: Mapping[str, Any]


@cuts.register
def cut(
    teacher: str = "",
    source: str = "",
    layers: int | float | tuple[int, ...] = 1.0,
    heads: int | float = 1.0,
    neurons: int | float = 1.0,
    channels: int | float = 1.0,
    width: int | float = 1.0,
    vocabulary: int | float = 1.0,
    records: int = 512,
    **options: Any,
) -> Cut:
    """Keep the most important parts of a trained model, as the student.

    Each size is a number of parts (an int: 1 keeps one) or their share (a float above 0, at most 1.0, which keeps all).

    Args:
        teacher: name of the teacher that is cut; or give `source`.
        source: checkpoint that is cut, such as the folder `RUN/student/hub` of an earlier cut of a transformer.
        layers: layers that stay: their number, a share, or the layers themselves, counted from 0.
        heads: attention heads that stay in each layer; of a model whose heads share keys and values, groups of heads.
        neurons: hidden units that stay in each perceptron.
        channels: channels that stay inside each block of a convolutional network.
        width: units that stay in the residual stream of a transformer.
        vocabulary: rows that stay in the embedding table of an encoder: those of special tokens, and of the tokens that
            are most frequent in all training records. Every other token is read as the unknown one. The tokenizer stays
            as it is.
        records: training records whose activations are measured.
        options: arguments of the model that replace the teacher's, such as `dropout=0.1`.

    Source: Muralidharan et al. 2024, arxiv.org/abs/2407.14679; Men et al. 2024, arxiv.org/abs/2403.03853; Michel et al.
    2019, arxiv.org/abs/1905.10650.

    Raises:
        ValueError: both or none of `teacher` and `source` are given, or a share is not above 0.
    """
    if bool(teacher) == bool(source):
        raise ValueError("give the name of a teacher, teacher='NAME', or a checkpoint, source='FOLDER'")
    shares: dict[str, Share] = {"heads": heads, "neurons": neurons, "channels": channels, "width": width}
    shares["vocabulary"] = vocabulary
    for name, share in {
        **shares,
        "records": records,
        **({} if isinstance(layers, tuple) else {"layers": layers}),
    }.items():
        if share <= 0 or (isinstance(share, float) and share > 1):
            raise ValueError(f"{name}={share}: give a number above 0, or a share of at most 1.0")
    return Cut(teacher, source, layers, {KINDS[name]: share for name, share in shares.items()}, records, options)


def cuttable(family: str) -> Cuttable:
    """Return what can be cut of a model family.

    Raises:
        ValueError: nothing can.
    """
    if family not in CUTTABLE:
        raise ValueError(f"models of the family {family!r} cannot be cut; these can: {', '.join(CUTTABLE)}")
    return CUTTABLE[family]


def sizes_after(cut: Cut, family: str, arguments: Arguments) -> Sizes:
    """Return how many units stay. No data are needed.

    Args:
        cut: what the cut keeps.
        family: name of the family of the model that is cut.
        arguments: arguments of this model.

    Raises:
        ValueError: the model has no such units, or fewer than the cut keeps.
    """
    before = cuttable(family).sizes(arguments)
    present = {name.partition("/")[0] for name in before.units}
    for argument, axis in KINDS.items():
        if axis not in present and not is_all(cut.shares[axis]):
            raise ValueError(f"a {family} has no {argument}; leave {argument}={cut.shares[axis]} out")
    if not before.layers and not is_all(cut.layers):
        raise ValueError(f"a {family} has no layers that can be removed; leave layers={cut.layers} out")
    layers = before.layers and len(_given_layers(cut.layers, before.layers))
    kept = {name: _number(cut.shares[name.partition("/")[0]], size, name) for name, size in before.units.items()}
    numbered = {name: size for name, size in kept.items() if not _is_beyond(name, layers)}
    return before._replace(layers=layers, units=numbered)


def is_all(share: Share | tuple[int, ...]) -> bool:
    """Return True for the share 1.0; the number 1 keeps one unit."""
    return isinstance(share, float) and share == 1


def _is_beyond(name: str, layers: int) -> bool:
    """Return True if an axis belongs to a layer that the smaller model does not have."""
    number = name.partition("/")[2]
    return bool(layers and number and int(number) >= layers)


def _given_layers(layers: Share | tuple[int, ...], count: int) -> tuple[int, ...]:
    """Return the layers if they are given; else as many placeholders as layers stay."""
    if not isinstance(layers, tuple):
        return (-1,) * _number(layers, count, "layers")
    if sorted(set(layers)) != list(layers) or not layers or not 0 <= layers[0] <= layers[-1] < count:
        raise ValueError(f"layers={layers} must be rising numbers from 0 to {count - 1}")
    return layers


def _number(share: Share, size: int, name: str) -> int:
    number = max(1, round(share * size)) if isinstance(share, float) else share
    if number > size:
        arguments = {axis: argument for argument, axis in KINDS.items()} | {"layers": "layers"}
        raise ValueError(f"{arguments[name.partition('/')[0]]}={number}: the model has {size}; give at most {size}")
    return number


class Choice(NamedTuple):
    """Which units stay.

    layers: numbers of the layers that stay, in order; empty: the model has none that can be removed
    units: numbers of the units that stay, in order, by axis of the source: "width", "ffn/3", "heads/3", ...
    unknown: token as which a token is read whose row was removed
    """

    layers: tuple[int, ...]
    units: Mapping[str, tuple[int, ...]]
    unknown: int = 0


def choose(cut: Cut, before: Sizes, after: Sizes, scores: Mapping[str, np.ndarray]) -> Choice:
    """Choose the units with the largest scores, in each layer for itself; of equal ones the first.

    Args:
        cut: what the cut keeps; it may name the layers.
        before, after: number of units before and after the cut.
        scores: a score for each unit of each axis, and for each layer under the name "layers".
    """
    largest = lambda values, count: tuple(sorted(np.argsort(-np.asarray(values), kind="stable")[:count].tolist()))
    layers: tuple[int, ...] = ()
    if before.layers:
        layers = cut.layers if isinstance(cut.layers, tuple) else largest(scores["layers"], after.layers)
    new_name = lambda name: (
        re.sub(r"/(\d+)$", lambda match: f"/{layers.index(int(match[1]))}", name) if layers else name
    )
    is_kept = lambda name: not layers or "/" not in name or int(name.partition("/")[2]) in layers
    units = {
        name: largest(scores[name], after.units[new_name(name)])
        for name, size in before.units.items()
        if is_kept(name) and after.units[new_name(name)] < size
    }
    return Choice(layers, units)


def sliced(
    family: str, arguments: Arguments, source: Variables, shapes: Variables, choice: Choice, head_size: int, groups: int
) -> Variables:
    """Return the variables of the smaller model, taken from the source. A pure function, which can be compiled.

    Args:
        family: name of the model family.
        arguments: arguments of the source.
        source: variables of the source.
        shapes: shapes of the variables of the smaller model. Arrays that the source lacks, such as learned scales, or
            has in another shape, such as a head for other classes, are left out.
        choice: which units stay.
        head_size, groups: units of an attention head, and heads that share keys and values.
    """
    table = cuttable(family)
    expanded = {name: _positions(name, units, head_size, groups) for name, units in choice.units.items()}

    def array(name: str, arrays: Mapping[str, Array]) -> Array | None:
        if name == ROWS:
            return _rows(arrays.get(ROWS), arguments, choice)
        old = _name_in_source(name, choice.layers)
        axes = array_axes(table, arguments, old)
        x = arrays[old]
        if axes is None:
            return x
        if not axes.stacked:
            return _taken(x, axes.names, expanded)
        return jnp.stack([_taken(x[layer], axes.of_layer(layer), expanded) for layer in choice.layers])

    def part(arrays: Mapping[str, Array], wanted: Mapping[str, Any]) -> dict[str, Array]:
        is_there = lambda name: name == ROWS or _name_in_source(name, choice.layers) in arrays
        present = {name: array(name, arrays) for name in wanted if is_there(name)}
        return {name: x for name, x in present.items() if x is not None and x.shape == wanted[name].shape}

    return Variables(part(source.params, shapes.params), part(source.state, shapes.state))


def _rows(known: Array | None, arguments: Arguments, choice: Choice) -> Array:
    """Return the row of the smaller embedding table for each token, `[tokens]`.

    Args:
        known: the row of the larger table for each token; None: the token's own number.
        arguments: arguments of the source.
        choice: which rows stay.
    """
    before = jnp.arange(arguments["vocabulary"]) if known is None else known
    if VOCABULARY not in choice.units:
        return before
    kept = np.asarray(choice.units[VOCABULARY])
    after = np.full(arguments["vocabulary"], -1, np.int32)
    after[kept] = np.arange(len(kept))
    rows = jnp.take(jnp.asarray(after), before)
    return jnp.where(rows < 0, rows[choice.unknown], rows)


def _name_in_source(name: str, layers: tuple[int, ...]) -> str:
    if not (match := BLOCK.match(name)) or not layers:
        return name
    return f"blocks/{layers[int(match[1])]}/{name[match.end() :]}"


def _positions(name: str, units: tuple[int, ...], head_size: int, groups: int) -> dict[str, np.ndarray]:
    """Return, by name of an axis of arrays, the positions of units; a head is `head_size` positions."""
    numbers = np.asarray(units)
    axis, _, layer = name.partition("/")
    if axis != "heads":
        return {name: numbers}
    spread = lambda numbers, size: (numbers[:, None] * size + np.arange(size)).ravel()
    return {
        f"heads/{layer}": spread(spread(numbers, groups), head_size),
        f"kv_heads/{layer}": spread(numbers, head_size),
    }


def _taken(x: Array, names: tuple[str, ...], expanded: Mapping[str, Mapping[str, np.ndarray]]) -> Array:
    positions = {name: numbers for each in expanded.values() for name, numbers in each.items()}
    for dim, name in enumerate(names):
        if name in positions:
            x = jnp.take(x, positions[name], axis=dim)
    return x
