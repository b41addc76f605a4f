"""Tests of the report: one file that parses, loads nothing, escapes all text and shows every number it was given."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from jaxdistill.evaluation.report import formats, logs, markup, table, tables
from jaxdistill.evaluation.report import page as pages
from jaxdistill.evaluation.report.page import write_page

VOID = {"meta", "br", "img", "link", "input", "hr"}
ROWS = [
    {
        "name": "student",
        "accuracy": 0.9281,
        "nll": 0.2423,
        "ece": 0.0123,
        "parameters": 272474,
        "bytes": 1089896,
        "flops": 40.8e6,
        "latency_ms": 0.412,
        "agreement": 0.9312,
        "kl": 0.1034,
        "agreement_on_errors": 0.512,
        "rank_correlation": 0.713,
        "cka": {"1-3": 0.91, "2-6": 0.8765},
    },
    {
        "name": "control",
        "accuracy": 0.9134,
        "nll": 0.3181,
        "ece": 0.0412,
        "parameters": 272474,
        "bytes": 1089896,
        "flops": None,
        "latency_ms": 0.52,
        "agreement": 0.9161,
        "kl": 0.2631,
    },
    {
        "name": "teacher big",
        "accuracy": 0.9513,
        "nll": 0.1712,
        "ece": 0.021,
        "parameters": 36_500_000,
        "bytes": 146_000_000,
        "flops": 5.2e9,
        "latency_ms": None,
    },
]
BINS = {"confidence": [None, 0.7, 0.9], "accuracy": [None, 0.6, 0.95], "count": [0, 10, 30]}
RESULTS = {
    "title": "Ten digits",
    "summary": "The student beats its control by 1.47 points.",
    "rows": ROWS,
    "reliability": {row["name"]: BINS for row in ROWS},
    "config": {"objective": {"kd": {"weight": "cosine(start=0.9, end=0.1)"}}},
    "provenance": {
        "git": "4f2c1e9",
        "versions": {"jax": "0.11.2"},
        "device": "1 x TPU v5e",
        "seed": 17,
        "date": "2025-11-23",
        "command": "python -m jaxdistill.main --config=configs/digits.py",
    },
    "seconds": {"student": 185.0, "evaluate": 4.21},
}
HEADINGS = [
    "Result",
    "What was transferred",
    "Progress",
    "The student's objective",
    "Reliability",
    "Config",
    "Provenance and timings",
    "Repeat this run",
]
EVIL = "</title></style></svg>--><script>alert('1')</script><img src=http://x.test onerror=\"z\">$\\frac{ & ]]>\ud800"


class Page(HTMLParser):
    """Parse a page: require that its tags nest, and collect tags, attributes, texts, and the texts within some tags."""

    def __init__(self, source: str):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.within = {name: [] for name in ("title", "h2", "strong", "pre")}
        self.feed(source)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data.strip())
        for tag in set(self.within) & set(self.open):
            self.within[tag].append(data)


def write_log(folder: Path, term: str = "kd") -> None:
    """Write a log with warm-up, schedules, a NaN and a few evaluations."""
    folder.mkdir(parents=True)
    lines = []
    for step in range(0, 100, 10):
        loss = math.nan if step == 50 else 2.0 / (1 + step)
        terms = {
            f"terms/{term}": loss,
            f"weights/{term}": 0.9 / (1 + step),
            f"temperature/{term}": 4.0 + step,
            "terms/ce": 3 * loss,
        }
        lines.append({"step": step, "kind": "train", "loss": loss, "rate": 0.01 * step, **terms})
        lines.append({"step": step, "kind": "eval", "accuracy": 0.1 + step / 120, "nll": 2.3 / (1 + step)})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_run(workdir: Path, results: dict = RESULTS, runs=("teachers/big", "student", "control"), term="kd") -> Path:
    """Write results and logs into a workdir as a run leaves them, and return the workdir."""
    workdir.mkdir(exist_ok=True)
    for run in runs:
        write_log(workdir / run, term)
    (workdir / "results.json").write_text(json.dumps(results))
    return workdir


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    path = write_page(write_run(tmp_path_factory.mktemp("run")))
    assert path.name == "report.html"
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source) -> Page:
    return Page(source)


def assert_loads_nothing(source: str, page: Page) -> None:
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    targets = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "srcset", "action")]
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in targets), targets
    assert not re.search(r"@import|url\((?!#)", source)


def test_page_is_whole_and_in_order(page):
    assert page.within["title"] == ["Ten digits"]
    assert page.within["h2"] == HEADINGS
    assert page.texts.index("The student beats its control by 1.47 points.") < page.texts.index("Result")


def test_page_loads_nothing(source, page):
    assert_loads_nothing(source, page)


def test_page_has_every_figure(page):
    assert page.tags.count("svg") == 2 + 4 + len(ROWS)
    labels = {"accuracy (%)", "NLL (nats)", "optimiser step", "weight", "temperature", "learning rate", "confidence"}
    assert labels <= set(page.texts)


def test_every_name_and_number_appears(page):
    expected = """teacher big|student|control|92.81|91.34|95.13|0.2423|0.3181|0.1712|1.23|4.12|2.10|272 k|36.5 M
        |1.09 MB|146 MB|40.8 M|5.20 G|0.412|0.520|93.12|91.61|0.1034|0.2631|51.20|0.7130|CKA 1-3|0.9100|CKA 2-6
        |0.8765|–|4f2c1e9|versions.jax|0.11.2|1 x TPU v5e|17|2025-11-23|3 min 05 s|4.2 s|3 min 09 s|kd|ce"""
    missing = {text.strip() for text in expected.split("|")} - set(page.texts)
    assert not missing
    assert page.within["pre"][-1] == RESULTS["provenance"]["command"]
    assert json.loads(page.within["pre"][0]) == RESULTS["config"]


def test_the_better_of_student_and_control_is_set_off(page):
    # Not highlighted: the teacher, though it is better; parameters, which are equal; FLOPs, which the control lacks.
    assert page.within["strong"] == ["92.81", "0.2423", "1.23", "0.412"]


def test_rows_come_teacher_first(page):
    names = [text for text in page.texts if text in {row["name"] for row in ROWS}]
    assert names[:3] == ["teacher big", "student", "control"]


def test_hostile_text_is_escaped(tmp_path):
    row = {**ROWS[0], "name": EVIL, "cka": {EVIL: 0.5}}
    results = {
        "title": EVIL,
        "summary": EVIL,
        "rows": [row],
        "reliability": {EVIL: BINS},
        "config": {EVIL: EVIL},
        "provenance": {EVIL: {EVIL: EVIL}, "command": EVIL},
        "seconds": {EVIL: 1.0, "$x$": 2.0},
    }
    write_run(tmp_path, results, ("student", "teachers/<b>$x^$"), term=EVIL.replace("/", "|"))
    source = write_page(tmp_path).read_text(encoding="utf-8")
    page = Page(source)
    assert_loads_nothing(source, page)
    assert "img" not in page.tags
    assert page.within["title"][0].startswith("</title></style></svg>--><script>")
    assert {"teacher <b>$x^$", "$x$"} <= set(page.texts)


@pytest.mark.parametrize(
    "runs", [("student", "control"), ("teachers/big", "student"), ("student",), ("teachers/big",), ()]
)
def test_a_run_may_lack_teacher_control_or_logs(tmp_path, runs):
    names = {run.replace("teachers/", "teacher ") for run in runs}
    rows = [row for row in ROWS if row["name"] in names]
    reliability = {row["name"]: BINS for row in rows}
    page = Page(
        write_page(write_run(tmp_path, {"title": "x", "rows": rows, "reliability": reliability}, runs)).read_text()
    )
    shown = {row["name"] for row in ROWS} & set(page.texts)
    assert shown == names
    assert ("Progress" in page.within["h2"]) == bool(runs)
    assert ("The student's objective" in page.within["h2"]) == ("student" in runs)


def test_without_results_the_page_shows_the_curves(tmp_path):
    write_log(tmp_path / "student")
    page = Page(write_page(tmp_path).read_text())
    assert page.within["title"] == [tmp_path.name]
    assert page.within["h2"] == ["Progress", "The student's objective"]


def test_values_that_are_not_finite_are_shown(tmp_path):
    row = {"name": "student", "accuracy": math.nan, "nll": math.inf}
    page = Page(write_page(write_run(tmp_path, {"rows": [row, ROWS[1]]}, ())).read_text())
    assert {"nan", "inf", "91.34"} <= set(page.texts)
    assert page.within["strong"] == []


def test_the_same_run_writes_the_same_page(tmp_path, source):
    assert write_page(write_run(tmp_path)).read_text(encoding="utf-8") == source


def test_text_is_escaped_unless_it_is_markup():
    inner = markup.element("b", "1 < 2")
    assert markup.element("p", inner, " & ", class_='"') == '<p class="&quot;"><b>1 &lt; 2</b> &amp; </p>'
    assert markup.element("p", f"{inner}") == "<p>&lt;b&gt;1 &amp;lt; 2&lt;/b&gt;</p>"


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (formats.count, 10, "10"),
        (formats.count, 999, "999"),
        (formats.count, 1000, "1.00 k"),
        (formats.count, 999_999, "1.00 M"),
        (formats.count, 12_345_678, "12.3 M"),
        (formats.count, 1.2e18, "1200 P"),
        (formats.file_size, 1_089_896, "1.09 MB"),
        (formats.size, 0, "0 B"),
        (formats.size, 1024, "1.00 KiB"),
        (formats.size, 3 * 2**30, "3.00 GiB"),
        (formats.digits, 0, "0.00"),
        (formats.digits, 1234.4, "1234"),
        (formats.digits, 0.04567, "0.0457"),
        (formats.percent, 1, "100.00"),
        (formats.duration, 59.96, "1 min 00 s"),
        (formats.duration, 7620, "2 h 07 min"),
    ],
)
def test_formats(form, value, text):
    assert form(value) == text


def test_a_tie_that_nobody_can_see_is_no_win():
    accuracy = next(column for column in tables.QUALITY if column.key == "accuracy")
    rows = [{"name": "student", "accuracy": 0.91341}, {"name": "control", "accuracy": 0.91342}]
    assert tables.best_text(rows, accuracy) is None
    assert tables.best_text([*rows, {"name": "student int8", "accuracy": 0.9}], accuracy) == "91.34"
    assert tables.best_text(rows[:1], accuracy) is None


def test_the_time_of_one_network_is_no_contest():
    latency = next(column for column in tables.QUALITY if column.key == "latency_ms")
    rows = [{"name": name, "latency_ms": ms, "flops": 10} for name, ms in (("student", 2.0), ("control", 1.0))]
    assert tables.best_text(rows, latency) is None
    assert tables.best_text([rows[0], {**rows[1], "flops": 5}], latency) == tables.cell_text(rows[1], latency)


def test_what_a_step_watches_is_drawn():
    """Check that the page plots the loss terms, a gate's weights of teachers, and other groups of logged numbers."""
    lines = [
        {
            "step": step,
            "kind": "train",
            "terms/kd": 1.0 / step,
            "gate/share/0": 0.01 * step,
            "gate/share/1": 1 - 0.01 * step,
            "gate/loss": 0.1 * step,
            "weights/kd": 0.5,
            "rate": 0.001,
        }
        for step in (10, 20)
    ]
    page_of = pages.objective({"student": logs.Log(lines, [])})
    for title in ("Loss terms", "Gate weights", "gate"):
        assert f"<b>{title}</b>" in page_of
    assert page_of.count("<figure>") == 3
    # Values that stay constant are written in a sentence, and get no figure.
    assert "Constant during the training: Weights: kd 0.5. Learning rate: 0.001." in page_of


@pytest.mark.parametrize(("errors", "said"), [(19, "3 of 19"), (2000, "15.8 %")])
def test_the_terminal_gives_no_percentage_of_a_few_errors(errors, said):
    row = {"name": "student", "agreement_on_errors": 3 / 19, "teacher_errors": errors}
    assert list(table.table([row]).columns[1].cells) == [said]
