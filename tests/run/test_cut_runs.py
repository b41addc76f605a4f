"""Tests of runs whose student is cut out of a trained model: its units are chosen once, before its training."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from own_runs import QUIET, command, config_of, test_records, unlabelled
from rich.console import Console
from safetensors.numpy import load_file, save_file

import jaxdistill
from jaxdistill import differ
from jaxdistill.core import seal
from jaxdistill.core.checkpoint import load_variables
from jaxdistill.core.errors import ConfigError
from jaxdistill.run import cutting
from jaxdistill.run.commands.cache import write as write_cache
from jaxdistill.run.distill import check_config

CUT = "cut(teacher='big', layers=1, heads=0.5, neurons=0.5, records=40)"
BIG = "bert(vocabulary={vocabulary}, width=16, depth=3, heads=2, ffn=24, classes=2)"


def cut_config(home, student=CUT, family="bert", **more):
    config = config_of(family, home)
    teachers = {"big": {"model": BIG, "steps": 3}} if family == "bert" else config.teachers.to_dict()
    return differ(config, student={"model": student}, teachers=teachers, **more)


@pytest.fixture(scope="module")
def run(home):
    """Return the folder of a finished run with a cut student."""
    folder = home / "runs" / "cut"
    jaxdistill.distill(cut_config(home), folder, QUIET)
    return folder


def answers(folder, place="student"):
    return json.loads((folder / place / "result.json").read_text())["answers"]


def units(folder):
    return json.loads((folder / cutting.FILE).read_text())


def test_the_units_and_their_scores_are_kept_and_the_agreement_is_told(run):
    content, results = units(run), json.loads((run / "results.json").read_text())
    (layer,) = content["layers"]
    assert layer == int(np.argmax(content["scores"]["layers"]))
    assert {name: len(ids) for name, ids in content["units"].items()} == {f"heads/{layer}": 1, f"ffn/{layer}": 12}
    order = np.argsort(content["scores"][f"ffn/{layer}"])[-12:]
    assert content["units"][f"ffn/{layer}"] == sorted(order.tolist()) and content["heads_by"] == "importance"
    before = content["before_training"]
    assert 0 <= before["agreement"] <= 1 and f"cut on {100 * before['agreement']:.2f} %" in results["summary"]
    parameters = {row["name"]: row["parameters"] for row in results["rows"]}
    block, half = 4 * 17 * 16 + 2 * 32 + 2 * 16 * 24 + 40, 3 * 17 * 8 + 8 * 16 + 16 + 2 * 32 + 2 * 16 * 12 + 28
    assert parameters["teacher big"] - parameters["student"] == 3 * block - half
    assert json.loads((run / "config.json").read_text())["config"]["student"]["model"] == CUT


@pytest.mark.slow
def test_student_and_control_start_with_the_weights_of_the_teacher(home, tmp_path):
    config = cut_config(home, "cut(teacher='big', layers=(1,))", steps=1, rate="0.0")
    found = jax.device_get(jaxdistill.distill(config, tmp_path, QUIET).variables)
    for name in ("student", "control"):
        for array in ("attention/query/kernel", "down/bias", "mlp_norm/scale"):
            np.testing.assert_array_equal(
                found[name].params[f"blocks/0/{array}"], found["teacher big"].params[f"blocks/1/{array}"]
            )
        np.testing.assert_array_equal(
            found[name].params["head/out/kernel"], found["teacher big"].params["head/out/kernel"]
        )
    assert units(tmp_path)["layers"] == [1] and units(tmp_path)["heads_by"] == ""
    ours, theirs = (answers(tmp_path, place) for place in ("student", "teachers/big"))  # rate 0 changes no answer
    before = {
        "agreement": np.mean(np.equal(ours["predicted"], theirs["predicted"])),
        "accuracy": np.mean(np.equal(ours["predicted"], ours["label"])),
    }
    assert units(tmp_path)["before_training"] == pytest.approx(before)


def test_a_resumed_run_keeps_its_units_and_its_numbers(run, home, tmp_path):
    again = shutil.copytree(run, tmp_path / "again")
    for place in ("student/checkpoints/steps/4", "control/checkpoints"):
        shutil.rmtree(again / place)
    for file in ("student/result.json", "control/result.json"):
        (again / file).unlink()
    resumed = jaxdistill.distill(cut_config(home), again, QUIET)
    assert units(again) == units(run)
    for name in ("student", "control"):
        found = resumed.variables[name]
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), found)
        first = load_variables(run / name / "checkpoints", "last", shapes)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(first), jax.device_get(found))


@pytest.mark.slow
def test_damaged_units_are_chosen_again(run, home, tmp_path):
    again = shutil.copytree(run, tmp_path / "again")
    text = (again / cutting.FILE).read_text()
    (again / cutting.FILE).write_text(text.replace('"layers": [', '"layers": [0, '))
    shutil.rmtree(again / "control/checkpoints")
    (again / "control/result.json").unlink()
    jaxdistill.distill(cut_config(home), again, QUIET)
    same = lambda folder: {key: units(folder)[key] for key in ("layers", "units", "scores")}
    assert same(again) == same(run)


@pytest.mark.slow
def test_its_folder_is_one_of_hugging_face_layout_and_can_be_cut_again(run, home, tmp_path):
    found = jaxdistill.load(run).predict(test_records("bert", home), batch_size=16)
    answers = json.loads((run / "student/result.json").read_text())["answers"]
    np.testing.assert_array_equal(found.predicted, answers["predicted"])
    about = json.loads((run / "student/hub/jaxdistill.json").read_text())
    assert about["hub_layout"] and not about["in_transformers"]
    config = cut_config(home, f"cut(source={str(run / 'student/hub')!r}, neurons=6)", control=False)
    rows = {row["name"]: row for row in jaxdistill.distill(config, tmp_path, QUIET).rows}
    assert {name: len(ids) for name, ids in units(tmp_path)["units"].items()} == {"ffn/0": 6}
    assert rows["student"]["parameters"] < json.loads((run / "results.json").read_text())["rows"][1]["parameters"]
    assert command("export", tmp_path, "--to", "onnx") == 0


@pytest.mark.parametrize(
    ("family", "student"),
    [
        ("mlp", "cut(teacher='big', neurons=0.5)"),
        pytest.param("resnet", "cut(teacher='big', channels=0.5)", marks=pytest.mark.slow),
        pytest.param("decoder", "cut(teacher='big', neurons=0.5)", marks=pytest.mark.slow),
        pytest.param("vit", "cut(teacher='big', width=0.5, heads=1)", marks=pytest.mark.slow),
        pytest.param("deit", "cut(teacher='big', neurons=8)", marks=pytest.mark.slow),
    ],
)
def test_every_family_is_cut_and_trained(family, student, home, tmp_path):
    config = cut_config(home, student, family, steps=2, evaluate={"every": 2})
    rows = {row["name"]: row for row in jaxdistill.distill(config, tmp_path, QUIET).rows}
    assert rows["student"]["parameters"] < rows["teacher big"]["parameters"]
    assert np.isfinite(rows["student"]["nll"])


@pytest.mark.slow
def test_records_without_labels_score_heads_by_their_outputs(run, home, tmp_path):
    teachers = {"big": {"model": BIG, "steps": 0, "checkpoint": str(run / "teachers/big")}}
    config = unlabelled(home, "cut(teacher='big', heads=1)", teachers=teachers, objective={"kd": {}}, control=False)
    jaxdistill.distill(config, tmp_path, QUIET)
    content = units(tmp_path)
    assert content["heads_by"] == "activation" and content["before_training"]["accuracy"] is None
    assert content["units"]["heads/0"] == [int(np.argmax(content["scores"]["heads/0"]))]


@pytest.mark.parametrize(
    ("student", "said"),
    [
        ("cut(teacher='small')", "there is no teacher 'small'. Known: big"),
        ("cut(teacher='big', layers=9)", "layers=9: the model has 3; give at most 3"),
        ("cut(teacher='big', channels=0.5)", "a bert has no channels"),
        ("cut(teacher='big', wide=2)", "has an argument 'wide'"),
        ("cut(source='nowhere')", "there is no folder 'nowhere'"),
        ("cut(teacher='big', ffn=7)", "ffn=7 is what the cut decides"),
        ("cut(teacher='big', channel=0.5)", "has an argument 'channel'. Did you mean 'channels'"),
    ],
)
def test_a_wrong_cut_is_refused_before_anything_runs(student, said, home, tmp_path):
    with pytest.raises(ConfigError) as error:
        check_config(cut_config(home, student), tmp_path)
    assert said in str(error.value) and str(error.value).startswith("student.model")


@pytest.mark.slow
def test_a_teacher_with_a_cache_is_cut_as_it_is_without_one(run, home, tmp_path):
    teacher = {"model": BIG, "steps": 0, "checkpoint": str(run / "teachers/big")}
    config = cut_config(home, "cut(teacher='big', neurons=6)", control=False, steps=1, rate="0.0")
    plain = differ(config, teachers={"big": teacher})
    cached = differ(plain, teachers={"big": {**teacher, "cache": f"outputs(folder={str(tmp_path / 'cache/big')!r})"}})
    write_cache(cached, QUIET)
    folders = tmp_path / "plain", tmp_path / "cached"
    found = [jaxdistill.distill(each, folder, QUIET) for each, folder in zip((plain, cached), folders, strict=True)]
    assert units(folders[0])["units"] == units(folders[1])["units"]
    params = [jax.device_get(each.variables["student"].params) for each in found]
    jax.tree.map(np.testing.assert_array_equal, *params)


@pytest.mark.slow
def test_a_checkpoint_of_another_task_gets_a_new_head(run, home, tmp_path):
    hub = shutil.copytree(run / "teachers/big/hub", tmp_path / "hub")
    weights = load_file(hub / "model.safetensors")
    save_file({name: x for name, x in weights.items() if "classifier" not in name}, hub / "model.safetensors")
    about = json.loads((hub / "config.json").read_text())
    (hub / "config.json").write_text(json.dumps({**about, "architectures": ["BertForMaskedLM"]}))
    (hub / "seal.json").unlink()
    config = cut_config(home, f"cut(source={str(hub)!r}, layers=2, classes=2)", steps=1, control=False)
    student = jaxdistill.distill(config, tmp_path / "run", QUIET).variables["student"]
    assert student.params["head/out/kernel"].shape == (16, 2) and np.isfinite(student.params["head/out/kernel"]).all()
    assert "before_training" not in units(tmp_path / "run")  # a new head answers at random


@pytest.mark.slow
def test_a_cut_student_is_trained_for_few_bits_too(home, tmp_path):
    student = {
        "model": "cut(teacher='big', neurons=0.5)",
        "quantized": "aware(scales='learned', ranges='running', start=0.5)",
    }
    found = jaxdistill.distill(differ(cut_config(home, family="mlp"), student=student, steps=2), tmp_path, QUIET)
    assert units(tmp_path)["before_training"]["agreement"] is not None
    assert "layers/0/kernel/log_scale" in found.variables["student"].params


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"reads": "teacher/"}, "reads the same fields. Leave teachers.big.reads empty"),
        ({"classes": (1, 0)}, "has its classes. Leave teachers.big.classes empty"),
        ({"steps": 0}, "has no weights before the student's training. Set teachers.big.checkpoint or .steps"),
    ],
)
def test_a_teacher_that_is_no_model_for_the_student_is_not_cut(entry, said, home, tmp_path):
    config = cut_config(home)
    config = differ(config, teachers={"big": {**config.teachers.big.to_dict(), **entry}}, step="mutual()")
    with pytest.raises(ConfigError, match=re.escape(said)):
        check_config(config, tmp_path)


@pytest.mark.slow
def test_units_are_measured_on_the_records_that_are_trained_on(run, home, tmp_path):
    config = cut_config(home, steps=1, control=False, data={"select": "random(share=0.2)"})
    jaxdistill.distill(config, tmp_path, QUIET)
    few, all_records = units(tmp_path), units(run)
    assert few["records"] < all_records["records"] == 40
    assert few["scores"]["ffn/0"] != all_records["scores"]["ffn/0"]


@pytest.mark.slow
def test_units_of_another_model_and_units_that_their_scores_do_not_choose_are_not_believed(run, home, tmp_path):
    for number, change in enumerate(
        ({"weights": "0" * 64}, {"layers": [0]}, {"units": {"ffn/0": ["a"]}}, {"scores": {}})
    ):
        again = shutil.copytree(run, tmp_path / str(number))
        content = {name: x for name, x in units(again).items() if name != "seal"}
        seal.write(again / cutting.FILE, {**content, **change})
        for place in ("student/checkpoints", "control/checkpoints"):
            shutil.rmtree(again / place)
        for name in ("student", "control"):
            (again / name / "result.json").unlink()
        jaxdistill.distill(cut_config(home), again, QUIET)
        assert {k: units(again)[k] for k in ("layers", "units", "weights")} == {
            k: units(run)[k] for k in ("layers", "units", "weights")
        }
        assert answers(again) == answers(run)


def test_damaged_units_of_a_finished_run_are_made_again(run, home, tmp_path):
    again = shutil.copytree(run, tmp_path / "again")
    (again / cutting.FILE).write_text("{}")
    jaxdistill.distill(cut_config(home), again, QUIET)
    assert units(again) == units(run)
    assert "The student, and its controls, start as" in json.loads((again / "results.json").read_text())["summary"]


@pytest.mark.slow
def test_the_console_tells_the_agreement_once(home, tmp_path):
    import io

    text = io.StringIO()
    jaxdistill.distill(cut_config(home, steps=1), tmp_path, Console(file=text, width=400))
    assert text.getvalue().count("Before its training, it gave") == 2  # at the start of training, and in the summary
