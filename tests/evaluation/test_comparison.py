"""Tests of comparisons: two models on the same test records, their latencies, runs side by side, and the pages."""

import base64
import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import runs
from PIL import Image
from scipy import stats

from jaxdistill import main
from jaxdistill.core import seal
from jaxdistill.core.registry import datasets
from jaxdistill.data.pipeline import Pipeline, Stream
from jaxdistill.data.splits import SplitError, choose_held_out, select_rows
from jaxdistill.evaluation.comparison import paired_records
from jaxdistill.evaluation.latency import ROUNDS, latencies, timer
from jaxdistill.evaluation.report import page, table
from jaxdistill.evaluation.report.formats import p_value
from jaxdistill.run.catalogue import listing, names
from jaxdistill.run.outcomes import comparison, constant_answer, details


def answers_of(predicted, labels) -> dict:
    return {"answers": {"predicted": list(predicted), "confidence": [0.5] * len(labels), "label": list(labels)}}


def test_mcnemars_test_and_the_interval_have_literal_values():
    """Check table 10.1 of Agresti, Categorical Data Analysis, 2002, with 150 and 86 discordant pairs of 1,600."""
    one = np.array([True] * 150 + [False] * 86 + [True] * 794 + [False] * 570)
    other = np.array([False] * 150 + [True] * 86 + [True] * 794 + [False] * 570)
    found = paired_records(one, other)
    assert (found.records, found.only_one, found.only_other) == (1600, 150, 86)
    assert found.difference == pytest.approx(4.0)
    assert found.p == pytest.approx(stats.binomtest(86, 236).pvalue) and 2e-5 < found.p < 5e-5
    assert (found.low, found.high) == (
        pytest.approx(2.1, abs=0.05),
        pytest.approx(5.9, abs=0.05),
    )  # the book: 0.02, 0.06
    back = paired_records(other, one)
    assert (back.difference, back.low, back.high) == pytest.approx((-found.difference, -found.high, -found.low))


def test_the_interval_of_few_records_is_that_of_the_paper():
    """Check 8 and 2 discordant pairs of 20 by hand: (8.5 - 2.5) / 22 plus or minus 1.96 sqrt(11 - 36 / 22) / 22."""
    found = paired_records([True] * 8 + [False] * 2 + [True] * 10, [False] * 8 + [True] * 2 + [True] * 10)
    assert (found.low, found.high) == (pytest.approx(0.0114, abs=1e-3), pytest.approx(54.534, abs=1e-3))


def test_equal_models_differ_by_chance_alone():
    right = np.arange(50) % 3 == 0
    found = paired_records(right, right)
    assert (found.difference, found.p) == (0.0, 1.0) and found.low < 0 < found.high


@pytest.mark.parametrize(("p", "said"), [(0.001, "more than chance"), (0.3, "no more than chance may give")])
def test_the_summary_says_whether_a_gain_is_more_than_chance(p, said):
    rows = [{"name": name, "accuracy": a, "parameters": 5} for name, a in (("student", 0.9), ("control", 0.8))]
    pair = {"p": p, "low": 1.0, "high": 2.0, "records": 1000}
    expected = f"({said} on these 1,000 test records, of one seed: 95 % interval 1.00 to 2.00, McNemar's test, p "
    assert expected in table.sentence(rows, pair)


def pictures(split: str) -> list[dict]:
    """Return six pictures of one shade each, with labels 0 and 1."""
    return [{"image": np.full((4, 4, 1), 40 * n, np.uint8), "label": int(n > 1)} for n in range(6)]


def test_confusion_and_examples_are_those_of_the_predictions(tmp_path):
    labels = [0, 0, 1, 1, 1, 1]
    outcomes = {"student": answers_of([0, 1, 1, 1, 0, 1], labels), "control": answers_of([0, 0, 1, 0, 0, 0], labels)}
    test = Stream("test", "data", "test", 4, (), ())
    with runs.registries_as_found():
        datasets.register(pictures)
        found = details(Pipeline("pictures", tmp_path, "", 0, {}, test), outcomes)
    assert found["confusion"]["student"] == [[1, 1], [1, 3]]
    assert found["confusion"]["control"] == [[2, 0], [3, 1]]
    assert [(each["record"], each["label"]) for each in found["examples"]] == [(3, 1), (5, 1), (1, 0)]
    assert found["examples"][0]["predicted"] == {"student": 1, "control": 0}
    assert (found["paired"]["only_one"], found["paired"]["only_other"]) == (2, 1)
    assert comparison({"student": outcomes["student"]}) is None
    assert constant_answer(outcomes, ["cat", "dog"]) == ("dog", 4 / 6) and constant_answer({}, []) is None
    html = page.render({**found, "rows": [], "class_names": ["cat", "dog"]}, {})
    assert "<b>dog </b>(record 3)" in html and "✓ student: dog" in html and "✗ control: cat" in html
    assert html.count("data:image/png;base64,") == 3
    shades = [Image.open(io.BytesIO(base64.b64decode(each["image"]))).getpixel((0, 0)) for each in found["examples"]]
    assert shades == [120, 200, 40]


