"""Time functions in turns, so that their times can be compared.

This module does not import JAX, because exported files are timed without it.
"""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

ROUNDS, MIN_TURN_SECONDS = 50, 0.02  # turns of each model; shortest turn in seconds


class Latency(NamedTuple):
    """The time of one forward pass of a model, in milliseconds.

    median: the median over the turns of the model
    low, high: the 10th and the 90th percentile over the turns
    """

    median: float
    low: float
    high: float


def latencies(timed: Mapping[str, Callable[[int], float]]) -> dict[str, Latency]:
    """Measure the time of one call of several functions, in turns, so that the machine's load affects all alike.

    Each function has `ROUNDS` turns. A turn consists of as many calls as take `MIN_TURN_SECONDS` seconds, at least one.

    Args:
        timed: functions `(number of calls) -> seconds that the calls took`, by name, such as those from `timer`.

    Returns:
        The latency of each function in milliseconds, by name.
    """
    calls = {}
    for name, seconds in timed.items():
        seconds(1)
        once = min(seconds(1) for _ in range(3))
        calls[name] = max(1, int(MIN_TURN_SECONDS / max(once, 1e-7)))
    turns: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(ROUNDS):
        for name, seconds in timed.items():
            turns[name].append(1000 * seconds(calls[name]) / calls[name])
    return {name: Latency(*(float(x) for x in np.percentile(times, (50, 10, 90)))) for name, times in turns.items()}


def timer(run: Callable[[], object]) -> Callable[[int], float]:
    """Return a function `(number of calls) -> seconds` that calls `run` this many times, and returns the total time."""

    def seconds(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return time.perf_counter() - start

    return seconds
