"""Quantisation-aware training: a model computes with rounded weights and inputs, and its gradients pass through.

When: the student will be stored in 8, 4 or 2 bits, and rounding it afterwards costs accuracy: with 8 bits often none,
with 4 some points, with 2 everything.
Config: student.quantized = "aware(weights=4, inputs=8, start=0.5)"
Experiment: `experiments/few_bits` (2 bits cost a perceptron 0.1 points where rounding afterwards costs 55).
Checked: integers and scales equal those of the writers of ONNX, LiteRT and GGUF files; values and gradients equal those
of qwix, given its scales; a perceptron and the gradient of learned scales (equation 3 of LSQ) by hand.

    y = Q(x) Q(W),    dQ(v)/dv = 1 (straight-through)

The weights stay floats, and are rounded in every forward pass to the grid of a file format (`grids.py`).
With `start`, the model trains in floats first. Weights are found in the trace of the model: an array that is multiplied
with inputs, or whose rows are looked up. A depthwise convolution, which is computed as a sum of scaled images, and the
products of attention, which have no weight, stay floats.

Two controls are trained beside such a student: the same one in floats ("student in floats"), which is also rounded by
the same rule ("student rounded afterwards"), and the one without a teacher, which is rounded too. The folder of the
student holds the rounded weights as floats, so that bytes and time in the table are those of floats. The bytes are
saved by the file that is shipped, which `jaxdistill export` writes and measures:

    weights=8              onnx(int8='dynamic'), litert(int8='dynamic')
    the same, with ranges='running'     onnx(int8='static'), litert(int8='static')
    weights=8, block=32    gguf(kind='Q8_0'), for language models
    weights=4, block=32    gguf(kind='Q4_0'), for language models
    weights=2              gguf(kind='TQ2_0'), for language models whose widths are multiples of 256

For 4 bits per output no format here stores fewer bytes than 8 bits: they are studied in JAX. An 8-bit
file chooses scales by the largest weight again, and ranges by training records: learned scales are rounded once more.

Sources: straight-through: Bengio et al. 2013 (arxiv.org/abs/1308.3432); ranges: Jacob et al., Quantization and Training
of Neural Networks for Efficient Integer-Arithmetic-Only Inference, 2018 (arxiv.org/abs/1712.05877); learned scales:
LSQ, Esser et al. 2020 (arxiv.org/abs/1902.08153).
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxdistill.compress.added import CALLS, LOG_SCALE, RANGE, is_of_quantizer
from jaxdistill.compress.grids import (
    Grid,
    grid,
    round_in_range,
    round_rows,
    straight_through,
    values,
)
from jaxdistill.compress.input_ranges import WIDEST, ranges_in, running, with_ranges
from jaxdistill.compress.products import PATH, Axes, Role, RoundInputs, Weight, forward, weight_roles
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.interfaces import Model, Pretrained
from jaxdistill.core.marked_arrays import Collected
from jaxdistill.core.registry import quantizers
from jaxdistill.core.spec import Spec
from jaxdistill.core.types import Array, Key, Outputs, Params, RowsLike, State, Variables

Bits = Literal[0, 2, 4, 8]


class Quantizer(NamedTuple):
    """A way to train a model in few bits.

    wrap: `(model, number of training calls of the run) -> model`, a model that computes with rounded weights and inputs
    calibrate: `(model, variables of the wrapped model, batches) -> variables`, with ranges of inputs that are those of
        the batches; without fixed ranges, the variables are returned unchanged
    finish: `(model, variables of the wrapped model, batch) -> (variables, ranges)`: the variables of `model`, with its
        weights on the grid; and the range of the inputs of each weight, `[..., 2]`, by name (empty: not fixed)
    serving: spec string of the quantizer of the finished variables, which rounds inputs alone
    """

    wrap: Callable[[Model, int], Model]
    calibrate: Callable[[Model, Variables, Iterable[RowsLike]], Variables]
    finish: Callable[[Model, Variables, RowsLike], tuple[Variables, dict[str, Array]]]
    serving: str


@quantizers.register
def aware(
    weights: Bits = 8,
    inputs: Literal[0, 8, 16] = 8,
    block: int = 0,
    scales: Literal["largest", "learned"] = "largest",
    ranges: Literal["row", "running"] = "row",
    start: float = 0.0,
    skip: str = "",
) -> Quantizer:
    """Train with weights, and inputs of products, rounded to integers; the gradient passes straight through.

    Args:
        weights: bits of weights: 8, 4, 2 (the values -1, 0, 1 times a scale), or 0: floats.
        inputs: bits of what is multiplied with a weight: 8, 16, or 0: floats.
        block: weights that share a scale: 32 neighbours, as in GGUF (Q8_0, Q4_0), or 0: all of one output.
        scales: "largest": by the largest weight (2 bits: the mean one); "learned": times a learned factor (LSQ).
        ranges: of inputs: "row": the largest value of each row, as files with dynamic ranges have it; "running": a
            running range of all rows, as files with static ranges have it.
        start: share of the training before weights and inputs are rounded, from 0 to below 1.
        skip: regex of names of weights that stay floats, with their inputs, such as "head"; empty: none.

    Source: Jacob et al. 2018, arxiv.org/abs/1712.05877; LSQ: Esser et al. 2020, arxiv.org/abs/1902.08153; 2 bits: Ma et
    al. 2024, arxiv.org/abs/2402.17764.

    Raises:
        ValueError: there is no such grid, `start` is not in [0, 1), or `skip` is no regex.
    """
    if not weights and not inputs:
        raise ValueError("weights=0 with inputs=0 rounds nothing; set one of them")
    if not 0 <= start < 1:
        raise ValueError(f"start={start} is not in [0, 1)")
    if not weights and (block or scales != "largest"):
        raise ValueError("weights=0 are not rounded; leave block and scales out")
    if not inputs and ranges != "row":
        raise ValueError("inputs=0 are not rounded; leave ranges out")
    if scales == "learned" and block:
        raise ValueError("scales='learned' needs block=0: a file chooses the scales of its blocks itself")
    try:
        re.compile(skip)
    except re.error as error:
        raise ValueError(f"skip={skip!r} is no regular expression ({error})") from None
    weight_grid = grid(weights, block) if weights else None
    return quantizer(Settings(weight_grid, block, inputs, scales == "learned", ranges == "running", start, skip))


class Settings(NamedTuple):
    """The arguments of `aware`, checked.

    grid: rounds weights; None: they stay floats
    block: weights that share a scale; 0: all of one output
    inputs: bits of the inputs of products; 0: floats
    learned: True: scales have a learned factor
    running: True: inputs have a running range
    start: share of the training in floats
    skip: regex of names of weights that stay floats; empty: none
    """

    grid: Grid | None
    block: int
    inputs: int
    learned: bool
    running: bool
    start: float
    skip: str

    def roles(self, model: Model, params: Params, state: State, batch: RowsLike) -> dict[str, Role]:
        """Return the weights that are rounded, by name, each with its role in the model.

        Raises:
            ConfigError: there are none, `skip` matches none, or a weight cannot be split into blocks.
        """
        every = weight_roles(model, params, state, batch)
        roles = {name: role for name, role in every.items() if not (self.skip and re.search(self.skip, name))}
        if self.skip and len(roles) == len(every):
            raise ConfigError(PATH, f"skip={self.skip!r} matches no weight; there are {', '.join(every)}")
        if not roles:
            raise ConfigError(
                PATH, "no weight is rounded: none is multiplied with inputs as it is, or skip matches all of them"
            )
        for name, role in roles.items():
            size = math.prod(params[name].shape[axis] for axis in role.axes)
            if self.block and size % self.block:
                cure = f"leave it out by skip={name!r}, or set block=0"
                raise ConfigError(PATH, f"{name} has {size} inputs for an output, no multiple of {self.block}; {cure}")
        return roles


def quantizer(settings: Settings) -> Quantizer:
    """Return the way of training that settings describe, for a grid of your own, too."""
    ranges = "running" if settings.running else "row"
    arguments = {"weights": 0, "inputs": settings.inputs, "ranges": ranges, "skip": settings.skip}
    serving = repr(Spec("aware", (), arguments)) if settings.inputs else ""
    return Quantizer(partial(_wrapped, settings), partial(_calibrated, settings), partial(_finished, settings), serving)


def _wrapped(settings: Settings, model: Model, calls: int) -> Model:
    first = math.floor(settings.start * calls + 0.5)  # number of the first training call with rounded values

    def init(key: Key, batch: RowsLike) -> tuple[Params, State]:
        params, state = model.init(key, batch)
        roles = settings.roles(model, params, state, batch)
        added: dict[str, Array] = {CALLS: jnp.zeros((), jnp.int32)}  # also tells its checkpoints from those in floats
        if settings.running:
            stack = lambda name: params[name].shape[: params[name].ndim - roles[name].rank]
            added |= {name + RANGE: jnp.zeros((*stack(name), 2)) for name, role in roles.items() if role.is_factor}
        factors = {}
        if settings.learned:
            rows = {name: _rows(params[name], role.axes) for name, role in roles.items()}
            factors = {name + LOG_SCALE: jnp.zeros(x.shape[:-1]) for name, x in rows.items()}
        return {**params, **factors}, {**state, **added}

    def apply(params: Params, state: State, batch: RowsLike, *, train: bool, key: Key) -> tuple[Outputs[Any], State]:
        params, state, batch = jax.tree.map(jnp.asarray, (dict(params), dict(state), dict(batch)))
        inner_params, inner_state = _own(params, state)
        roles = settings.roles(model, inner_params, inner_state, batch)
        is_on = state[CALLS] >= first if first else True
        rounded = {
            name: _choose(is_on, _rounded(settings, params, name, roles[name].axes), x) if name in roles else x
            for name, x in inner_params.items()
        }
        ranges = ranges_in(state)
        round_inputs = _inputs_rule(settings, roles, is_on, train)
        if settings.inputs:
            (out, new_state), collected, _ = forward(
                model,
                rounded,
                inner_state,
                batch,
                train=train,
                key=key,
                ranges=ranges,
                round_inputs=round_inputs,
                combine=WIDEST,
            )
        else:
            (out, new_state), collected = model.apply(rounded, inner_state, batch, train=train, key=key), {}
        counted = {CALLS: state[CALLS] + train} if CALLS in state else {}
        new_ranges = {name + RANGE: collected.get(name, span) for name, span in ranges.items()}
        return out, {**new_state, **counted, **new_ranges}

    if (load_inner := model.load) is None:
        return model._replace(init=init, apply=apply)

    def load(shapes: Variables) -> Pretrained:
        return load_inner(Variables(*_own(shapes.params, shapes.state)))

    return model._replace(init=init, apply=apply, load=load)


def _calibrated(settings: Settings, model: Model, variables: Variables, batches: Iterable[RowsLike]) -> Variables:
    """Return the variables of a wrapped model with the ranges of the inputs in some batches; the model is in floats."""
    if not settings.running:
        return variables
    params, state = _own(*variables)
    floats = settings._replace(grid=None, learned=False, start=0.0)

    @jax.jit
    def observe(params: Params, state: State, ranges: dict[str, Array], batch: RowsLike) -> dict[str, Array]:
        rows = jax.tree.map(jnp.asarray, dict(batch))
        roles = floats.roles(model, params, state, rows)
        rule = _inputs_rule(floats, roles, False, True)
        key = jax.random.key(0)
        return forward(
            model, params, state, rows, train=False, key=key, ranges=ranges, round_inputs=rule, combine=WIDEST
        )[1]

    ranges = ranges_in(variables.state)
    for batch in batches:
        ranges = {**ranges, **observe(params, state, ranges, batch)}
    return with_ranges(variables, ranges)


def _finished(
    settings: Settings, model: Model, variables: Variables, batch: RowsLike
) -> tuple[Variables, dict[str, Array]]:
    params, state = _own(*variables)
    roles = settings.roles(model, params, state, batch)
    on_grid = jax.jit(lambda params, name, found: _rounded(settings, params, name, found), static_argnums=(1, 2))
    finished = {n: on_grid(variables.params, n, roles[n].axes) if n in roles else x for n, x in params.items()}
    ranges = ranges_in(variables.state)
    return Variables(finished, state), ranges


def _own(params: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the variables of the model that was wrapped."""
    kept = lambda arrays: {name: x for name, x in arrays.items() if not is_of_quantizer(name)}
    return kept(params), kept(state)


