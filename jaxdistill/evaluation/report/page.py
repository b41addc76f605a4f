"""Write the HTML report of a run: one file without scripts or external links.

The sections are: results, data, transfer from the teacher, training progress, reliability, and how to repeat the run.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxdistill.core import seal
from jaxdistill.evaluation.report import explanation, figures, tables
from jaxdistill.evaluation.report.formats import duration
from jaxdistill.evaluation.report.layout import figure, grid, section
from jaxdistill.evaluation.report.logs import Log, keys_below, read_logs, read_results, series
from jaxdistill.evaluation.report.markup import Markup, element, join
from jaxdistill.evaluation.report.records import confusion, examples, exported, records
from jaxdistill.evaluation.report.template import CSS, PAGE

NOT_EXPLAINED: Mapping[str, Any] = MappingProxyType({})


def write_page(workdir: Path) -> Path:
    """Write the HTML report of a run, `workdir/report.html`, from `results.json` and the training logs in `workdir`.

    Sections whose data are missing, for example because the run had no teacher, are left out.

    Args:
        workdir: the folder of the run.

    Returns:
        The path of the report.
    """
    workdir = Path(workdir)
    path = workdir / "report.html"
    results = read_results(workdir)
    seal.write_text(path, render(results, read_logs(workdir), explanation.read(workdir, results)))
    return path


def render(results: Mapping[str, Any], logs: Mapping[str, Log], explained: Mapping[str, Any] = NOT_EXPLAINED) -> str:
    """Return the HTML report of a run.

    Args:
        results: the content of `results.json`.
        logs: the training log of each model, by model name.
        explained: the content of `explanation.json`; empty if `jaxdistill explain` has not measured this run.
    """
    names = [row["name"] for row in results.get("rows") or ()]
    styles = figures.network_styles([*logs, *names, *(results.get("reliability") or ())])
    title = results.get("title") or "A run of jaxdistill"
    body = (
        element("h1", title),
        element("p", results.get("summary") or "", class_="summary"),
        quality(results, styles),
        exported(results),
        records(results),
        transfer(results),
        explanation.bits(explained),
        explanation.relations(explained),
        confusion(results),
        examples(results),
        progress(logs, styles),
        objective(logs),
        calibration(results, styles),
        config(results),
        provenance(results),
        command(results),
    )
    return PAGE.format(title=element("title", title), css=CSS, body=join(body))


def quality(results: Mapping[str, Any], styles: Mapping[str, figures.Style]) -> Markup:
    """Return the page section with a table of the quality and the cost of each model.

    Args:
        results: the content of `results.json`.
        styles: colour and line style of each model, by name.
    """

    def swatch(name: str) -> Markup:
        return element("span", class_="swatch", style=f"background: {styles[name].color}")

    rows, left_out = results.get("rows") or [], results.get("left_out") or {}
    notes = " ".join(f"There is no {model}: {reason}." for model, reason in left_out.items())
    return section("Result", tables.quality_table(rows, swatch) if rows else Markup(), notes)


def transfer(results: Mapping[str, Any]) -> Markup:
    """Return the page section with a table that compares the student with its teacher, for example by top-1 agreement.

    Args:
        results: the content of `results.json`.
    """
    rows, notes = results.get("rows") or [], []
    if any(tables.role(row["name"]) == "control" for row in rows):
        notes.append(
            "The control is the same network as the student, trained without a teacher. Compare the student with the "
            "control, not with 100 %."
        )
    if any(row.get("rank_correlation") is not None for row in rows):
        high = "Agreement and CKA are" if any(row.get("cka") for row in rows) else "Agreement is"
        notes.append(
            f"{high} high for any two good networks; agreement on the teacher's errors and the rank correlation of the "
            "other classes show what the teacher transferred."
        )
    return section("What was transferred", tables.transfer_table(rows), " ".join(notes))


def progress(logs: Mapping[str, Log], styles: Mapping[str, figures.Style]) -> Markup:
    """Return the page section with curves of held-out accuracy and NLL (negative log-likelihood) over training steps.

    Args:
        logs: the training log of each model, by model name.
        styles: colour and line style of each model, by name.
    """

    def lines(key: str, scale: float) -> dict[str, figures.Series]:
        curves = {name: series(log.eval, key) for name, log in logs.items()}
        return {name: (steps, [scale * value for value in values]) for name, (steps, values) in curves.items() if steps}

    cards = []
    if accuracy := lines("accuracy", 100):
        note = "Higher is better. The axis is stretched near 100 % if the curves come close to it."
        cards.append(figure("Held-out accuracy", note, figures.accuracy_curves(accuracy, styles)))
    if recall := lines("image_text_r5", 100):
        note = "Share of held-out images (or first texts) whose text is among the five most similar. Higher is better."
        cards.append(figure("Held-out text R@5", note, figures.accuracy_curves(recall, styles, "text R@5 (%)")))
    if not accuracy and (agreement := lines("agreement", 100)):
        note = "Share of test records with the teacher's most likely class. Higher is better."
        cards.append(figure("Agreement with the teacher", note, figures.accuracy_curves(agreement, styles)))
    if nll := lines("nll", 1):
        note = "Negative log-likelihood. Lower is better; a curve that rises again shows overfitting."
        cards.append(figure("Held-out NLL", note, figures.curves(nll, styles, "NLL (nats)", log_beyond=5)))
    return section("Progress", grid(*cards))


class Panel(NamedTuple):
    """The settings of one figure, which shows values of the student's training log.

    kind: prefix of the log keys of the curves, such as "weights" for the key "weights/kd"
    title, note: caption of the figure
    label: label of the vertical axis
    log_beyond: the vertical axis is logarithmic if all values are positive and `max / min` exceeds this factor
    """

    kind: str
    title: str
    note: str
    label: str
    log_beyond: float


PANELS = (
    Panel(
        "terms",
        "Loss terms",
        "Values without weights; neighbouring steps of a long log are averaged. A gap: not finite.",
        "loss (nats, or the term's unit)",
        5,
    ),
    Panel("weights", "Weights", "Each loss term is multiplied by its weight.", "weight", 20),
    Panel("temperature", "Temperature", "Logits are divided by the temperature.", "temperature", math.inf),
    Panel("gate/share", "Gate weights", "Mean weight of each teacher, by number from 0.", "weight", math.inf),
)


def panels(lines: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Return the settings of all figures of a training log: the standard ones, and one for each other group of keys.

    A group consists of the keys with a common prefix, such as "gate/entropy" and "gate/loss".

    Args:
        lines: the lines of the student's training log.
    """
    standard = {panel.kind for panel in PANELS}
    groups = dict.fromkeys(key.rpartition("/")[0] for line in lines for key in line if "/" in key)
    further = [group for group in groups if group not in standard]
    return [*PANELS, *(Panel(group, group, "Logged by the training step.", "value", 20) for group in further)]


