"""Tests of the search for a student within a budget: candidates, measured sizes, finalists and the choice."""

import json

import pytest
from own_runs import command, config_of

from jaxdistill.core import seal
from jaxdistill.core.errors import ConfigError
from jaxdistill.evaluation.report import search as page
from jaxdistill.evaluation.report.search import Point, front
from jaxdistill.export.device_profile import Device
from jaxdistill.run.commands.search import read_axes
from jaxdistill.run.config import differ
from jaxdistill.run.config_files import load_config
from jaxdistill.run.fill import fill_placeholders
from jaxdistill.run.search import Size, _exceeds, _key, candidates, finalists, parse_budget
from jaxdistill.run.search_study import choose_point, study_of


def size(label: str, latency: float, megabytes: float, parameters: int = 1, **values) -> Size:
    return Size(label, values, parameters, latency, megabytes)


def test_candidates_are_all_combinations_each_with_the_format_of_its_bits(home):
    config = fill_placeholders(config_of("mlp", home))
    found = candidates(config, {"widths": ((8,), (16,)), "bits": (8, 32)}, Device())
    assert [each.label for each in found] == [
        "widths=(8,) bits=8",
        "widths=(8,) bits=32",
        "widths=(16,) bits=8",
        "widths=(16,) bits=32",
    ]
    assert [each.format for each in found[:2]] == ["onnx(int8='dynamic')", "onnx"]
    assert found[0].config.student.quantized == "aware(weights=8, inputs=8, start=0.5)"
    assert found[1].config.student.quantized == "" and "widths=(8,)" in found[1].config.student.model
    (of_own,) = candidates(config, {"widths": ((8,),)}, Device(formats=("onnx",)))
    assert of_own.format == "onnx"
    (of_npu,) = candidates(config, {"widths": ((8,),)}, Device(("litert",), True))
    assert of_npu.format == "litert(int8='static')" and "ranges='running'" in of_npu.config.student.quantized


def test_arms_are_the_finalist_its_rounding_afterwards_and_its_control(home):
    config = fill_placeholders(config_of("mlp", home))
    eight, whole = candidates(config, {"widths": ((8,),), "bits": (8, 32)}, Device())
    (arms,) = study_of(config, [eight, whole], ["x"], "").axes.values()
    kinds = [name.rpartition(" | ")[2] for name in arms]
    assert kinds == ["distilled", "distilled, rounded afterwards", "alone", "distilled", "alone"]
    assert list(arms["widths=(8,) bits=8 | alone"]["objective"]) == ["cross_entropy"]
    assert arms["widths=(8,) bits=8 | distilled, rounded afterwards"]["student"]["quantized"] == ""
    assert arms["widths=(8,) bits=8 | distilled"]["student"]["quantized"]


def test_finalists_are_the_largest_that_nothing_within_the_budget_exceeds():
    sizes = [
        size("a", 1.0, 1.0, 10, layers=1, heads=2),
        size("b", 2.0, 2.0, 30, layers=2, heads=2),
        size("c", 2.0, 1.5, 20, layers=1, heads=4),
        size("d", 9.0, 9.0, 90, layers=3, heads=4),
    ]
    budget = {"latency_ms": 2.5, "megabytes": 3.0}
    assert [each.label for each in finalists(sizes, budget, 3)] == ["b", "c", "a"]  # b and c both exceed a
    assert [each.label for each in finalists(sizes, budget, 2)] == ["b", "c"]
    dropouts = [size("x", 1.0, 1.0, 5, dropout=0.0), size("y", 1.0, 1.0, 5, dropout=0.3)]
    assert [each.label for each in finalists(dropouts, budget, 1)] == ["x"]  # dropout is no size of a student
    assert [each.label for each in finalists(sizes, budget, 1)] == ["b"]
    for a, b in (("mean", "token"), ((8, 64), (16, 8)), (1, 0.5)):  # these values cannot be compared
        pair = [size("x", 1.0, 1.0, 1, pool=a), size("y", 1.0, 1.0, 2, pool=b)]
        assert not _exceeds(pair[1], pair[0])
    assert _exceeds(size("x", 1.0, 1.0, 2, w=(8, 16)), size("y", 1.0, 1.0, 1, w=(8, 8)))
    assert _exceeds(size("x", 1.0, 1.0, 1, bits=32), size("y", 1.0, 1.0, 1, bits=8))
    with pytest.raises(ConfigError, match=r"--budget: no candidate has 0.5 ms; the nearest, a, has 1 ms. Raise"):
        finalists(sizes, {"latency_ms": 0.5}, 3)


