"""Compare the memory that something needs at least with the memory that is available, before it is allocated."""

import contextlib
import math
import os
import resource
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxdistill.core.errors import ConfigError

UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def host_memory() -> int:
    """Return the bytes of memory that this process can still allocate on the host; a container's limit counts."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        (available,) = (line for line in lines if line.startswith("MemAvailable:"))
        limits.append(int(available.split()[1]) * 1024)
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # "max" is no number: there is no limit
            read = lambda name: int(Path("/sys/fs/cgroup", name).read_text())
            limits.append(
                read(limit) - read(used) + _reclaimable(Path("/sys/fs/cgroup", used).with_name("memory.stat"))
            )
    with contextlib.suppress(OSError, ValueError, IndexError):
        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limits.append(soft - pages * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(limits))


def _reclaimable(file: Path) -> int:
    """Return the bytes of files that the kernel keeps in memory, and gives up when a container needs the memory."""
    with contextlib.suppress(OSError, ValueError):
        counts = dict(line.split() for line in file.read_text().splitlines())
        return int(counts.get("inactive_file", counts.get("total_inactive_file", 0)))
    return 0


def device_memory(devices: Iterable[Any]) -> int:
    """Return the bytes of memory of each device, of those that this process addresses.

    CPU devices share the memory of the host.

    Args:
        devices: devices of JAX, of any processes.
    """
    import jax

    local = [device for device in devices if device.process_index == jax.process_index()]
    if all(device.platform == "cpu" for device in local):
        return host_memory() // max(1, len(local))
    return min((device.memory_stats() or {}).get("bytes_limit", 2**63) for device in local)


def free_disk(folder: Path) -> int:
    """Return the bytes that are free on the disk of a folder, which need not exist yet."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def size_of(tree: Any) -> int:
    """Return the bytes of all arrays, or shapes of arrays, in a pytree."""
    import jax

    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree) if hasattr(x.dtype, "itemsize"))


def require(parts: Mapping[str, tuple[str, int]], available: int, cure: str, kind: str = "memory") -> None:
    """Check that memory, or a disk, suffices.

    Args:
        parts: for each thing that needs memory: the config key that determines its size, and the bytes that it needs at
            least.
        available: the bytes that are available.
        cure: how to need less, a sentence.
        kind: "memory", or "disk space".

    Raises:
        ConfigError: more is needed than available; the message has both numbers, and what needs most.
    """
    total = sum(count for _, count in parts.values())
    if total > available:
        most = max(parts, key=lambda name: parts[name][1])
        path, count = parts[most]
        needs = f"needs at least {format_bytes(total)} of {kind}, {format_bytes(count)} of it for {most}"
        raise ConfigError(path, f"{needs}, and {format_bytes(available)} are available. {cure}.")


def format_bytes(count: int) -> str:
    """Format a number of bytes: 3435973836 -> 3.2 GiB."""
    power = min(max(0, (int(count).bit_length() - 1) // 10), len(UNITS) - 1)
    return f"{count / 1024**power:.3g} {UNITS[power]}"
