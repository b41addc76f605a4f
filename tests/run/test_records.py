"""Tests of the records of runs: loading one runs no code, it names what it lacks, and a resumed run adds to it."""

import hashlib
import importlib.util
import json
import py_compile
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import runs
from own_parts import LOSS

import jaxdistill
from jaxdistill import differ, main
from jaxdistill.core import registry, seal
from jaxdistill.core.errors import ConfigError, DamageError
from jaxdistill.core.manifest import manifests
from jaxdistill.core.notes import note
from jaxdistill.core.registry import losses
from jaxdistill.run import export_run, launch
from jaxdistill.run.config_files import load_config, source
from jaxdistill.run.own_parts import own_parts, registered_by_others

NAMES = ["../evil.py", "/tmp/evil.py", "a/evil.py", "evil.pyc", "..", 3, "evil.py\0", "a\\b.py"]
EVIL = 'raise SystemExit("run by a record")\n'


@pytest.fixture(autouse=True)
def _registered():
    with runs.registries_as_found():
        yield


def record(folder, **changes):
    """Write a config.json with the config of the tiny run and the given fields, and return its path."""
    config = runs.load().to_dict()
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"config": config, **changes}))
    return folder / "config.json"


@pytest.mark.parametrize("name", NAMES)
def test_a_source_outside_of_the_records_folder_is_refused(name, tmp_path):
    (tmp_path / "evil.py").write_text(EVIL)
    digest = hashlib.sha256(EVIL.encode()).hexdigest()
    file = record(tmp_path / "run", source=name, source_sha256=digest)
    for trust in (False, True):
        with pytest.raises(ConfigError, match="which is not a Python file in its own folder"):
            load_config(str(file), trust)
    with pytest.raises(ConfigError, match="which is not a Python file in its own folder"):
        source(str(file))


def test_loading_a_record_runs_nothing(tmp_path, capsys):
    file = record(tmp_path / "run", source="evil.py", source_sha256=hashlib.sha256(EVIL.encode()).hexdigest())
    (tmp_path / "run" / "evil.py").write_text(EVIL)
    load_config(str(file))
    assert "evil.py, which defined this config, is not run" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="run by a record"):
        load_config(str(file), trust_source=True)


@pytest.mark.parametrize("how", ["changed", "link", "missing"])
def test_only_the_file_that_the_run_copied_is_trusted(how, tmp_path):
    file = record(tmp_path / "run", source="own.py", source_sha256=hashlib.sha256(LOSS.encode()).hexdigest())
    copy = tmp_path / "run" / "own.py"
    if how == "link":
        (tmp_path / "elsewhere.py").write_text(LOSS)
        copy.symlink_to(tmp_path / "elsewhere.py")
    elif how == "changed":
        copy.write_text(LOSS + "#")
    with pytest.raises(
        ConfigError, match={"missing": "is missing", "link": "is a link", "changed": "was changed since"}[how]
    ):
        load_config(str(file), trust_source=True)


def test_a_file_is_run_and_not_the_bytecode_that_lies_beside_it(tmp_path, monkeypatch):
    """Check that bytecode beside a source file is ignored, as the recorded hash covers the source file only."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = record(tmp_path / "run", source="own.py", source_sha256=hashlib.sha256(LOSS.encode()).hexdigest())
    copy, other = tmp_path / "run" / "own.py", tmp_path / "run" / "other.py"
    copy.write_text(LOSS)
    other.write_text(EVIL)
    place = importlib.util.cache_from_source(str(copy))
    py_compile.compile(str(other), place, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    load_config(str(file), trust_source=True)
    assert list(Path(place).parent.iterdir()) == [Path(place)], "and none is written"


@pytest.mark.parametrize(("words", "trusted"), [([], False), (["--trust-source"], True)])
def test_training_a_record_does_not_make_its_file_trusted(words, trusted, tmp_path, monkeypatch):
    """Check that exports after the training, which load the config again, trust its file only with --trust-source."""
    config = differ(runs.load(), exports={"x": {"to": "stablehlo()"}}).to_dict()
    digest = hashlib.sha256(LOSS.encode()).hexdigest()
    record(tmp_path / "run", config=config, parts={}, source="own.py", source_sha256=digest)
    (tmp_path / "run" / "own.py").write_text(LOSS)
    asked = []
    monkeypatch.setattr(launch.distill, "distill", lambda *args, **options: None)
    monkeypatch.setattr(export_run, "export", lambda run, models, formats, options: asked.append(options) or "")
    given = ["train", "--config", str(tmp_path / "run/config.json"), "--workdir", str(tmp_path / "again"), *words]
    assert main.run(given) == 0
    assert [each.trust_source for each in asked] == [trusted]


def test_parts_of_ones_own_are_recorded_and_named(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        LOSS
        + f"""
