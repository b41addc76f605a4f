"""Handle SIGTERM and Ctrl-C: the training loop saves its state and stops."""

import signal
import sys
from typing import Any

import jax


class Stopped(Exception):
    """A run was stopped by a signal and saved its state; the same command resumes it."""


class Preemption:
    """A context in which SIGTERM and Ctrl-C request a stop after the current step; a second Ctrl-C stops at once."""

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
        """Return True if the run must stop now. All processes call this once a step and get the same answer."""
        if jax.process_count() == 1:
            return bool(self.signal_name)
        from jax.experimental import multihost_utils

        self._polls += 1  # counts over all stages: JAX needs a number that only rises, and steps restart in each stage
        return multihost_utils.reached_preemption_sync_point(self._polls)