def test_the_front_and_the_choice_leave_out_files_that_are_set_aside():
    points = [
        Point("small", "distilled", (0.8, 0.9), 1.0, 1.0),
        Point("small", "alone", (0.99,), 1.0, 1.0),
        Point("large", "distilled", (0.9,), 2.0, 2.0),
        Point("large", "distilled, rounded afterwards", (0.95,), 2.0, 2.0, "it disagrees"),
        Point("teacher big", "floats", (1.0,), 9.0, 9.0),
    ]
    sizes = [size("small", 1.0, 1.0), size("large", 2.0, 2.0)]
    assert choose_point(points, {"latency_ms": 3.0}).label == "large"
    assert choose_point(points, {"latency_ms": 1.5}).label == "small"
    beyond = choose_point(points, {"latency_ms": 0.5})  # all files exceed the budget when measured again
    assert beyond.label == "large"
    assert "measured again, is beyond the budget" in page.sentence(beyond, points, {"latency_ms": 0.5}, "cpu()")
    assert [p.label for p in front(points, "latency_ms")] == ["small", "teacher big"]
    assert [p.label for p in front(points, "megabytes")] == ["small", "teacher big"]
    chosen = points[0]
    text = page.sentence(chosen, points, {"latency_ms": 1.5}, "cpu()")
    assert "best student is small (distilled): 85.00 %, 1.00 ms, 1.00 MB; the same student on labels alone" in text
    assert "reaches 99.00 %, so that no gain by its teacher is shown; the teacher big" in text
    assert "(the time is that of this machine's" in page.sentence(chosen, points, {"megabytes": 2.0}, "own()", False)
    assert "the teacher big reaches 100.00 % with 9.0 times the time and 9.0 times the bytes (2 seeds" in text
    html = page.render(text, points, chosen, [{**sizes[0]._asdict(), "inside": True}], "cpu()", "the command")
    assert "mathdefault" not in html and "on the device" not in html  # no formula, no column without values
    assert "large (set aside)" in html and "chosen</text>" in html and "within the budget" in html
    with pytest.raises(ConfigError, match="no finalist's file gives the answers"):
        choose_point([p for p in points if p.problem or p.kind == "alone"], {"latency_ms": 3.0})


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["latncy_ms=1"], "unknown limit 'latncy_ms'. Did you mean 'latency_ms'?"),
        (["latency_ms"], "'latency_ms' has no number. Write latency_ms=NUMBER."),
        (["megabytes=-1"], "'megabytes=-1': give a number above 0, below 1e+12."),
        (["megabytes=nan"], "'megabytes=nan': give a number above 0, below 1e+12."),
        (["megabytes=1", "megabytes=2"], "megabytes is given twice"),
    ],
)
def test_a_wrong_budget_is_refused(texts, said):
    with pytest.raises(ConfigError) as error:
        parse_budget(texts, Device(), "cpu()")
    assert said in str(error.value)


def test_a_device_without_a_time_has_no_limit_of_it():
    assert parse_budget(["megabytes=1"], Device(has_time=False), "own()") == {"megabytes": 1.0}
    with pytest.raises(ConfigError, match=r"'latency_ms=1': how fast own\(\) is, is not known. Limit megabytes"):
        parse_budget(["latency_ms=1"], Device(has_time=False), "own()")


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"widhts": (1,)}, "--axis widhts=1: model 'mlp' has no argument 'widhts'. Did you mean 'widths'?"),
        ({"widths": ((8,), (0,))}, "--axis widths=(0,): mlp: widths=(0,) must be positive"),
        ({"bits": (4,)}, "--axis bits: 4 bits: give 8 or 32, as files of the device have them"),
    ],
)
def test_a_wrong_axis_is_refused_before_anything_is_measured(axes, said, home):
    with pytest.raises(ConfigError) as error:
        candidates(fill_placeholders(config_of("mlp", home)), axes, Device())
    assert said in str(error.value)


