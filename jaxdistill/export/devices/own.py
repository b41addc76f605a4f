"""A target device that the user describes by its limits."""

from collections import Counter
from pathlib import Path

from jaxdistill.core.registry import devices
from jaxdistill.export.device_profile import Device, Report, bytes_of, refused_by
from jaxdistill.export.measure import is_installed
from jaxdistill.export.operations import FORMATS, operations


@devices.register
def own(
    operations_of: str = "litert",
    known: tuple[str, ...] = (),
    integers: bool = False,
    megabytes: float = 0.0,
) -> Device:
    """Describe a target device of your own by its export format, the operations that it runs, and its memory.

    An export reports each operation that the device lacks, with its layer of the model. Latencies are those of the
    processor of this machine, because the device's are not known.

    Args:
        operations_of: the export format that the device takes, `litert` or `onnx`.
        known: operations that the device runs, as the format names them, such as `('CONV_2D', 'ADD')`; empty for all.
            An export to the device lists the operations of the file.
        integers: whether the device computes with 8-bit integers alone, as LiteRT files can.
        megabytes: largest size of the weights, 10^6 bytes; 0 for no limit.

    Raises:
        ValueError: the format is unknown or has no such operation, `integers` is set for ONNX, or `megabytes` is
            negative.
    """
    if operations_of not in FORMATS:
        raise ValueError(f"operations_of={operations_of!r}: give {' or '.join(map(repr, FORMATS))}")
    if integers and operations_of == "onnx":
        raise ValueError("integers=True: an ONNX file keeps floats between its integers; set operations_of='litert'")
    if operations_of == "onnx" and known and is_installed("onnx"):
        from onnx import defs

        if unknown := [name for name in known if not defs.has(name)]:
            raise ValueError(f"known has {unknown[0]!r}, which is no operation of ONNX; names are like 'MatMul', 'Add'")

    def inspect(file: Path) -> Report:
        listed = operations(file)
        counts = Counter(name for name, _ in listed)
        kinds = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        return Report(len(listed), refused_by(listed, known) if known else (), {"operations of the file": kinds})

    return Device(
        formats=(operations_of,),
        integers=integers,
        memory=bytes_of(megabytes),
        has_time=False,
        inspect=inspect,
        packages=(FORMATS[operations_of],),
        extra=operations_of,
    )
