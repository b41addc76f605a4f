"""Structured pruning: build a student from a teacher's most important layers, heads, neurons, channels and width.

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

In each layer, the units with the largest scores are kept, in the teacher's order. `jaxdistill train` chooses them once,
before the student's training, and stores them in RUN/cut/units.json. The controls of the run start with the same
weights, so they show what the teacher's outputs add, not what its weights add. To cut, distil and cut again, give the
folder of the first run's student as `source`; a vocabulary is cut last, as such a model has no Hugging Face format. To
reduce vocabulary and tokenizer alike, see `jaxdistill vocabulary` and `pretrained(..., keep=FOLDER)`.

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
    """The settings of structured pruning: which model is pruned, and how much of it is kept.

    teacher: name of the teacher to prune; empty if `source` is given
    source: checkpoint to prune; empty if `teacher` is given
    layers: number (int) or share (float) of the layers to keep, or a tuple of the numbers of these layers
    shares: number (int) or share (float) of the units to keep, by name of the axis, such as "heads" or "ffn"
    records: number of training records on which importance is measured
    options: arguments of the smaller model that replace those of the pruned model
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
    """Build the student from a trained model by structured pruning, which keeps only the most important parts.

    Each size is either an int, the number of parts to keep, or a float above 0 and up to 1.0, the share to keep. So 1
    keeps one part, and 1.0 keeps all parts.

    Args:
        teacher: name of the teacher to prune. Give either `teacher` or `source`.
        source: checkpoint to prune, such as the folder `RUN/student/hub` of an earlier pruned transformer.
        layers: layers to keep: a number, a share, or a tuple of layer numbers in rising order, counted from 0.
        heads: attention heads to keep in each layer; in grouped-query attention, groups of heads with shared keys.
        neurons: hidden units to keep in each MLP.
        channels: channels to keep inside each block of a convolutional network.
        width: units to keep in the residual stream of a transformer.
        vocabulary: rows to keep in the embedding table of an encoder: those of special tokens, and of the tokens that
            are most frequent in all training records. Every other token is treated as the unknown token. The tokenizer
            does not change.
        records: number of training records on which activations are measured.
        options: arguments of the model that replace those of the pruned model, such as `dropout=0.1`.

    Source: Muralidharan et al. 2024, arxiv.org/abs/2407.14679; Men et al. 2024, arxiv.org/abs/2403.03853; Michel et al.
    2019, arxiv.org/abs/1905.10650.

    Raises:
        ValueError: both or none of `teacher` and `source` are given, or a size is not above 0, or a share is above 1.
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
    """Return the description of a model family that structured pruning needs: names of array axes, and sizes.

    Raises:
        ValueError: models of this family cannot be pruned.
    """
    if family not in CUTTABLE:
        raise ValueError(f"models of the family {family!r} cannot be cut; these can: {', '.join(CUTTABLE)}")
    return CUTTABLE[family]


def sizes_after(cut: Cut, family: str, arguments: Arguments) -> Sizes:
    """Compute the number of layers and units of a model after structured pruning, without reading any data.

    Args:
        cut: settings of the pruning.
        family: name of the model's family.
        arguments: arguments of the model before pruning.

    Raises:
        ValueError: the model has no units of a kind that is to be pruned, or fewer than the settings keep.
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
    """Return True for the float 1.0, which keeps all parts, and False for the int 1, which keeps one part."""
    return isinstance(share, float) and share == 1


def _is_beyond(name: str, layers: int) -> bool:
    """Return True if an axis such as "ffn/3" belongs to a layer that a model with `layers` layers does not have."""
    number = name.partition("/")[2]
    return bool(layers and number and int(number) >= layers)


def _given_layers(layers: Share | tuple[int, ...], count: int) -> tuple[int, ...]:
    """Return the numbers of the layers to keep, or -1 for each of them if the settings give only their count."""
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
    """The layers and units that structured pruning keeps.

    layers: numbers of the kept layers, in order; empty if the model has no layers that can be removed
    units: numbers of the kept units, in order, by axis of the source model: "width", "ffn/3", "heads/3", ...; an axis
        without an entry keeps all its units
    unknown: number of the token that replaces every token whose embedding row is removed
    """

    layers: tuple[int, ...]
    units: Mapping[str, tuple[int, ...]]
    unknown: int = 0


def choose(cut: Cut, before: Sizes, after: Sizes, scores: Mapping[str, np.ndarray]) -> Choice:
    """Choose the layers and units to keep: those with the largest importance scores.

    Units are compared within their layer. Of units with equal scores, the first are kept.

    Args:
        cut: settings of the pruning; if they name the layers to keep, the scores of layers are not used.
        before, after: number of layers and units before and after pruning.
        scores: a score for each unit, by name of the axis, and for each layer, under the name "layers".
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
    """Build the variables of a pruned model by slicing the arrays of the source model.

    This is a pure function, which `jit` can compile. Arrays that the source lacks, such as learned scales, or has in
    another shape, such as a head for other classes, are missing from the result.

    Args:
        family: name of the model family.
        arguments: arguments of the source model.
        source: variables of the source model.
        shapes: shapes of the variables of the pruned model.
        choice: the layers and units to keep.
        head_size: units of an attention head.
        groups: number of query heads that share keys and values.
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
        known: the row of the larger table for each token; None if it is the token's own number.
        arguments: arguments of the source model.
        choice: the rows to keep.
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
    """Convert unit numbers to indices along array axes, as a dict by axis name; a head takes `head_size` indices."""
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
