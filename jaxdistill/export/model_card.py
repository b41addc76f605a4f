"""Write the model card of an exported model: its teachers, objective, data and evaluation."""

from collections.abc import Mapping
from typing import Any

from jaxdistill.evaluation.report.table import COLUMNS


def card(name: str, config: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """Return the text of a Hugging Face model card, in Markdown, for a model that a run trained.

    Args:
        name: name of the model, such as "student", for the title.
        config: the config of the run, as a nested dictionary.
        results: the content of the run's `results.json`.
    """
    teachers = "\n".join(f"- {teacher}: `{entry['model']}`" for teacher, entry in config["teachers"].items())
    entries = config["objective"].items()
    terms = "\n".join(f"- `{entry['term'] or term}`, weight {entry['weight']}" for term, entry in entries)
    data, provenance = config["data"], results["provenance"]
    return f"""---
library_name: transformers
tags:
- knowledge-distillation
- jaxdistill
---

# {results["title"]}: {name}

{results["summary"]}

## Training

Teachers:

{teachers or "none"}

Objective:

{terms}

{config["steps"]} steps of {config["batch_size"]} rows of `{data["name"]}` ({data["train"]}), seed {config["seed"]}.
Trained with jaxdistill, commit {provenance["git"]}. The full config is in the run's `config.json`.

## Evaluation

On `{data["name"]}` ({data["test"]}), beside the teachers and the control, the same model trained without them.

{_table(results["rows"])}
"""


def _table(rows: list[Mapping[str, Any]]) -> str:
    shown = [column for column in COLUMNS if any(row.get(column[0]) is not None for row in rows)]
    line = lambda cells: f"| {' | '.join(cells)} |"
    cells = lambda row: ["-" if row.get(key) is None else write(row) for key, _, write in shown]
    body = [line([row["name"], *cells(row)]) for row in rows]
    heading = line(["model", *(title for _, title, _ in shown)])
    return "\n".join([heading, line(["---"] * (len(shown) + 1)), *body])
