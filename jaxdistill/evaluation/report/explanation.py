"""The section of a page about what arrived of a teacher: `explanation.json`, as a table and in plain words."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdistill.core import seal
from jaxdistill.core.errors import DamageError
from jaxdistill.core.notes import note_damage
from jaxdistill.evaluation.report import tables
from jaxdistill.evaluation.report.formats import aligned
from jaxdistill.evaluation.report.layout import section
from jaxdistill.evaluation.report.markup import Markup, join

FILE = "explanation.json"
TYPES: seal.JsonTypes = {
    "rows": list[dict],
    "known": list[str],
    "beyond": list[str],
    "records": int,
    "classes": list[str],
}
MEANING = (
    "Bits per record: how much better a linear rule guesses the teacher's log-probabilities of all classes once it "
    "sees what the model says, beside the label and {known}. By one bit, the error of one of these numbers is halved. "
    "The floor is the same network with random weights: what is not above it did not come from the teacher. The "
    "measure says that the model's answers hold this part of the teacher, not that the part makes it more accurate."
)


def read(workdir: Path) -> dict[str, Any]:
    """Read the explanation of a run; empty: there is none, it is damaged, or it is of another run.

    Args:
        workdir: folder of the run.
    """
    try:
        return seal.read(workdir / FILE, TYPES, required=True)
    except FileNotFoundError:
        return {}
    except DamageError as error:
        note_damage(error)
        return {}


def cells(content: Mapping[str, Any]) -> list[list[str]]:
    """Format the bits of each model as rows of text; the first row is the heading.

    Args:
        content: the content of `explanation.json`.
    """
    layers = range(max((len(row["by_layer"]) for row in content["rows"]), default=0))
    heading = ["teacher", "model", "bits", "95 % interval", *(f"layer {number}" for number in layers)]
    lines = [heading]
    for row in content["rows"]:
        by_layer = [f"{each['bits']:.2f}" for each in row["by_layer"]]
        interval = f"{row['low']:.2f} to {row['high']:.2f}"
        name = f"{row['model']} (floor)" if row["model"] == "untrained" else row["model"]
        by_layer += [""] * (len(layers) - len(by_layer))
        lines.append([row["teacher"].removeprefix("teacher "), name, f"{row['bits']:.2f}", interval, *by_layer])
    return lines


def by_class(content: Mapping[str, Any]) -> list[list[str]]:
    """Format the bits of each class as rows of text, the class with most of the student's bits first."""
    rows, names = content["rows"], content["classes"]
    heading = ["class", *(_title(row, rows) for row in rows)]
    order = sorted(range(len(names)), key=lambda number: -rows[0]["by_class"][number]) if rows else []
    return [heading, *([names[number], *(f"{row['by_class'][number]:.2f}" for row in rows)] for number in order)]


def _title(row: Mapping[str, Any], rows: list[Mapping[str, Any]]) -> str:
    several = len({each["teacher"] for each in rows}) > 1
    return f"{row['model']} of {row['teacher'].removeprefix('teacher ')}" if several else str(row["model"])


def meaning(content: Mapping[str, Any]) -> str:
    """Say in plain words what the bits are, and what they are not."""
    number = len(content["known"])
    known = "a network that" if number == 1 else f"{number} networks that"
    text = f"{known} learned from labels alone ({', '.join(content['known'])})"
    if content["beyond"]:
        text += f", and students of other teachers ({', '.join(content['beyond'])})"
    return MEANING.format(known=text)


def text_table(content: Mapping[str, Any]) -> str:
    """Return the bits of each model as a table for the terminal, with what they mean."""
    return f"{aligned(cells(content))}\n{meaning(content)}"


def bits(content: Mapping[str, Any]) -> Markup:
    """Return the page section with the bits of each model and of each class; empty without an explanation.

    Args:
        content: what `read` returns.
    """
    if not content:
        return Markup()
    (heading, *lines), (names, *classes) = cells(content), by_class(content)
    shown = join((tables.plain_table(heading, lines), tables.plain_table(names, classes)))
    return section("What arrived of the teacher, in bits", shown, meaning(content))
