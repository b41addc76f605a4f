"""Check that a resumed run notices inputs (records, tokenizers, weights, files) that changed since it began."""

import json
import shutil

import jax
import numpy as np
import pytest
from corpora import WORDS, sentences, written
from own_runs import QUIET, config_of

import jaxdistill
from jaxdistill import differ
from jaxdistill.core import seal
from jaxdistill.core.errors import ConfigError, DamageError
from jaxdistill.core.manifest import choose_step
from jaxdistill.core.registry import datasets
from jaxdistill.evaluation.report.logs import read_logs
from jaxdistill.losses.relations.edges import Graph, write_graph
from jaxdistill.models.pretrained import sources_of
from jaxdistill.run import record_identity, subset
from jaxdistill.run.commands import cache
from jaxdistill.run.outcomes import continued
from jaxdistill.run.record_identity import FILE
from jaxdistill.run.resolve import resolve
from jaxdistill.run.study import run_or_resume


def contents(folder):
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != "lock")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_a_repeated_run_notices_that_a_label_has_changed(home, tmp_path):
    files = dict(np.load(home / "images.npz"))
    np.savez(tmp_path / "images.npz", **files)
    config = differ(
        config_of("mlp", home), data={"name": f"table(path={str(tmp_path / 'images.npz')!r}, image='x', label='y')"}
    )
    config = differ(config, student={"model": "mlp(widths=(16,), classes=3)"}, steps=2)
    config = differ(config, teachers={"big": {"model": "mlp(widths=(16,), classes=3)", "steps": 2}})
    jaxdistill.distill(config, tmp_path / "run", QUIET)
    known = json.loads((tmp_path / "run" / FILE).read_text())["contents"]
    assert set(known) == {"train", "test"} and all(known.values())
    jaxdistill.distill(config, tmp_path / "run", QUIET)  # unchanged records are fine
    files["y"] = (files["y"] + 1) % 3
    np.savez(tmp_path / "images.npz", **files)
    before = contents(tmp_path / "run")
    for changed in (config, differ(config, steps=4)):
        with pytest.raises(ConfigError, match=r"changed since the run in .* began\. Restore the files") as error:
            jaxdistill.distill(changed, tmp_path / "run", QUIET)
        assert str(error.value).startswith("data.name: ")
    assert contents(tmp_path / "run") == before, "what is refused changes nothing"
    (tmp_path / "run" / FILE).write_text("{}")  # a damaged file is written again, and refuses nothing
    jaxdistill.distill(differ(config, steps=4), tmp_path / "run", QUIET)
    assert json.loads((tmp_path / "run" / FILE).read_text())["contents"] != known


def keep(files):
    for file, content in files.items():
        seal.write(file, content)


def test_hashes_of_inputs_that_cannot_be_read_now_are_kept(home, tmp_path, monkeypatch):
    data = resolve(alone(home), jax.devices()).data
    given = {name: record_identity.Input("data.name", name, name) for name in ("train", "test")}
    monkeypatch.setattr(record_identity, "_inputs", lambda *_: given)
    keep(record_identity.check_inputs(tmp_path, data, {}, alone(home)))
    known = seal.read(tmp_path / FILE, {"contents": dict})["contents"]
    del given["test"]
    given["teacher big"] = record_identity.Input("teachers.big", "its weights", "teacher")
    keep(record_identity.check_inputs(tmp_path, data, {}, alone(home)))
    assert seal.read(tmp_path / FILE, {"contents": dict})["contents"] == {**known, "teacher big": "teacher"}


def test_another_number_of_steps_is_told():
    assert continued([], 4) == continued([{"steps": 4}], 4) == ""
    said = (
        "The run was begun with 9 steps, and went on with 4: a model that was trained in both parts had the schedules"
    )
    assert continued([{"steps": 9}, {"steps": 4}], 4).startswith(said)


def kept_in(folder_of_arrays: str, split: str):
    """Return the records of a split, each split from a file of its own, as in a user's own data set."""
    with np.load(f"{folder_of_arrays}/{split}.npz") as arrays:
        return [{"image": x, "label": y} for x, y in zip(arrays["x"], arrays["y"], strict=True)]


