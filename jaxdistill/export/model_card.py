"""Write the model card of a trained model: what it is for, how to use it, its teachers, training and measured results.

The front matter has the keys that the Hugging Face hub shows (huggingface.co/docs/hub/model-cards). No path of the
machine that trained the model appears.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.spec import parse
from jaxdistill.evaluation.report.table import columns_of
from jaxdistill.export.model_folder import About
from jaxdistill.models.pretrained import sources_of

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
USES = {  # task -> (records, output of a prediction)
    "text-classification": ('["a text to classify"]', "labels"),
    "sentence-similarity": ('["a text", "another text"]', "embeddings"),
    "text-generation": ('["a text"]', "nll"),
    "image-classification": ('["photo.png"]', "labels"),
    "image-feature-extraction": ('["photo.png"]', "embeddings"),
    "zero-shot-image-classification": ('[{"image": "photo.png", "text": "a text"}]', "text_embeddings"),
    "tabular-classification": ("rows", "labels"),
}


def card(name: str, config: Mapping[str, Any], results: Mapping[str, Any], about: About) -> str:
    """Return the text of a model card, in Markdown, for a model that a run trained.

    Args:
        name: name of the model in the result table, such as "student".
        config: config of its training, as a nested dictionary; the section `student` describes the model.
        results: the content of the run's `results.json`.
        about: how the model is built and what it reads.
    """
    data, provenance = config["data"], results["provenance"]
    dataset, task, row = _dataset(data["name"]), about.task, _row(results["rows"], name)
    entries = config["objective"].items() if config["teachers"] or name != "student" else config["task"].items()
    terms = "\n".join(f"- `{public(entry['term'] or term)}`, weight {entry['weight']}" for term, entry in entries)
    teachers = "\n".join(f"- {teacher}: `{public(entry['model'])}`" for teacher, entry in config["teachers"].items())
    rows = config["steps"] * config["batch_size"]
    has_control = any(row["name"] == "control" for row in results["rows"])
    control = " The control is the same network as the student,\ntrained without a teacher." if has_control else ""
    seconds = results.get("seconds", {}).get(name)
    took = f", in {seconds:.0f} seconds on {provenance['device']}" if seconds else ""
    return f"""---
{_front_matter(name, config, about, task, dataset, row)}
---

# {public(results["title"])}: {name}

{results["summary"] or "This model is part of a run that is not finished."}

## Use

```python
import jaxdistill

predictor = jaxdistill.load("PATH_OF_THIS_FOLDER")
predictor.predict({_records(about)}).{USES[task][1]}
```
{_in_other_libraries(about, task)}
## Training

Model: `{public(about.model)}`{_quantized(config["student"])}

Teachers:

{teachers or "none: this model was trained on labels alone"}

Objective:

{terms}

{config["steps"]:,} steps of {config["batch_size"]} rows ({rows:,} rows) of `{dataset}` (`{data["train"]}`), seed \
{config["seed"]}{took}.
Trained with jaxdistill {provenance.get("versions", {}).get("jaxdistill", "")}, commit {provenance["git"]}.

## Evaluation

On `{dataset}` (`{data["test"]}`), beside the other models of the run.{control}

{_table(results["rows"])}

## Licence

{_licence(about)}
"""


def _dataset(name: str) -> str:
    """Return the public name of a data set; for the user's own files, the name of the file or folder without path."""
    try:
        spec = parse(name, "data.name")
    except ConfigError:  # a name of TensorFlow Datasets with a version, such as mnist:3.0.1
        return public(name)
    if spec.name != "table":
        return public(name)
    path = spec.args[0] if spec.args else spec.kwargs.get("path", "")
    return Path(path).name if isinstance(path, str) else ""


def public(text: str) -> str:
    """Remove local folders from a spec string or title: a path in quotes is shortened to its last part.

    Ids of the Hugging Face hub, and texts that begin with "pypi:", are kept.
    """
    return re.sub(r"""(['"])([^'"]*/[^'"]*)\1""", lambda match: f"{match[1]}{_last_part(match[2])}{match[1]}", text)


