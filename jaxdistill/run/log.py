"""Report the progress of a run: a progress bar, a JSON-lines log, TensorBoard, Weights & Biases.

Metrics stay on the device until a logging interval ends. They are then read one step late, so that the device never
waits for the host.
"""

import math
import os
import secrets
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jaxdistill.core import seal
from jaxdistill.core.errors import BadStartError, NonFiniteError
from jaxdistill.evaluation.report.logs import log_owner

LINE_INTERVAL = 15  # seconds between progress lines, where no bar can be drawn


class Log:
    """The log of the training of one model, as a context manager: log file, progress bar, TensorBoard and profile.

    In a run with several processes, only process 0 writes the log.

    Args:
        folder: where `log.jsonl` and TensorBoard events are written.
        name: name of the model, such as "student".
        start: number of training steps that are already done; above 0 if the training is resumed.
        steps: number of all steps of the training.
        settings: the section `logging` of the config.
        schedules: functions `step -> value` by name, such as the learning rate, logged beside the losses.
        console: where progress is printed.
        run: random name of the run, which the checksums of the lines of `log.jsonl` cover.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        start: int,
        steps: int,
        settings: Any,
        schedules: Mapping[str, Callable[[Any], Any]],
        console: Console,
        run: str = "",
    ):
        self._owner = log_owner(run, name)
        self.name, self.steps, self.schedules, self.console = name, steps, schedules, console
        self._folder, self._start = folder, start
        self._traced, self._tracing = settings.trace if name == "student" else 0, False
        self._pending: list[tuple[int, Any]] = []
        self.last: dict[str, Any] = {}  # the last line about training steps
        self._since, self._last = time.perf_counter(), start
        self._last_line = self._since
        self._writers: list[Callable[[str, int, dict[str, float]], None]] = []
        self._closers: list[Callable[[], None]] = []
        self._progress = Progress(
            TextColumn(f"{name:>12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.3g} steps/s"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal or jax.process_index() != 0,
        )
        self._task = self._progress.add_task(name, total=steps, completed=start, rate=0.0, note="compiling")
        if jax.process_index() == 0:
            self._open(folder, start, settings)

    def _open(self, folder: Path, start: int, settings: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        lines = (folder / "log.jsonl").open("a", buffering=1)
        if lines.tell():
            with (folder / "log.jsonl").open("rb") as written:
                written.seek(-1, os.SEEK_END)
                if written.read() != b"\n":  # the last line was cut off when the run was killed
                    lines.write("\n")
        self._writers.append(lambda kind, step, values: _write_line(lines, self._owner, kind, step, values))
        self._closers.append(lines.close)
        if settings.tensorboard:
            from tensorboardX import SummaryWriter

            board = SummaryWriter(str(folder / "tensorboard"), purge_step=start)
            self._writers.append(lambda kind, step, values: _write_scalars(board, kind, step, values))
            self._closers.append(board.close)
        if settings.wandb:
            import wandb

            id_file = folder / "wandb-id"  # so that a resumed run continues the same curves
            if not id_file.exists():
                seal.write_text(id_file, secrets.token_hex(8))
            identity = {"project": settings.wandb, "name": self.name, "id": id_file.read_text()}
            run = wandb.init(**identity, dir=str(folder), resume="allow")
            self._writers.append(
                lambda kind, step, values: run.log({f"{kind}/{k}": v for k, v in values.items()}, step)
            )
            self._closers.append(run.finish)

    def __enter__(self) -> "Log":
        self._progress.start()
        if self._progress.disable:
            self._print_line(f"{self.steps - self._start} steps to go; compiling")
        return self

    def _print_line(self, text: str) -> None:
        """Print a progress line, for a file or a pipe, where no bar can be drawn."""
        self._last_line = time.perf_counter()
        if jax.process_index() == 0:
            self.console.print(f"{self.name:>12}  {text}")

    def __exit__(self, *error: Any) -> None:
        self._progress.stop()
        self._end_trace()
        for close in self._closers:
            close()

    def trace(self, step: int) -> None:
        """Start JAX's profiler before the first step to profile, and stop it after the last one; else do nothing.

        Only the student's training is profiled, from its 11th step on (counted anew if it is resumed). The config key
        `logging.trace` is the number of steps to profile.

        Args:
            step: number of the step that runs next, from 0.
        """
        first = self._start + 10
        if self._traced and step == first:
            jax.profiler.start_trace(str(self._folder / "trace"))
            self._tracing = True
        elif step == first + self._traced:
            self._end_trace()

    def _end_trace(self) -> None:
        if self._tracing:
            jax.profiler.stop_trace()
        self._tracing = False

    def add(self, step: int, metrics: Any) -> None:
        """Add the metrics of a step without waiting for them: they stay on the device until `flush` reads them.

        Args:
            step: number of the finished step, from 1.
            metrics: `{name: Mean}`, where a `Mean` is a sum and a count.
        """
        self._pending.append((step, metrics))

    def flush(self, keep: int = 0) -> None:
        """Write to the log the mean of each metric over the steps that were added since the last flush.

        Args:
            keep: number of newest steps to leave for the next flush, because the device may still compute their
                metrics.

        Raises:
            NonFiniteError: a metric is NaN or infinite; the message names the metric and the first such step.
            BadStartError: a metric is NaN or infinite at step 1, before any update: an input of the training is wrong.
        """
        ready, self._pending = self._pending[: len(self._pending) - keep], self._pending[len(self._pending) - keep :]
        if not ready:
            return
        rows = jax.device_get([metrics for _, metrics in ready])
        values = [{name: float(mean.sum / max(mean.count, 1)) for name, mean in row.items()} for row in rows]
        for (step, _), row in zip(ready, values, strict=True):
            _check_finite(self.name, step, row, at_start=step == 1)
            if step == 1 and row.get("grad_norm") == 0:
                self._print_line("note: the loss has no gradient at step 1; does it depend on the student's outputs?")
        step = ready[-1][0]
        now = time.perf_counter()
        rate, self._since, self._last = (step - self._last) / max(now - self._since, 1e-9), now, step
        averages = {name: float(np.mean([row[name] for row in values])) for name in values[-1]}
        curves = {name: float(curve(step - 1)) for name, curve in self.schedules.items()}
        # a weight that the step computes replaces the scheduled weight of the same name
        line = {**curves, **averages, "steps_per_second": rate}
        self._write("train", step, line)
        self.last = {"step": step, **_finite(line)}
        note = f"loss {averages['loss']:.3f}"
        self._progress.update(self._task, completed=step, rate=rate, note=note)
        if self._progress.disable and now - self._last_line > LINE_INTERVAL:
            left = timedelta(seconds=round((self.steps - step) / rate))
            self._print_line(f"step {step}/{self.steps}: {note}, {rate:.3g} steps/s, ETA {left}")

    def evaluation(self, step: int, scores: Mapping[str, float]) -> None:
        """Write the scores of an evaluation to the log, and print the most important ones, such as the accuracy.

        Args:
            step: number of training steps that are done.
            scores: values of the metrics by name.

        Raises:
            NonFiniteError: the NLL (without labels, the KL or the similarity) is not finite, because the last update
                made the parameters NaN or infinite. The training losses do not show this: they are computed before the
                update.
        """
        decisive = next((name for name in ("nll", "kl", "similarity") if name in scores), None)
        if decisive:
            _check_finite(self.name, step, {decisive: scores[decisive]})
        self._write("eval", step, dict(scores))
        self._print_line(f"step {step}/{self.steps}: {_in_short(scores)}")
        self._since, self._last = time.perf_counter(), step  # evaluation time does not count in steps per second

    def _write(self, kind: str, step: int, values: dict[str, float]) -> None:
        for sink in self._writers:
            sink(kind, step, values)


def _in_short(scores: Mapping[str, float]) -> str:
    """Return the main scores of an evaluation as one line of text, such as "accuracy 91.20 %, NLL 0.300"."""
    if "image_text_r5" in scores:
        return f"text R@1 {100 * scores['image_text_r1']:.2f} %, R@5 {100 * scores['image_text_r5']:.2f} %"
    if "accuracy" in scores:
        return f"accuracy {100 * scores['accuracy']:.2f} %, NLL {scores['nll']:.3f}"
    if "agreement" in scores:
        return f"agreement {100 * scores['agreement']:.2f} %, KL {scores['kl']:.3f}"
    return f"similarity {scores['similarity']:.4f}" if "similarity" in scores else "there are no labels to compare with"


def _write_scalars(board: Any, kind: str, step: int, values: dict[str, float]) -> None:
    for name, value in values.items():
        if math.isfinite(value):  # an undefined value, such as agreement on zero errors, has no point on a curve
            board.add_scalar(f"{kind}/{name}", value, step)


def _write_line(file: Any, owner: str, kind: str, step: int, values: dict[str, float]) -> None:
    content = {"step": step, "kind": kind, "time": round(time.time(), 3), **_finite(values)}
    file.write(seal.sealed_line(content, owner) + "\n")


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """Return the values with None in place of NaN and infinity, which JSON does not have."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _check_finite(stage: str, step: int, row: Mapping[str, float], at_start: bool = False) -> None:
    # terms before their sum, so that the message names the term that failed
    for name in sorted(row, key=lambda name: (not name.startswith("terms/"), name == "loss", name)):
        if not math.isfinite(row[name]):
            term = name.removeprefix("terms/")
            if at_start:  # so the rate cannot be the reason
                cure = "Check the records, the initial weights, the outputs of the teachers, and weights and arguments"
                if name.startswith("terms/"):
                    path, what, end = f"objective.{term}", f"{stage}:", ""
                elif name in ("loss", "grad_norm"):
                    path, what = "objective", f"{stage}: {name} is"
                    end = " The derivative of a loss may be infinite, as that of a root at 0."
                else:  # a metric of the training algorithm
                    path, what, end = "step", f"{stage}: {name} is", ""
                raise BadStartError(path, f"{what} {row[name]} at step 1, before an update. {cure} of the losses.{end}")
            raise NonFiniteError(
                f"{stage}: {term} is {row[name]} at step {step}. Checkpoints before that step are kept. "
                "Check the data of that step; or lower the rate or set clip_norm, in another workdir."
            )
