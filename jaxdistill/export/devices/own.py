"""A device of your own, by what it takes."""

from pathlib import Path

from jaxdistill.core.registry import devices
from jaxdistill.export.device import Device, Report, bytes_of, refused_by
from jaxdistill.export.operations import FORMATS, operations


@devices.register
def own(
    operations_of: str = "litert",
    known: tuple[str, ...] = (),
    integers: bool = False,
    megabytes: float = 0.0,
) -> Device:
    """Describe a device by its format, its operations and its memory; what it lacks is named with its layer.

    Args:
        operations_of: the export format that it takes, `litert` or `onnx`.
        known: operations that it runs, as the format names them, such as `('CONV_2D', 'ADD')`; empty: all.
        integers: it computes with 8-bit integers alone.
        megabytes: largest size of the weights, 10^6 bytes; 0: no limit.

    Raises:
        ValueError: the format is unknown, or `megabytes` is negative.
    """
    if operations_of not in FORMATS:
        raise ValueError(f"operations_of={operations_of!r}: give {' or '.join(map(repr, FORMATS))}")

    def inspect(file: Path) -> Report:
        found = operations(file)
        return Report(len(found), refused_by(found, known) if known else ())

    return Device((operations_of,), integers, bytes_of(megabytes), 0, inspect, (FORMATS[operations_of],), operations_of)
