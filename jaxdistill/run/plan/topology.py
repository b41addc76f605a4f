"""Describe TPU slices by name, without having them, and the published speed of their chips."""

import importlib.util
import os
from typing import Any, NamedTuple

from jaxdistill.core.errors import ConfigError

PATH = "--topology"


class Chip(NamedTuple):
    """The published peak speed and memory of a TPU chip.

    flops: FLOPs per second of bfloat16 matrix products
    memory: bytes of HBM
    memory_speed: bytes per second that are read from and written to HBM
    link_speed: bytes per second that a chip sends to its neighbours, over all links together
    """

    flops: float
    memory: float
    memory_speed: float
    link_speed: float


# Published by the vendor: docs.cloud.google.com/tpu/docs/v5e, /v5p, /v6e (read in November 2026). The pages give the
# link speed of both directions together (400, 1200 and 800 GB/s), and HBM in decimal or binary GB alike.
CHIPS = {
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9),
    "v6e": Chip(918e12, 32 * 2**30, 1638e9, 400e9),
}
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SLICES = {  # slices that can be rented, from the same pages
    "v5e": FLAT,
    "v5p": ("2x2x1", "2x2x2", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16", "16x16x24"),
    "v6e": FLAT,
}


NO_TPU = {  # without these, libtpu asks the machine for its TPU and fails
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_LOG_DIR": "disabled",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no lock is needed without a TPU, so that several plans can run at a time
}


class Topology(NamedTuple):
    """The devices to compile for, such as a TPU slice that this machine does not have.

    name: name on the command line, such as "v6e:16x16"
    devices: the devices, in JAX's order
    chip: published speed and memory of one chip; None for virtual CPU devices
    """

    name: str
    devices: list[Any]
    chip: Chip | None


MOST_VIRTUAL = 4096  # CPU devices: XLA needs threads for each


def configure_environment(name: str) -> None:
    """Set the environment variables with which JAX runs on CPU, and libtpu compiles without a TPU.

    JAX and libtpu read these variables when they start, so this function must be called before.

    Args:
        name: the value of `--topology`, such as "v6e:16x16"; for "cpu:8", JAX gets 8 virtual CPU devices.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    for variable, value in NO_TPU.items():
        os.environ.setdefault(variable, value)
    kind, _, count = name.partition(":")
    if kind == "cpu" and count.isdecimal() and int(count) <= MOST_VIRTUAL:
        flags = os.environ.get("XLA_FLAGS", "")
        if "xla_force_host_platform_device_count" not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={count}"


def find(name: str, slices: int) -> Topology:
    """Return the devices that a name such as "v6e:16x16" stands for; they need not exist on this machine.

    Args:
        name: kind and size: "v6e:16x16" for a TPU slice, or "cpu:8" for 8 virtual CPU devices of this machine.
        slices: number of TPU slices of this size, joined by a network.

    Raises:
        ConfigError: there are no such devices, or their compiler is not installed.
    """
    kind, _, size = name.partition(":")
    if slices < 1:
        raise ConfigError("--slices", f"{slices} slices; give 1 or more.")
    if kind == "cpu" and size.isdecimal() and not 1 <= int(size) <= MOST_VIRTUAL:
        raise ConfigError(PATH, f"{name!r}: give 1 to {MOST_VIRTUAL} virtual CPU devices.")
    if kind == "cpu" and size.isdecimal():
        return Topology(name, _virtual(int(size), slices), None)
    if size not in SLICES.get(kind, ()):
        known = "; ".join(f"{kind}: {', '.join(sizes)}" for kind, sizes in SLICES.items())
        raise ConfigError(PATH, f"unknown topology {name!r}. Known: {known}; or cpu:8. Write it as v6e:16x16.")
    if importlib.util.find_spec("libtpu") is None:
        cure = "Install the extra tpu: make install EXTRAS=test,lint,tpu, or pip install 'jaxdistill[tpu]'"
        raise ConfigError(PATH, f"{name!r} needs the TPU compiler, libtpu, which is not installed. {cure}.")
    return Topology(name, _described(name, slices), CHIPS[kind])


def _virtual(count: int, slices: int) -> list[Any]:
    import jax

    if slices > 1 or count > jax.device_count():
        cure = "Ask for fewer, or start again with XLA_FLAGS=--xla_force_host_platform_device_count"
        raise ConfigError(
            PATH, f"{slices} x {count} CPU devices are asked for, and there are {jax.device_count()}. {cure}."
        )
    return jax.devices("cpu")[:count]


def _described(name: str, slices: int) -> list[Any]:
    import jax
    from jax.experimental import topologies

    jax.config.update("jax_enable_compilation_cache", False)  # programs for missing chips cannot be cached
    options = {"num_slices": slices} if slices > 1 else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except Exception as error:  # the plugin raises exceptions of any type, such as for a lock of another process
        raise ConfigError(PATH, f"libtpu cannot describe {name!r}: {' '.join(str(error).split())[:300]}.") from None