def test_a_test_record_that_changes_is_noticed_too_and_a_missing_file_is_told(home, tmp_path, capsys):
    datasets.register(kept_in)
    draw = np.random.default_rng(0)
    made = lambda: {"x": draw.integers(0, 256, (20, 4, 4, 1), np.uint8), "y": np.arange(20) % 3}
    arrays = {"train": made(), "test": made()}
    for split, each in arrays.items():
        np.savez(tmp_path / f"{split}.npz", **each)
    data, model = {"name": f"kept_in({str(tmp_path)!r})"}, {"model": "mlp(widths=(4,), classes=3)"}
    config = differ(config_of("mlp", home), data=data, student=model, steps=1, teachers={"big": {**model, "steps": 1}})
    run = tmp_path / "run"
    jaxdistill.distill(config, run, QUIET)
    arrays["test"]["y"] = (arrays["test"]["y"] + 1) % 3
    np.savez(tmp_path / "test.npz", **arrays["test"])
    with pytest.raises(ConfigError, match="the records of test changed since"):
        jaxdistill.distill(config, run, QUIET)
    (run / FILE).unlink()
    jaxdistill.distill(config, run, QUIET)
    told = f"{run / FILE} is missing: it cannot be checked whether the run began with these records"
    assert told in capsys.readouterr().err


def test_a_study_does_not_put_runs_on_other_records_beside_finished_ones(home, tmp_path):
    files = dict(np.load(home / "images.npz"))
    np.savez(tmp_path / "images.npz", **files)
    name, model = f"table(path={str(tmp_path / 'images.npz')!r}, image='x', label='y')", "mlp(widths=(4,), classes=3)"
    config = differ(config_of("mlp", home), data={"name": name}, steps=1, student={"model": model}, control=False)
    config = differ(config, teachers={}, objective={"cross_entropy": {}})
    rows = run_or_resume(config, tmp_path / "run")
    assert run_or_resume(config, tmp_path / "run") == rows
    files["y"] = (files["y"] + 1) % 3
    np.savez(tmp_path / "images.npz", **files)
    with pytest.raises(ConfigError, match="changed since the run"):
        run_or_resume(config, tmp_path / "run")


def test_another_tokenizer_in_the_same_folder_is_noticed(home, tmp_path):
    words = tmp_path / "words"
    words.mkdir()
    written(words, WORDS)
    config = differ(config_of("bert", home, teachers={}, objective={"cross_entropy": {}}, control=False), steps=1)
    config = differ(config, data={"tokens": sentences(words, 8)})
    jaxdistill.distill(config, tmp_path / "run", QUIET)
    written(words, (*WORDS[:5], *WORDS[:4:-1]))
    for steps in (1, 2):
        with pytest.raises(ConfigError, match=r"^data\.tokens: .*the tokenizer changed since the run"):
            jaxdistill.distill(differ(config, steps=steps), tmp_path / "run", QUIET)


IMAGES = {"model": "mlp(widths=(4,), classes=3)"}


def alone(home, **more):
    plain = {"student": IMAGES, "teachers": {}, "objective": {"cross_entropy": {}}, "control": False, "steps": 1}
    return config_of("mlp", home, **plain | more)


def test_another_teacher_in_the_same_folder_is_noticed(home, tmp_path):
    jaxdistill.distill(alone(home), tmp_path / "big", QUIET)
    teachers = {"big": {**IMAGES, "checkpoint": str(tmp_path / "big")}}
    config = alone(home, teachers=teachers, objective={"kd": {}})
    jaxdistill.distill(config, tmp_path / "run", QUIET)
    jaxdistill.distill(config, tmp_path / "run", QUIET)  # the same teacher is fine
    shutil.rmtree(tmp_path / "big")
    jaxdistill.distill(alone(home, seed=1), tmp_path / "big", QUIET)
    for steps in (1, 2):
        with pytest.raises(ConfigError, match=r"^teachers\.big: its weights or its config changed since the run"):
            jaxdistill.distill(differ(config, steps=steps), tmp_path / "run", QUIET)


