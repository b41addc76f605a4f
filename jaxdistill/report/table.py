"""The summary of a run, for the terminal: a table and a sentence."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

COLUMNS = (
    ("accuracy", "accuracy %", lambda x: f"{100 * x:.2f}"),
    ("nll", "NLL", lambda x: f"{x:.3f}"),
    ("ece", "ECE %", lambda x: f"{100 * x:.2f}"),
    ("agreement_on_errors", "teacher's errors %", lambda x: f"{100 * x:.1f}"),
    ("rank_correlation", "rank corr.", lambda x: f"{x:.3f}"),
    ("parameters", "parameters", lambda x: f"{x:,}"),
    ("bytes", "kB", lambda x: f"{x / 1000:,.0f}"),
    ("flops", "MFLOP", lambda x: f"{x / 1e6:,.2f}"),
    ("latency_ms", "ms", lambda x: f"{x:.2f}"),
)


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Every model with what it knows and what it costs; what was not measured shows as a dash."""
    shown = [column for column in COLUMNS if any(row.get(column[0]) is not None for row in rows)]
    found = Table(title="held-out data, per example", title_justify="left")
    found.add_column("model")
    for _, heading, _ in shown:
        found.add_column(heading, justify="right")
    for row in rows:
        cells = ["-" if row.get(key) is None else write(row[key]) for key, _, write in shown]
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
