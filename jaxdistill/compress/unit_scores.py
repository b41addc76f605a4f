"""Compute importance scores of a trained model's layers, heads, neurons, channels and width units on some records.

The formulas are in `cut.py`. The activations are the inputs of the model's matrix products, found in its jaxpr, so that
no model needs a hook for them.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.compress.axes import Arguments, Cuttable, Sizes, array_axes
from jaxdistill.compress.products import Axes, RoundInputs, Weight, forward
from jaxdistill.core.interfaces import Model
from jaxdistill.core.marked_arrays import Collected, Combine
from jaxdistill.core.types import Array, RowsLike, Variables

SUM = Combine(lambda a, b: a + b, lambda x: x.sum(0))
INFLUENCE, COUNT = "layers", "count"  # names of the sums that belong to no axis


def unit_scores(
    model: Model,
    variables: Variables,
    batches: Iterable[Mapping[str, Any]],
    table: Cuttable,
    arguments: Arguments,
) -> dict[str, np.ndarray]:
    """Compute importance scores for structured pruning: one for each layer, head, neuron, channel and width unit.

    Args:
        model: the model to prune.
        variables: its trained parameters and state.
        batches: batches of records; rows and tokens whose `mask` or `attention_mask` is 0 are left out.
        table: description of the model's family, which names the axes of its arrays.
        arguments: arguments of the model.

    Returns:
        A dict of score arrays: those of units by name of the axis ("width", "ffn/0", ...), those of layers as "layers".

    Raises:
        ValueError: all rows are masked, or an activation is not finite.
    """
    run = jax.jit(lambda values, batch: batch_sums(model, values, batch, table, arguments))
    on_device, sums = jax.device_put(variables), dict[str, np.ndarray]()
    for batch in batches:
        for name, x in jax.device_get(run(on_device, dict(batch))).items():
            sums[name] = sums.get(name, np.zeros(())) + np.asarray(x, np.float64)
    count = sums.pop(COUNT, np.zeros(()))
    if not count:
        raise ValueError("there are no records; give at least one")
    if bad := [name for name, x in sums.items() if not np.isfinite(x).all()]:
        raise ValueError(f"activations of {bad[0]} are not finite")
    return {name: x / count for name, x in sums.items()}


def batch_sums(
    model: Model, variables: Variables, batch: RowsLike, table: Cuttable, arguments: Arguments
) -> dict[str, Array]:
    """Compute the importance scores of a batch, summed over its unmasked tokens (or rows), as a dict by axis name.

    Its entry "count" is the number of these tokens (or rows). Activations of an image are averaged over its positions.
    """
    sizes, rows = table.sizes(arguments), jax.tree.map(jnp.asarray, dict(batch))
    counted = counted_tokens(rows)

    scores: dict[str, Array] = {}
    record = _recorder(table, arguments, sizes, counted)
    key = jax.random.key(0)
    (out, _), collected, _ = forward(
        model,
        variables.params,
        variables.state,
        rows,
        train=False,
        key=key,
        ranges={},
        round_inputs=record,
        combine=SUM,
    )
    for weight, x in collected.items():
        for axis, score in _by_axis(table, arguments, weight, x):
            if axis in sizes.units:
                scores[axis] = scores.get(axis, jnp.zeros(())) + score
    if sizes.layers:
        pairs = zip(out.hidden_states, out.hidden_states[1:], strict=False)
        scores[INFLUENCE] = jnp.stack([_influence(a, b, counted) for a, b in pairs])
    return {**scores, COUNT: counted.sum()}


def counted_tokens(batch: Mapping[str, Array]) -> Array:
    """Return a float mask over rows `[batch]` or tokens `[batch, length]`: 0 where masked or padding, otherwise 1."""
    mask = (batch["mask"] != 0).astype(jnp.float32)
    real = batch.get("attention_mask")
    if mask.ndim > 1 or real is None:
        return mask
    return mask[:, None] * real.astype(jnp.float32)


def sum_over_counted(x: Array, counted: Array) -> Array:
    """Sum values `[batch, ..., units]` over the unmasked rows or tokens, and average over positions without a mask.

    Args:
        x: the values.
        counted: mask `[batch]` or `[batch, length]` from `counted_tokens`.

    Returns:
        The sums, `[units]`.
    """
    if x.ndim <= counted.ndim:  # a pooled text: its row counts for as many tokens as it has
        x = jnp.broadcast_to(x[:, None], (*counted.shape, *x.shape[1:]))
    extra = tuple(range(counted.ndim, x.ndim - 1))
    return jnp.tensordot(counted, x.mean(extra) if extra else x, counted.ndim)


def _recorder(table: Cuttable, arguments: Arguments, sizes: Sizes, counted: Array) -> RoundInputs:
    """Build a function for `forward` that collects the input magnitude of each unit, and returns inputs unchanged."""

    def record(weight: Weight, x: Array, summed: Axes, collected: Collected) -> Array:
        axes = array_axes(table, arguments, weight.name)
        if axes is None or x.shape[0] != len(counted):
            return x
        size = jnp.abs(x.astype(jnp.float32))
        if _input_axis(axes.names).startswith("heads"):
            split = size.reshape(*size.shape[:-1], -1, sizes.groups * sizes.head_size)
            size = jnp.sqrt((split**2).sum(-1))
        collected.add(weight.name, sum_over_counted(size, counted))
        return x

    return record


def _input_axis(names: tuple[str, ...]) -> str:
    """Return the name of the contracted axis of a kernel `[..., inputs, outputs]`, or "" if the axis has none."""
    return names[-2] if len(names) > 1 else ""


def _by_axis(table: Cuttable, arguments: Arguments, weight: str, x: Array) -> list[tuple[str, Array]]:
    """Return the input magnitudes of a weight as a list of (axis name, array), with an entry for each stacked layer."""
    axes = array_axes(table, arguments, weight)
    assert axes is not None
    if not (axis := _input_axis(axes.names)):
        return []
    if not axes.stacked:
        return [(axis, x)]
    return [(_input_axis(axes.of_layer(number)), x[number]) for number in range(x.shape[0])]


def _influence(before: Array, after: Array, counted: Array) -> Array:
    """Return the block influence of a layer (ShortGPT): the sum of 1 - cos(input, output) over unmasked tokens."""
    a, b = before.astype(jnp.float32), after.astype(jnp.float32)
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    change = 1 - (a * b).sum(-1) / jnp.maximum(norms, 1e-30)
    return sum_over_counted(change[..., None], counted)[0]
