"""Make the two HTML tables of a run's report: quality and cost of each model, and transfer from the teacher."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxdistill.evaluation.report.formats import count, decimal, digits, file_size, percent
from jaxdistill.evaluation.report.markup import Markup, element, join
from jaxdistill.evaluation.report.table import FLOATS, MIN_ERRORS, ROUNDED

Row = dict[str, Any]


class Column(NamedTuple):
    """A value that a report shows for each model, such as its accuracy; one column or one row of a table.

    Args:
        key: key of the value in a model's results
        title: title in the report, with the unit
        form: function that formats the value as text
        better: 1 if more is better, -1 if less is better, 0 for neither
        meaning: explanation of the value for the readers of the report
    """

    key: str
    title: str
    form: Callable[[float], str]
    better: int
    meaning: str


QUALITY = (
    Column(
        "image_text_r1", "Text R@1 (%)", percent, 1, "share of images (or first texts) whose text is the most similar"
    ),
    Column("image_text_r5", "Text R@5 (%)", percent, 1, "share of images (or first texts) with their text among five"),
    Column("chance_image_text_r5", "Chance of text R@5 (%)", percent, 0, "R@5 of texts drawn at random"),
    Column(
        "text_image_r1",
        "Image R@1 (%)",
        percent,
        1,
        "share of texts whose most similar image (or first text) is theirs",
    ),
    Column("text_image_r5", "Image R@5 (%)", percent, 1, "share of texts with such an image among five"),
    Column("gallery_images", "Images", count, 0, "number of images that are candidates: the whole test set"),
    Column("gallery_first_texts", "First texts", count, 0, "number of different first texts that are candidates"),
    Column("gallery_texts", "Texts", count, 0, "number of different texts that are candidates"),
    Column("accuracy", "Accuracy (%)", percent, 1, "share of held-out examples whose most likely class is right"),
    Column("auc", "AUC", decimal, 1, "area under the ROC curve: how often class 1 is ranked above class 0"),
    Column("nll", "NLL (nats)", decimal, -1, "negative log-likelihood of the right class, mean over examples"),
    Column(
        "perplexity",
        "Perplexity",
        digits,
        -1,
        "exponential of the NLL: number of equally likely tokens with this NLL",
    ),
    Column("ece", "ECE (%)", percent, -1, "expected calibration error: mean gap between confidence and accuracy"),
    Column("parameters", "Parameters", count, -1, "weights and biases of the network"),
    Column("zeros", "Zeros (%)", percent, 0, "weights of matrices that are 0; they save no bytes and no time on a CPU"),
    Column("bytes", "Size", file_size, -1, "memory of parameters and state"),
    Column("flops", "FLOPs", count, -1, "floating point operations of one forward pass, per example"),
    Column(
        "latency_ms",
        "Latency (ms)",
        digits,
        -1,
        "time of one forward pass of one example on this device, with its range; models of one architecture are timed "
        "once",
    ),
)

TRANSFER = (
    Column(
        "agreement",
        "Agreement (%)",
        percent,
        1,
        "Same most likely class as the teacher. Any two accurate networks agree, distilled or not.",
    ),
    Column(
        "kl",
        "KL (nats)",
        decimal,
        -1,
        "Divergence of the student's probabilities from the teacher's; 0 is a perfect copy. "
        "It also depends on how confident the two networks are, so compare ECE too.",
    ),
    Column("similarity", "Cosine similarity", decimal, 1, "Of the two models' embeddings; 1: the same direction."),
    Column(
        "agreement_on_errors",
        "Agreement on the teacher's errors (%)",
        percent,
        1,
        "Same most likely class as the teacher where the teacher is wrong. An excess over the control was transferred "
        "from the teacher, if there are many errors.",
    ),
    Column("teacher_errors", "The teacher's errors", "{:.0f}".format, 0, "Number of examples behind the row above."),
    Column(
        "rank_correlation",
        "Rank correlation of non-target classes",
        decimal,
        1,
        "Similarity of the order in which the two networks rank the wrong classes; 1: the same order, 0: unrelated. "
        "An excess over the control was transferred from the teacher.",
    ),
)

CKA = (
    "Similarity of hidden states (student layer : teacher layer), from 0 to 1. "
    "High for any two networks trained on the same data, distilled or not."
)


def role(name: str) -> str:
    """Return the role of a model by the beginning of its name: "student", "control", or "teacher" for any other name.

    The control is the same student trained without a teacher.
    """
    return next((role for role in ("student", "control") if name.startswith(role)), "teacher")


def rank(name: str) -> int:
    """Return the sort key of a model name: 0 for teachers, 1 for students, 2 for controls.

    A control is the same student trained without a teacher.
    """
    return ("teacher", "student", "control").index(role(name))


def by_role(rows: list[Row]) -> list[Row]:
    """Sort the results of models: first teachers, then students, then controls (students trained without a teacher).

    Models of the same kind keep their order.
    """
    return sorted(rows, key=lambda row: rank(row["name"]))


def cell_text(row: Row, column: Column) -> str:
    """Format one value of a model's results (`row`) as text: a dash if it is missing, else a number, "nan" or "inf"."""
    value = row.get(column.key)
    if value is None:
        return "–"
    errors = row.get("teacher_errors", MIN_ERRORS)
    if column.key == "agreement_on_errors" and errors < MIN_ERRORS and math.isfinite(value):
        return f"{value * errors:.0f} of {errors:.0f}"  # a percentage would be too precise
    return column.form(value) if math.isfinite(value) else str(value)


