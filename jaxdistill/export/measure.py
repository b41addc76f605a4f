"""Measure exported files, each in its own process: difference from the model's outputs, accuracy, latency, memory."""

import contextlib
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdistill.evaluation.latency import Latency, latencies
from jaxdistill.evaluation.metrics import roc_auc

FLOAT_BOUND = 1e-4  # greatest difference of a float file's outputs, as a share of the model's greatest output
SAME_ANSWERS, LOST = 0.99, 0.005  # of a file with integers: least share of the same answers, and accuracy it may lose
DIVERGENCE = 0.01  # nats; of a file of a language model with rounded weights: largest mean divergence from the model


class Difference(NamedTuple):
    """The differences between the outputs of an exported file and those of its model.

    largest: greatest difference, as a share of the greatest output of the model
    record: number of the example with the greatest difference
    same: share of the examples (or tokens) with the same most likely class; NaN for embeddings
    accuracy, expected_accuracy: accuracy of the file and of the model; NaN without labels
    divergence: Kullback-Leibler divergence of the file's next-token distribution from that of the model, the mean over
        the tokens, in nats; NaN if the model is no language model
    auc, expected_auc: area under the ROC curve of the file and of the model; NaN unless there are labels of two classes
    """

    largest: float
    record: int
    same: float
    accuracy: float
    expected_accuracy: float
    divergence: float = float("nan")
    auc: float = float("nan")
    expected_auc: float = float("nan")

    def problem(self, rounds: bool) -> str:
        """Return a sentence on a difference that exceeds its allowed bound, or an empty text if none does.

        Args:
            rounds: whether the file has rounded weights, or computes with integers.
        """
        if not np.isfinite(self.largest):
            return f"the output for test record {self.record} is not finite"
        if rounds and self.divergence > DIVERGENCE:
            far = f"the distribution of the next token diverges by {self.divergence:.4f} nats from that of the model"
            return f"{far}, {DIVERGENCE:g} are allowed"
        if rounds and np.isfinite(self.divergence):
            return ""
        if not rounds and self.largest > FLOAT_BOUND:
            far = f"outputs differ by {self.largest:.1e} of the greatest one (record {self.record})"
            return f"{far}, {FLOAT_BOUND:g} is allowed"
        if not rounds and self.same < 1:
            return f"{100 * (1 - self.same):.2f} % of the answers are not those of the model"
        if rounds and self.same < SAME_ANSWERS:
            return f"{100 * self.same:.2f} % of the answers are those of the model, {100 * SAME_ANSWERS:g} % are needed"
        if rounds and self.expected_accuracy - self.accuracy > LOST + 1e-9:
            lost = 100 * (self.expected_accuracy - self.accuracy)
            return f"{lost:.2f} points of accuracy are lost, {100 * LOST:g} are allowed"
        return ""


def difference(outputs: np.ndarray, expected: np.ndarray, labels: np.ndarray | None, classifies: bool) -> Difference:
    """Compare the outputs of an exported file with those of its model.

    Args:
        outputs, expected: outputs of the file and of the model, `[examples, ...]`.
        labels: class of each example or token; None without labels.
        classifies: whether the outputs are logits of classes, not embeddings.
    """
    errors = np.abs(np.float64(outputs) - expected).reshape(len(outputs), -1).max(1)
    errors = np.where(np.isfinite(errors), errors, np.inf)
    record, nan = int(errors.argmax()), float("nan")
    largest = float(errors[record] / max(np.abs(expected).max(), 1e-30))
    if not classifies:
        return Difference(largest, record, nan, nan, nan)
    answers, theirs = outputs.argmax(-1), expected.argmax(-1)
    share = lambda chosen: nan if labels is None else float((chosen == labels).mean())
    same, plain = float((answers == theirs).mean()), (share(answers), share(theirs))
    if labels is None or expected.shape[1:] != (2,):
        return Difference(largest, record, same, *plain)
    areas = (roc_auc(logits[:, 1] - logits[:, 0], labels) for logits in (outputs, expected))
    return Difference(largest, record, same, *plain, nan, *areas)