def test_axes_are_literals_and_given_once():
    assert read_axes([["layers", "1", "2"], ["pool", "mean"], ["w", "(8,)", "[16]", "{}"]]) == {
        "layers": (1, 2),
        "pool": ("mean",),
        "w": ((8,), (16,), "{}"),
    }
    for given, said in (
        ([["layers"]], "has no values"),
        ([["layers", "1", "1"]], "given twice"),
        ([["layers", *map(str, range(600))]], "600 candidates; give at most 512"),
    ):
        with pytest.raises(ConfigError, match=said):
            read_axes(given)


@pytest.mark.slow
def test_a_search_goes_from_sizes_to_a_config_and_resumes(home, capsys):
    pytest.importorskip("onnx")
    written = {"config": config_of("mlp", home).to_dict()}
    (home / "base").mkdir()
    seal.write(home / "base" / "config.json", written)
    words = ["search", "--config", home / "base" / "config.json", "--workdir", home / "search", "--finalists", 1]
    words += ["--axis", "widths", "(8,)", "(16,)", "--axis", "bits", "8"]
    assert command(*words, "--budget", "latency_ms=0.0000001") == 2
    assert "no candidate has 1e-07 ms; the nearest, widths=" in capsys.readouterr().err
    table = json.loads((home / "search" / "table.json").read_text())
    assert len(table["sizes"]) == 2 and not (home / "search" / "runs").exists()
    assert command(*words, "--budget", "latency_ms=1000") == 0
    out = capsys.readouterr().out
    assert "2 candidates, 2 of them measured before" in out and "the best student is widths=(16,) bits=8" in out
    html = (home / "search" / "search.html").read_text()
    assert "teacher big" in html and "rounded afterwards" in html and "chosen" in html
    chosen = load_config(str(home / "search" / "chosen.json"))
    assert "widths=(16,)" in chosen.student.model and chosen.exports.student.to == "onnx(int8='dynamic')"
    assert command(*words, "--budget", "latency_ms=1000") == 0
    assert "3 of 3 runs were already finished" in capsys.readouterr().out
    limit = sum(each["size"]["megabytes"] for each in table["sizes"]) / 2
    assert command(*words, "--budget", f"megabytes={limit}") == 0  # another budget, in the same folder
    out = capsys.readouterr().out
    assert "1 within the budget; trained: widths=(8,) bits=8" in out and "File: " in out
    (home / "search" / "config.json").write_text("{}")
    assert command(*words, "--budget", "latency_ms=1000") == 2 and "holds a run" in capsys.readouterr().err
    assert 0 < table["sizes"][0]["size"]["latency_ms"] < 1000


def test_a_budget_is_kept_in_time_and_in_bytes():
    small, slow = size("small", 1.0, 1.0, 1, layers=1), size("slow", 9.0, 1.0, 2, layers=2)
    assert finalists([small, slow], {"latency_ms": 2.0, "megabytes": 2.0}, 2) == [small]


def test_of_equal_accuracies_the_smaller_file_is_chosen_and_stands_on_the_front():
    small, large = Point("small", "distilled", (0.9,), 2.0, 1.0), Point("large", "distilled", (0.9,), 1.0, 2.0)
    assert choose_point([large, small], {"latency_ms": 9.0}) == small
    assert front([small, large], "megabytes") == [small] and front([small, large], "latency_ms") == [large]


def test_a_size_is_known_by_its_format_too(home):
    config = fill_placeholders(config_of("mlp", home))
    eight, whole = candidates(config, {"widths": ((8,),), "bits": (8, 32)}, Device())
    assert _key(eight) != _key(whole._replace(values=eight.values)) and eight.sized == whole.sized


def test_a_base_config_of_other_bits_is_refused(home):
    def of(quantized):
        config = config_of("mlp", home)
        return fill_placeholders(differ(config, student={"quantized": quantized}))

    (only,) = candidates(of("aware(inputs=8)"), {"widths": ((8,),)}, Device())
    assert only.config.student.quantized == "aware(inputs=8)"
    with pytest.raises(ConfigError, match=r"student\.quantized: unknown .* 'awar'. Did you mean 'aware'"):
        candidates(differ(of("aware(weights=8)"), student={"quantized": "awar(weights=8)"}), {}, Device())
    for spec in ("aware(weights=4)", "aware(4)"):
        with pytest.raises(ConfigError, match=r"student\.quantized: it trains for 4 bits, and a search exports"):
            candidates(of(spec), {"widths": ((8,),)}, Device())