from jaxdistill import differ, load_config

def get_config():
    plain = {{"teachers": {{}}, "objective": {{"l1": {{}}}}, "task": {{"l1": {{}}}}, "step": "offline()"}}
    return differ(load_config({str(runs.TINY)!r}), steps=1, control=False, **plain)
"""
    )
    config = load_config(str(tmp_path / "mine.py"))
    assert own_parts(config.to_dict()) == {"loss l1": "config_mine", "data set blobs": "config_tiny"}
    assert own_parts(jaxdistill.make().to_dict()) == {}


def test_a_run_of_python_says_what_its_record_lacks(tmp_path, capsys):
    config = runs.load()
    note.cache_clear()  # else the note is not printed if another test has caused it
    jaxdistill.distill(jaxdistill.differ(config, steps=1, teachers={}, objective={"cross_entropy": {}}), tmp_path)
    said = capsys.readouterr().err
    assert (
        "note: config.json keeps no copy of the code that registers data set blobs (module config_tiny). Keep" in said
    )
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["not_copied"] == {"data set blobs": "config_tiny"} and written["source"] == ""
    del registry.datasets.factories["blobs"]
    with pytest.raises(ConfigError, match="names data set blobs, which the code of that run registered, and the"):
        load_config(str(tmp_path / "config.json"))


def test_a_changed_record_is_named(tmp_path):
    assert runs.run(tmp_path, "--config.steps=1", "--config.teachers.big.steps=1", "--config.control=False") == 0
    file = tmp_path / "config.json"
    text = file.read_text().replace('"batch_size": 32', '"batch_size": 16', 1)
    assert text != file.read_text()
    file.write_text(text)
    with pytest.raises(DamageError, match=r"config\.json has changed since it was written .* Change keys by --config"):
        load_config(str(file))
    results = (tmp_path / "results.json").read_bytes()
    assert runs.run(tmp_path, "--config.steps=1", "--config.teachers.big.steps=1", "--config.control=False") == 0
    assert load_config(str(file)).batch_size == 32, "the results have the config too"
    file.write_text(text)
    (tmp_path / "results.json").unlink()
    assert runs.run(tmp_path, "--config.steps=1", "--config.teachers.big.steps=1", "--config.control=False") == 4
    file.unlink()
    assert runs.run(tmp_path, "--config.steps=1", "--config.teachers.big.steps=1", "--config.control=False") == 4
    (tmp_path / "results.json").write_bytes(results)
    assert runs.run(tmp_path, "--config.rate=0.5", "--config.teachers.big.steps=1", "--config.control=False") == 2
    content = json.loads(text)
    del content["seal"]
    file.write_text(json.dumps(content))
    assert load_config(str(file)).batch_size == 16


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("short")
    with runs.registries_as_found():
        assert runs.run(workdir, "--config.steps=20", "--config.control=False") == 0
    return workdir


def test_a_finished_run_that_is_continued_keeps_both_records(finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    first = json.loads((workdir / "results.json").read_text())
    assert runs.run(workdir, "--config.steps=30", "--config.control=False") == 0
    kept, now = (json.loads((workdir / name).read_text()) for name in ("results-20.json", "results.json"))
    assert kept == first and now["config"]["steps"] == 30
    was = {"steps": 20, "provenance": first["provenance"], "source_sha256": first["source_sha256"]}
    assert now["earlier"] == [was] and first["earlier"] == []
    assert json.loads((workdir / "config.json").read_text())["earlier"] == now["earlier"]
    assert runs.run(workdir, "--config.steps=31", "--config.control=False") == 0
    last = json.loads((workdir / "results.json").read_text())
    assert last["earlier"] == [was, {**was, "steps": 30, "provenance": now["provenance"]}]


def test_a_repeat_that_trains_nothing_leaves_the_record_as_it_is(finished, tmp_path, monkeypatch):
    workdir = shutil.copytree(finished, tmp_path / "run")
    records = [json.loads((workdir / name).read_text()) for name in ("config.json", "results.json")]
    monkeypatch.setattr("jaxdistill.run.provenance.git_hash", lambda: "another commit")
    assert runs.run(workdir, "--config.steps=20", "--config.control=False") == 0
    config, results = (json.loads((workdir / name).read_text()) for name in ("config.json", "results.json"))
    assert config == records[0]
    assert results["provenance"] == records[1]["provenance"] and results["earlier"] == records[1]["earlier"]


def test_a_run_is_not_continued_by_other_code_of_the_same_name(tmp_path, capsys):
    file = tmp_path / "tiny.py"
    file.write_text(runs.TINY.read_text())
    words = ["train", "--config", str(file), "--workdir", str(tmp_path / "run"), "--config.control=False"]
    assert main.run([*words, "--config.steps=2", "--config.teachers.big.steps=1"]) == 0
    file.write_text(file.read_text() + "# another\n")
    for steps in (2, 3):
        assert main.run([*words, f"--config.steps={steps}", "--config.teachers.big.steps=1"]) == 2
        said = capsys.readouterr().err
        assert "registers data set blobs" in said and "was changed since the run in" in said
    assert "# another" not in (tmp_path / "run" / "tiny.py").read_text()


def test_seconds_are_those_of_all_processes(finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    before = runs.results(workdir)["seconds"]
    (workdir / "student" / "result.json").unlink()  # the metrics are lost, but checkpoints keep the seconds
    assert runs.run(workdir, "--config.steps=20", "--config.control=False") == 0
    again = runs.results(workdir)["seconds"]
    last = max(manifests(workdir / "student" / "checkpoints").values(), key=lambda manifest: manifest["step"])
    assert again["student"] >= last["seconds"] > 0.5 * before["student"]
    assert runs.run(workdir, "--config.steps=40", "--config.control=False") == 0
    assert runs.results(workdir)["seconds"]["student"] > again["student"]
    steps = sorted(manifests(workdir / "student" / "checkpoints"))
    seconds = [manifests(workdir / "student" / "checkpoints")[step]["seconds"] for step in steps]
    assert np.all(np.diff(seconds) > 0)
    file = workdir / "student" / "checkpoints" / "manifests" / "40.json"
    seal.write(file, {**seal.read(file, {}), "seconds": 1000.0})
    assert runs.run(workdir, "--config.steps=60", "--config.control=False") == 0
    assert manifests(workdir / "student" / "checkpoints")[60]["seconds"] > 1000  # those before count too


def test_a_record_without_the_hash_of_its_source_runs_nothing(tmp_path):
    file = record(tmp_path / "run", source="evil.py")
    (tmp_path / "run" / "evil.py").write_text(EVIL)
    with pytest.raises(ConfigError, match="was changed since"):
        load_config(str(file), trust_source=True)


def test_a_module_whose_name_begins_like_ours_is_the_users(monkeypatch):
    made = lambda: None
    made.__module__ = "jaxdistill_mine"
    monkeypatch.setitem(losses.factories, "lately", made)
    assert own_parts({"objective": {"lately": {}}}) == {"loss lately": "jaxdistill_mine"}
    assert "loss lately (jaxdistill_mine)" in registered_by_others()
