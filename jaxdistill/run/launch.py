"""Start JAX in all processes of a run, and run a config."""

import jax

from jaxdistill.core.errors import ConfigError
from jaxdistill.run.config import Config
from jaxdistill.run.distill import distill
from jaxdistill.run.rendezvous import wait_for_all


def launch(config: Config, workdir: str, source: str) -> None:
    """Train and evaluate the models of a config, in one process or as one of several.

    Args:
        config: a complete config.
        workdir: folder for checkpoints, logs, results.json and report.html.
        source: file path of the Python file that defines the config; empty: none.

    Raises:
        ConfigError: the config is wrong; the other errors are those of `distill`.
    """
    _connect(config)
    distill(config, workdir, source=source)


def _connect(config: Config) -> None:
    """Connect the processes of a run with several processes, before JAX uses a device."""
    distributed = config.distributed
    if not distributed.coordinator:
        return
    address, count, number = distributed.coordinator, distributed.processes, distributed.process
    try:
        if address == "auto":
            jax.distributed.initialize(initialization_timeout=distributed.timeout)
        else:
            wait_for_all(address, count, number, distributed.timeout)
            jax.distributed.initialize(address, count, number, initialization_timeout=distributed.timeout)
    except ConfigError:
        raise
    except (ValueError, RuntimeError) as error:
        raise ConfigError("distributed", f"the processes could not connect: {error}") from None
