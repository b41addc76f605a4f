"""Quantisation-aware training: compute with rounded weights and inputs, and pass gradients through the rounding.

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
    """A method of quantisation-aware training.

    wrap: `(model, number of training calls of the run) -> model`; the new model rounds its weights and inputs
    calibrate: `(model, variables of the wrapped model, batches) -> variables`; measures the input ranges on the
        batches; without running ranges, the variables are returned unchanged
    finish: `(model, variables of the wrapped model, batch) -> (variables, ranges)`; returns the variables of `model`
        with rounded weights, and a dict of the input range of each weight, `[..., 2]` (empty without running ranges)
    serving: spec string (a registered name with arguments, as text) of the quantizer that rounds only the inputs of the
        finished model; empty if inputs stay floats
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
    """Train with weights and their inputs rounded to integers: quantisation-aware training (straight-through gradient).

    Args:
        weights: bits of weights: 8, 4, or 2 (the values -1, 0, 1 times a scale); 0 leaves weights in floats.
        inputs: bits of the values that a weight is multiplied with: 8 or 16; 0 leaves them in floats.
        block: number of weights that share a scale: 32 neighbours, as in GGUF (Q8_0, Q4_0); 0 means all weights of one
            output.
        scales: "largest" derives scales from the largest magnitude (for 2 bits, the mean magnitude); "learned"
            multiplies these scales by learned factors (LSQ).
        ranges: range of inputs: "row" is the largest magnitude of each row, as in files with dynamic ranges; "running"
            is a running range over all rows, as in files with static ranges.
        start: fraction of the training before rounding starts, from 0 to below 1.
        skip: regex of names of weights that stay floats, with their inputs, such as "head"; empty means no weight.

    Source: Jacob et al. 2018, arxiv.org/abs/1712.05877; LSQ: Esser et al. 2020, arxiv.org/abs/1902.08153; 2 bits: Ma et
    al. 2024, arxiv.org/abs/2402.17764.

    Raises:
        ValueError: arguments do not fit together, `start` is not in [0, 1), or `skip` is no regex.
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
    """The checked arguments of `aware`.

    grid: function that rounds weights; None if weights stay floats
    block: number of weights that share a scale; 0 means all weights of one output
    inputs: bits of the inputs of products; 0 means floats
    learned: True if scales have a learned factor
    running: True if inputs have a running range
    start: fraction of the training before rounding starts
    skip: regex of names of weights that stay floats; empty means no weight
    """

    grid: Grid | None
    block: int
    inputs: int
    learned: bool
    running: bool
    start: float
    skip: str

    def roles(self, model: Model, params: Params, state: State, batch: RowsLike) -> dict[str, Role]:
        """Return the weights to round: a dict from name to role (how products use the weight).

        Raises:
            ConfigError: no weight can be rounded, `skip` matches no weight, or a weight cannot be split into blocks.
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
    """Build the method of quantisation-aware training for some settings, whose grid may be a user's own function."""
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
    """Measure input ranges on batches, without rounding, and return the wrapped model's variables with these ranges."""
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
    """Return parameters and state of the original model, without the arrays that quantisation has added."""
    kept = lambda arrays: {name: x for name, x in arrays.items() if not is_of_quantizer(name)}
    return kept(params), kept(state)


def _choose(is_on: Any, rounded: Array, x: Array) -> Array:
    """Return `rounded` if `is_on`, otherwise `x`; `is_on` is a Python bool or a traced boolean."""
    if isinstance(is_on, bool):
        return rounded if is_on else x
    return jnp.where(is_on, rounded, x)


def _rows(x: Array, axes: Axes) -> Array:
    """Reshape a weight to `[..., rows, columns]`: its contracted axes are moved to the end and become the columns."""
    moved = jnp.moveaxis(x, axes, range(-len(axes), 0))
    return moved.reshape(*moved.shape[: x.ndim - len(axes)], -1)


def _rounded(settings: Settings, params: Params, name: str, axes: Axes) -> Array:
    """Round the weight `name` to its grid, with a straight-through gradient, or that of LSQ for learned scales."""
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
    """Round rows with learned scales (LSQ): the scaled weights are clipped, and the gradient of `round` is 1.

    Args:
        weight_grid: gives the range of the integers, and the scales before they are multiplied by the factor.
        rows: the weights, `[..., rows, columns]`.
        log_factor: logarithm of the factor of each row, `[..., rows]`.
    """
    start = weight_grid(jax.lax.stop_gradient(rows))
    damping = 1 / math.sqrt(rows.shape[-1] * start.high)  # section 2.2 of the paper
    factor = jnp.exp(log_factor)[..., None]
    damped = jax.lax.stop_gradient(factor) + damping * (factor - jax.lax.stop_gradient(factor))
    is_zero = (jax.lax.stop_gradient(rows) == 0).all(-1, keepdims=True)  # a scale of padding would be of no use
    scales = jnp.where(is_zero, 1.0, start.scales[..., 0]) * damped
    clipped = jnp.clip(rows / scales, start.low, start.high)
    return straight_through(clipped, jnp.round(clipped)) * scales


def _inputs_rule(settings: Settings, roles: Mapping[str, Role], is_on: Any, train: bool) -> RoundInputs:
    """Build the function that rounds the inputs of products with the weights in `roles`; see `products.RoundInputs`."""

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
