"""A trained model in use: `jaxdistill.load(RUN)` says what the evaluation of the run said, to the bit."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import runs
from corpora import WORDS, documents, sentences, written
from pyarrow import parquet
from rich.console import Console

import jaxdistill
from jaxdistill import differ, main, make
from jaxdistill.core.errors import ConfigError, DamageError
from jaxdistill.data.datasets import open_records

QUIET = Console(quiet=True)
IMAGES = "table(path='{home}/images.npz', image='x', label='y')"
TEXTS = "table(path='{home}/texts.jsonl', text='words', label='kind')"
FAMILIES = {  # the model, the data, their tokens
    "mlp": ("mlp(widths=(16,), classes={classes})", IMAGES, ""),
    "resnet": ("resnet(widths=(4, 8), blocks=1, classes=3)", IMAGES, ""),
    "resnet_imagenet": ("resnet_imagenet(widths=(8, 16), depths=(1, 1), classes=3, stem=8, channels=1)", IMAGES, ""),
    "efficientnet_lite": ("efficientnet_lite(stem=8, stages=((8, 2, 3, 2, 2),), top=16, classes=3)", IMAGES, ""),
    "vit": ("vit(patch=4, width=16, depth=1, heads=2, classes=3, image=8, channels=1)", IMAGES, ""),
    "deit": ("deit(patch=4, width=16, depth=1, heads=2, classes=3, image=8, channels=1)", IMAGES, ""),
    "bert": ("bert(vocabulary={vocabulary}, width=16, depth=1, heads=2, ffn=24, classes=2)", TEXTS, "sentences"),
    "decoder": (
        "decoder(vocabulary={vocabulary}, width=16, depth=1, heads=2, kv_heads=1, head_size=8, ffn=24)",
        TEXTS.replace(", label='kind'", ""),
        "documents",
    ),
}
ROWS = 16  # of an evaluation batch


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Files of images and texts, and a tokenizer."""
    place = tmp_path_factory.mktemp("own")
    draw = np.random.default_rng(0)
    labels = np.arange(120) % 3
    images = np.clip(80 * labels[:, None, None, None] + draw.normal(0, 60, (120, 8, 8, 1)), 0, 255).astype(np.uint8)
    np.savez(place / "images.npz", x=images, y=labels)
    letters = [" ".join(draw.choice(WORDS[5:], 2 + n % 6)) for n in range(120)]
    rows = [{"words": text, "kind": ("early", "late")[text[0] > "c"]} for text in letters]
    (place / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    written(place, WORDS)
    with pytest.MonkeyPatch.context() as patch, runs.compilation_cache(place / "programs"):
        patch.setenv("JAXDISTILL_DATA", str(place / "prepared"))
        yield place


def config_of(family: str, home: Path, **more):
    model, data, tokens = FAMILIES[family]
    tokenize = {"sentences": sentences(home, 8), "documents": documents(home, 8, ", pack=False")}
    teachers = {"big": {"model": model, "steps": 3}}
    plain = {
        "steps": 4,
        "batch_size": 16,
        "student": {"model": model},
        "teachers": teachers,
        "objective": {"kd": {}, "cross_entropy": {}},
        "data": {"name": data.format(home=home), "tokens": tokenize.get(tokens, "")},
        "evaluate": {"every": 2, "batch_size": ROWS, "layers": ()},
        "logging": {"tensorboard": False},
        "mesh": {"data": 1},
    }
    return make(**plain | more)


@pytest.fixture(scope="module")
def trained(home):
    """The folder of a run of each family, which is made when it is asked for."""

    def run(family: str) -> Path:
        folder = home / "runs" / family
        if not (folder / "results.json").is_file():
            jaxdistill.distill(config_of(family, home), folder, QUIET)
        return folder

    return run


def test_records(family: str, home: Path) -> list[dict]:
    name = FAMILIES[family][1].format(home=home)
    records = open_records(name, "test", home / "prepared", "data", "test")
    columns = records.take(np.arange(len(records)))
    return [
        {field: column[row] for field, column in columns.items() if field != "label"} for row in range(len(records))
    ]


test_records.__test__ = False


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
    assert image.predict(np.zeros((2, 8, 8, 1), np.uint8)).labels[0] in "012"


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([], "there are none"),
        ([{"words": "a"}], "record 0 has no field 'text'; it has words"),
        (["a", 3], "record 1, field 'text'"),
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
    ):
        with pytest.raises(ConfigError, match=said):
            jaxdistill.load(place if model != "studnet" else run, model)


def test_the_card_names_no_folder_of_this_machine(home, trained):
    for family in ("mlp", "bert"):
        card = (trained(family) / "student" / "hub" / "README.md").read_text()
        assert str(home) not in card and "pipeline_tag: " in card and "jaxdistill.load" in card
        assert "texts.jsonl" in card or "images.npz" in card


def command(*words: object) -> int:
    return main.run(list(map(str, words)))


def test_the_command_writes_predictions_beside_the_records(home, trained, capsys):
    run, rows = trained("bert"), [json.loads(line) for line in (home / "texts.jsonl").read_text().splitlines()]
    with (home / "new.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["words", "number"])
        table.writeheader()
        table.writerows({"words": row["words"], "number": n} for n, row in enumerate(rows))
    for suffix in ("csv", "jsonl", "parquet", "npz"):
        assert command("predict", run, "--input", home / "new.csv", "--output", home / f"out.{suffix}") == 0
    assert "120 records in " in capsys.readouterr().out
    with (home / "out.csv").open() as file:
        written_rows = list(csv.DictReader(file))
    expected = jaxdistill.load(run).predict([row["words"] for row in rows])
    assert [row["prediction"] for row in written_rows] == expected.labels
    assert [row["number"] for row in written_rows] == [str(n) for n in range(120)]
    lines = [json.loads(line) for line in (home / "out.jsonl").read_text().splitlines()]
    assert [line["probabilities"] for line in lines] == expected.probabilities.tolist()
    assert parquet.read_table(home / "out.parquet")["prediction"].to_pylist() == expected.labels
    with np.load(home / "out.npz") as arrays:
        assert arrays["confidence"].tolist() == expected.confidence.tolist()
    parquet.write_table(pa.table({"body": ["a b"]}), home / "other.parquet")
    assert command("predict", run, "--input", home / "other.parquet", "--output", home / "o.csv", "--text", "body") == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--input", "none.csv", "--output", "o.csv"), "error: --input: "),
        (("--input", "{home}/texts.jsonl", "--output", "o.doc"), "'o.doc' has an unknown format. Use one of .csv"),
        (("--input", "{home}/texts.jsonl", "--output", "o.csv", "--text", "word"), "Did you mean 'words'?"),
        (("--input", "{home}/texts.jsonl", "--output", "o.csv", "--model", "big"), "there is no 'big'"),
    ],
)
def test_a_wrong_command_is_one_line_and_writes_nothing(words, said, home, trained, tmp_path, monkeypatch, capsys):
    run = trained("bert")
    monkeypatch.chdir(tmp_path)
    assert command("predict", run, *(word.format(home=home) for word in words)) == 2
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


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


def unlabelled(home: Path, model: str, **more):
    config = config_of("bert", home, student={"model": model}, **more)
    return differ(config, data={"name": TEXTS.replace(", label='kind'", "").format(home=home)})


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
    """The teacher is the body of a classifier, without its head."""
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