def objective(logs: Mapping[str, Log]) -> Markup:
    """Return the page section with curves of the student's loss terms, loss weights, temperatures and learning rate.

    Args:
        logs: the training log of each model, by model name.
    """
    lines = logs["student"].train if "student" in logs else []
    names = {panel: [name for name in keys_below(lines, panel.kind) if "/" not in name] for panel in panels(lines)}
    styles = figures.term_styles(name for group in names.values() for name in group)
    cards = []
    constant: list[str] = []
    for panel in filter(names.get, names):
        values = {name: series(lines, f"{panel.kind}/{name}") for name in names[panel]}
        if all(len(set(points)) <= 1 for _, points in values.values()):
            listed = ", ".join(f"{name} {points[0]:g}" for name, (_, points) in values.items() if points)
            constant.append(f"{panel.title}: {listed}.")
            continue
        svg = figures.curves(values, styles, panel.label, panel.log_beyond)
        cards.append(figure(panel.title, panel.note, svg))
    rate = series(lines, "rate")
    if rate[0] and len(set(rate[1])) == 1:
        constant.append(f"Learning rate: {rate[1][0]:g}.")
    elif rate[0]:
        svg = figures.curves({"rate": rate}, {"rate": figures.Style("#333333", "-")}, "learning rate")
        cards.append(figure("Learning rate", "The learning rate of the student at each step.", svg))
    note = f"Constant during the training: {' '.join(constant)}" if constant else ""
    return section("The student's objective", grid(*cards) or (element("p") if constant else Markup()), note)


def calibration(results: Mapping[str, Any], styles: Mapping[str, figures.Style]) -> Markup:
    """Return the page section with a reliability diagram (accuracy against confidence) for each model.

    Args:
        results: the content of `results.json`.
        styles: colour and line style of each model, by name.
    """
    note = (
        "Accuracy of predictions by their confidence, the probability of the predicted class. On the dotted line both "
        "are equal; below it the network is overconfident. Bars show the gap, and "
        "the area of a point the number of examples behind it."
    )
    measured = sorted((results.get("reliability") or {}).items(), key=lambda item: tables.rank(item[0]))
    cards = (figure(name, "", figures.reliability(bins, styles[name])) for name, bins in measured if bins)
    return section("Reliability", grid(*cards, small=True), note)


def config(results: Mapping[str, Any]) -> Markup:
    """Return the page section with all keys of the run's config, collapsed until the reader opens it.

    Args:
        results: the content of `results.json`.
    """
    text = json.dumps(results.get("config") or {}, indent=2, ensure_ascii=False, default=str)
    details = element("details", element("summary", "All config keys with their values"), element("pre", text))
    return section("Config", details if results.get("config") else Markup())


def provenance(results: Mapping[str, Any]) -> Markup:
    """Return the page section with the code version, packages and device of a run, and the wall-clock time by model.

    Args:
        results: the content of `results.json`.
    """
    facts = {name: text for name, text in flat(results.get("provenance") or {}).items() if name != "command"}
    seconds = results.get("seconds") or {}
    times = {**seconds, "total": sum(seconds.values())} if len(seconds) > 1 else seconds
    parts = []
    if facts:
        parts.append(tables.pairs_table(facts, "Code, packages and device"))
    if times:
        texts = {stage: duration(value) for stage, value in times.items()}
        parts.append(tables.pairs_table(texts, "Wall-clock time of each model"))
    return section("Provenance and timings", grid(*parts))


def command(results: Mapping[str, Any]) -> Markup:
    """Return the page section with the command that repeats the run.

    Args:
        results: the content of `results.json`.
    """
    text = (results.get("provenance") or {}).get("command")
    note = (
        "In the folder where it was started, with another --workdir. Or from its record, anywhere, if the data have an "
        "absolute path: jaxdistill train --config RUN/config.json --workdir NEW"
    )
    return section("Repeat this run", element("pre", text, class_="command") if text else Markup(), note)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested dictionaries: `{"versions": {"jax": 1}}` becomes `{"versions.jax": "1"}`.

    Args:
        tree: the nested dictionaries.
        prefix: text before every name.
    """
    pairs: dict[str, str] = {}
    for name, value in tree.items():
        pairs |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": str(value)}
    return pairs
