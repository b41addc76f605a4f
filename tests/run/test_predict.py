"""Tests of trained models in use: `jaxdistill.load(RUN)` predicts what the evaluation of the run did, to the bit."""

import json
import shutil

import numpy as np
import pytest
import runs
from own_runs import FAMILIES, IMAGES, QUIET, ROWS, command, config_of, test_records, unlabelled
from pyarrow import parquet

import jaxdistill
from jaxdistill import differ
from jaxdistill.core import seal
from jaxdistill.core.errors import ConfigError, DamageError
from jaxdistill.run.predict import results


@pytest.mark.sampled("mlp*", "bert*", "decoder*", "vit-student")
@pytest.mark.parametrize("model", ["student", "control", "teachers/big"])
@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_are_those_of_the_evaluation_to_the_bit(family, model, home, trained):
    run = trained(family)
    said = json.loads((run / model / "result.json").read_text())["answers"]
    predictor, records = jaxdistill.load(run, model), test_records(family, home)
    found, other = predictor.predict(records, batch_size=ROWS), predictor.predict(records[:5])
    if family == "decoder":
        expected = np.float32(said["nll_sum"]) / np.maximum(np.float32(said["tokens"]), 1)
        assert len(said["tokens"]) == len(records) and found.nll.tolist() == expected.tolist()
        np.testing.assert_allclose(other.nll, found.nll[:5], rtol=1e-5)
        return
    assert found.predicted.tolist() == said["predicted"]
    assert found.confidence.tolist() == [float(np.float32(x)) for x in said["confidence"]]
    assert found.probabilities.max(1).tolist() == pytest.approx(found.confidence.tolist(), rel=1e-6)
    largest = np.abs(np.log(found.probabilities)).max()
    np.testing.assert_allclose(np.log(other.probabilities), np.log(found.probabilities[:5]), atol=1e-5 * largest)


def test_a_resumed_run_writes_the_same_models(home, trained):
    whole = trained("mlp")
    folder = home / "runs" / "resumed"
    shutil.copytree(whole, folder)
    for name in ("results.json", "student/result.json", "student/hub/model.safetensors", "student/checkpoints/steps/4"):
        place = folder / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    (folder / "student/checkpoints/manifests/4.json").unlink()  # as if killed after step 2
    jaxdistill.distill(config_of("mlp", home), folder, QUIET)
    for name in ("student", "control", "teachers/big"):
        one, other = ((run / name / "hub" / "model.safetensors").read_bytes() for run in (whole, folder))
        assert one == other


def test_the_model_of_another_run_is_not_taken_for_its_own(home, trained, tmp_path):
    run = shutil.copytree(trained("mlp"), tmp_path / "run")
    assert jaxdistill.load(run).about.run == json.loads((run / "config.json").read_text())["run"]
    shutil.copytree(run / "student" / "hub", tmp_path / "other" / "student" / "hub")
    (tmp_path / "other" / "config.json").write_text(json.dumps({"config": {}, "run": "another"}))
    with pytest.raises(DamageError, match=r"holds a model of another run\. Delete that folder, and repeat"):
        jaxdistill.load(tmp_path / "other")


@pytest.mark.parametrize("rows", [["text"], [["list"]], {"name": "student"}, None])
def test_results_of_another_form_are_damaged(rows, tmp_path):
    seal.write(tmp_path / "results.json", {"rows": rows, "config": {}})
    with pytest.raises(DamageError, match=r"'rows' is missing or of another type"):
        results(tmp_path)


def test_a_damaged_or_missing_model_of_a_finished_run_is_written_again(home, trained):
    run = trained("mlp")
    weights = run / "student" / "hub" / "model.safetensors"
    before = weights.read_bytes()
    runs.flip(weights, len(before) // 2)
    with pytest.raises(DamageError, match=r"model.safetensors has changed since it was written"):
        jaxdistill.load(run)
    jaxdistill.distill(config_of("mlp", home), run, QUIET)
    assert weights.read_bytes() == before
    assert jaxdistill.load(run).predict(test_records("mlp", home)).predicted is not None


def test_names_of_classes_and_forms_of_records(home, trained):
    predictor = jaxdistill.load(trained("bert"))
    assert predictor.class_names == ("early", "late")
    found = predictor.predict(["a b c", "g f e"])
    assert set(found.labels) <= {"early", "late"} and found.probabilities.shape == (2, 2)
    assert predictor.predict([{"text": "a b c"}]).confidence == pytest.approx(found.confidence[:1], rel=1e-5)
    hub = json.loads((trained("bert") / "student" / "hub" / "config.json").read_text())
    assert hub["id2label"] == {"0": "early", "1": "late"}
    image = jaxdistill.load(trained("mlp"))
    assert image.predict(np.zeros((2, 8, 8, 1), np.uint8)).labels[0] in ("0", "1", "2")


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([], "there are none"),
        ([{"words": "a"}], "record 0 has no field 'text'; it has words"),
        (["a", 3], "record 1: 'text' is 3, not a text"),
        ("a b c", "a str is one record; give a list"),
    ],
)
def test_a_wrong_record_is_one_line(records, said, trained):
    with pytest.raises(ConfigError, match=said):
        jaxdistill.load(trained("bert")).predict(records)


