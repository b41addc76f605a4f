"""The two tables of the page: how good each network is, and what the student took over from its teacher."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxdistill.evaluation.report.formats import count, decimal, digits, percent, size
from jaxdistill.evaluation.report.markup import Markup, element, join

Row = dict[str, Any]


class Column(NamedTuple):
    """One quantity of a row.

    Args:
        key: where the row keeps it
        title: its name on the page, with its unit
        form: value -> text
        better: 1 where more is better, -1 where less is
        meaning: one line on how to read it
    """

    key: str
    title: str
    form: Callable[[float], str]
    better: int
    meaning: str


QUALITY = (
    Column("accuracy", "Accuracy (%)", percent, 1, "share of held-out examples whose top answer is right"),
    Column("nll", "NLL (nats)", decimal, -1, "negative log-likelihood of the right class, mean over examples"),
    Column(
        "perplexity", "Perplexity", digits, -1, "exponential of the NLL: as many equally likely tokens surprise as much"
    ),
    Column("ece", "ECE (%)", percent, -1, "expected calibration error: mean gap between confidence and accuracy"),
    Column("parameters", "Parameters", count, -1, "weights and biases of the network"),
    Column("bytes", "Size", size, -1, "memory that they take"),
    Column("flops", "FLOPs", count, -1, "floating point operations of one forward pass, per example"),
    Column("latency_ms", "Latency (ms)", digits, -1, "time of one forward pass on this device"),
)

TRANSFER = (
    Column(
        "agreement",
        "Agreement (%)",
        percent,
        1,
        "Same top answer as the teacher. It rises with accuracy alone: any two good networks agree, distilled or not.",
    ),
    Column(
        "kl",
        "KL (nats)",
        decimal,
        -1,
        "Divergence of the student's probabilities from the teacher's; 0 is a perfect copy. "
        "It also counts how confident the two are, so read it beside ECE.",
    ),
    Column(
        "agreement_on_errors",
        "Agreement on the teacher's errors (%)",
        percent,
        1,
        "Same top answer as the teacher where the teacher is wrong. Labels do not teach this: "
        "what stands above the control was transferred, if the errors are many.",
    ),
    Column("teacher_errors", "The teacher's errors", "{:.0f}".format, 0, "On so many examples the line above rests."),
    Column(
        "rank_correlation",
        "Rank correlation of non-target classes",
        decimal,
        1,
        "How alike the two order the wrong classes; 1 is the same order, 0 none. "
        "Labels say nothing about it: what stands above the control was transferred.",
    ),
)

CKA = (
    "Likeness of hidden states (student layer : teacher layer), 0 to 1. "
    "High for any two networks trained on the same data, distilled or not."
)


def role(name: str) -> str:
    """`student` and `control` rows are named so; every other row is something to learn from."""
    return next((role for role in ("student", "control") if name.startswith(role)), "teacher")


def rank(name: str) -> int:
    """The sort key of names on the page: teachers first, then students, then controls."""
    return ("teacher", "student", "control").index(role(name))


def by_role(rows: list[Row]) -> list[Row]:
    """The rows by rank, otherwise in their order."""
    return sorted(rows, key=lambda row: rank(row["name"]))


def cell_text(row: Row, column: Column) -> str:
    """The value as text; a dash where there is none; nan and inf stay what they are."""
    value = row.get(column.key)
    if value is None:
        return "–"
    return column.form(value) if math.isfinite(value) else str(value)


def best_text(rows: list[Row], column: Column) -> str | None:
    """The best text among students and controls; None where there is no contest, or none that can be seen."""
    rivals = [row for row in rows if role(row["name"]) != "teacher" and row.get(column.key) is not None]
    rivals = [row for row in rivals if math.isfinite(row[column.key])]
    same = column.key == "latency_ms" and len({row.get("flops") for row in rivals}) == 1  # what differs is noise
    if same or len({cell_text(row, column) for row in rivals}) < 2:
        return None
    return cell_text(max(rivals, key=lambda row: column.better * row[column.key]), column)


def quality_table(rows: list[Row], swatch: Callable[[str], Markup]) -> Markup:
    """One line for each network, the better of student and control set off; `swatch(name)` draws its colour."""
    rows = by_role(rows)
    columns = [column for column in QUALITY if any(row.get(column.key) is not None for row in rows)]
    best = {column: best_text(rows, column) for column in columns}

    def line(row: Row) -> Markup:
        name = element("th", swatch(row["name"]), row["name"], scope="row")
        return element("tr", name, *(cell(row, column) for column in columns))

    def cell(row: Row, column: Column) -> Markup:
        text = cell_text(row, column)
        wins = text == best[column] and role(row["name"]) != "teacher"
        return element("td", element("strong", text) if wins else text, title=f"{column.title}: {row.get(column.key)}")

    head = element("tr", element("th", "Network", scope="col"), *(_head(column) for column in columns))
    return join((_scrolling(element("thead", head), element("tbody", *map(line, rows))), _key(columns)))


def _head(column: Column) -> Markup:
    """A column's title, its meaning as a tooltip."""
    return element("th", column.title, scope="col", title=column.meaning)


def _key(columns: list[Column]) -> Markup:
    """The meaning of every column, for fingers that cannot hover."""
    items = (element("span", element("b", column.title), f" {column.meaning}. ") for column in columns)
    return element("p", *items, "Set off: the better of student and control.", class_="note")


def transfer_table(rows: list[Row]) -> Markup:
    """One line for each measure, one column for each network that was compared with the teacher."""
    rows = [row | {f"cka/{pair}": value for pair, value in (row.get("cka") or {}).items()} for row in by_role(rows)]
    pairs = dict.fromkeys(pair for row in rows for pair in row.get("cka") or {})
    layers = [Column(f"cka/{pair}", f"CKA {pair}", decimal, 1, "" if n else CKA) for n, pair in enumerate(pairs)]
    measures = [column for column in (*TRANSFER, *layers) if any(row.get(column.key) is not None for row in rows)]
    rows = [row for row in rows if any(row.get(column.key) is not None for column in measures)]
    if not measures:
        return Markup()

    def line(column: Column) -> Markup:
        name = element("th", column.title, element("small", column.meaning), scope="row")
        return element("tr", name, *(element("td", cell_text(row, column)) for row in rows))

    head = element("tr", *(element("th", name, scope="col") for name in ("Measure", *(row["name"] for row in rows))))
    return _scrolling(element("thead", head), element("tbody", *map(line, measures)), class_="measures")


def plain_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """Text as it is: a heading, and rows that begin with their name."""
    head = element("tr", *(element("th", title, scope="col") for title in heading))
    lines = (element("tr", element("th", row[0], scope="row"), *(element("td", x) for x in row[1:])) for row in rows)
    return _scrolling(element("thead", head), element("tbody", *lines))


def _scrolling(*parts: Markup, **attributes: Any) -> Markup:
    """A table that scrolls by itself on a narrow screen, and not the page."""
    return element("div", element("table", *parts, **attributes), class_="scroll")


def pairs_table(pairs: Mapping[str, str], caption: str) -> Markup:
    """Names and values, a line each."""
    lines = (element("tr", element("th", name, scope="row"), element("td", text)) for name, text in pairs.items())
    return _scrolling(element("caption", caption), element("tbody", join(lines)), class_="pairs")
