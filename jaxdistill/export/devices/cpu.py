"""The processor of this machine, with some of its threads."""

import os

from jaxdistill.core.registry import devices
from jaxdistill.export.device_profile import Device, bytes_of


@devices.register
def cpu(threads: int = 1, megabytes: float = 0.0) -> Device:
    """Measure files on the processor of this machine.

    Args:
        threads: number of processors that a file may use.
        megabytes: largest size of the weights, 10^6 bytes; 0 for no limit.

    Raises:
        ValueError: this process has fewer processors, or a number is negative.
    """
    processors = len(os.sched_getaffinity(0))
    if not 1 <= threads <= processors:
        raise ValueError(f"threads={threads}: this process has {processors} processors; give 1 to {processors}")
    return Device(threads=threads, memory=bytes_of(megabytes))
