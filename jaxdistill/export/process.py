"""Run an exported file in a process of its own: `python -m jaxdistill.export.process RUNTIME FILE THREADS`.

A converter or a runtime can crash, and two of them may not live in one process. The process reads one JSON object from
each line of its input, and answers each with one line:

    {"do": "outputs", "inputs": FILE, "rows": 32, "outputs": FILE}   runs the examples of an npz file, 32 at a time
    {"do": "seconds", "calls": 10}                                    times calls with the first example
    {"do": "memory"}                                                  greatest memory of the process so far, in bytes
"""

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxdistill.evaluation.latency import timer

Run = Callable[[Mapping[str, np.ndarray]], np.ndarray]


def full_batches(inputs: Mapping[str, np.ndarray], rows: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield examples in batches of a fixed size; the last batch is filled up with copies of the last example.

    Args:
        inputs: the examples, `{field: [examples, ...]}`.
        rows: number of examples in a batch.
    """
    for start in range(0, len(next(iter(inputs.values()))), rows):
        part = {name: x[start : start + rows] for name, x in inputs.items()}
        missing = rows - len(next(iter(part.values())))
        yield {name: np.concatenate([x, np.repeat(x[-1:], missing, 0)]) for name, x in part.items()}


@runtime_checkable
class SupportsWrite(Protocol):
    """The type of a text stream that answers are written to."""

    def write(self, text: str, /) -> object:
        """Write a text."""

    def flush(self) -> None:
        """Flush the stream, so that the reader receives the written text."""


class Session:
    """An opened model file, which runs examples and measures time and memory. Its methods are the commands of `serve`.

    Args:
        run: the function that the file computes, `{input: [rows, ...]} -> output [rows, ...]`.
    """

    def __init__(self, run: Run):
        self._run = run
        self._example: dict[str, np.ndarray] = {}

    def outputs(self, inputs: str, rows: int, outputs: str) -> int:
        """Run the examples of the npz file `inputs`, `rows` at a time, and return their number.

        The outputs are written to the npy file `outputs`.
        """
        with np.load(inputs) as arrays:
            examples = dict(arrays)
        count = len(next(iter(examples.values())))
        self._example = {name: x[:1] for name, x in examples.items()}
        batches = [self._run(batch) for batch in full_batches(examples, rows)]
        np.save(outputs, np.concatenate(batches)[:count])
        return count

    def seconds(self, calls: int) -> float:
        """Return the time of `calls` calls with one example, the first of the last `outputs`, in seconds."""
        return timer(lambda: self._run(self._example))(calls)

    def memory(self) -> int:
        """Return the peak memory of this process so far, in bytes."""
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()  # getrusage counts the parent's too
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def serve(session: Session, commands: Iterable[str], answers: SupportsWrite) -> None:
    """Run the commands, one JSON object per line, and write the answer to each as one line of JSON."""
    for line in commands:
        command: dict[str, Any] = json.loads(line)
        answer = getattr(session, command.pop("do"))(**command)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    """Open the exported file that the command line names, and answer the commands on standard input."""
    runtime, file, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to stdout, which carries the answer; send that to stderr
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])  # also for threads that no option limits
    module = importlib.import_module(f"jaxdistill.export.runtimes.{runtime}")
    run = module.open_file(file, threads)
    answers.write(json.dumps("opened") + "\n")
    answers.flush()
    serve(Session(run), sys.stdin, answers)


if __name__ == "__main__":
    main()
