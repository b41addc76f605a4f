"""Summarise a run for the terminal: a table of all models, and a sentence about the student."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from jaxdistill.evaluation.report.formats import p_value

MIN_ERRORS = 100  # with fewer teacher errors a percentage would be too precise


def _agreement_on_errors(row: Mapping[str, Any]) -> str:
    share, errors = row["agreement_on_errors"], row.get("teacher_errors", MIN_ERRORS)
    return f"{100 * share:.1f} %" if errors >= MIN_ERRORS else f"{share * errors:.0f} of {errors:.0f}"


def _count(number: float) -> str:
    return f"{number / 1e6:,.2f}M" if number >= 1e6 else f"{number / 1e3:.1f}k" if number >= 1000 else f"{number:.0f}"


def _millions(number: float, digits: int) -> str:
    """Format a number in millions with a few decimal places, or with one significant digit if it would be 0."""
    rounded = f"{number / 1e6:,.{digits}f}"
    return rounded if float(rounded.replace(",", "")) or not number else f"{number / 1e6:.1g}"


def _share(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: f"{100 * row[key]:.2f}"


COLUMNS = (
    ("image_text_r1", "text R@1", _share("image_text_r1")),
    ("image_text_r5", "R@5", _share("image_text_r5")),
    ("text_image_r1", "image R@1", _share("text_image_r1")),
    ("text_image_r5", "R@5", _share("text_image_r5")),
    ("accuracy", "acc %", lambda row: f"{100 * row['accuracy']:.2f}"),
    ("auc", "AUC", lambda row: f"{row['auc']:.4f}"),
    ("nll", "NLL", lambda row: f"{row['nll']:.3f}"),
    ("perplexity", "ppl", lambda row: f"{row['perplexity']:.2f}"),
    ("ece", "ECE %", lambda row: f"{100 * row['ece']:.2f}"),
    ("agreement", "agree %", lambda row: f"{100 * row['agreement']:.2f}"),
    ("kl", "KL", lambda row: f"{row['kl']:.3f}"),
    ("similarity", "cosine", lambda row: f"{row['similarity']:.4f}"),
    ("agreement_on_errors", "errors", _agreement_on_errors),
    ("rank_correlation", "rank", lambda row: f"{row['rank_correlation']:.3f}"),
    ("parameters", "params", lambda row: _count(row["parameters"])),
    ("zeros", "zero %", lambda row: f"{100 * row['zeros']:.1f}"),
    ("bytes", "MB", lambda row: _millions(row["bytes"], 2)),
    ("flops", "MFLOP", lambda row: _millions(row["flops"], 1)),
    ("latency_ms", "ms", lambda row: f"{row['latency_ms']:.2f}"),
)
MEANINGS = {
    "image_text_r1": "text R@k: images (or first texts) whose text is among the k most similar, in %",
    "text_image_r1": "image R@k: texts with an own image (or first text) among them",
    "agreement": "agree: same answer as the teacher",
    "kl": "KL: divergence from the teacher in nats",
    "similarity": "cosine: similarity of the embeddings to the teacher's",
    "agreement_on_errors": "errors: teacher errors that the model repeats",
    "rank_correlation": "rank: rank correlation with the teacher over the wrong classes",
    "zeros": "zero: weights of matrices that are 0, which save no bytes and no time here",
    "flops": "MFLOP and ms: forward pass of one example",
}  # what the caption says of a column

WITHOUT_LABELS = ("agreement", "kl")  # columns that stand in for the accuracy if the test records have no labels


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, Any]]:
    """Return the columns of a result table for which some row has a value: `(key, title, function that formats a row)`.

    If a row has an accuracy, the columns `agreement` and `kl` are left out.
    """
    labelled = any(row.get("accuracy") is not None for row in rows)
    shown = [column for column in COLUMNS if any(row.get(column[0]) is not None for row in rows)]
    return [column for column in shown if not (labelled and column[0] in WITHOUT_LABELS)]


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Make a table of the quality and the cost of every model, for a terminal with 80 columns.

    A missing value is shown as a dash.

    Args:
        rows: one dictionary of results for each model, such as `{"name": "student", "accuracy": 0.9}`.
    """
    shown = columns_of(rows)
    result = Table(
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        collapse_padding=True,
        caption=f"On held-out data. {'; '.join(MEANINGS[key] for key, _, _ in shown if key in MEANINGS)}.",
        caption_justify="left",
    )
    result.add_column("model", overflow="fold")  # folds long names to fit 80 columns
    for _, heading, _ in shown:
        result.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        cells = ["-" if row.get(key) is None else write(row) for key, _, write in shown]
        result.add_row(row["name"], *cells)
    return result


FLOATS = "student in floats"  # the row of the control that is trained in floats, of a student trained for few bits
ROUNDED = "student rounded afterwards"  # the row of that model after post-training quantisation


