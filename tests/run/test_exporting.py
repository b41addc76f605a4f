"""Tests of `jaxdistill export`: a file is run on the test records, and set aside if it departs from its model."""

import json
import shutil

import numpy as np
import pytest
from own_runs import QUIET, command, config_of

import jaxdistill
from jaxdistill.core import seal
from jaxdistill.core.errors import ConfigError
from jaxdistill.export import measure
from jaxdistill.export.formats import onnx_operators
from jaxdistill.export.formats.onnx_graph import EMITTERS
from jaxdistill.export.measure import Job, RunError, Runner, difference
from jaxdistill.run.launch import launch


def test_files_stand_beside_their_model_with_what_was_measured(home, trained, capsys):
    run = trained("bert")
    words = ("--to", "onnx", "--to", "onnx(int8='dynamic')", "--model", "student", "--model", "teachers/big")
    assert command("export", run, *words) == 0
    out = capsys.readouterr().out
    said = json.loads((run / "student/result.json").read_text())["answers"]
    accuracy = np.mean(np.equal(said["predicted"], said["label"]))
    for name in ("student", "teachers/big"):
        folder = run / name / "exports" / "onnx"
        seal.check_folder(folder)
        about = seal.read(folder / "export.json", {"measured": dict}, required=True)
        assert about["problem"] == "" and about["measured"]["same"] == 1 and about["measured"]["largest"] < 1e-5
        assert about["records"] == len(said["label"]) and about["inputs"]["input_ids"] == [[8], "int32"]
        assert about["measured"]["bytes"] == (folder / "model.onnx").stat().st_size
        assert about["measured"]["memory"] > 2**24 and about["measured"]["latency_ms"]["median"] > 0
        assert (folder / "tokenizer.json").is_file() and "Classes: early, late" in (folder / "README.md").read_text()
    student = seal.read(run / "student/exports/onnx/export.json", {"measured": dict})["measured"]
    assert student["accuracy"] == student["expected_accuracy"] == pytest.approx(accuracy)
    assert (run / "student/exports/onnx-int8-dynamic/model.onnx").is_file()
    lines = [line.split() for line in out.splitlines()]
    assert [line[:2] for line in lines[1:4]] == [
        ["student", "-"],
        ["student", "onnx"],
        ["student", "onnx-int8-dynamic"],
    ]
    assert not [file for file in run.iterdir() if file.name.startswith(".exports")]
    page = (run / "report.html").read_text()
    assert "Exported files" in page and page.count("onnxruntime") == 4 and "onnx-int8-dynamic" in page
    (run / ".exports.left").mkdir()
    assert command("export", run, "--to", "onnx", "--records", 9) == 0
    assert not (run / ".exports.left").exists()
    entries = seal.read(run / "results.json", {"exports": list}, required=True)["exports"]
    assert [(each["model"], each["name"]) for each in entries] == [
        (model, name) for model in ("student", "teachers/big") for name in ("-", "onnx", "onnx-int8-dynamic")
    ]
    assert [each.get("records") for each in entries][:3] == [None, 9, len(said["label"])]


@pytest.mark.parametrize(("to", "runtime"), [("onnx", "openvino"), ("stablehlo", "jax")])
def test_other_runtimes_run_in_a_process_of_their_own(to, runtime, trained):
    run = trained("mlp")
    assert command("export", run, "--to", to, "--runtime", runtime) == 0
    about = seal.read(run / "student" / "exports" / to / "export.json", {"measured": dict})
    assert about["runtime"].startswith(f"{runtime} ") and about["measured"]["largest"] < 1e-5


@pytest.mark.parametrize("family", ["mlp", "decoder", "gpt2", "modernbert"])
def test_pictures_and_other_texts_are_exported_too(family, trained):
    run = trained(family)
    assert command("export", run, "--to", "onnx", "--records", "7") == 0
    about = seal.read(run / "student/exports/onnx/export.json", {"measured": dict})
    assert about["records"] == 7 and about["measured"]["largest"] < 1e-5 and about["measured"]["same"] == 1
    assert about["measured"]["accuracy"] == about["measured"]["expected_accuracy"] > 0  # language models: of tokens


