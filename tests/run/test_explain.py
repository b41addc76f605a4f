"""Tests of `jaxdistill explain`: bits from the teacher in the student, its control and an untrained network."""

import numpy as np
import own_runs
import pytest
from corpora import Labelled
from own_runs import QUIET, command

import jaxdistill
from jaxdistill import differ, make
from jaxdistill.core import seal
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.registry import datasets
from jaxdistill.evaluation.report import explanation
from jaxdistill.losses.relations.edges import Graph, read_graph, write_graph
from jaxdistill.run.distill import check_config
from jaxdistill.run.explain import explain
from jaxdistill.run.predict import results

MODEL = {"model": "mlp(widths=(16,), classes=5)"}


def directions(split: str, seed: int = 0):
    """Return points in 8 dimensions, labelled by the largest of five projections; a third of the labels is random."""
    draw = np.random.default_rng((seed, len(split)))
    points = draw.normal(size=(400, 8)).astype(np.float32)
    labels = (points @ np.random.default_rng(0).normal(size=(8, 5))).argmax(1)
    labels = np.where(draw.random(400) < 1 / 3, draw.integers(0, 5, 400), labels)
    return [{"image": x, "label": int(y)} for x, y in zip(points, labels, strict=True)]


@pytest.fixture(scope="module", autouse=True)
def registered():
    datasets.register(directions)


def config_of(**more):
    plain = {
        "steps": 300,
        "batch_size": 50,
        "student": MODEL,
        "teachers": {"big": {"model": "mlp(widths=(32,), classes=5)", "steps": 300}},
        "objective": {"kd": {"term": "kd(temperature=4.0)"}},
        "optimizer": "adamw()",
        "rate": 0.01,
        "data": {"name": "directions"},
        "evaluate": {"every": 300, "batch_size": 100, "layers": ()},
        "logging": {"tensorboard": False},
        "mesh": {"data": 1},
    }
    return make(**plain | more)


@pytest.fixture(scope="module")
def made(home):
    """Train a run with a teacher, one with another seed (so another teacher), and three on labels alone."""
    alone = config_of(teachers={}, objective={"cross_entropy": {}})
    configs = {"taught": config_of(), "other": config_of(seed=9)}
    configs |= {str(seed): differ(alone, seed=seed) for seed in (1, 2, 3)}
    for name, config in configs.items():
        jaxdistill.distill(config, home / name, QUIET)
    return home


def test_the_student_has_more_bits_than_its_control_and_an_untrained_network(made, capsys):
    words = [word for n in (1, 2, 3) for word in ("--reference", made / str(n))]
    assert command("explain", made / "taught", *words) == 0
    said = capsys.readouterr()
    assert said.err == "" and "untrained (floor)" in said.out and "95 % interval" in said.out
    content = seal.read(made / "taught" / explanation.FILE, explanation.TYPES, required=True)
    bits = {row["model"]: row["bits"] for row in content["rows"]}
    assert list(bits) == ["student", "control", "untrained"]
    assert bits["student"] > 2 * max(bits["control"], bits["untrained"], 0.1)
    for row in content["rows"]:
        assert sum(row["by_class"]) == pytest.approx(row["bits"], abs=1e-3) and len(row["by_layer"]) == 1
        assert [len(each) for each in row["relations"]] == [2] * 5 and 0 <= row["relations_kept"] <= 1
    kept = {row["model"]: row["relations_kept"] for row in content["rows"]}
    assert kept["student"] > kept["untrained"] + 0.1
    page = (made / "taught" / "report.html").read_text()
    assert "Which classes are related" in page and f"({100 * kept['student']:.0f} %)" in page
    assert "Information from the teacher, in bits" in page and "3 networks that learned from labels alone" in page
    first = seal.sha256(made / "taught" / explanation.FILE)
    command("explain", made / "taught", *words)
    assert seal.sha256(made / "taught" / explanation.FILE) == first
    command("explain", made / "taught", *words, "--beyond", made / "other")
    beyond = seal.read(made / "taught" / explanation.FILE, explanation.TYPES)
    assert beyond["rows"][0]["bits"] < bits["student"] and beyond["beyond"] == [str(made / "other")]


def test_without_references_the_control_is_known(made, capsys):
    explain(made / "taught")
    assert "1 label-trained network is known; name 3 by --reference" in capsys.readouterr().err
    content = seal.read(made / "taught" / explanation.FILE, explanation.TYPES)
    assert content["known"] == ["control"] and [row["model"] for row in content["rows"]] == ["student", "untrained"]


def test_a_changed_explanation_is_told_and_left_out(made, capsys):
    file = made / "taught" / explanation.FILE
    explain(made / "taught")
    kept = file.read_text()
    file.write_text(kept.replace('"records": 400', '"records": 401'))
    capsys.readouterr()
    assert explanation.read(made / "taught", results(made / "taught")) == {}
    assert capsys.readouterr().err.startswith(f"note: {file} has changed since it was written")
    file.write_text(kept)
    other = {**results(made / "taught"), "run": "0" * 16}
    assert explanation.read(made / "taught", other) == {}
    assert "is of another run, or of fewer steps" in capsys.readouterr().err
    assert explanation.read(made / "taught", results(made / "taught"))


