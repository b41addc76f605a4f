"""Rules about a training algorithm that selects the rows of a batch on which it trains."""

from dataclasses import replace
from typing import Any

import jax

from jaxdistill.core import jaxpr
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.interfaces import RowSelection
from jaxdistill.run.views import KEY, StageView


def selected_rows_divide(view: StageView) -> None:
    """Require that the rows that a training algorithm selects are split evenly over devices and microbatches."""
    selection, rows = view.parts.step.selection, view.config.batch_size
    if selection is None:
        return
    split = view.mesh.shape["data"] * view.mesh.shape["fsdp"] * view.config.accumulate
    count = round(selection.share * rows)
    if count < 1 or abs(selection.share * rows - count) > 1e-6 or count % split:
        cure = f"Choose a share or a batch_size that gives a multiple of {split} (mesh.data x mesh.fsdp x accumulate)"
        shown = f"{selection.share:g} of {rows} rows are {selection.share * rows:g} selected rows"
        raise ConfigError("step", f"{shown}. {cure}.")


def rows_can_be_scored(view: StageView) -> None:
    """Require that a training algorithm that selects rows can compute the losses by which it scores them.

    A score that depends on a teacher needs all its logits, and the scores are computed without chunks.
    """
    selection = view.parts.step.selection
    if selection is None:
        return
    if view.config.chunks > 1:
        problem = f"{view.config.step!r} scores rows by whole logits, not in {view.config.chunks} chunks"
        raise ConfigError("step", f"{problem}. Set chunks=1, or another step.")
    if selection.teacher is None:
        return
    encodings = [*view.teacher_configs.values()][selection.teacher].encodings()
    lossy = [path for path, encoding in encodings if encoding.draws or encoding.top]
    if lossy and _scores_read_logits(view, selection):
        problem = f"{view.config.step!r} scores each row by the teacher's outputs, and needs all its logits"
        raise ConfigError(lossy[0], f"{problem}. Use outputs(...) or submesh(...) without top=.")


def _scores_read_logits(view: StageView, selection: RowSelection) -> bool:
    """Return True if the loss that scores rows reads logits, and not hidden states alone."""
    signals = view.signals[selection.loss.stream]

    def values(signals: Any, key: Any) -> Any:
        dense = replace(signals, student=signals.student.dense(), teachers=tuple(t.dense() for t in signals.teachers))
        target = dense.teachers[selection.teacher]
        return selection.loss.apply({}, {}, replace(dense, teacher=target), key=key)[0]

    try:
        used = jaxpr.used_inputs(values, signals, KEY)[0]
    except (ValueError, TypeError, LookupError, AttributeError):  # a loss that cannot score: another rule explains it
        return False
    return any(jax.tree.leaves([outputs.logits for outputs in (used.student, *used.teachers)]))
