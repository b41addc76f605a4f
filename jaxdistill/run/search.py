"""Search for the best student within a budget: measure sizes on a device, distil the largest that fit, choose one.

A candidate is the student of a config with other arguments (depth, heads, neurons, width) and bits. Its latency and
bytes do not depend on its weights, so that all candidates are exported untrained and measured once. The candidates
within the budget are ranked: first those that no other one equals or exceeds in every argument, then the others, the
largest first in both. The first ones of this ranking are the finalists.
"""

import hashlib
import itertools
import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from jaxdistill.core import registry, seal
from jaxdistill.core.errors import ConfigError, DamageError, suggest
from jaxdistill.core.notes import note_damage
from jaxdistill.core.spec import parse
from jaxdistill.core.types import Variables
from jaxdistill.evaluation.latency import Latency
from jaxdistill.evaluation.report.search import UNITS
from jaxdistill.export.choice import choose, choose_device
from jaxdistill.export.device_profile import Device, check_device
from jaxdistill.export.examples import test_examples, training_samples
from jaxdistill.export.measure import Job, Measured, measure, package_of
from jaxdistill.export.network import Exporter, Network, network_of
from jaxdistill.models.build import build_model
from jaxdistill.run.config import Config, differ
from jaxdistill.run.cut_specs import with_sizes
from jaxdistill.run.export_files import without_warnings
from jaxdistill.run.hub_folders import about
from jaxdistill.run.provenance import processor
from jaxdistill.run.resolve import Resolved

BITS = "bits"  # the axis that is no argument of the student's model
DYNAMIC, STATIC = "onnx(int8='dynamic')", "{}(int8='static')"  # formats with integers
AWARE = {  # training for 8 bits, by whether the ranges of inputs are fixed
    False: "aware(weights=8, inputs=8, start=0.5)",
    True: "aware(weights=8, ranges='running', start=0.5)",
}
LARGEST_LIMIT = 1e12
TOO_LARGE = 1e30  # latency of a candidate whose weights the device cannot hold
AT_ONCE, EXAMPLES = 8, 16  # files that are measured in turns, and the test records that they are run on
Value = int | float | str | tuple[Any, ...]


class Candidate(NamedTuple):
    """A candidate of the search: a student that could be trained.

    label: its values in words, such as `layers=2 bits=8`
    values: value of each axis (searched argument of the student, or `bits`), by name
    config: the config that trains it, without its exports
    sized: spec string of its model
    format: spec string of its export format
    """

    label: str
    values: Mapping[str, Value]
    config: Config
    sized: str
    format: str


class Size(NamedTuple):
    """The number of parameters, latency and bytes of a candidate of the search.

    label: label of the candidate
    values: value of each axis (searched argument of the student, or `bits`), by name
    parameters: number of its parameters
    latency_ms: median time of one example on the device, in milliseconds
    megabytes: size of its file, 10^6 bytes
    low_ms, high_ms: the range of 80 % of the measured times; both are the estimate if the time is only estimated
    """

    label: str
    values: Mapping[str, Value]
    parameters: int
    latency_ms: float
    megabytes: float
    low_ms: float = 0.0
    high_ms: float = 0.0

    def excess(self, budget: Mapping[str, float]) -> float:
        """Return the largest ratio of a measured value to its limit; up to 1, the candidate is within the budget."""
        return max(getattr(self, name) / limit for name, limit in budget.items())