def other_records(folder):
    """Train a run on other test records, and return its folder."""
    data = {"name": "directions(seed=1)"}
    config = differ(config_of(teachers={}, objective={"cross_entropy": {}}, steps=1), data=data)
    jaxdistill.distill(config, folder / "run", QUIET)
    return folder / "run"


def test_what_cannot_be_explained_is_one_line(made, tmp_path):
    taught, alone = made / "taught", made / "1"
    for run, references, said in (
        (alone, (), "has no teacher: there is nothing to explain"),
        (made, (), "holds no finished run"),
        (taught, (made / "nothing",), "holds no finished run"),
        (taught, (other_records(tmp_path),), "--reference: .* has other test records"),
        (taught, (tmp_path / "none",), "--reference: .*none' holds no finished run"),
        (taught, (alone, alone), "--reference: .*1' is given 2 times. Give each run once"),
    ):
        with pytest.raises(ConfigError, match=said):
            explain(run, references)


def test_what_only_the_run_itself_has_is_not_explained_by_it(made):
    with pytest.raises(ConfigError, match=r"--beyond: .* is the run itself"):
        explain(made / "taught", [made / "1"], [made / "taught"])


def test_only_classifiers_are_explained(home, tmp_path):
    jaxdistill.distill(own_runs.config_of("decoder", home), tmp_path, QUIET)
    with pytest.raises(ConfigError, match="Only classifiers are explained"):
        explain(tmp_path)


def test_a_graph_that_gives_a_class_another_number_than_the_data_is_refused(tmp_path):
    @datasets.register
    def named(split):
        records = Labelled(directions(split))
        records.classes, records.class_names = 5, tuple("abcde")
        return records

    file = tmp_path / "relations.json"
    spec = f"class_graph({str(file)!r}, kernel='head/kernel')"
    config = config_of(data={"name": "named"}, objective={"kd": {}, "near": {"term": spec}})
    for names in ("abcde", "abc", ("a", "b or B", "c")):  # a name that is no class, such as a synonym, is not compared
        write_graph(file, Graph(tuple(names), ((0, 1, 0.5),)))
        check_config(config, None)
    write_graph(file, Graph(tuple("bac"), ((0, 1, 0.5),)))
    problem = r"^objective\.near: .*names 'b' as class 0, and it is class 1 of the data\. Write the graph for a, b, c"
    with pytest.raises(ConfigError, match=problem):
        check_config(config, None)
    step = f"batch_selection(loss=related_labels(edges={str(file)!r}), share=0.5)"
    with pytest.raises(ConfigError, match=r"^step: .*names 'b' as class 0, and it is class 1 of the data"):
        check_config(config_of(data={"name": "named"}, objective={"kd": {}}, step=step), None)
    own = differ(config, objective={"near": {"term": f"graph({str(file)!r}, 'distance', 'records', 'index')"}})
    check_config(own, None)  # its nodes are examples


def test_relations_are_written_as_a_graph_that_a_loss_reads(made, tmp_path, capsys):
    file = tmp_path / "relations.json"
    assert command("graph", made / "taught", "--model", "teachers/big", "--out", file) == 0
    graph = read_graph(file)
    assert f"{len(graph.edges)} relations are in" in capsys.readouterr().out
    assert graph.names == ("0", "1", "2", "3", "4") and 8 <= len(graph.edges) <= 10
    for words, said in (
        (("--out", tmp_path), "is a folder. Choose a file"),
        (("--out", tmp_path / "file" / "x.json"), "is not a folder; choose another folder"),
        (("--out", file), "exists. Choose another file, or replace it with --overwrite"),
        (("--out", made / "taught" / "config.json"), "exists. Choose another file"),
        (("--out", file, "--overwrite", "--nearest", "0"), "--nearest: 0 relations; give 1 or more"),
        (
            ("--out", file, "--overwrite", "--nearest", "5"),
            "relations of each class, and there are 5 classes",
        ),
        (("--out", file, "--overwrite", "--model", "big"), "there is no 'big'"),
    ):
        (tmp_path / "file").touch()
        assert command("graph", made / "taught", *words) == 2 and said in capsys.readouterr().err
    assert command("graph", tmp_path / "nothing", "--out", tmp_path / "x.json") == 2
    assert "holds no finished run" in capsys.readouterr().err
    assert command("graph", made / "taught", "--out", file, "--overwrite") == 0
    own = made / "taught" / "student" / "mine.json"
    for words in ((), ("--overwrite",)):
        assert command("graph", made / "taught", "--out", own, *words) == 0
    own.unlink()
    (record := made / "taught" / "student" / "hub" / "config.json").touch()  # as a folder of transformers has it
    for name in ("config.json", "student/result.json", "student/../student/hub/jaxdistill.json"):
        content = (made / "taught" / name).read_bytes()
        assert command("graph", made / "taught", "--out", made / "taught" / name, "--overwrite") == 2
        assert "belongs to a run, or to a sealed folder" in capsys.readouterr().err
        assert (made / "taught" / name).read_bytes() == content
    record.unlink()
