"""Devices that are not there: TPU slices by name, and what their chips can do."""

import importlib.util
import os
from typing import Any, NamedTuple

from jaxdistill.core.errors import ConfigError

PATH = "--topology"


class Chip(NamedTuple):
    """What one chip can do at best.

    flops: of bfloat16 products, a second
    memory: bytes of HBM
    memory_speed: bytes a second, from and to HBM
    link_speed: bytes a second that it sends to its neighbours, over all of its links
    """

    flops: float
    memory: float
    memory_speed: float
    link_speed: float


# What the vendor publishes, a page for each: docs.cloud.google.com/tpu/docs/v5e, /v5p, /v6e (read in November 2026). Of
# the link speed the pages give both directions together (400, 1200 and 800 GB/s); of HBM, decimal or binary GB alike.
CHIPS = {
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9),
    "v6e": Chip(918e12, 32 * 2**30, 1638e9, 400e9),
}
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SLICES = {  # that can be rented; from the same pages
    "v5e": FLAT,
    "v5p": ("2x2x1", "2x2x2", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16", "16x16x24"),
    "v6e": FLAT,
}


NO_TPU = {  # libtpu would ask the machine which TPU it has, and complain of the answer
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_LOG_DIR": "disabled",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # a lock keeps others off a TPU; here is none, and several plans may be made
}


class Topology(NamedTuple):
    """Devices to compile for.

    name: as it was given
    devices: in the order of the system
    chip: what one can do; None for a CPU, of which nobody knows
    """

    name: str
    devices: list[Any]
    chip: Chip | None


def before_jax(name: str) -> None:
    """What must be set before JAX starts: it shall look for no TPU, and know as many CPU devices as are named."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    for variable, value in NO_TPU.items():
        os.environ.setdefault(variable, value)
    kind, _, count = name.partition(":")
    if kind == "cpu" and count.isdigit():
        flags = os.environ.get("XLA_FLAGS", "")
        if "xla_force_host_platform_device_count" not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={count}"


def find(name: str, slices: int) -> Topology:
    """The devices of a topology: `v6e:16x16`, or `cpu:8` for as many virtual ones of this machine.

    Args:
        name: kind and size.
        slices: how many of these there are.

    Raises:
        ConfigError: there is no such topology, or its compiler is not installed.
    """
    kind, _, size = name.partition(":")
    if slices < 1:
        raise ConfigError("--slices", f"{slices} slices; give 1 or more.")
    if kind == "cpu" and size.isdigit() and int(size):
        return Topology(name, _virtual(int(size), slices), None)
    if size not in SLICES.get(kind, ()):
        known = "; ".join(f"{kind}: {', '.join(sizes)}" for kind, sizes in SLICES.items())
        raise ConfigError(PATH, f"unknown topology {name!r}. Known: {known}; or cpu:8. Write v6e:16x16.")
    if importlib.util.find_spec("libtpu") is None:
        cure = "It is in the extra tpu: make install EXTRAS=test,lint,tpu, or pip install 'jaxdistill[tpu]'"
        raise ConfigError(PATH, f"{name!r} needs the compiler of TPUs, libtpu, which is not installed. {cure}.")
    return Topology(name, _described(name, slices), CHIPS[kind])


def _virtual(count: int, slices: int) -> list[Any]:
    import jax

    if slices > 1 or count > jax.device_count():
        cure = "Give fewer, or start anew with XLA_FLAGS=--xla_force_host_platform_device_count"
        raise ConfigError(
            PATH, f"{slices} x {count} CPU devices; there are {jax.device_count()}, in one piece. {cure}."
        )
    return jax.devices("cpu")[:count]


def _described(name: str, slices: int) -> list[Any]:
    import jax
    from jax.experimental import topologies

    jax.config.update("jax_enable_compilation_cache", False)  # a program for chips elsewhere cannot be read back
    more = {"num_slices": slices} if slices > 1 else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **more).devices
    except Exception as error:  # of the plugin, which raises whatever it likes: a lock held by another process, ...
        raise ConfigError(PATH, f"libtpu does not describe {name!r}: {' '.join(str(error).split())[:300]}.") from None