def candidates(config: Config, axes: Mapping[str, Sequence[Value]], device: Device) -> list[Candidate]:
    """Return all candidates of a search: one for every combination of the values of the axes.

    Args:
        config: the base config, without placeholders; arguments of its key `student.model` are replaced.
        axes: values to try, by name of an argument of the student's model, or of `bits` (whose values are 8 and 32).
        device: the device for which the candidates are exported.

    Raises:
        ConfigError: an axis is unknown or a value is impossible; the message names them.
    """
    spec = parse(config.student.model, "student.model")
    formats = _formats(device)
    if config.student.quantized and (weights := _weight_bits(config.student.quantized)) != 8:
        cure = "set weights=8, or leave student.quantized empty"
        raise ConfigError("student.quantized", f"it trains for {weights} bits, and a search exports 8 or 32; {cure}.")
    bits = axes.get(BITS, (8,) if device.integers or config.student.quantized else (32,))
    widths = [value for value in bits if isinstance(value, int) and value in formats]
    if unknown := [value for value in bits if value not in widths]:
        known = " or ".join(map(str, formats))
        raise ConfigError(f"--axis {BITS}", f"{unknown[0]!r} bits: give {known}, as files of the device have them.")
    others = {name: values for name, values in axes.items() if name != BITS}
    searched = []
    for chosen in itertools.product(*others.values()):
        values = dict(zip(others, chosen, strict=True))
        model = repr(spec._replace(kwargs={**spec.kwargs, **values}))
        try:
            changed = differ(config, student={"model": model, "quantized": ""}, exports={})
            sized = with_sizes(changed).student.model
            registry.models.build(sized, "student.model")
        except ConfigError as error:
            named = " ".join(f"{name}={value}" for name, value in values.items())
            raise ConfigError(f"--axis {named}", error.message) from None
        for number in widths:
            to = formats[number]
            quantized = (config.student.quantized or AWARE["static" in to]) if number == 8 else ""
            of_bits = differ(changed, student={"quantized": quantized})
            all_values = {**values, BITS: number} if BITS in axes else values
            label = " ".join(f"{name}={value}" for name, value in all_values.items()) or "as configured"
            searched.append(Candidate(label, all_values, of_bits, sized, to))
    return searched


def _weight_bits(quantized: str) -> int:
    """Return the number of bits of the weights in a spec string of the config key `student.quantized`."""
    _, bound = registry.quantizers.bind(quantized, "student.quantized")
    bound.apply_defaults()
    return bound.arguments.get("weights", 8)


def _formats(device: Device) -> dict[int, str]:
    """Return the spec strings of the export formats for a device, by number of bits (8 or 32).

    Raises:
        ConfigError: the device takes neither ONNX nor LiteRT.
    """
    names = [name for name in ("onnx", "litert") if not device.formats or name in device.formats]
    if not names:
        raise ConfigError("--device", f"it takes {' or '.join(device.formats)}; a search takes onnx or litert.")
    static = STATIC.format(names[0])
    if device.integers:
        return {8: static}
    return {8: DYNAMIC if names[0] == "onnx" else static, 32: names[0]}


def measure_sizes(
    resolved: Resolved, chosen: Sequence[Candidate], device_spec: str, folder: Path, console: Console
) -> list[Size]:
    """Measure parameters, latency and bytes of all candidates on a device, except those that were measured before.

    Args:
        resolved: the base config, for its records.
        chosen: the candidates.
        device_spec: spec string of the device.
        folder: folder of the search; measurements, also of an earlier search, are kept in its file `table.json`.
        console: where progress is printed.
    """
    device, file = choose_device(device_spec, "--device"), folder / "table.json"
    known, key = _read(file), _circumstances(resolved, device_spec, chosen)
    measured = {each["key"]: Size(**each["size"]) for each in known.get("sizes", []) if known.get("about") == key}
    keys = {candidate.label: _key(candidate) for candidate in chosen}
    left = [candidate for candidate in chosen if keys[candidate.label] not in measured]
    console.print(f"{len(chosen)} candidates, {len(chosen) - len(left)} of them measured before")
    for start in range(0, len(left), AT_ONCE):
        part = left[start : start + AT_ONCE]
        for candidate, size in zip(part, _measured(resolved, part, device, device_spec, folder), strict=True):
            measured[keys[candidate.label]] = size
            spread = f"{size.latency_ms:.4f} ({size.low_ms:.4f} to {size.high_ms:.4f}) ms"
            time = "too large for the device" if size.latency_ms == TOO_LARGE else spread
            numbers = f"{time}, {size.megabytes:.3f} MB, {size.parameters:,} parameters"
            console.print(f"{size.label}: {numbers}", highlight=False)
        sizes = [{"key": name, "size": size._asdict()} for name, size in measured.items()]
        seal.write(file, {"about": key, "sizes": sizes})
    return [measured[keys[candidate.label]]._replace(values=candidate.values) for candidate in chosen]


