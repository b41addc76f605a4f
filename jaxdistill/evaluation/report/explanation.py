"""Build the page sections about what a student has learned from its teachers, from `explanation.json`.

The file holds two measures: bits (information about the teacher in a model's outputs), and relations between classes
(which other classes the teacher finds probable for a class).
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxdistill.core import seal
from jaxdistill.core.errors import DamageError
from jaxdistill.core.notes import note_damage
from jaxdistill.evaluation.interpret.relations import TEMPERATURE, number_of
from jaxdistill.evaluation.report import tables
from jaxdistill.evaluation.report.drawing import svg
from jaxdistill.evaluation.report.figures import STUDENT
from jaxdistill.evaluation.report.formats import aligned
from jaxdistill.evaluation.report.layout import figure, section
from jaxdistill.evaluation.report.markup import Markup, join

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "explanation.json"
TYPES: seal.JsonTypes = {
    "rows": list[dict],
    "relations": dict[str, list],
    "known": list[str],
    "beyond": list[str],
    "records": int,
    "classes": list[str],
}
DRAWN = 40  # classes; the names of more would cover each other
RELATIONS = (
    "The teacher confuses a class with those that get the largest mean probability, at temperature "
    f"{TEMPERATURE:g}, where the class is right. "
    "Networks that learned from the same labels share many of these relations: compare the student with its control."
)
MEANING = (
    "Bits per record: how much better a linear rule guesses the teacher's log-probabilities of all classes once it "
    "sees what the model says, beside the label and {known}. By one bit, the error of one of these numbers is halved. "
    "The floor is the same network with random weights: what is not above it did not come from the teacher. The "
    "measure says that the model's answers hold this part of the teacher, not that the part makes it more accurate."
)


def owner(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the identity of the run that `explanation.json` belongs to: a dict with its name and number of steps.

    Args:
        results: the content of `results.json`.
    """
    return {"run": results.get("run") or "", "steps": (results.get("config") or {}).get("steps")}


def read(workdir: Path, results: Mapping[str, Any]) -> dict[str, Any]:
    """Read `explanation.json`, the measures of what the models of a run have learned from its teachers.

    Args:
        workdir: folder of the run.
        results: the content of its `results.json`.

    Returns:
        The content of the file. It is empty if there is no such file, and also, with a note, if the file is damaged or
        belongs to another run or to another number of steps.
    """
    try:
        content = seal.read(workdir / FILE, TYPES, required=True)
        if any(content.get(key) != value for key, value in owner(results).items()):
            raise DamageError(f"{workdir / FILE} is of another run, or of fewer steps. Run `jaxdistill explain` again")
        return content
    except FileNotFoundError:
        return {}
    except DamageError as error:
        note_damage(error)
        return {}


def cells(content: Mapping[str, Any]) -> list[list[str]]:
    """Format the bits (information about the teacher) of each model as a table of text; the first row is the heading.

    Args:
        content: the content of `explanation.json`.
    """
    layers = range(max((len(row["by_layer"]) for row in content["rows"]), default=0))
    heading = [
        "teacher",
        "model",
        "bits",
        "95 % interval",
        _kept_title(content),
        *(f"layer {number}" for number in layers),
    ]
    lines = [heading]
    for row in content["rows"]:
        by_layer = [f"{each['bits']:.2f}" for each in row["by_layer"]]
        kept = f"{100 * row['relations_kept']:.0f} %"
        interval = f"{row['low']:.2f} to {row['high']:.2f}"
        name = f"{row['model']} (floor)" if row["model"] == "untrained" else row["model"]
        by_layer += [""] * (len(layers) - len(by_layer))
        lines.append([row["teacher"].removeprefix("teacher "), name, f"{row['bits']:.2f}", interval, kept, *by_layer])
    return lines


def _kept_title(content: Mapping[str, Any]) -> str:
    others = len(content["classes"]) - 1
    return f"relations kept (chance {100 * number_of(others + 1) / max(others, 1):.0f} %)"


def by_class(content: Mapping[str, Any]) -> list[list[str]]:
    """Format each model's bits (information about the teacher) by class, as a table of text with a heading.

    The first class is the one with most bits in the first row of `content`, usually that of the student.
    """
    rows, names = content["rows"], content["classes"]
    heading = ["class", *(_title(row, rows) for row in rows)]
    order = sorted(range(len(names)), key=lambda number: -rows[0]["by_class"][number]) if rows else []
    return [heading, *([names[number], *(f"{row['by_class'][number]:.2f}" for row in rows)] for number in order)]


def _title(row: Mapping[str, Any], rows: list[Mapping[str, Any]]) -> str:
    several = len({each["teacher"] for each in rows}) > 1
    return f"{row['model']} of {row['teacher'].removeprefix('teacher ')}" if several else str(row["model"])


