"""Handle SIGTERM and Ctrl-C: the training loop saves its state and stops."""

import signal
import sys
from typing import Any

import jax


class Preemption:
    """A context manager in which SIGTERM and Ctrl-C ask the training loop to stop after the current step.

    A second Ctrl-C stops at once. In a run with several processes, only SIGTERM is handled, by JAX: all processes then
    stop at the same step.
    """

    def __init__(self) -> None:
        self.signal_name, self._polls = "", 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Preemption":
        if jax.process_count() == 1:  # with several processes JAX handles SIGTERM, so that all agree on a step
            try:
                self._before = {
                    number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)
                }
            except ValueError:  # not the main thread, which alone may install handlers
                self._before = {}
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.signal_name and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name
        sys.stderr.write(
            f"\n{self.signal_name}: saving after this step, then stopping. Ctrl-C again stops at once, unsaved.\n"
        )

    def should_stop(self) -> bool:
        """Return True if a signal has asked the run to stop.

        Every process of the run must call this once in each training step, and all processes get the same answer.
        """
        if jax.process_count() == 1:
            return bool(self.signal_name)
        from jax.experimental import multihost_utils

        self._polls += 1  # counts over all stages: JAX needs a number that only rises, and steps restart in each stage
        return multihost_utils.reached_preemption_sync_point(self._polls)