def _circumstances(resolved: Resolved, device_spec: str, chosen: Sequence[Candidate]) -> dict[str, Any]:
    """Return what the measurements depend on beside the candidates, as a dict: device, processor, runtimes, shapes."""
    exporters = [registry.exporters.build(spec, "--device") for spec in sorted({each.format for each in chosen})]
    runtimes = sorted({f"{package_of(each.runtimes[0])} {version(package_of(each.runtimes[0]))}" for each in exporters})
    rows = {name: [list(x.shape[1:]), str(x.dtype)] for name, x in sorted(resolved.student.shapes["train"].items())}
    return {"device": device_spec, "processor": processor(), "runtimes": runtimes, "rows": rows}


def _read(file: Path) -> Mapping[str, Any]:
    """Return the content of a file of measurements (`table.json`), or {} if the file is missing or damaged."""
    try:
        return seal.read(file, {"about": dict, "sizes": list}, required=True)
    except (FileNotFoundError, DamageError) as error:
        note_damage(error)
        return {}


def _key(candidate: Candidate) -> str:
    text = json.dumps([candidate.sized, candidate.format, dict(candidate.values)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _measured(
    resolved: Resolved, chosen: Sequence[Candidate], device: Device, device_spec: str, folder: Path
) -> list[Size]:
    networks = [_untrained(resolved, candidate) for candidate in chosen]
    counts = [sum(x.size for x in network.variables.params.values()) for network in networks]
    examples = test_examples(networks[0], resolved.data, EXAMPLES, EXAMPLES)
    sizes: dict[str, Size] = {}
    jobs, estimates = [], {}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for number, (candidate, network, count) in enumerate(zip(chosen, networks, counts, strict=True)):
            exporter: Exporter = choose(candidate.format, "", "--device", "--device")
            size = Size(candidate.label, dict(candidate.values), count, TOO_LARGE, count * exporter.bits / 8e6)
            sizes[candidate.label] = size
            if not _fits(device, device_spec, candidate, count):
                continue
            file = Path(place, str(number), exporter.file)
            file.parent.mkdir()
            with without_warnings():
                exporter.write(network, file, partial(training_samples, network, resolved.data))
            rows = EXAMPLES if exporter.any_batch else 1
            jobs.append(Job(candidate.label, exporter.runtimes[0], file, rows))
            estimates[candidate.label] = device.inspect(file).milliseconds if device.inspect else float("nan")
            megabytes = sum(each.stat().st_size for each in file.parent.iterdir()) / 1e6
            sizes[candidate.label] = size._replace(megabytes=megabytes)
        timed = measure(jobs, examples.inputs, device.threads or 1) if jobs else {}
    for label, measured in timed.items():
        if not isinstance(measured, Measured):
            raise ConfigError("--device", f"{label}: {measured}.")
        estimate = estimates[label]
        times = measured.latency if np.isnan(estimate) else Latency(estimate, estimate, estimate)
        sizes[label] = sizes[label]._replace(latency_ms=times.median, low_ms=times.low, high_ms=times.high)
    return [sizes[candidate.label] for candidate in chosen]


def _fits(device: Device, device_spec: str, candidate: Candidate, parameters: int) -> bool:
    """Return True if a device can hold a candidate's weights; raise a `ConfigError` if it rejects the export format."""
    check_device(device, device_spec, candidate.format, 0, candidate.label, "--device")
    try:
        check_device(device, device_spec, candidate.format, parameters, candidate.label, "--device")
    except ConfigError:
        return False
    return True


def _untrained(resolved: Resolved, candidate: Candidate) -> Network:
    """Return a candidate's network with small random weights; its latency and bytes are those of a trained one."""
    shapes = resolved.student.shapes["train"]
    model = build_model(candidate.sized, "student.model", "float32")
    abstract = Variables(*jax.eval_shape(model.init, jax.random.key(0), shapes))
    draw = np.random.default_rng(0)
    params = {n: (0.02 * draw.standard_normal(x.shape, np.float32)).astype(x.dtype) for n, x in abstract.params.items()}
    state = {name: np.ones(x.shape, x.dtype) for name, x in abstract.state.items()}
    config = differ(candidate.config, student={"model": candidate.sized})
    return network_of(model, Variables(params, state), about(config, resolved.data, shapes, False).inputs)


def parse_budget(texts: Sequence[str], device: Device, spec: str) -> dict[str, float]:
    """Parse the limits of a budget, such as `latency_ms=0.5` and `megabytes=14`, to a dict of numbers by name.

    Args:
        texts: the limits, each as `NAME=NUMBER`.
        device: the device; `latency_ms` is refused if nothing reports how fast the device is.
        spec: spec string of the device.

    Raises:
        ConfigError: a name is unknown or given twice, or a number is missing, not positive or too large.
    """
    budget: dict[str, float] = {}
    for text in texts:
        name, _, number = text.partition("=")
        if name not in UNITS:
            raise ConfigError("--budget", f"unknown limit {name!r}. {suggest(name, UNITS)}")
        if name in budget:
            raise ConfigError("--budget", f"{name} is given twice.")
        if name == "latency_ms" and not device.has_time:
            raise ConfigError("--budget", f"{text!r}: how fast {spec} is, is not known. Limit megabytes alone.")
        try:
            budget[name] = float(number)
        except ValueError:
            raise ConfigError("--budget", f"{text!r} has no number. Write {name}=NUMBER.") from None
        if not 0 < budget[name] < LARGEST_LIMIT:
            raise ConfigError("--budget", f"{text!r}: give a number above 0, below {LARGEST_LIMIT:g}.")
    return budget


def finalists(sizes: Sequence[Size], budget: Mapping[str, float], count: int) -> list[Size]:
    """Return the largest candidates within a budget.

    Candidates that no other one within the budget exceeds (`_exceeds`) come first, then the others. Both groups are
    sorted by their number of parameters, the largest first.

    Args:
        sizes: the measurements of all candidates.
        budget: limits by name, see `UNITS`.
        count: largest number of candidates to return.

    Raises:
        ConfigError: no candidate is within the budget; the message names the nearest one.
    """
    inside = [size for size in sizes if size.excess(budget) <= 1]
    if not inside:
        nearest = min(sizes, key=lambda size: size.excess(budget))
        has = ", ".join(f"{getattr(nearest, name):.3g} {UNITS[name]}" for name in budget)
        limits = ", ".join(f"{limit:g} {UNITS[name]}" for name, limit in budget.items())
        cure = "Raise the budget, or give smaller values; what was measured is kept in table.json"
        raise ConfigError("--budget", f"no candidate has {limits}; the nearest, {nearest.label}, has {has}. {cure}.")
    is_exceeded = lambda size: any(_exceeds(other, size) for other in inside)
    return sorted(inside, key=lambda size: (is_exceeded(size), -size.parameters))[:count]


def _exceeds(one: Size, other: Size) -> bool:
    """Return True if one candidate is at least as large as another in every axis, and larger in parameters or bits."""
    if one.parameters <= other.parameters and one.values.get(BITS) == other.values.get(BITS):
        return False  # an axis such as dropout is no size
    orders = [_order(one.values[name], value) for name, value in other.values.items()]
    return None not in orders and min(orders) >= 0 and max(orders) > 0  # type: ignore[type-var, operator]


def _order(a: Value, b: Value) -> int | None:
    """Return 1, 0 or -1 if `a` is larger than, equal to or smaller than `b`, or None if they cannot be compared.

    A share and a count cannot be compared. Widths of several layers are compared layer by layer.
    """
    if a == b:
        return 0
    if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
        orders = [_order(x, y) for x, y in zip(a, b, strict=True)]
        if None in orders or (1 in orders and -1 in orders):
            return None
        return 1 if 1 in orders else -1
    if type(a) is not type(b) or not isinstance(a, int | float):
        return None
    return 1 if a > b else -1  # type: ignore[operator]