def _choose(is_on: Any, rounded: Array, x: Array) -> Array:
    """Return rounded values, or floats; `is_on` is True, False, or known only to the compiled program."""
    if isinstance(is_on, bool):
        return rounded if is_on else x
    return jnp.where(is_on, rounded, x)


def _rows(x: Array, axes: Axes) -> Array:
    """Return a weight as rows, `[..., rows, columns]`: the axes that its products sum become the columns."""
    moved = jnp.moveaxis(x, axes, range(-len(axes), 0))
    return moved.reshape(*moved.shape[: x.ndim - len(axes)], -1)


def _rounded(settings: Settings, params: Params, name: str, axes: Axes) -> Array:
    """Round a weight to its grid, with the gradient of `aware`."""
    x = params[name]
    if settings.grid is None:
        return x
    rows = _rows(x, axes)
    if settings.learned:
        rounded = _learned(settings.grid, rows, params[name + LOG_SCALE])
    else:
        rounded = straight_through(rows, values(settings.grid(rows)))
    kept_shape = [size for axis, size in enumerate(x.shape) if axis - x.ndim not in axes]
    summed_shape = [x.shape[axis] for axis in axes]
    return jnp.moveaxis(rounded.reshape(*kept_shape, *summed_shape), range(-len(axes), 0), axes)