def sentence(
    rows: Sequence[Mapping[str, Any]], pair: Mapping[str, Any] | None = None, constant: tuple[str, float] | None = None
) -> str:
    """Return a summary that compares the student's accuracy with that of the control and of the best teacher.

    The control is the same student trained without a teacher. Without labels, the summary tells how well the student
    matches its teacher. It also names models that are no better than always predicting the most frequent class.

    Args:
        rows: one dictionary of results for each model, such as `{"name": "student", "accuracy": 0.9}`.
        pair: comparison of student and control on the test records, the fields of `PairedRecords`; None if not known.
        constant: the most frequent class of the test records, and its share; None if not known.
    """
    by_name = {row["name"]: row for row in rows}
    student, control = by_name["student"], by_name.get("control")
    teachers = [row for row in rows if row["name"].startswith("teacher ")]
    if student.get("image_text_r5") is not None:
        return _retrieval(by_name, teachers)
    if "accuracy" not in student:
        return _match(student)
    text = f"The student reaches {100 * student['accuracy']:.2f} %"
    if control:
        points = 100 * (student["accuracy"] - control["accuracy"])
        side = "above" if points >= 0 else "below"
        text += f", {abs(points):.2f} points {side} the same network trained on labels alone{_significance(pair)}"
    if measured := [row for row in teachers if "accuracy" in row]:
        best = max(measured, key=lambda row: row["accuracy"])
        share = student["parameters"] / best["parameters"]
        text += f"; its best teacher reaches {100 * best['accuracy']:.2f} %"
        text += f" and the student has {100 * share:.1f} % of its parameters"
    text += _rounded(by_name)
    named = {"the student": student, **{row["name"]: row for row in teachers}}
    useless = [name for name, row in named.items() if _is_useless(row, constant)]
    if constant and useless:
        reaches = f"always answering {constant[0]!r} reaches {100 * constant[1]:.2f} %"
        text += f". Nothing useful was learned by {' and '.join(useless)}: {reaches}"
    return text + "."


def _rounded(by_name: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the part of the summary about quantisation-aware training of the student; empty if there was none.

    It states the accuracy of the same student trained in floats, and of that model after post-training quantisation.
    """
    floats, afterwards = by_name.get(FLOATS), by_name.get(ROUNDED)
    if not floats or not afterwards or "accuracy" not in floats:
        return ""
    accuracies = (
        f"{100 * floats['accuracy']:.2f} %, and {100 * afterwards['accuracy']:.2f} % when it is rounded afterwards"
    )
    return f". It was trained for few bits; trained in floats instead, it reaches {accuracies}"


def _is_useless(row: Mapping[str, Any], constant: tuple[str, float] | None) -> bool:
    return constant is not None and row.get("accuracy", 1.0) <= constant[1]


def _significance(pair: Mapping[str, Any] | None) -> str:
    """Return the part of the summary that says whether student and control differ significantly (McNemar's test)."""
    if not pair:
        return ""
    verdict = "more than chance" if pair["p"] < 0.05 else "no more than chance may give"
    records = f"on these {pair['records']:,} test records, of one seed"
    interval = f"95 % interval {pair['low']:.2f} to {pair['high']:.2f}"
    return f" ({verdict} {records}: {interval}, McNemar's test, p {p_value(pair['p'])})"


def _retrieval(by_name: Mapping[str, Mapping[str, Any]], teachers: Sequence[Mapping[str, Any]]) -> str:
    """Return the summary of a retrieval student, which finds the text of an image, or of another text."""
    student, key = by_name["student"], "image_text_r5"
    first = "gallery_first_texts" if "gallery_first_texts" in student else "gallery_images"
    sides, wanted = ("first texts", "second text") if first == "gallery_first_texts" else ("images", "text")
    text = (
        f"Of the {student[first]:,.0f} test {sides}, the student finds the {wanted} of "
        f"{100 * student[key]:.2f} % among the five most similar of {student['gallery_texts']:,.0f} different texts "
        f"(chance {100 * student[f'chance_{key}']:.2f} %)"
    )
    if (control := by_name.get("control")) and control.get(key) is not None:
        text += f"; the same network trained on the pairs alone reaches {100 * control[key]:.2f} %"
    if measured := [row[key] for row in teachers if row.get(key) is not None]:
        text += f", and its best teacher {100 * max(measured):.2f} %"
    return text + "."


def _match(student: Mapping[str, Any]) -> str:
    """Return the summary of a student whose test records have no labels: how well it matches its teacher."""
    if student.get("agreement") is not None:
        shares = f"gives the teacher's answer on {100 * student['agreement']:.2f} % of the test records"
        return f"The student {shares}, with a KL divergence of {student['kl']:.3f} nats from the teacher."
    if student.get("similarity") is not None:
        return (
            f"The student's embeddings have a mean cosine similarity of {student['similarity']:.4f} with the teacher's."
        )
    return "The test records have no labels, and the student cannot be compared with a teacher."