def test_what_is_no_model_is_named(home, trained):
    run = trained("mlp")
    for place, model, said in (
        (home / "nothing", "student", "does not exist"),
        (home, "studnet", "there is no 'studnet'"),
        (run, "teachers/small", "Known: control, student, teachers/big"),
        (run / "student", "control", "is the folder of one model. Leave --model out"),
        (run / "student" / "hub", "control", "is the folder of one model. Leave --model out"),
    ):
        with pytest.raises(ConfigError, match=said):
            jaxdistill.load(place if model != "studnet" else run, model)
    assert jaxdistill.load(run / "student").folder == run / "student" / "hub"


def test_the_card_names_no_folder_of_this_machine(home, trained):
    for family in ("mlp", "bert"):
        card = (trained(family) / "student" / "hub" / "README.md").read_text()
        assert str(home) not in card and "pipeline_tag: " in card and "jaxdistill.load" in card
        assert "texts.jsonl" in card or "images.npz" in card


def test_a_model_of_ones_own_needs_its_source(home):
    source = home / "mine.py"
    source.write_text(
        "from flax import nnx\nfrom jaxdistill import Outputs, from_nnx, make, registry\n\n"
        "class Net(nnx.Module):\n    def __init__(self, rngs):\n        self.head = nnx.Linear(64, 3, rngs=rngs)\n\n"
        "    def __call__(self, batch, *, train, key):\n"
        "        return Outputs(self.head(batch['image'].reshape(len(batch['image']), -1) / 255.0))\n\n"
        "@registry.models.register\ndef net():\n    'A net.'\n    return from_nnx(lambda rngs, batch: Net(rngs))\n\n"
        f"def get_config():\n    return make(steps=2, batch_size=8, control=False, student={{'model': 'net()'}},\n"
        f"        objective={{'cross_entropy': {{}}}}, data={{'name': {IMAGES.format(home=home)!r}}})\n"
    )
    folder = home / "runs" / "net"
    with runs.registries_as_found():
        assert command("train", "--config", source, "--workdir", folder) == 0
        here = jaxdistill.load(folder).predict(test_records("mlp", home)).predicted
    with (
        runs.registries_as_found(),
        pytest.raises(ConfigError, match=r"The model needs model net \(module config_mine\)"),
    ):
        jaxdistill.load(folder)
    with runs.registries_as_found():
        there = jaxdistill.load(folder, trust_source=True).predict(test_records("mlp", home)).predicted
    assert here.tolist() == there.tolist()


def test_texts_without_labels_are_distilled_without_a_control(home, trained, capsys):
    model = FAMILIES["bert"][0]
    teachers = {"big": {"model": model, "checkpoint": str(trained("bert") / "teachers" / "big")}}
    config = unlabelled(home, model, teachers=teachers, objective={"kd": {}})
    result = jaxdistill.distill(config, home / "u")
    rows = {row["name"]: row for row in result.rows}
    assert rows.keys() == {"teacher big", "student"} and "accuracy" not in rows["student"]
    assert {"agreement", "kl"} <= rows["student"].keys()
    said = " ".join(capsys.readouterr().out.split())
    assert "There is no control: it learns from labels alone, and the records of 'train' have none." in said
    assert "The student gives the teacher's answer on" in said
    assert "Agreement with the teacher" in (home / "u" / "report.html").read_text()
    said = r"objective.cross_entropy: reads labels, and the records of 'train' have none"
    with pytest.raises(ConfigError, match=said):
        jaxdistill.distill(differ(config, objective={"cross_entropy": {}}), home / "v", QUIET)


def test_an_embedding_needs_no_label(home, trained):
    """Check that an embedder learns from unlabelled texts; its teacher is a classifier without its head."""
    body = str(trained("bert") / "teachers" / "big" / "hub")
    model = f"pretrained({body!r}, classes=0)"
    config = unlabelled(home, model, teachers={"big": {"model": model}}, objective={"logit_mse": {}})
    result = jaxdistill.distill(config, home / "e", QUIET)
    student = result.rows[-1]
    assert student["similarity"] > 0.9 and "agreement" not in student
    predictor = jaxdistill.load(home / "e")
    found = predictor.predict(["a b c", "d"])
    assert found.embeddings.shape == (2, 16) and found.predicted is None
    np.testing.assert_allclose(np.linalg.norm(found.embeddings, axis=1), 1, rtol=1e-5)
    assert (home / "e" / "student" / "hub" / "modules.json").is_file()
    assert command("predict", home / "e", "--input", home / "texts.jsonl", "--output", home / "e.csv") == 2
    assert command("predict", home / "e", "--input", home / "texts.jsonl", "--output", home / "e.parquet") == 0
    assert len(parquet.read_table(home / "e.parquet")["embedding"][0]) == 16