def test_another_checkpoint_that_student_or_teacher_begins_with_is_noticed(home, tmp_path):
    plain = {"teachers": {}, "objective": {"cross_entropy": {}}, "control": False}
    jaxdistill.distill(differ(config_of("bert", home, **plain), steps=1), tmp_path / "big", QUIET)
    model = f"pretrained({str(tmp_path / 'big/student/hub')!r})"
    student = differ(config_of("bert", home, **plain), steps=1, student={"model": model})
    teacher = config_of("bert", home, teachers={"big": {"model": model, "steps": 1}}, objective={"kd": {}})
    runs = {"student.model": student, "teachers.big": differ(teacher, steps=1, control=False)}
    for path, config in runs.items():
        jaxdistill.distill(config, tmp_path / path, QUIET)
        jaxdistill.distill(config, tmp_path / path, QUIET)  # the same weights are fine
    shutil.rmtree(tmp_path / "big")
    jaxdistill.distill(differ(config_of("bert", home, **plain), steps=1, seed=1), tmp_path / "big", QUIET)
    for path, config in runs.items():
        with pytest.raises(ConfigError, match=rf"^{path}: its weights or its config changed since the run"):
            jaxdistill.distill(differ(config, steps=2), tmp_path / path, QUIET)


@pytest.mark.parametrize("name", ["records.json", "selection.json"])
def test_hashes_of_another_run_are_refused(name, home, tmp_path):
    config = alone(home, data={**config_of("mlp", home).data.to_dict(), "select": "random(share=0.5)"})
    for run in ("one", "two"):
        jaxdistill.distill(config, tmp_path / run, QUIET)
    jaxdistill.distill(config, tmp_path / "one", QUIET)
    shutil.copy(tmp_path / "two" / name, tmp_path / "one" / name)
    with pytest.raises(DamageError, match=rf"config\.json and .*{name} are of two runs\. .* or delete {name}"):
        jaxdistill.distill(config, tmp_path / "one", QUIET)


def test_a_teacher_whose_last_checkpoint_is_gone_is_told(home, tmp_path, capsys):
    jaxdistill.distill(alone(home, steps=2), tmp_path, QUIET)
    place = tmp_path / "student" / "checkpoints"
    (place / "manifests" / "2.json").rename(place / "manifests" / "1.json")  # as if step 2 were lost
    shutil.move(place / "steps" / "2", place / "steps" / "1")
    content = seal.read(place / "manifests" / "1.json", {})
    seal.write(place / "manifests" / "1.json", {**content, "step": 1})
    assert choose_step(place, "last") == 1
    said = f"{place}: the checkpoint of step 2 is missing, incomplete or damaged; that of step 1 is used"
    assert said in capsys.readouterr().err


def test_a_graph_that_changes_is_noticed(home, tmp_path):
    graph = tmp_path / "graph.json"
    write_graph(graph, Graph(("a", "b", "c"), ((0, 1, 1.0),)))
    config = alone(home, objective={"near": {"term": f"related_labels(edges={str(graph)!r})"}})
    jaxdistill.distill(config, tmp_path / "run", QUIET)
    jaxdistill.distill(config, tmp_path / "run", QUIET)
    graph.write_text(graph.read_text().replace("[0, 1, 1.0]", "[0, 2, 1.0]"))
    with pytest.raises(DamageError, match=r"graph\.json has changed since .* delete its key 'seal'"):
        jaxdistill.distill(config, tmp_path / "run", QUIET)
    graph.write_text(json.dumps({"names": ["a", "b", "c"], "edges": [[0, 2, 1.0]]}))  # other programs write no seal
    with pytest.raises(ConfigError, match=r"^objective\.near\.term: a file that it reads changed since the run"):
        jaxdistill.distill(config, tmp_path / "run", QUIET)


def test_a_vocabulary_of_any_name_is_an_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words").mkdir()
    seen = set()
    for content in ("one", "two", "one"):
        (tmp_path / "words" / "vocabulary.json").write_text(content)
        seen.add(record_identity._identify_files("bert(keep='words', width=8)"))
    assert len(seen) == 2 and "" not in seen
    nothing = record_identity._identify_files("bert(keep='', width=8)")
    (tmp_path / "vocabulary.json").write_text("of the folder in which the command runs")
    assert record_identity._identify_files("bert(keep='', width=8)") == nothing
    assert record_identity._hash_in_process_0(record_identity._identify_files, "x(file='~nobody/y')") == ""


