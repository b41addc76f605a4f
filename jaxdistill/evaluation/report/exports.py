"""Format the measurements of exported files and of their models, for the terminal and for the page of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxdistill.evaluation.report.formats import digits

HEADING = ("model", "file", "runtime", "acc %", "AUC", "same %", "KL", "difference", "MB", "ms", "10-90 %", "MiB")
MEANINGS = {
    "AUC": "AUC: area under the ROC curve",
    "same %": "same: answers that are those of the model",
    "KL": "KL: mean divergence of the next token's distribution from the model's, in nats",
    "difference": "difference: the greatest one, as a share of the greatest output",
    "ms": "ms: one example",
    "MiB": "MiB: greatest memory of the process, with the runtime",
}  # of columns


def table(entries: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Format the measurements of exported files, and of the models themselves, as a table of text.

    The first row is the heading. Columns for which no file has a number are left out.

    Args:
        entries: contents of `export.json`, with the model's name as `model` and the folder's as `name`.
    """
    rows = [[entry["model"], _name(entry), entry["runtime"], *_numbers(entry["measured"])] for entry in entries]
    filled = [column for column in range(len(HEADING)) if any(row[column] != "-" for row in rows) or column < 3]
    return [[row[column] for column in filled] for row in (HEADING, *rows)]


def _name(entry: Mapping[str, Any]) -> str:
    return f"{entry['name']} (set aside)" if entry.get("problem") else entry["name"]


def _numbers(measured: Mapping[str, Any]) -> list[str]:
    if not measured:  # the process that ran the file has failed
        return ["-"] * (len(HEADING) - 3)
    share = lambda key: "-" if measured[key] is None else f"{100 * measured[key]:.2f}"
    divergence, latency, auc = measured.get("divergence"), measured["latency_ms"], measured.get("auc")
    return [
        share("accuracy"),
        "-" if auc is None else f"{auc:.4f}",
        share("same"),
        "-" if divergence is None else f"{divergence:.1e}",
        f"{measured['largest']:.1e}",
        f"{measured['bytes'] / 1e6:.2f}",
        digits(latency["median"]),
        f"{digits(latency['low'])}-{digits(latency['high'])}",
        f"{measured['memory'] / 2**20:.0f}",
    ]


def devices(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the reports of device compilers on exported files, one paragraph per file that was compiled for a device.

    The first line has the numbers; each further line is a reason why operations do not run on the device.
    """
    return [_on_device(entry) for entry in entries if entry.get("device")]


def _on_device(entry: Mapping[str, Any]) -> str:
    device = entry["device"]
    if "error" in device:
        return f"{entry['model']}, {entry['name']} on {device['name']}: {device['error']}"
    share = f"{device['on_device']} of {device['operations']} operations"
    percent = f" ({100 * device['on_device'] / max(device['operations'], 1):.1f} %)"
    time = device.get("milliseconds")
    numbers = "" if time is None else f", estimated time {digits(time)} ms"
    numbers += "".join(f", {name} {number}" for name, number in device["numbers"].items())
    lines = [f"{entry['model']}, {entry['name']} on {device['name']}: {share}{percent}{numbers}"]
    return "\n".join([*lines, *(f"  not on the device: {problem}" for problem in device["refused"])])


def circumstances(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return a note on how exported files were measured: test records, processor, threads, and meanings of columns."""
    measured = {(entry["records"], entry["processor"], entry["threads"]) for entry in entries if entry.get("records")}
    texts = [
        f"{records:,} test records, {processor}, {'one thread' if threads == 1 else f'{threads} threads'}"
        for records, processor, threads in sorted(measured)
    ]
    meanings = [MEANINGS[column] for column in table(entries)[0] if column in MEANINGS]
    if any(entry.get("few_bits") for entry in entries):
        meanings.append("-: the model itself, its inputs in floats; the run has evaluated it with rounded inputs")
    return f"{'; '.join(texts)}. {'; '.join(meanings)}."
