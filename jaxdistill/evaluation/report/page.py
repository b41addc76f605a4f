"""The page of a run: one file without scripts or links to anything, in the order in which a reader asks.

Who won, what was transferred, how training went, and how to repeat it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxdistill.evaluation.report import figures, tables
from jaxdistill.evaluation.report.formats import duration
from jaxdistill.evaluation.report.logs import Log, keys_below, read_logs, read_results, series
from jaxdistill.evaluation.report.markup import Markup, element, join
from jaxdistill.evaluation.report.template import CSS, PAGE


def write_page(workdir: Path) -> Path:
    """Writes `workdir/report.html` from `workdir/results.json` and the logs beside it.

    Args:
        workdir: the folder of a run. Whatever it lacks (a teacher, a control, the results themselves) is left out of
            the page.

    Returns:
        The path of the page.
    """
    workdir = Path(workdir)
    path = workdir / "report.html"
    # A lone surrogate in a name cannot be written as UTF-8, and is no reason to lose the page.
    path.write_text(render(read_results(workdir), read_logs(workdir)), encoding="utf-8", errors="replace")
    return path


def render(results: Mapping[str, Any], logs: Mapping[str, Log]) -> str:
    """The page as text."""
    names = [row["name"] for row in results.get("rows") or ()]
    styles = figures.network_styles([*logs, *names, *(results.get("reliability") or ())])
    title = results.get("title") or "A run of jaxdistill"
    body = (
        element("h1", title),
        element("p", results.get("summary") or "", class_="summary"),
        quality(results, styles),
        transfer(results),
        progress(logs, styles),
        objective(logs),
        calibration(results, styles),
        config(results),
        provenance(results),
        command(results),
    )
    return PAGE.format(title=element("title", title), css=CSS, body=join(body))


def section(title: str, content: Markup, note: str = "") -> Markup:
    """A heading, a line on how to read it, and the content; nothing without content."""
    remark = element("p", note, class_="note") if note else Markup()
    return element("section", element("h2", title), remark, content) if content else Markup()


def quality(results: Mapping[str, Any], styles: Mapping[str, figures.Style]) -> Markup:
    """How good each network is, and what it costs."""

    def swatch(name: str) -> Markup:
        return element("span", class_="swatch", style=f"background: {styles[name].color}")

    rows = results.get("rows") or []
    return section("Result", tables.quality_table(rows, swatch) if rows else Markup())


def transfer(results: Mapping[str, Any]) -> Markup:
    """What the student took over from the teacher, which accuracy does not say."""
    note = (
        "Agreement and CKA do not tell a distilled student from one trained on labels; agreement on the teacher's "
        "errors and the rank correlation of the other classes do. Compare with the control, not with 100 %."
    )
    return section("What was transferred", tables.transfer_table(results.get("rows") or []), note)


def figure(title: str, note: str, svg: Markup) -> Markup:
    """A card with its caption above, where it is read first."""
    return element("figure", element("figcaption", element("b", title), f" {note}"), svg)


def grid(*cards: Markup, small: bool = False) -> Markup:
    """Cards side by side where there is room; nothing without cards."""
    return element("div", *cards, class_="grid small" if small else "grid") if cards else Markup()


def progress(logs: Mapping[str, Log], styles: Mapping[str, figures.Style]) -> Markup:
    """Held-out accuracy and likelihood of all networks on common axes."""

    def lines(key: str, scale: float) -> dict[str, figures.Series]:
        found = {name: series(log.eval, key) for name, log in logs.items()}
        return {name: (steps, [scale * value for value in values]) for name, (steps, values) in found.items() if steps}

    cards = []
    if accuracy := lines("accuracy", 100):
        note = "Higher is better. The axis is stretched where curves come near 100 %."
        cards.append(figure("Held-out accuracy", note, figures.accuracy_curves(accuracy, styles)))
    if nll := lines("nll", 1):
        note = "Lower is better; it turns up where a network overfits."
        cards.append(figure("Held-out NLL", note, figures.curves(nll, styles, "NLL (nats)", log_beyond=5)))
    return section("Progress", grid(*cards))


class Panel(NamedTuple):
    """A figure of the student's training log: which keys, and what the reader is told."""

    kind: str
    title: str
    note: str
    label: str
    log_beyond: float


