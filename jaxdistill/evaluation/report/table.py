"""The summary of a run, for the terminal: a table and a sentence."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

FEW = 100  # errors of a teacher: of fewer, a percentage would say more than they can


def _agreed(row: Mapping[str, Any]) -> str:
    share, errors = row["agreement_on_errors"], row.get("teacher_errors", FEW)
    return f"{100 * share:.1f} %" if errors >= FEW else f"{share * errors:.0f} of {errors:.0f}"


COLUMNS = (
    ("accuracy", "acc %", lambda row: f"{100 * row['accuracy']:.2f}"),
    ("nll", "NLL", lambda row: f"{row['nll']:.3f}"),
    ("perplexity", "ppl", lambda row: f"{row['perplexity']:.2f}"),
    ("ece", "ECE %", lambda row: f"{100 * row['ece']:.2f}"),
    ("agreement_on_errors", "errors", _agreed),
    ("rank_correlation", "rank", lambda row: f"{row['rank_correlation']:.3f}"),
    ("parameters", "params", lambda row: f"{row['parameters'] / 1000:,.1f}k"),
    ("bytes", "MB", lambda row: f"{row['bytes'] / 1e6:.2f}"),
    ("flops", "MFLOP", lambda row: f"{row['flops'] / 1e6:,.1f}"),
    ("latency_ms", "ms", lambda row: f"{row['latency_ms']:.2f}"),
)
CAPTION = (
    "On held-out data. errors: the teacher's wrong answers that the model gives too; rank: correlation with its order "
    "of the wrong classes; MFLOP and ms: one example."
)


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Every model with what it knows and what it costs; what was not measured shows as a dash. Fits 80 columns."""
    shown = [column for column in COLUMNS if any(row.get(column[0]) is not None for row in rows)]
    found = Table(
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        collapse_padding=True,
        caption=CAPTION,
        caption_justify="left",
    )
    found.add_column("model", overflow="fold")  # the one that gives way where 80 columns are few
    for _, heading, _ in shown:
        found.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        cells = ["-" if row.get(key) is None else write(row) for key, _, write in shown]
        found.add_row(row["name"], *cells)
    return found


def sentence(rows: Sequence[Mapping[str, Any]]) -> str:
    """What came out, in one sentence."""
    by_name = {row["name"]: row for row in rows}
    student, control = by_name["student"], by_name.get("control")
    teachers = [row for row in rows if row["name"].startswith("teacher ")]
    said = f"The student reaches {100 * student['accuracy']:.2f} %"
    if control:
        points = 100 * (student["accuracy"] - control["accuracy"])
        said += (
            f", {abs(points):.2f} points {'above' if points >= 0 else 'below'} the same network trained on labels alone"
        )
    if teachers:
        best = max(teachers, key=lambda row: row["accuracy"])
        share = student["parameters"] / best["parameters"]
        said += f"; its best teacher reaches {100 * best['accuracy']:.2f} %"
        said += f" and the student has {100 * share:.1f} % of its parameters"
    return said + "."