def test_a_confusion_matrix_has_at_most_forty_classes(tmp_path):
    empty = Pipeline("pictures", tmp_path, "", 0, {}, Stream("test", "data", "test", 4, (), ()))
    for classes in (3, 40, 41):
        numbers = list(range(classes))
        found = details(empty, {"student": answers_of(numbers, [*numbers[1:], 0])})["confusion"]
        assert len(found.get("student", ())) == (classes if classes <= 40 else 0)
    matrix = details(empty, {"student": answers_of([0, 2], [1, 2])})["confusion"]["student"]
    assert details(empty, {"student": answers_of([3], [0])})["confusion"]["student"][0] == [0, 0, 0, 1]
    assert matrix == [[0, 0, 0], [1, 0, 0], [0, 0, 1]]  # a row for each class, a column for each prediction


def test_a_student_that_knows_nothing_is_called_so():
    rows = [{"name": "student", "accuracy": 0.6, "parameters": 10}]
    assert "always answering 'dog' reaches 60.00 %" in table.sentence(rows, None, ("dog", 0.6))
    assert "always" not in table.sentence(rows, None, ("dog", 0.59))
    teacher = {"name": "teacher big", "accuracy": 0.5, "parameters": 10}
    assert "learned by teacher big: always" in table.sentence([teacher, *rows], None, ("dog", 0.55))


def test_the_page_tells_what_was_read():
    data = [
        {"stream": "train", "split": "train", "records": 1200, "labels": True, "truncated": 869},
        {"stream": "test", "split": "test", "records": 300, "labels": False, "truncated": 0},
    ]
    html = page.render({"data": data, "unused_splits": {"unlabelled": 13}, "rows": []}, {})
    assert "<td>1,200</td><td>yes</td><td>869</td>" in html and "Nothing reads the 13 records" in html
    reason = {"left_out": {"control": "it learns from labels alone"}, "rows": [{"name": "student", "parameters": 3}]}
    html = page.render(reason, {})
    assert "There is no control: it learns from labels alone." in html and "Highlighted" not in html


def test_small_models_have_a_size():
    rows = [{"name": "student", "parameters": 259, "bytes": 1036, "flops": 512}]
    texts = [form(rows[0]) for key, _, form in table.columns_of(rows)]
    assert texts == ["259", "0.001", "0.0005"]


def test_turns_are_taken_by_all():
    calls: list[str] = []
    found = latencies({name: timer(lambda name=name: calls.append(name)) for name in "ab"})
    assert found.keys() == {"a", "b"} and all(0 <= each.low <= each.median <= each.high for each in found.values())
    swaps = sum(one != other for one, other in itertools.pairwise(calls))
    assert swaps >= 2 * ROUNDS - 1


def test_a_latency_has_its_median_and_the_tenth_and_ninetieth_percentile():
    seconds = iter([0.02] * 4 + [0.001 * n for n in range(1, ROUNDS + 1)])  # 0.02 s a call: one call a turn
    found = latencies({"a": lambda calls: calls * next(seconds)})["a"]
    assert found == pytest.approx((25.5, 5.9, 45.1))


def test_held_out_records_of_classes_add_up():
    classes = np.repeat([0, 1, 2], [10, 14, 11])  # a fifth: 2.0, 2.8 and 2.2, together 7
    chosen = choose_held_out(classes, 0.2, 0)
    assert np.bincount(classes[chosen]).tolist() == [2, 3, 2]


