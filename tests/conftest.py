"""What every test runs under: the CPU as 8 devices, and shapes that are checked wherever a pure function is called."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"  # before anything imports jax; a laptop's result and a TPU host's are the same
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
# Compilation is most of what the suite does. Processes that tests start inherit it.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import gc

import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook

# Not `types`: a pytree of arrays is also one of shapes, shardings and specs. The numeric tower: 1 is a float in a spec.
PURE = ("jaxdistill.losses", "jaxdistill.fusion", "jaxdistill.evaluation.metrics", "jaxdistill.core.sums")
install_import_hook(PURE, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

from jaxdistill.core.kernels import launch  # noqa: E402  (imports what is to be hooked)

# Kernels are compiled for TPUs; here they are interpreted.
launch.INTERPRETED = launch.Target(params=None, interpret=True)

# The same examples for everybody, on machines of any speed.
hypothesis.settings.register_profile("laws", max_examples=10, deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("laws")


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_module():
    """Forgets what a module compiled: with the programs of 60 of them a worker ran out of memory maps, and aborted."""
    yield
    jax.clear_caches()
    gc.collect()