def _learned(weight_grid: Grid, rows: Array, log_factor: Array) -> Array:
    """Round rows with scales that are learned, as in LSQ: the gradient of `round` is 1, and its input is clipped.

    Args:
        weight_grid: gives the integers' range, and the scales that are multiplied by the factor.
        rows: the weights, `[..., rows, columns]`.
        log_factor: logarithm of the factor of each row, `[..., rows]`.
    """
    start = weight_grid(jax.lax.stop_gradient(rows))
    damping = 1 / math.sqrt(rows.shape[-1] * start.high)  # section 2.2 of the paper
    factor = jnp.exp(log_factor)[..., None]
    damped = jax.lax.stop_gradient(factor) + damping * (factor - jax.lax.stop_gradient(factor))
    is_zero = (jax.lax.stop_gradient(rows) == 0).all(-1, keepdims=True)  # such as padding: its scale is of no use
    scales = jnp.where(is_zero, 1.0, start.scales[..., 0]) * damped
    clipped = jnp.clip(rows / scales, start.low, start.high)
    return straight_through(clipped, jnp.round(clipped)) * scales


def _inputs_rule(settings: Settings, roles: Mapping[str, Role], is_on: Any, train: bool) -> RoundInputs:
    """Return the function that rounds the inputs of products, see `products.RoundInputs`."""

    def round_inputs(weight: Weight, x: Array, summed: Axes, collected: Collected) -> Array:
        if weight.name not in roles:
            return x
        if not settings.running:
            return _choose(is_on, round_rows(x, summed, settings.inputs), x)
        assert weight.range is not None
        span = running(weight.range, jax.lax.stop_gradient(x), train)
        collected.add(weight.name, span)
        return _choose(is_on, round_in_range(x, span[0], span[1], settings.inputs), x)

    return round_inputs