class RunError(RuntimeError):
    """The error raised if the process that runs a file has ended; its message says how, and the last line it wrote."""


class Runner:
    """A process that runs an exported file and answers commands; see `process.py`.

    Args:
        runtime: name of the runtime, such as `onnxruntime`.
        file: the exported file.
        threads: number of threads, and of processors, that the process may use.

    Raises:
        RunError: the process has ended before it opened the file.
    """

    def __init__(self, runtime: str, file: Path, threads: int):
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed by `close`)
        command = (sys.executable, "-m", "jaxdistill.export.process", runtime, str(file), str(threads))
        pipe = subprocess.PIPE
        variables = {**os.environ, "JAX_PLATFORMS": "cpu"}
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=self._errors, text=True, env=variables
        )
        try:
            self._answer()
        except RunError:
            self.close()
            raise

    def ask(self, do: str, **arguments: Any) -> Any:
        """Send a command to the process, and return the process's answer.

        Args:
            do: name of the command: "outputs", "seconds" or "memory".
            arguments: arguments of the command.

        Raises:
            RunError: the process has ended.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def seconds(self, calls: int) -> float:
        """Return the time of `calls` calls with one example, in seconds."""
        return float(self.ask("seconds", calls=calls))

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._errors.seek(0)
        written = [line for line in self._errors.read().splitlines() if line.strip() and not line.startswith("INFO")]
        ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        last = f": {written[-1][:300]}" if written else ""
        raise RunError(f"the process that runs the file {ended}{last}")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()


class Measured(NamedTuple):
    """The measurements of one exported file.

    outputs: its outputs for the test records, `[examples, ...]`
    latency: time of one example
    memory: peak memory of its process, in bytes
    """

    outputs: np.ndarray
    latency: Latency
    memory: int


class Job(NamedTuple):
    """An exported file to measure, and how to run it.

    name: name of the file in results and in error messages
    runtime: name of the runtime that runs the file
    file: the file
    rows: number of examples that are run at once
    """

    name: str
    runtime: str
    file: Path
    rows: int


def measure(jobs: Sequence[Job], inputs: Mapping[str, np.ndarray], threads: int) -> dict[str, Measured | str]:
    """Run exported files on the same examples, each in its own process, and time them in turns.

    Args:
        jobs: the files.
        inputs: the examples, `{field: [examples, ...]}`.
        threads: number of threads, and of processors, that each file may use.

    Returns:
        The measurements of each file, by name. If the process of a file has ended, its entry is a text that says how.
    """
    results: dict[str, Measured | str] = {}
    place_of_files = jobs[0].file.parent  # so that a killed command leaves nothing elsewhere
    with tempfile.TemporaryDirectory(dir=place_of_files) as folder, contextlib.ExitStack() as stack:
        examples, place = Path(folder, "inputs.npz"), Path(folder, "outputs.npy")
        plain: Any = dict(inputs)
        np.savez(examples, **plain)
        runners, outputs = {}, {}
        for job in jobs:
            try:
                runner = Runner(job.runtime, job.file, threads)
                stack.callback(runner.close)
                runner.ask("outputs", inputs=str(examples), rows=job.rows, outputs=str(place))
                runners[job.name], outputs[job.name] = runner, np.load(place)
            except RunError as error:
                results[job.name] = str(error)
        timed = latencies({name: runner.seconds for name, runner in runners.items()})
        for name, runner in runners.items():
            results[name] = Measured(outputs[name], timed[name], runner.ask("memory"))
    return results


def is_installed(package: str) -> bool:
    """Return True if a package is installed, without importing it."""
    return importlib.util.find_spec(package) is not None


def package_of(runtime: str) -> str:
    """Return the name of the Python package that a runtime needs, such as "ai_edge_litert" for "litert"."""
    return str(importlib.import_module(f"jaxdistill.export.runtimes.{runtime}").PACKAGE)
