"""Time functions in turns, so that their times can be compared. Imports no JAX: exported files are timed without it."""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

ROUNDS, MIN_TURN_SECONDS = 50, 0.02  # how often each model has its turn, and the least seconds of a turn


class Latency(NamedTuple):
    """The time of one forward pass of a model, in milliseconds.

    median: the median over the turns of the model
    low, high: the 10th and the 90th percentile over the turns
    """

    median: float
    low: float
    high: float


def latencies(timed: Mapping[str, Callable[[int], float]]) -> dict[str, Latency]:
    """Time several functions in turns, so that a change of the machine's load meets all of them alike.

    Each function has `ROUNDS` turns, of one call or of as many as take `MIN_TURN_SECONDS` seconds.

    Args:
        timed: by name, functions `(number of calls) -> seconds that they took`, such as those of `timer`.
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
    """Return a function `(number of calls) -> seconds` that calls a function so often, and returns the time it took."""

    def seconds(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return time.perf_counter() - start

    return seconds
