"""What every test runs under: the CPU as 8 devices, and shapes that are checked wherever a pure function is called."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"  # before anything imports jax; a laptop's result and a TPU host's are the same
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
# Compilation is most of what the suite does. Processes that tests start inherit it.
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

# Every package: arguments and results are checked against their annotations, and the shapes of arrays against each
# other. Not `types`: a pytree of arrays is also one of shapes, shardings and specs. The numeric tower: 1 is a float.
PACKAGE = Path(__file__).parents[1] / "jaxdistill"
CHECKED = [f"jaxdistill.{folder.name}" for folder in PACKAGE.iterdir() if folder.is_dir() and folder.name != "core"]
CHECKED += [
    f"jaxdistill.core.{path.stem}" for path in (PACKAGE / "core").iterdir() if path.stem not in ("types", "__init__")
]
install_import_hook(CHECKED, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import runs  # noqa: E402  (both import what is to be hooked)

from jaxdistill.core import registry  # noqa: E402
from jaxdistill.core.kernels import launch  # noqa: E402

# Kernels are compiled for TPUs; here they are interpreted.
launch.INTERPRETED = launch.Target(params=None, interpret=True)

# The same examples for everybody, on machines of any speed.
hypothesis.settings.register_profile("laws", max_examples=10, deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("laws")


def pytest_configure(config):
    """Keep what XLA compiles in pytest's cache, for the next run of the same versions on the same processor."""
    jax.config.update("jax_traceback_in_locations_limit", 0)  # nobody reads source lines in these programs
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
    if unmatched and not any("::" in argument for argument in config.args):  # else single cases were asked for
        raise pytest.UsageError(f"`sampled` matches no fast case of {', '.join(unmatched)}")


def pytest_collection_finish():
    """Refuse parts registered by an import; exempt what imports have made from every later garbage collection."""
    kinds = [kind for kind in vars(registry).values() if isinstance(kind, registry.Registry)]
    strange = [f"{make.__module__}: {name}" for kind in kinds for name, make in kind.factories.items()]
    strange = [line for line in strange if not line.startswith("jaxdistill.")]
    if strange:  # else other modules' messages list them, in an order that depends on what is collected
        raise pytest.UsageError(f"register parts in a fixture, not by importing a test: {', '.join(strange)}")
    gc.collect()
    gc.freeze()


MAPS = Path("/proc/self/maps")  # of memory, of which a process may have 65,530; a program takes several


@pytest.fixture(scope="module", autouse=True)
def registries_of_one_module():
    """Takes away after each module what its tests have registered."""
    with runs.registries_as_found():
        yield


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_module():
    """Forgets what is compiled before it takes too many memory maps: a worker that ran out of them aborted."""
    yield
    if not MAPS.exists() or MAPS.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()
        gc.collect()
