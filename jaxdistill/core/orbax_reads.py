"""Read checkpoints with Orbax, and tell damaged files from a failing machine or network.

In a run with several processes, all of them learn that one found damaged files, and go on alike. If a
process cannot read because of its machine, it stops the run.
"""

import functools
import gc
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxdistill.core.bucket import is_network_error


def restore_args(ocp: Any, flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return Orbax's `ArrayRestoreArgs` by name, with the shardings and dtypes of the arrays in `flat`.

    An array without a sharding is restored on one local device.
    """
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return {name: ocp.ArrayRestoreArgs(sharding=x.sharding or default, dtype=x.dtype) for name, x in flat.items()}


def attempt(read: Callable[[], Any]) -> tuple[list[str], Any]:
    """Call a function of Orbax that reads a checkpoint, and find out whether the checkpoint is damaged.

    In a run with several processes, all processes must call this together. If one of them finds damage, all return a
    problem.

    Args:
        read: the function, which takes no arguments.

    Returns:
        `(problems, result)`: if the checkpoint is damaged, a list with one sentence, and None; otherwise an empty list,
        and the result of `read`. An error with another cause than damage, such as a lack of memory, is raised.
    """
    silence_abandoned_work()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # warnings about coroutines that were never awaited
        problem, result = "", None
        try:
            result = read()
        except Exception as error:  # damaged files make Orbax and TensorStore fail in many ways
            if _has_another_reason(error):
                raise
            problem = f"it cannot be read ({_first_line(error)})"
        if problem:
            gc.collect()
    failures = _processes_where(bool(problem))
    if failures:  # all processes must take the same branch
        return [problem or f"it cannot be read by {failures} of {jax.process_count()} processes"], None
    return [], result


OTHER_REASONS = (  # than damage, for which a checkpoint is not read; texts of TensorStore and of the operating system
    *("PERMISSION_DENIED", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED"),
    *("Permission denied", "Too many open files", "Input/output error", "Stale file handle"),
)


def _has_another_reason(error: Exception) -> bool:
    """Return True if a read error has another cause than damaged files, such as a lack of memory."""
    if isinstance(error, MemoryError | jax.errors.JaxRuntimeError) or is_network_error(error):
        return True
    is_other_os_error = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
    return is_other_os_error or any(reason in str(error) for reason in OTHER_REASONS)


def _processes_where(condition: bool) -> int:
    """Return the number of processes of the run in which a condition is True; all processes must call this."""
    if jax.process_count() == 1:
        return int(condition)
    from jax.experimental import multihost_utils

    return int(np.sum(multihost_utils.process_allgather(np.asarray([condition]))))


@functools.cache  # once for the process, because abandoned work ends later
def silence_abandoned_work() -> None:
    """Silence Python's warnings about coroutines that Orbax abandons when it fails to read or write an array."""
    report = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        of_orbax = inspect.iscoroutine(unraisable.object) and "orbax" in unraisable.object.cr_code.co_filename
        if not of_orbax and str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    sys.unraisablehook = hook


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