def test_a_language_model_runs_in_llama_cpp(trained, capsys):
    pytest.importorskip("xllamacpp")
    run = trained("decoder")
    assert command("export", run, "--to", "gguf(kind='F32')", "--to", "gguf(kind='Q8_0')", "--records", 7) == 0
    captured = capsys.readouterr()
    about = {
        kind: seal.read(run / f"student/exports/gguf-kind-{kind}/export.json", {"measured": dict})
        for kind in ("F32", "Q8_0")
    }
    assert about["F32"]["measured"]["largest"] < 1e-5 and about["F32"]["measured"]["same"] == 1
    assert abs(about["F32"]["measured"]["divergence"]) < about["Q8_0"]["measured"]["divergence"] < 0.01
    tokenizer = "llama.cpp cannot cut texts as the tokenizer does, which is of type WordLevel"
    assert about["F32"]["notes"] == [f"{tokenizer}: give it token ids, made by tokenizer.json."]
    assert about["Q8_0"]["notes"][1].startswith("The rows of 8 matrices are no multiple of 32, so F16 holds them")
    for note in about["Q8_0"]["notes"]:
        assert f"note: student, gguf(kind='Q8_0'): {note}\n" in captured.err
        assert f"- {note}\n" in (run / "student/exports/gguf-kind-Q8_0/README.md").read_text()
    assert (
        "`model.gguf` reads a text or token ids, and returns `logits`"
        in (run / "student/exports/gguf-kind-F32/README.md").read_text()
    )
    assert "KL" in captured.out and about["F32"]["runtime"].startswith("llamacpp ")


def test_a_file_of_a_language_model_that_diverges_is_set_aside(trained, monkeypatch, capsys):
    pytest.importorskip("xllamacpp")
    monkeypatch.setattr(measure, "DIVERGENCE", -1.0)
    assert command("export", trained("decoder"), "--to", "gguf", "--records", 2) == 2
    assert (
        "the distribution of the next token diverges by 0.0000 nats from that of the model" in capsys.readouterr().err
    )
    assert (trained("decoder") / "student/exports/gguf.rejected/model.gguf").is_file()


def test_an_embedder_is_compared_by_its_embeddings(home, trained):
    from own_runs import unlabelled

    body = str(trained("bert") / "teachers" / "big" / "hub")
    model = f"pretrained({body!r}, classes=0)"
    config = unlabelled(home, model, teachers={"big": {"model": model}}, objective={"logit_mse": {}}, steps=1)
    jaxdistill.distill(config, home / "embedder", QUIET)
    assert command("export", home / "embedder", "--to", "onnx") == 0
    about = seal.read(home / "embedder/student/exports/onnx/export.json", {"measured": dict})
    assert about["output"] == "embedding" and about["measured"]["largest"] < 1e-5 and about["measured"]["same"] is None


def test_a_file_that_departs_is_set_aside_and_says_where(home, trained, monkeypatch, capsys):
    """Check that a planted bug (`rsqrt` in normalisations computes a square) is found and located."""
    run = home / "runs" / "departs"
    shutil.copytree(trained("bert"), run)
    place = run / "student" / "exports"
    assert command("export", run, "--to", "onnx") == 0 and (place / "onnx").is_dir()
    monkeypatch.setitem(EMITTERS, "rsqrt", EMITTERS["square"])
    capsys.readouterr()
    assert command("export", run, "--to", "onnx") == 2
    captured = capsys.readouterr()
    assert "outputs differ by" in captured.err and captured.err.count("\n") == 1
    assert "hidden_states/0 of 2 is the first that differs by more than 0.0001" in captured.err
    assert "onnx (set aside)" in captured.out  # the table shows the wrong file, too
    assert (place / "onnx.rejected").is_dir() and not (place / "onnx").exists()
    assert seal.read(place / "onnx.rejected" / "export.json", {"problem": str})["problem"]
    monkeypatch.undo()
    assert command("export", run, "--to", "onnx") == 0
    assert (place / "onnx").is_dir() and not (place / "onnx.rejected").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--to", "onx"), "unknown export format 'onx'. Did you mean 'onnx'?"),
        (("--to", "onnx(int8='fast')"), "expected one of '', 'dynamic', 'static'"),
        (("--to", "hugging_face"), "see the folder hub of the model"),
        (("--to", "onnx", "--runtime", "jax"), "'jax' does not run onnx"),
        (("--to", "onnx", "--model", "big"), "there is no 'big'"),
        (("--to", "onnx", "--threads", "0"), "--threads: 0 is not positive"),
        (("--to", "onnx", "--device", "gpu()"), "--device: unknown device 'gpu'. "),
        (("--to", "litert", "--device", "own()"), "litert needs the package"),
        (("--to", "onnx", "--device", "own()"), "--device: own() takes litert, no onnx. Change the format."),
        (("--to", "onnx", "--device", "cpu(threads=1)", "--threads", "2"), "leave one of them out"),
        (
            ("--to", "onnx", "--device", "own(operations_of='onnx', megabytes=0.001)"),
            "has 0.001 MB for weights, and those of student take at least 0.042856 MB",
        ),
        (("--to", "onnx", "--threads", "999"), "999 are more than the"),
    ],
)
def test_a_wrong_command_is_one_line(words, said, trained, capsys):
    run = trained("bert")
    capsys.readouterr()  # drops the output of the training
    assert command("export", run, *words) == 2
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1


