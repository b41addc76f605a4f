"""Start JAX, run a config, and turn exceptions into a message and an exit code."""

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
    """Train and evaluate the models of a config, print errors, and return the exit code of the process.

    Exit codes: 0 done, or stopped and saved; 3 the loss is not finite; 4 no checkpoint can be used; 5 another process
    of a run with several processes died.

    Args:
        config: a complete config.
        workdir: folder for checkpoints, logs, results.json and report.html.
        source: file path of the Python file that defines the config; empty: none.

    Raises:
        ConfigError: the config is wrong; the caller turns this error into an exit code.
    """
    _connect(config)
    try:
        distill(config, workdir, source=source)
    except Stopped as stopped:
        print(f"stopped: {stopped}. The same command resumes it.", file=sys.stderr)
    except NonFiniteError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 4
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        if str(error).startswith("RESOURCE_EXHAUSTED"):  # this process failed, not another one
            traceback.print_exc()
        _exit(error)
    return 0


def _exit(error: Exception) -> None:
    """End this process at once: an ordinary exit would wait for the lost processes."""
    cure = "The process that died prints the reason. Start all of them again: they resume from the last checkpoint"
    print(f"error: the processes of this run lost contact ({_first_line(error)}). {cure}.", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(5)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]


def _connect(config: Config) -> None:
    """Connect the processes of a run with several processes, before JAX uses a device."""
    distributed = config.distributed
    if not distributed.coordinator:
        return
    try:
        if distributed.coordinator == "auto":
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(distributed.coordinator, distributed.processes, distributed.process)
    except (ValueError, RuntimeError) as error:
        raise ConfigError("distributed", f"the processes could not connect: {error}") from None