def meaning(content: Mapping[str, Any]) -> str:
    """Return a text that explains what the bits (information about the teacher) measure, and what they do not."""
    number = len(content["known"])
    known = "a network that" if number == 1 else f"{number} networks that"
    text = f"{known} learned from labels alone ({', '.join(content['known'])})"
    if content["beyond"]:
        text += f", and students of other teachers ({', '.join(content['beyond'])})"
    return MEANING.format(known=text)


def text_table(content: Mapping[str, Any]) -> str:
    """Return the bits (information about the teacher) of each model as a terminal table, and explain their meaning."""
    return f"{aligned(cells(content))}\n{meaning(content)}"


def relation_cells(content: Mapping[str, Any], teacher: str) -> list[list[str]]:
    """Format the classes that a teacher confuses with each class as a table of text, beside those that models share.

    The first row is the heading. There is a column for each model.

    Args:
        content: the content of `explanation.json`.
        teacher: name of the teacher.
    """
    names, of_teacher = content["classes"], content["relations"][teacher]
    rows = [row for row in content["rows"] if row["teacher"] == teacher]
    listed = lambda numbers: ", ".join(names[number] for number in numbers) or "–"
    lines = [["class", "confused by the teacher with", *(f"shared by the {row['model']}" for row in rows)]]
    for number, wanted in enumerate(of_teacher):
        kept = [listed([each for each in wanted if each in row["relations"][number]]) for row in rows]
        lines.append([names[number], listed(wanted), *kept])
    return lines


def network(content: Mapping[str, Any], teacher: str) -> Markup:
    """Draw the graph of the classes that a teacher confuses with each other.

    Edges that the student shares are orange; the others are grey and dashed.

    Args:
        content: the content of `explanation.json`.
        teacher: name of the teacher.
    """
    names, of_teacher = content["classes"], content["relations"][teacher]
    (student,) = (row for row in content["rows"] if row["teacher"] == teacher and row["model"] == "student")
    angles = [2 * math.pi * number / len(names) for number in range(len(names))]
    places = [(math.sin(angle), math.cos(angle)) for angle in angles]

    def draw(canvas: "Figure") -> None:
        axes = canvas.subplots()
        for number, wanted in enumerate(of_teacher):
            for other in wanted:
                has = other in student["relations"][number]
                line = {"color": STUDENT, "zorder": 2} if has else {"color": "#bbbbbb", "linestyle": "--", "zorder": 1}
                bent = {"connectionstyle": "arc3,rad=0.15"}  # so that two opposite arrows do not cover each other
                arrow = {"arrowstyle": "->", "shrinkA": 4, "shrinkB": 4, **bent, **line}
                axes.annotate("", places[other], places[number], arrowprops=arrow)
        for (x, y), name in zip(places, names, strict=True):
            axes.plot(x, y, "o", color="#333333", markersize=4)
            side = "center" if abs(x) < 0.1 else ("left" if x > 0 else "right")
            axes.text(1.12 * x, 1.12 * y, name, ha=side, va="center")
        axes.set(xlim=(-1.9, 1.9), ylim=(-1.3, 1.3))
        axes.set_axis_off()

    kept = f"{100 * student['relations_kept']:.0f} %"
    return figure(
        "Relations between classes",
        f"An arrow leads to a class that {teacher} often confuses with this one. Orange: the student "
        f"does so, too ({kept}); grey: it does not.",
        svg(draw, (4.8, 3.6), f"Relations between classes of {teacher}; the student has {kept} of them."),
    )


def bits(content: Mapping[str, Any]) -> Markup:
    """Return the page section with each model's bits of information about the teacher, in total, by layer and by class.

    Args:
        content: the content of `explanation.json`, from `read`; if it is empty, so is the section.
    """
    if not content:
        return Markup()
    (heading, *lines), (names, *classes) = cells(content), by_class(content)
    shown = join((tables.plain_table(heading, lines), tables.plain_table(names, classes)))
    return section("Information from the teacher, in bits", shown, meaning(content))


def relations(content: Mapping[str, Any]) -> Markup:
    """Return the page section with the classes that each teacher confuses with each other, and what the student shares.

    Args:
        content: the content of `explanation.json`, from `read`; if it is empty, so is the section.
    """
    parts: list[Markup] = []
    for teacher in content.get("relations", ()):
        heading, *lines = relation_cells(content, teacher)
        drawn = [network(content, teacher)] if len(content["classes"]) <= DRAWN else []
        parts += [*drawn, tables.plain_table(heading, lines)]
    return section("Which classes are related, to the teacher and to the student", join(parts), RELATIONS)