def test_two_spellings_of_a_format_are_one_file(trained, capsys):
    run = trained("mlp")
    assert command("export", run, "--to", "onnx", "--to", "onnx()", "--to", "onnx(int8='')", "--records", 5) == 0
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("student")]) == 2
    assert not (run / "student" / "exports" / "onnx-int8-").exists()


def test_changed_test_records_and_models_are_noticed(home, trained, capsys):
    run = home / "runs" / "changed"
    shutil.copytree(trained("mlp"), run)
    content = seal.read(run / "results.json", {"rows": list})
    for change in ({"test_records": "0" * 64}, {"class_names": ["a", "b", "c"]}):
        seal.write(run / "results.json", {**content, **change})
        assert command("export", run, "--to", "onnx") == 2
        assert "the test records, or the names of the classes, have changed" in capsys.readouterr().err
    rows = [{**row, "accuracy": row.get("accuracy", 0) + 0.1} for row in content["rows"]]
    seal.write(run / "results.json", {**content, "rows": rows})
    assert command("export", run, "--to", "onnx") == 2
    assert "its files, or the data, have changed" in capsys.readouterr().err


def test_a_device_says_which_operations_it_lacks(home, trained, capsys):
    run, spec = trained("mlp"), "own(operations_of='onnx', known=('MatMul', 'Add'))"
    assert command("export", run, "--to", "onnx", "--records", 5, "--device", spec) == 0
    out = capsys.readouterr().out
    assert f"student, onnx on {spec}: " in out and "  not on the device: Max in layers/0: give the model another" in out
    about = seal.read(run / "student/exports/onnx/export.json", {"device": dict})["device"]
    assert 0 < about["on_device"] < about["operations"] and f"onnx on {spec}" in (
        run / "report.html"
    ).read_text().replace("&#x27;", "'")


def test_a_file_that_a_device_cannot_hold_is_set_aside(trained, capsys):
    run = trained("mlp")
    size = sum(x.nbytes for x in jaxdistill.load(run).variables.params.values()) + 64  # weights fit, the file does not
    assert command("export", run, "--to", "onnx", "--records", 5, "--device", f"cpu(megabytes={size / 1e6})") == 2
    assert "the file has 0.0" in capsys.readouterr().err and (run / "student/exports/onnx.rejected").is_dir()
    assert command("export", run, "--to", "onnx", "--records", 5) == 0


def test_a_run_that_is_not_finished_is_refused(home, trained, capsys):
    run = home / "runs" / "unfinished"
    shutil.copytree(trained("bert"), run)
    (run / "results.json").unlink()
    assert command("export", run, "--to", "onnx") == 2
    assert "holds no finished run" in capsys.readouterr().err


def test_a_model_that_a_format_cannot_hold_is_refused_before_anything_is_written(trained, monkeypatch, capsys):
    monkeypatch.setattr("jaxdistill.export.choice.is_installed", lambda package: True)
    run, spec = trained("bert"), "gguf(kind='Q8_0')"
    before = sorted(run.rglob("*"))
    assert command("export", run, "--to", "onnx", "--to", spec) == 2
    message = capsys.readouterr().err
    assert f"--to: {spec} cannot hold student: llama.cpp runs decoders of the" in message and message.count("\n") == 1
    assert "and this is a bert. Use onnx or stablehlo." in message and sorted(run.rglob("*")) == before


def test_a_missing_package_names_its_extra(trained, monkeypatch, capsys):
    monkeypatch.setattr("jaxdistill.export.choice.is_installed", lambda package: package != "openvino")
    assert command("export", trained("bert"), "--to", "onnx", "--runtime", "openvino") == 2
    assert "needs the package openvino: pip install 'jaxdistill[openvino]'" in capsys.readouterr().err
    monkeypatch.setattr("jaxdistill.export.choice.is_installed", lambda package: package != "xllamacpp")
    assert command("export", trained("bert"), "--to", "gguf") == 2
    assert "needs the package xllamacpp: pip install 'jaxdistill[gguf]'" in capsys.readouterr().err


def test_a_process_that_ends_is_told_and_loses_no_other_file(trained, tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"the process that runs the file ended with exit code 1: .+"):
        Runner("onnxruntime", tmp_path / "x.onnx", 1)
    assert command("export", trained("mlp"), "--to", "onnx", "--records", 5) == 0
    good = trained("mlp") / "student" / "exports" / "onnx" / "model.onnx"
    jobs = [Job("bad", "onnxruntime", tmp_path / "x.onnx", 1), Job("good", "onnxruntime", good, 2)]
    found = measure.measure(jobs, {"image": np.zeros((3, 8, 8, 1), np.uint8)}, 1)
    assert "exit code 1" in found["bad"] and found["good"].outputs.shape == (3, 3)


