"""Settings of all tests: a CPU that acts as 8 devices, and types and shapes that are checked at every call."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"  # before anything imports jax; results are the same on hosts with a TPU
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
# The suite spends most of its time on compilation. Processes that tests start inherit this setting.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import fnmatch
import gc
import hashlib
import platform
from collections import Counter
from pathlib import Path

import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook

# In every package, arguments and results are checked against their annotations, and shapes of arrays against each
# other. `core.types` is left out, since its pytrees also hold shapes, shardings and specs instead of arrays. With the
# numeric tower of PEP 484, an int is accepted as a float.
PACKAGE = Path(__file__).parents[1] / "jaxdistill"
CHECKED = [f"jaxdistill.{folder.name}" for folder in PACKAGE.iterdir() if folder.is_dir() and folder.name != "core"]
CHECKED += [
    f"jaxdistill.core.{path.stem}" for path in (PACKAGE / "core").iterdir() if path.stem not in ("types", "__init__")
]
install_import_hook(CHECKED, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import runs  # noqa: E402  (after the hook, which checks only what is imported later)

from jaxdistill.core import registry  # noqa: E402
from jaxdistill.core.kernels import launch  # noqa: E402

# Pallas kernels are compiled for TPUs only; here they are interpreted.
launch.INTERPRETED = launch.Target(params=None, interpret=True)

# Hypothesis draws the same examples in every run, and a slow machine fails no deadline.
hypothesis.settings.register_profile("laws", max_examples=10, deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("laws")


def pytest_configure(config):
    """Keep what XLA compiles in pytest's cache, for the next run of the same versions on the same processor."""
    jax.config.update("jax_traceback_in_locations_limit", 0)  # compiled programs need no source lines
    if not hasattr(config, "cache"):  # `-p no:cacheprovider`
        return
    cpu = Path("/proc/cpuinfo")
    flags = (
        next((line for line in cpu.read_text().splitlines() if line.startswith("flags")), "") if cpu.exists() else ""
    )
    machine = hashlib.sha256(f"{platform.processor()} {platform.machine()} {flags}".encode()).hexdigest()[:12]
    folder = config.cache.mkdir(f"programs-jaxlib-{jax.lib.__version__}-{machine}")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(config, items):
    """Mark every case of a `sampled` test slow whose id matches none of the patterns."""
    found = Counter()
    for item in items:
        for mark in item.iter_markers("sampled"):
            hits = [pattern for pattern in mark.args if fnmatch.fnmatchcase(item.callspec.id, pattern)]
            found.update({(item.originalname, pattern): 0 for pattern in mark.args})
            if not hits:
                item.add_marker(pytest.mark.slow)
            elif not item.get_closest_marker("slow"):
                found.update((item.originalname, pattern) for pattern in hits)
    unmatched = sorted(f"{name}: {pattern!r}" for (name, pattern), count in found.items() if not count)
    if unmatched and not any("::" in argument for argument in config.args):  # "::" asks for single cases
        raise pytest.UsageError(f"`sampled` matches no fast case of {', '.join(unmatched)}")


def pytest_collection_finish():
    """Refuse parts registered by an import; exempt what imports have made from every later garbage collection."""
    kinds = [kind for kind in vars(registry).values() if isinstance(kind, registry.Registry)]
    strange = [f"{make.__module__}: {name}" for kind in kinds for name, make in kind.factories.items()]
    strange = [line for line in strange if not line.startswith("jaxdistill.")]
    if strange:  # error messages list all registered parts, and would depend on which tests are collected
        raise pytest.UsageError(f"register parts in a fixture, not by importing a test: {', '.join(strange)}")
    gc.collect()
    gc.freeze()


MAPS = Path("/proc/self/maps")  # memory maps of this process; Linux allows 65,530, and a program takes several


@pytest.fixture(scope="module", autouse=True)
def registries_of_one_module():
    """Remove the parts that the tests of a module have registered, after the module."""
    with runs.registries_as_found():
        yield


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_module():
    """Drop compiled programs when they take many memory maps, since a process that runs out of them aborts."""
    yield
    if not MAPS.exists() or MAPS.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()
        gc.collect()
