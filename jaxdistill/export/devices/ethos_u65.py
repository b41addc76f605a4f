"""Arm Ethos-U65, an NPU for microcontrollers and small Linux boards, as its compiler Vela models it.

Vela (pypi.org/project/ethos-u-vela) takes a LiteRT file in 8-bit integers. It says which operations run on the NPU, and
estimates cycles and memory; no NPU is needed. Needs the extra `npu`.
"""

import csv
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from jaxdistill.core.errors import ConfigError, one_line
from jaxdistill.core.registry import devices
from jaxdistill.export.device_profile import Device, Refused, Report, bytes_of
from jaxdistill.export.operations import layer_of

REFUSED = re.compile(r"operator: (\w+), ofm: '(.*)'\nReason: (.*)")


@devices.register
def ethos_u65(macs: Literal[256, 512] = 256, megabytes: float = 0.0) -> Device:
    """Compile files for the NPU Arm Ethos-U65, and report the operations that run on it, estimated time and memory.

    The device takes files of the format `litert(int8='static')`. Their accuracy and latency are measured on the
    processor of this machine. The time on the NPU is an estimate of its compiler Vela, for Vela's default memories and
    a clock of 1 GHz.

    Args:
        macs: multiply-accumulate operations of the NPU in each cycle.
        megabytes: largest size of the weights, 10^6 bytes; 0 for no limit.

    Raises:
        ValueError: `megabytes` is negative.
    """

    def inspect(file: Path) -> Report:
        return compiled(file, f"ethos-u65-{macs}")

    return Device(
        formats=("litert",),
        integers=True,
        memory=bytes_of(megabytes),
        inspect=inspect,
        packages=("ethosu",),
        extra="npu",
    )


def compiled(file: Path, accelerator: str) -> Report:
    """Compile a LiteRT file for an NPU with Vela, and return Vela's report.

    Args:
        file: the LiteRT file.
        accelerator: name of the NPU, such as `ethos-u65-256`.

    Raises:
        ConfigError: Vela fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = (sys.executable, "-m", "ethosu.vela", str(file.absolute()), "--accelerator-config", accelerator)
        done = subprocess.run(
            [*command, "--output-dir", folder, "--verbose-performance"], capture_output=True, text=True, check=False
        )
        tables = [*Path(folder).glob("*_summary_*.csv"), *Path(folder).glob("*_per-layer.csv")]
        if done.returncode or len(tables) != 2:
            last = one_line(ValueError((done.stderr.strip() or done.stdout.strip())[-300:]))
            raise ConfigError("--device", f"Vela ended with exit code {done.returncode}: {last}. Try another format.")
        (summary,), operations = (list(csv.DictReader(table.read_text().splitlines())) for table in tables)
    return report(summary, operations, done.stdout)


def report(summary: Mapping[str, str], operations: Sequence[Mapping[str, str]], output: str) -> Report:
    """Convert the tables that the NPU compiler Vela writes to a `Report`.

    Args:
        summary: the row of Vela's summary table, by column.
        operations: the rows of Vela's table of operations, by column.
        output: text that Vela prints, with the reasons why operations do not run on the NPU.
    """
    reasons = {place: (name, _short(reason)) for name, place, reason in REFUSED.findall(output)}
    refused = []
    for row in operations:
        if row["Target"] != "NPU":
            kind, reason = reasons.get(row["Name"], (row["Original Operator"], ""))
            refused.append(Refused(kind, layer_of(row["Name"]), reason))
    return Report(
        len(operations),
        tuple(refused),
        {
            "cycles": f"{float(summary['cycles_total']):,.0f}",
            "SRAM": f"{float(summary['sram_memory_used']):,.0f} KiB",
            "DRAM": f"{float(summary['dram_memory_used']):,.0f} KiB",
        },
        1e3 * float(summary["inference_time"]),
    )


def _short(reason: str) -> str:
    """Shorten the reason why the NPU does not run an operation; empty if the NPU has no operation of this type."""
    if reason == "Unsupported opType":
        return ""
    return re.sub(r"Operation has tensor with unsupported DataType (\w+).*", r"a tensor is \1", reason).lower()