def best_text(rows: list[Row], column: Column) -> str | None:
    """Return the best value of a column among students and controls, as text; None if there is no difference.

    There is no difference if fewer than two models have the value, or if all values are the same text when rounded.
    Latencies of models with equal FLOPs count as equal, because their differences are noise. A control is the same
    student trained without a teacher.

    Args:
        rows: one dictionary of results for each model.
        column: the value to compare.
    """
    rivals = [row for row in rows if role(row["name"]) != "teacher" and row.get(column.key) is not None]
    rivals = [row for row in rivals if math.isfinite(row[column.key])]
    same = (
        column.key == "latency_ms" and len({row.get("flops") for row in rivals}) == 1
    )  # measured differences are noise
    if same or len({cell_text(row, column) for row in rivals}) < 2:
        return None
    return cell_text(max(rivals, key=lambda row: column.better * row[column.key]), column)


def quality_table(rows: list[Row], swatch: Callable[[str], Markup]) -> Markup:
    """Make an HTML table of the quality and the cost of each model. The better of student and control is highlighted.

    The control is the same student trained without a teacher.

    Args:
        rows: one dictionary of results for each model.
        swatch: function that returns a coloured square for the name of a model.
    """
    rows = by_role(rows)
    columns = [column for column in QUALITY if any(row.get(column.key) is not None for row in rows)]
    best = {column: best_text(rows, column) for column in columns}

    def line(row: Row) -> Markup:
        name = element("th", swatch(row["name"]), row["name"], scope="row")
        return element("tr", name, *(cell(row, column) for column in columns))

    def cell(row: Row, column: Column) -> Markup:
        text = cell_text(row, column)
        wins = text == best[column] and role(row["name"]) != "teacher"
        shown = element("strong", text) if wins else text
        low_high = row.get("latency_range") if column.key == "latency_ms" else None
        spread = element("small", f" {digits(low_high[0])}–{digits(low_high[1])}") if low_high else ""
        return element("td", shown, spread, title=f"{column.title}: {row.get(column.key)}")

    head = element("tr", element("th", "Model", scope="col"), *(_head(column) for column in columns))
    names = [row["name"] for row in rows]
    return join((_scrolling(element("thead", head), element("tbody", *map(line, rows))), _key(columns, names)))


def _head(column: Column) -> Markup:
    """Return the HTML heading of a column: its title, with its meaning as a tooltip."""
    return element("th", column.title, scope="col", title=column.meaning)


ROUNDING = (
    f"{FLOATS}: the student's training, without rounding. {ROUNDED}: that model, rounded by the same rule after its "
    "training. Size and latency of the student are those of a simulation in floats; those of its file are under "
    "Exported files, once `jaxdistill export` has written one."
)


def _key(columns: list[Column], names: Sequence[str]) -> Markup:
    """Return the meaning of every column, and of rows that need one, as text, for touch screens without tooltips.

    Args:
        columns: the columns.
        names: names of the models in the table.
    """
    items = (element("span", element("b", column.title), f" {column.meaning}. ") for column in columns)
    control = "The control is the student's network, trained without a teacher. Highlighted: the best, teachers aside."
    has_control = any(role(name) == "control" for name in names)
    texts = (control if has_control else "", f" {ROUNDING}" if FLOATS in names else "")
    return element("p", *items, *texts, class_="note")


def transfer_table(rows: list[Row]) -> Markup:
    """Make an HTML table that compares models with the teacher: a row for each measure, and a column for each model.

    It is empty if no model was compared with a teacher.

    Args:
        rows: one dictionary of results for each model.
    """
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


def confusion_table(counts: Sequence[Sequence[int]], names: Sequence[str], caption: str) -> Markup:
    """Make an HTML table of a confusion matrix, in which the colour of a cell shows its share of the row.

    Args:
        counts: number of records of each class (row) with each prediction (column).
        names: names of the classes; classes beyond them are called by their number.
        caption: caption of the table.
    """
    named = lambda number: str(names[number]) if number < len(names) else str(number)

    def line(number: int, row: Sequence[int]) -> Markup:
        cells = (
            element(
                "td",
                count or "·",
                style=f"background: color-mix(in srgb, var({'--right' if place == number else '--wrong'}) "
                f"{100 * count / max(1, sum(row)):.0f}%, transparent)",
            )
            for place, count in enumerate(row)
        )
        return element("tr", element("th", named(number), scope="row"), *cells)

    head = element("tr", element("th", ""), *(element("th", named(place), scope="col") for place in range(len(counts))))
    body = element("tbody", *(line(number, row) for number, row in enumerate(counts)))
    return _scrolling(element("caption", caption), element("thead", head), body, class_="confusion")


def plain_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """Make an HTML table of text.

    Args:
        heading: titles of the columns.
        rows: texts of the cells, row by row; the first cell of a row is the row's heading.
    """
    head = element("tr", *(element("th", title, scope="col") for title in heading))
    lines = (element("tr", element("th", row[0], scope="row"), *(element("td", x) for x in row[1:])) for row in rows)
    return _scrolling(element("thead", head), element("tbody", *lines))


def _scrolling(*parts: Markup, **attributes: Any) -> Markup:
    """Make a table that scrolls horizontally on a narrow screen."""
    return element("div", element("table", *parts, **attributes), class_="scroll")


def pairs_table(pairs: Mapping[str, str], caption: str) -> Markup:
    """Make an HTML table with two columns, the names and the texts of `pairs`, and a caption."""
    lines = (element("tr", element("th", name, scope="row"), element("td", text)) for name, text in pairs.items())
    return _scrolling(element("caption", caption), element("tbody", join(lines)), class_="pairs")
