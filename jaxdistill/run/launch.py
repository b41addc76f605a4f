"""Start JAX in all processes of a run, and run a config."""

import jax

from jaxdistill.core.errors import ConfigError
from jaxdistill.run.config import Config
from jaxdistill.run.distill import distill


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
    try:
        if distributed.coordinator == "auto":
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(distributed.coordinator, distributed.processes, distributed.process)
    except (ValueError, RuntimeError) as error:
        raise ConfigError("distributed", f"the processes could not connect: {error}") from None
