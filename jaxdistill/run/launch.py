"""Starts JAX as the config says, runs it, and turns what can go wrong into a message and an exit code."""

import os
import sys
import traceback

import jax

from jaxdistill.core.checkpoint import CheckpointError
from jaxdistill.core.errors import ConfigError
from jaxdistill.run.config import Config
from jaxdistill.run.distill import distill
from jaxdistill.run.log import NonFiniteError
from jaxdistill.run.preemption import Stopped


def launch(config: Config, workdir: str, source: str) -> int:
    """Runs a config.

    Exit codes: 0 done, or stopped and saved; 3 the loss is not finite; 4 no usable checkpoint; 5 a process is gone.

    Raises:
        ConfigError: for a mistake in the config.
    """
    _start(config)
    try:
        distill(config, workdir, source=source)
    except Stopped as stopped:
        print(f"stopped: {stopped}. The same command goes on from there.", file=sys.stderr)
    except NonFiniteError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 4
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        if str(error).startswith("RESOURCE_EXHAUSTED"):  # it is this process that failed
            traceback.print_exc()
        _leave(error)
    return 0


def _leave(error: Exception) -> None:
    """Ends this process at once: at an ordinary end JAX would wait for the processes that are gone."""
    cure = "If another process has died, it says why. Start all of them again: they go on from the last checkpoint"
    print(f"error: the processes of this run have lost each other ({_first_line(error)}). {cure}.", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(5)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]


def _start(config: Config) -> None:
    """What must happen before JAX touches a device."""
    place = config.distributed
    if not place.coordinator:
        return
    try:
        if place.coordinator == "auto":
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(place.coordinator, place.processes, place.process)
    except (ValueError, RuntimeError) as error:
        raise ConfigError("distributed", f"the processes did not find each other: {error}") from None
