"""SIGTERM and Ctrl-C: ask the loop to save and stop."""

import signal
import sys
from typing import Any

import jax


class Stopped(Exception):
    """A run was asked to stop, and saved its state; the same command goes on from there."""


class Preemption:
    """While this context is open, SIGTERM and Ctrl-C only ask; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.asked, self._turns = "", 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Preemption":
        if jax.process_count() == 1:  # several processes agree through JAX, which listens to SIGTERM itself
            try:
                self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
            except ValueError:  # not the main thread: signals are somebody else's
                self._before = {}
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number).name
        sys.stderr.write(
            f"\n{self.asked}: saving after this step, then stopping. Ctrl-C again stops at once, unsaved.\n"
        )

    def stop(self) -> bool:
        """Whether to stop now; asked once a step, by all processes, which get the same answer."""
        if jax.process_count() == 1:
            return bool(self.asked)
        from jax.experimental import multihost_utils

        self._turns += 1  # of the whole run: steps begin anew with each stage, and the point agreed upon must come
        return multihost_utils.reached_preemption_sync_point(self._turns)