def _last_part(path: str) -> str:
    is_hub_id = HUB_ID.fullmatch(path) and not Path(path).exists()
    return path if is_hub_id or path.startswith("pypi:") else Path(path).name or path


def _records(about: About) -> str:
    """Return example records for the card's section on use, as Python code."""
    if len(about.texts) > 1:
        return "[{" + ", ".join(f'"{field}": "a text"' for field in about.texts) + "}]"
    return USES[about.task][0]


def _quantized(student: Mapping[str, Any]) -> str:
    """Return the card's sentence on quantisation-aware training, or an empty text for a model trained in floats."""
    if not student.get("quantized"):
        return ""
    stored = "the weights in this folder are rounded, and stored as floats"
    return f"\n\nTrained for few bits by `{student['quantized']}`: {stored}."


def _row(rows: list[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    return next((row for row in rows if row["name"] == name), {})


def _base_model(about: About) -> str:
    """Return the source of the pretrained checkpoint that a model started from; empty if it started at random.

    It is empty too if the model started from several checkpoints.
    """
    try:
        sources = sources_of(about.model)
    except ConfigError:
        return ""
    return sources[0] if len(sources) == 1 else ""


def _front_matter(
    name: str, config: Mapping[str, Any], about: About, task: str, dataset: str, row: Mapping[str, Any]
) -> str:
    embeds = task == "sentence-similarity" and about.in_transformers
    library = "sentence-transformers" if embeds else "transformers" if about.in_transformers else "jaxdistill"
    lines = [f"library_name: {library}", f"pipeline_tag: {task}"]
    base = _base_model(about)
    if HUB_ID.fullmatch(base) and not Path(base).exists():
        lines.append(f"base_model: {base.partition('@')[0]}")
    lines += ["tags:", "- knowledge-distillation", "- jaxdistill"]
    measured = [("accuracy", row.get("accuracy")), ("perplexity", row.get("perplexity"))]
    metrics = [(metric, value) for metric, value in measured if isinstance(value, float)]
    if metrics:
        lines += ["model-index:", f"- name: {json.dumps(name)}", "  results:", f"  - task: {{type: {task}}}"]
        lines += [f"    dataset: {{name: {json.dumps(dataset)}, type: {json.dumps(dataset)}}}", "    metrics:"]
        lines += [f"    - {{type: {metric}, value: {value:.6g}}}" for metric, value in metrics]
    return "\n".join(lines)


def _in_other_libraries(about: About, task: str) -> str:
    """Return example code that loads the model in other libraries, as Markdown; empty if they cannot load it."""
    if not about.in_transformers or len(about.texts) > 1:
        return ""
    if task == "sentence-similarity":
        code = "from sentence_transformers import SentenceTransformer\n\n"
        code += 'model = SentenceTransformer("PATH_OF_THIS_FOLDER")'
        return f"\n```python\n{code}\nmodel.encode({_records(about)})\n```\n"
    code = f'from transformers import pipeline\n\nmodel = pipeline("{task}", "PATH_OF_THIS_FOLDER")'
    call = "" if task == "image-classification" else f"\nmodel({_records(about)})"
    return f"\n```python\n{code}{call}\n```\n"


def _licence(about: About) -> str:
    base = _base_model(about)
    start = f"The weights started from `{public(repr(base))[1:-1]}`, whose licence applies to them. " if base else ""
    return f"{start}The licence of the training data may restrict the use of this model; add it here before publishing."


def _table(rows: list[Mapping[str, Any]]) -> str:
    shown = columns_of(rows)
    line = lambda cells: f"| {' | '.join(cells)} |"
    cells = lambda row: ["-" if row.get(key) is None else write(row) for key, _, write in shown]
    body = [line([row["name"], *cells(row)]) for row in rows]
    heading = line(["model", *(title for _, title, _ in shown)])
    return "\n".join([heading, line(["---"] * (len(shown) + 1)), *body])