def test_checkpoints_are_found_at_any_depth_of_a_spec():
    assert sources_of("towers(images=vit(size=8), texts=lora(pretrained('a/b'), rank=2), width=4)") == ("a/b",)
    assert sources_of("cut(source='c', layers=2)") == sources_of("pretrained(source='c')") == ("c",)
    assert sources_of("cut('big', layers=2)") == ()


def test_a_study_does_not_take_the_results_of_another_run(home, tmp_path):
    one, two = (tmp_path / name for name in ("one", "two"))
    for folder in (one, two):
        run_or_resume(alone(home), folder)
    shutil.copy(two / "results.json", one / "results.json")
    with pytest.raises(DamageError, match="are of two runs"):
        run_or_resume(alone(home), one)


def test_the_log_of_another_model_and_lines_that_are_missing_are_told(home, tmp_path, capsys):
    jaxdistill.distill(alone(home, control=True, teachers={"big": {**IMAGES, "steps": 1}}), tmp_path, QUIET)
    whole = read_logs(tmp_path)
    assert capsys.readouterr().err == "" and all(log.train and log.eval for log in whole.values())
    student, control = (tmp_path / name / "log.jsonl" for name in ("student", "control"))
    kept = student.read_text()
    student.write_text(control.read_text())
    assert read_logs(tmp_path)["student"].train == []
    said = capsys.readouterr().err
    assert f"note: {student}, line 1, has changed since it was written, or is of another model" in said
    student.write_text(kept.partition("\n")[0] + "\n")
    read_logs(tmp_path)
    assert f"note: {student} has 1 lines that can be read, and had {len(kept.splitlines())}" in capsys.readouterr().err


def test_a_missing_hash_of_a_selection_is_told(home, tmp_path, capsys):
    data = resolve(alone(home), jax.devices()).data
    keep(subset.check_selection(tmp_path, data, np.arange(3)))
    assert capsys.readouterr().err == ""
    with pytest.raises(ConfigError, match="no longer selects the records that the run"):
        subset.check_selection(tmp_path, data, np.array([0, 1, 3]))
    (tmp_path / "student/checkpoints/manifests").mkdir(parents=True)
    (tmp_path / "student/checkpoints/manifests/1.json").touch()
    (tmp_path / "selection.json").write_text("{}")
    for state in ("damaged", "missing"):
        assert subset.check_selection(tmp_path, data, np.arange(2))  # the hash is written again
        said = f"note: {tmp_path / 'selection.json'} is {state}: it cannot be checked whether the run began with these"
        assert said in capsys.readouterr().err
        (tmp_path / "selection.json").unlink(missing_ok=True)


def test_a_cache_of_images_that_are_processed_in_another_way_is_refused(home, tmp_path):
    jaxdistill.distill(alone(home), tmp_path / "big", QUIET)
    recipe = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}, "image_mean": [0.5] * 3}
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**recipe, "image_std": [0.5] * 3}))
    data = {**config_of("mlp", home).data.to_dict(), "augment": (f"processed(source={str(tmp_path)!r})",)}
    teacher = {**IMAGES, "checkpoint": str(tmp_path / "wide")}
    jaxdistill.distill(alone(home, data=data), tmp_path / "wide", QUIET)
    cached = {**teacher, "cache": f"outputs(folder={str(tmp_path / 'cache')!r})"}
    config = alone(home, data=data, teachers={"big": cached}, objective={"kd": {}})
    cache.write(config, QUIET)
    live = alone(home, data=data, teachers={"big": teacher}, objective={"kd": {}})
    for name, each in (("run", config), ("live", live)):
        jaxdistill.distill(each, tmp_path / name, QUIET)
    file.write_text(json.dumps({**recipe, "image_std": [0.25] * 3}))
    with pytest.raises(ConfigError, match=r"cache/train is stale: .*transforms"):
        jaxdistill.distill(config, tmp_path / "other", QUIET)
    with pytest.raises(ConfigError, match=r"^data\.augment: a file that the transforms of train read .*changed since"):
        jaxdistill.distill(live, tmp_path / "live", QUIET)
