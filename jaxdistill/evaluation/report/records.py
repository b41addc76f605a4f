"""Build the page sections about exported files and test records: measurements, data, confusion matrices, examples."""

from collections.abc import Mapping
from typing import Any

from jaxdistill.evaluation.report import exports, tables
from jaxdistill.evaluation.report.layout import grid, section
from jaxdistill.evaluation.report.markup import Markup, element, join


def exported(results: Mapping[str, Any]) -> Markup:
    """Return the page section with a table of exported files beside their models.

    Args:
        results: the content of `results.json`.
    """
    entries = results.get("exports") or []
    heading, *rows = exports.table(entries) if entries else [[]]
    table = tables.plain_table(heading, rows) if entries else Markup()
    compiled = [_list(*text.splitlines()) for text in exports.devices(entries)]
    return section("Exported files", join([table, *compiled]), exports.circumstances(entries) if entries else "")


def _list(title: str, *items: str) -> Markup:
    return join([element("p", title, class_="note"), element("ul", *(element("li", text.strip()) for text in items))])


def records(results: Mapping[str, Any]) -> Markup:
    """Return the page section with the records of each split: their number, labels, and how many texts are truncated.

    Args:
        results: the content of `results.json`.
    """
    splits = results.get("data") or []
    cuts = any(row["truncated"] for row in splits)
    lines = [
        [
            row["stream"],
            row["split"],
            f"{row['records']:,}",
            "yes" if row["labels"] else "no",
            *([f"{row['truncated']:,}"] if cuts else []),
        ]
        for row in splits
    ]
    unused = (results.get("unused_splits") or {}).items()
    notes = ["A text that is longer than a row of tokens is cut: see length in data.tokens."] if cuts else []
    notes += [f"Nothing reads the {size:,} record{'s' * (size != 1)} of the split '{name}'." for name, size in unused]
    heading = ["used as", "split", "records", "labels", *(["longer than a row"] if cuts else [])]
    return section("Data", tables.plain_table(heading, lines) if lines else Markup(), " ".join(notes))


def confusion(results: Mapping[str, Any]) -> Markup:
    """Return the page section with a confusion matrix of the student, and one of the control beside it.

    The control is the same student trained without a teacher.

    Args:
        results: the content of `results.json`.
    """
    matrices, names = results.get("confusion") or {}, results.get("class_names") or []
    cards = [
        tables.confusion_table(matrices[name], names, f"{name}: class of a record (row), prediction (column)")
        for name in ("student", "control")
        if name in matrices
    ]
    note = "Number of test records; the diagonal is right. The darker a cell, the larger its share of the row."
    return section("Which classes are confused", grid(*cards), note)


def examples(results: Mapping[str, Any]) -> Markup:
    """Return the page section with test records on which either the student or the control is right, but not both.

    Args:
        results: the content of `results.json`.
    """
    examples, names = results.get("examples") or [], results.get("class_names") or []
    pair = results.get("paired") or {}
    named = lambda number: str(names[number]) if number < len(names) else f"class {number}"

    def card(example: Mapping[str, Any]) -> Markup:
        lines = [element("b", f"{named(example['label'])} "), f"(record {example['record']})"]
        for model, predicted in example["predicted"].items():
            mark = "✓" if predicted == example["label"] else "✗"
            lines.append(element("div", f"{mark} {model}: {named(predicted)}"))
        look = Markup()
        if "image" in example:
            look = element("img", src=f"data:image/png;base64,{example['image']}", alt=f"record {example['record']}")
        elif "text" in example:
            look = element("blockquote", example["text"])
        return element("div", look, element("div", *lines), class_="example")

    note = (
        f"Only the student is right on {pair.get('only_one')} test records, only the control on "
        f"{pair.get('only_other')}. The first of each are shown."
    )
    return section("Where student and control differ", grid(*map(card, examples), small=True), note if pair else "")
