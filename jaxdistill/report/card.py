"""The card of a network that goes out into the world: what taught it, on what, and how it was measured."""

from collections.abc import Mapping
from typing import Any

from jaxdistill.report.table import COLUMNS


def card(name: str, results: Mapping[str, Any]) -> str:
    """A Hugging Face model card, Markdown, for one row of a run's `results.json`."""
    config, rows = results["config"], results["rows"]
    teachers = "\n".join(f"- {teacher}: `{entry['model']}`" for teacher, entry in config["teachers"].items())
    objective = config["objective"] if name == "student" else config["task"]
    terms = "\n".join(f"- `{entry['term'] or term}`, weight {entry['weight']}" for term, entry in objective.items())
    data, made = config["data"], results["provenance"]
    steps = config["steps"] if name == "student" else config["teachers"][name.removeprefix("teacher ")]["steps"]
    return f"""---
library_name: transformers
tags:
- knowledge-distillation
- jaxdistill
---

# {results["title"]}: {name}

{results["summary"]}

## Made by

Teachers:

{teachers or "none"}

Objective:

{terms}

{steps} steps of {config["batch_size"]} rows of `{data["name"]}` ({data["train"]}), seed {config["seed"]}.
Made by jaxdistill, commit {made["git"]}. The whole config is in the run's `config.json`.

## Measured

On `{data["name"]}` ({data["test"]}), beside the teachers and, as the control, the same network trained without them.

{_table(rows)}
"""


def _table(rows: list[Mapping[str, Any]]) -> str:
    shown = [column for column in COLUMNS if any(row.get(column[0]) is not None for row in rows)]
    line = lambda cells: f"| {' | '.join(cells)} |"
    cells = lambda row: ["-" if row.get(key) is None else write(row[key]) for key, _, write in shown]
    body = [line([row["name"], *cells(row)]) for row in rows]
    heading = line(["model", *(title for _, title, _ in shown)])
    return "\n".join([heading, line(["---"] * (len(shown) + 1)), *body])