def test_a_runtime_that_is_killed_is_named(trained, monkeypatch):
    assert command("export", trained("mlp"), "--to", "onnx", "--records", 5) == 0
    runner = Runner("onnxruntime", trained("mlp") / "student" / "exports" / "onnx" / "model.onnx", 1)
    runner._process.kill()
    with pytest.raises(RunError, match="was ended by SIGKILL"):
        runner.ask("memory")
    runner.close()


LOGITS = np.float32([[1, 0], [0, 1], [2, 1], [0, 3]])


@pytest.mark.parametrize(
    ("found", "rounds", "said"),
    [
        (LOGITS, False, ""),
        (LOGITS + 1e-4, False, ""),
        (
            LOGITS + np.float32([[0], [0], [1e-3], [0]]),
            False,
            "outputs differ by 3.3e-04 of the greatest one (record 2)",
        ),
        (
            LOGITS + np.float32([[0, 0], [0, 4e-4], [0, 0], [0, 0]]),
            False,
            "outputs differ by 1.3e-04 of the greatest one",
        ),
        (LOGITS * np.float32([[1], [1], [np.nan], [1]]), True, "the output for test record 2 is not finite"),
        (LOGITS[:, ::-1], True, "0.00 % of the answers are those of the model, 99 % are needed"),
        (LOGITS + 0.2, True, ""),
    ],
)
def test_bounds_are_those_of_floats_and_integers(found, rounds, said):
    problem = difference(np.asarray(found), LOGITS, np.array([0, 1, 0, 0]), True).problem(rounds)
    assert problem.startswith(said) and bool(problem) == bool(said)


def test_floats_must_give_the_same_answers_even_where_two_are_close():
    expected = np.float32([[1, 1 - 1e-6], [0, 1]])
    compared = difference(expected + np.float32([[0, 2e-6], [0, 0]]), expected, None, True)
    assert compared.largest < 1e-5 and compared.problem(False) == "50.00 % of the answers are not those of the model"


def test_accuracy_that_integers_lose_is_a_problem():
    expected = np.zeros((1000, 2), np.float32)
    expected[:, 0] = 1
    found = expected.copy()
    found[:8] = found[:8, ::-1]  # 99.2 % of the answers, all of which were right
    compared = difference(found, expected, np.zeros(1000, int), True)
    assert (compared.same, compared.accuracy, compared.expected_accuracy) == (0.992, 0.992, 1.0)
    assert compared.problem(True) == "0.80 points of accuracy are lost, 0.5 are allowed"
    assert onnx_operators.ELEMENTWISE["add"] == "Add"


@pytest.mark.slow
def test_a_config_names_the_files_that_are_written_when_the_run_has_ended(home, capsys):
    exports = {"phone": {"to": "onnx(int8='dynamic')"}, "server": {"model": "teachers/big"}}
    config = config_of("mlp", home, exports=exports, steps=1)
    launch(config, str(home / "exports"), "", trust_source=False)
    assert "onnx-int8-dynamic" in capsys.readouterr().out
    assert (home / "exports/student/exports/onnx-int8-dynamic/model.onnx").is_file()
    assert (home / "exports/teachers/big/exports/onnx/model.onnx").is_file()


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"to": "onx"}, "exports.phone.to: unknown export format 'onx'"),
        ({"runtime": "jax"}, "exports.phone.runtime: 'jax' does not run onnx"),
        (
            {"model": "teachers/bog"},
            r"exports.phone.model: the run trains no 'teachers/bog'. Did you mean 'teachers/big'",
        ),
        ({"to": "gguf"}, "exports.phone.to: gguf cannot hold student: llama.cpp runs .* and this is another model"),
        ({"to": "gguf", "model": "teachers/big"}, "exports.phone.to: gguf cannot hold teachers/big: llama.cpp"),
        ({"device": "cpu(megabytes=0.001)"}, "exports.phone.device: .* has 0.001 MB for weights, and those of student"),
        ({"device": "ethos_u65()"}, r"exports.phone.device: ethos_u65\(\) takes litert, no onnx"),
        ({"device": "ethos_u65()", "to": "litert"}, r"exports.phone.device: .* Export litert\(int8='static'\) instead"),
    ],
)
def test_a_wrong_export_is_refused_before_anything_is_trained(entry, said, home, monkeypatch):
    monkeypatch.setattr("jaxdistill.export.choice.is_installed", lambda package: True)
    config = config_of("mlp", home, exports={"phone": entry})
    with pytest.raises(ConfigError, match=said):
        jaxdistill.distill(config, home / "refused", QUIET)
    assert not (home / "refused").exists()