PANELS = (
    Panel("terms", "Loss terms", "Unweighted; long logs averaged. A gap: not finite.", "loss (nats, or own unit)", 5),
    Panel("weights", "Weights", "What each term is multiplied by.", "weight", 20),
    Panel("temperature", "Temperature", "What logits are divided by.", "temperature", math.inf),
    Panel("gate/share", "Whom the gate hears", "Mean weight of each teacher, or path, by number.", "weight", math.inf),
)


def panels(lines: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Those of every run, and one for each further group that a step watches, such as gate/entropy and gate/loss."""
    known = {panel.kind for panel in PANELS}
    groups = dict.fromkeys(key.rpartition("/")[0] for line in lines for key in line if "/" in key)
    watched = [group for group in groups if group not in known]
    return [*PANELS, *(Panel(group, group, "As the step watches it.", "value", 20) for group in watched)]


def objective(logs: Mapping[str, Log]) -> Markup:
    """The terms of the student's objective, and the schedules that steer them."""
    lines = logs["student"].train if "student" in logs else []
    names = {panel: [name for name in keys_below(lines, panel.kind) if "/" not in name] for panel in panels(lines)}
    styles = figures.term_styles(name for found in names.values() for name in found)
    cards = []
    for panel in filter(names.get, names):
        found = {name: series(lines, f"{panel.kind}/{name}") for name in names[panel]}
        svg = figures.curves(found, styles, panel.label, panel.log_beyond)
        cards.append(figure(panel.title, panel.note, svg))
    rate = series(lines, "rate")
    if rate[0]:
        svg = figures.curves({"rate": rate}, {"rate": figures.Style("#333333", "-")}, "learning rate")
        cards.append(figure("Learning rate", "As the optimiser saw it.", svg))
    return section("The student's objective", grid(*cards))


def calibration(results: Mapping[str, Any], styles: Mapping[str, figures.Style]) -> Markup:
    """A reliability diagram for each network."""
    note = "On the dotted line confidence is deserved; below it a network is too sure. Bars show the gap."
    measured = sorted((results.get("reliability") or {}).items(), key=lambda item: tables.rank(item[0]))
    cards = (figure(name, "", figures.reliability(bins, styles[name])) for name, bins in measured)
    return section("Reliability", grid(*cards, small=True), note)


def config(results: Mapping[str, Any]) -> Markup:
    """Every key with its resolved value, folded away."""
    text = json.dumps(results.get("config") or {}, indent=2, ensure_ascii=False, default=str)
    details = element("details", element("summary", "All keys, as resolved"), element("pre", text))
    return section("Config", details if results.get("config") else Markup())


def provenance(results: Mapping[str, Any]) -> Markup:
    """Where the numbers come from, and how long they took."""
    facts = {name: text for name, text in flat(results.get("provenance") or {}).items() if name != "command"}
    seconds = results.get("seconds") or {}
    times = {**seconds, "total": sum(seconds.values())} if len(seconds) > 1 else seconds
    parts = []
    if facts:
        parts.append(tables.pairs_table(facts, "Where the numbers come from"))
    if times:
        texts = {stage: duration(value) for stage, value in times.items()}
        parts.append(tables.pairs_table(texts, "Wall-clock time of each stage"))
    return section("Provenance and timings", grid(*parts))


def command(results: Mapping[str, Any]) -> Markup:
    """The line that repeats the run."""
    text = (results.get("provenance") or {}).get("command")
    return section("Repeat this run", element("pre", text, class_="command") if text else Markup())


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested keys as `versions.jax`, values as text."""
    pairs: dict[str, str] = {}
    for name, value in tree.items():
        pairs |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": str(value)}
    return pairs