@pytest.mark.slow
def test_the_pooling_of_an_embedder_is_kept(home, trained):
    """Check that a loaded embedder keeps its pooling, for which the Hugging Face config has no key."""
    body = str(trained("bert") / "teachers" / "big" / "hub")
    found = {}
    for pool in ("mean", "cls"):
        model = f"pretrained({body!r}, classes=0, pool={pool!r})"
        config = unlabelled(home, model, teachers={"big": {"model": model}}, objective={"logit_mse": {}}, steps=1)
        jaxdistill.distill(differ(config, rate="0.0"), home / f"e-{pool}", QUIET)
        found[pool] = jaxdistill.load(home / f"e-{pool}").predict(["a b c d"]).embeddings
        pooling = json.loads((home / f"e-{pool}" / "student/hub/1_Pooling/config.json").read_text())
        assert pooling["pooling_mode_cls_token"] == (pool == "cls")
    assert np.abs(found["mean"] - found["cls"]).max() > 0.01


def test_images_of_another_shape_or_type_are_refused(home, trained):
    predictor = jaxdistill.load(trained("mlp"))
    for wrong in (
        np.zeros((2, 8, 8, 1), np.float32),
        np.zeros((2, 9, 9, 1), np.uint8),
        np.zeros((2, 8, 8, 3), np.uint8),
    ):
        with pytest.raises(ConfigError, match=r"the model was trained on \[8, 8, 1\] and uint8"):
            predictor.predict(wrong)


def test_a_text_without_a_predicted_token_has_no_likelihood(trained):
    found = jaxdistill.load(trained("decoder")).predict(["a b c", "a", ""]).nll
    assert np.isfinite(found[0]) and np.isnan(found[1:]).all()


def test_a_folder_without_all_of_its_files_is_written_again(home, trained):
    run = trained("bert")
    (run / "student/hub/tokenizer.json").unlink()
    jaxdistill.distill(config_of("bert", home), run, QUIET)
    assert jaxdistill.load(run).predict(["a"]).labels


def test_a_teacher_that_learns_with_the_student_is_written_and_another_is_not(home, trained):
    model, checkpoint = FAMILIES["mlp"][0], str(trained("mlp") / "teachers" / "big")
    teachers = {"peer": {"model": model}}
    config = config_of("mlp", home, teachers=teachers, step="mutual()", objective={"kd": {}, "cross_entropy": {}})
    jaxdistill.distill(config, home / "peers", QUIET)
    assert jaxdistill.load(home / "peers", "teachers/peer").predict(test_records("mlp", home)[:2]).labels
    teachers = {"old": {"model": model, "checkpoint": checkpoint}}
    jaxdistill.distill(config_of("mlp", home, teachers=teachers, control=False), home / "old", QUIET)
    assert not (home / "old/teachers/old/hub").exists()


def test_shorter_batches_of_texts_lose_no_token(trained, monkeypatch):
    predictor = jaxdistill.load(trained("bert"))
    texts = ["a", "a b c", "g f e d c"]
    whole = predictor.predict(texts, batch_size=ROWS)
    monkeypatch.setattr("jaxdistill.export.predictor.SHORTEST", 2)
    for some in (texts, texts[:1], texts[1:2]):
        found, first = predictor.predict(some), texts.index(some[0])
        np.testing.assert_allclose(found.probabilities, whole.probabilities[first : first + len(some)], atol=1e-6)


def test_texts_of_many_rows_keep_their_own_tokens(trained):
    """Check that texts whose rows of tokens fill several batches get the likelihoods that each text gets alone."""
    predictor, draw = jaxdistill.load(trained("decoder")), np.random.default_rng(1)
    texts = [" ".join(draw.choice(list("abcdefg"), 20 + 13 * n)) for n in range(5)]
    together = predictor.predict(texts, batch_size=4).nll
    alone = [predictor.predict([text]).nll[0] for text in texts]
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    assert np.ptp(alone) > 1e-4


def test_a_wrong_record_of_a_later_batch_has_its_own_number(trained):
    predictor = jaxdistill.load(trained("bert"))
    with pytest.raises(ConfigError, match="record 21"):
        predictor.predict([{"text": "a"} if n != 21 else {"word": "a"} for n in range(30)])


def test_what_is_no_text_is_refused_by_a_language_model_too(trained):
    with pytest.raises(ConfigError, match=r"records: record 1: 'text' is 3, not a text"):
        jaxdistill.load(trained("decoder")).predict(["a b", 3])
    with pytest.raises(ConfigError, match=r"records: record 1025: 'text' is 3, not a text"):
        jaxdistill.load(trained("bert")).predict(["a b", 3], first=1024)