def test_columns_of_models_without_labels_are_shown_only_if_no_model_has_labels():
    rows = [{"name": "a", "accuracy": 0.5, "agreement": 0.4}, {"name": "b", "agreement": 0.3}]
    assert [key for key, _, _ in table.columns_of(rows)] == ["accuracy"]
    assert [key for key, _, _ in table.columns_of(rows[1:])] == ["agreement"]


def test_rows_of_splits():
    sizes = {"train": 10, "test": 4}
    assert select_rows("train", sizes) == [("train", range(10))]
    assert select_rows("train[20%:] + test[-1:]", sizes) == [("train", range(2, 10)), ("test", range(3, 4))]
    assert select_rows("train[:55%]", sizes) == [("train", range(6))]  # rounded, as TensorFlow Datasets does
    for wrong in ("tain", "train[3:3]", "train[a:]", ""):
        with pytest.raises(SplitError):
            select_rows(wrong, sizes)


def finished(folder: Path, accuracy: float, predicted: list[int], **config: object) -> Path:
    """Write the files of a finished run into a folder, and return it."""
    row = {"name": "student", "accuracy": accuracy, "nll": 0.5, "parameters": 1000}
    data = {"data": {"name": "d", "test": "test"}, "steps": 10} | config
    seal.write(folder / "results.json", {"rows": [row], "config": data, "title": folder.name})
    seal.write(folder / "student/result.json", {"row": row, **answers_of(predicted, [0, 1] * 10)})
    (folder / "report.html").write_text("")
    return folder


def test_runs_are_compared_on_one_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    finished(Path("runs/a"), 0.5, [0] * 20)
    finished(Path("runs/b"), 1.0, [0, 1] * 10, steps=20, distributed={"process": 1}, logging={"every": 3})
    finished(Path("runs/c"), 1.0, [0, 1] * 10, data={"name": "other", "test": "test"})
    assert main.run(["compare", "runs/a", "runs/b", "runs/c", "--out", "out"]) == 0
    heading, a, b, c, reason, _ = capsys.readouterr().out.splitlines()
    assert reason == "No test for c: not known to have the test records of a, with labels."
    assert heading.split()[:3] == ["run", "acc", "%"] and a.split()[:2] == ["a", "50.00"]
    assert "+50.00" in b and "0.002" in b and "+" not in c  # b: 10 discordant records of 10; c: other data
    html = Path("out/compare.html").read_text()
    assert "distributed" not in html and "logging" not in html  # these keys change no result
    assert 'href="../runs/b/report.html"' in html and '<th scope="row">steps</th><td>10</td><td>20</td>' in html
    for words, said in (
        (["runs/a", "runs/a"], "a run is named twice"),
        (["runs/a", "none"], "holds no finished run"),
        (["runs/a", "--model", "control"], "has no 'control'"),
    ):
        assert main.run(["compare", *words, "--out", "out"]) == 2
        assert said in capsys.readouterr().err


def test_runs_of_one_name_are_told_apart(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for place in ("a/seed-0", "b/seed-0"):
        finished(Path(place), 0.5, [0] * 20)
    assert main.run(["compare", "a/seed-0", "b/seed-0", "--out", "out"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:3]] == ["a/seed-0", "b/seed-0"]


def test_p_values_are_never_zero():
    assert [p_value(p) for p in (0.5, 0.001, 0.00099, 0.0)] == ["= 0.500", "= 0.001", "< 0.001", "< 0.001"]


def test_every_part_is_listed_with_a_sentence_and_its_arguments(capsys):
    for kind in names():
        assert main.run(["list", kind]) == 0
        lines = capsys.readouterr().out.splitlines()
        sentences = [line for line in lines if line.startswith("    ")]
        assert sentences and all(len(line) > 12 for line in sentences), kind
    assert "kd(temperature=4.0, scale_t2=True)" in listing("losses")
    assert main.run(["list", "losses", "kd"]) == 0
    assert "Hinton, Vinyals and Dean" in capsys.readouterr().out
    for words, said in ((["loses"], "Did you mean 'losses'?"), (["losses", "kdd"], "Did you mean 'kd'?")):
        assert main.run(["list", *words]) == 2
        assert said in capsys.readouterr().err
    assert main.run(["list", "datasets", "reuters"]) == 0 and "`reuters`" in capsys.readouterr().out
    for name in ("nope", "text:x"):
        assert main.run(["list", "presets", name]) == 2
        assert f"NAME: unknown preset {name!r}" in capsys.readouterr().err
