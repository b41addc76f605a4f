"""Define profiles of target devices: supported formats, limits, and the compiler's report on an exported file."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError
from jaxdistill.export.network import Exporter


class Refused(NamedTuple):
    """An operation of an exported file that a target device does not run.

    operation: its name in the format, such as `GATHER_ND`
    layer: the layer of the model that it belongs to, such as `embed/token`; empty if it is not known
    reason: why, as the device's compiler says it; empty if the device has no such operation
    """

    operation: str
    layer: str
    reason: str = ""

    def sentence(self) -> str:
        """Return a sentence with the operation, its layer, the reason, and the change to the model that would help."""
        where = f" in {self.layer}" if self.layer else ""
        why = f" ({self.reason})" if self.reason else ""
        return f"{self.operation}{where}{why}: {change_for(self.operation)}"


class Report(NamedTuple):
    """The report on an exported file for a target device: which operations the device runs, and estimates of its cost.

    operations: number of operations, as the device counts them
    refused: the operations that the device leaves to the processor, or cannot run
    numbers: further numbers as text, by name, such as `{"SRAM": "269 KiB"}`
    milliseconds: estimated time of one example on the device; NaN if it is not known
    """

    operations: int
    refused: tuple[Refused, ...] = ()
    numbers: Mapping[str, str] = {}
    milliseconds: float = float("nan")

    def as_json(self) -> dict[str, Any]:
        """Return the report as a dict of JSON values, for the key `device` of `export.json`."""
        sentences = list(dict.fromkeys(each.sentence() for each in self.refused))
        return {
            "operations": self.operations,
            "on_device": self.operations - len(self.refused),
            "refused": sentences,
            "numbers": dict(self.numbers),
            "milliseconds": None if math.isnan(self.milliseconds) else self.milliseconds,
        }


class Device(NamedTuple):
    """The profile of a target device: what it can run, and how to inspect a file for it; see `registry.devices`.

    formats: names of the export formats that it takes; empty for all formats
    integers: whether it computes with 8-bit integers alone
    memory: bytes for the weights; 0 if no limit is known
    threads: processors that a file may use while it is measured on this machine; 0 for as many as the command says
    has_time: whether the time on the device is known, from measurements on this machine or from its compiler
    inspect: function `(file) -> Report`; None if the device is this machine, which runs every operation
    packages: packages that `inspect` needs
    extra: the extra of jaxdistill that has these packages
    """

    formats: tuple[str, ...] = ()
    integers: bool = False
    memory: int = 0
    threads: int = 0
    has_time: bool = True
    inspect: Callable[[Path], Report] | None = None
    packages: tuple[str, ...] = ()
    extra: str = ""


CHANGES = (  # (operations, what to change)
    (
        ("GATHER", "GATHER_ND", "Gather"),
        "the processor looks up rows of an embedding; a device without one must be given embeddings instead of tokens",
    ),
    (
        ("CAST", "GREATER", "LESS", "RESHAPE", "Cast", "Greater", "Less"),
        "it prepares inputs, such as an attention mask, once for each example; texts of one length need no mask",
    ),
    (
        ("QUANTIZE", "DEQUANTIZE", "QuantizeLinear", "DequantizeLinear"),
        "it converts between integers and floats; inputs of integers, and a device for all operations, need none",
    ),
    (("ERF", "SELECT_V2", "SELECT", "NEG"), "export litert(int8='static'), which has other operations for it"),
    (("WHILE", "Scan", "Loop"), "give the model scan_layers=False"),
)


def change_for(operation: str) -> str:
    """Return advice, as a clause, on how to change a model or its export if a device does not run an operation."""
    changes = [change for names, change in CHANGES if operation in names]
    return changes[0] if changes else "give the model another layer, or leave this one to the processor"


def bytes_of(megabytes: float) -> int:
    """Convert megabytes, the memory limit of a device, to bytes; 0 means no limit.

    Raises:
        ValueError: the number is negative.
    """
    if megabytes < 0:
        raise ValueError(f"megabytes={megabytes} is negative; give 0 for no limit")
    return int(megabytes * 1e6)


def check_device(device: Device, spec: str, to: str, parameters: int, model: str, path: str) -> None:
    """Require that a device takes an export format, and has memory for a model, before training or conversion.

    Args:
        device: the device.
        spec: spec string of the device.
        to: spec string of the export format.
        parameters: number of parameters of the model; 0 if it is not known yet.
        model: name of the model, such as "student".
        path: config key, or option of the command line, with the spec of the device, for error messages.

    Raises:
        ConfigError: the device does not take the format, or has too little memory for the weights.
    """
    factory, bound = registry.exporters.bind(to, path)
    name = factory.__name__
    if device.formats and name not in device.formats:
        raise ConfigError(path, f"{spec} takes {' or '.join(device.formats)}, no {name}. Change the format.")
    if device.integers and bound.arguments.get("int8") != "static":
        raise ConfigError(path, f"{spec} computes with integers alone. Export {name}(int8='static') instead of {to}.")
    if not device.memory or not parameters:
        return
    exporter: Exporter = registry.exporters.build(to, path)
    least = parameters * exporter.bits // 8
    if least > device.memory:
        has, needs = f"{device.memory / 1e6:.6g} MB", f"{least / 1e6:.6g} MB"
        cure = "Make the model smaller: student.model='cut(...)', or fewer and narrower layers."
        raise ConfigError(path, f"{spec} has {has} for weights, and those of {model} take at least {needs}. {cure}")


def refused_by(operations: Sequence[tuple[str, str]], known: Collection[str]) -> tuple[Refused, ...]:
    """Return the operations of a file, `(name, layer)`, that a device which knows only the names `known` cannot run."""
    return tuple(Refused(name, layer) for name, layer in operations if name not in known)
