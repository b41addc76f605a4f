"""Check, before memory or disk space is allocated, that enough of it is available."""

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
    """Return how many bytes of host memory this process can still allocate; a container's limit is respected."""
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
    """Return the bytes of a container's cached files, which the kernel frees when memory is needed (`memory.stat`)."""
    with contextlib.suppress(OSError, ValueError):
        counts = dict(line.split() for line in file.read_text().splitlines())
        return int(counts.get("inactive_file", counts.get("total_inactive_file", 0)))
    return 0


def device_memory(devices: Iterable[Any]) -> int:
    """Return the memory in bytes of one device: the least among the devices that this process addresses.

    CPU devices share the available memory of the host equally.

    Args:
        devices: JAX devices; those of other processes are ignored.
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
    """Return the total size in bytes of the arrays (or `jax.ShapeDtypeStruct`) in a pytree."""
    import jax

    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree) if hasattr(x.dtype, "itemsize"))


def require(parts: Mapping[str, tuple[str, int]], available: int, cure: str, kind: str = "memory") -> None:
    """Require that the available memory (or disk space) is enough for everything that will be allocated.

    Args:
        parts: `{description: (config key, bytes)}`: what needs memory, the config key that determines its size, and the
            least number of bytes that it needs.
        available: the bytes that are available.
        cure: a sentence that says how to need less, without the full stop, for the error message.
        kind: "memory" or "disk space".

    Raises:
        ConfigError: more is needed than available. The message has both numbers, and the part that needs most.
    """
    total = sum(count for _, count in parts.values())
    if total > available:
        most = max(parts, key=lambda name: parts[name][1])
        path, count = parts[most]
        needs = f"needs at least {format_bytes(total)} of {kind}, {format_bytes(count)} of it for {most}"
        raise ConfigError(path, f"{needs}, and {format_bytes(available)} are available. {cure}.")


def format_bytes(count: int) -> str:
    """Format a number of bytes as text with a unit, such as "3.2 GiB" for 3435973836."""
    power = min(max(0, (int(count).bit_length() - 1) // 10), len(UNITS) - 1)
    return f"{count / 1024**power:.3g} {UNITS[power]}"
