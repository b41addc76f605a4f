"""Tests of runs of models with two towers, which are measured by retrieval over the whole test set."""

import json

import numpy as np
import pytest
from corpora import WORDS, sentences, written
from own_runs import QUIET
from pictured_names import COLOURS, config_of, squares, towers

import jaxdistill
from jaxdistill import differ
from jaxdistill.core import seal
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.registry import datasets
from jaxdistill.data import store
from jaxdistill.run.commands import cache
from jaxdistill.run.distill import check_config


@pytest.fixture(scope="module", autouse=True)
def registered():
    datasets.register(squares)


def test_a_student_is_measured_by_retrieval_beside_its_teacher_and_control(home):
    folder = home / "pairs"
    jaxdistill.distill(config_of(home), folder, QUIET)
    results = seal.read(folder / "results.json", {"rows": list, "summary": str})
    rows = {row["name"]: row for row in results["rows"]}
    assert rows.keys() == {"teacher big", "student", "control"}
    for row in rows.values():
        assert row["gallery_images"] == 2 * row["gallery_texts"] == len(squares("test")) and "accuracy" not in row
        assert row["image_text_r5"] > 2 * row["chance_image_text_r5"]
    share = f"{100 * rows['student']['image_text_r5']:.2f} % among the five most similar"
    assert share in results["summary"] and "the same network trained on the pairs alone" in results["summary"]
    page = (folder / "report.html").read_text()
    assert "Text R@5 (%)" in page and "Held-out text R@5" in page
    predicted = jaxdistill.load(folder).predict(squares("test")[:6])
    assert predicted.embeddings.shape == predicted.text_embeddings.shape == (6, 16) and predicted.labels is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": {"kd": {}}}, "objective.kd: it reads classes, and a model with two towers has none"),
        ({"task": {"cross_entropy": {}}, "objective": {"contrastive": {}}}, "'label'|reads labels"),
        ({"step": "batch_selection(loss=cross_entropy(), share=0.5, by='hard')"}, "^step: .*'label'"),
        (
            {"teachers": {"big": {"model": "mlp(widths=(4,), classes=3)", "steps": 1}}},
            "task.contrastive: the student does not have two towers",
        ),
    ],
)
def test_what_needs_classes_is_refused_before_anything_is_trained(changes, said, home):
    with pytest.raises(ConfigError, match=said):
        check_config(config_of(home, **changes), None)


def test_a_locked_tower_keeps_its_weights_under_decay_and_pruning(home, tmp_path):
    student = {"model": towers(16, ", locked=('images',)"), "masks": "sparse(share=0.5, start=0.0)"}
    plain = {"student": student, "teachers": {}, "objective": {"contrastive": {}}, "control": False}
    runs = [
        jaxdistill.distill(
            config_of(home, **plain, optimizer="adamw(weight_decay=0.1)", rate=0.01, steps=steps),
            tmp_path / str(steps),
            QUIET,
        ).variables["student"]
        for steps in (2, 4)
    ]
    for name, x in runs[0].params.items():
        is_same = np.array_equal(x, runs[1].params[name])
        assert is_same == name.startswith("images/") or "key/bias" in name, name
    zeros = {name: np.mean(np.asarray(x) == 0) for name, x in runs[1].params.items() if name.endswith("kernel")}
    assert {name for name, share in zeros.items() if share < 0.4} == {n for n in zeros if n.startswith("images/")}


def test_a_cache_keeps_embeddings_and_trains_the_student_as_the_live_teacher_does(home):
    teacher = home / "teacher"
    taught = config_of(home, student={"model": towers(32)}, teachers={}, objective={"contrastive": {}}, steps=20)
    jaxdistill.distill(taught, teacher, QUIET)
    known = {"model": towers(32), "checkpoint": str(teacher)}
    plain = {"steps": 4, "control": False, "objective": {"affinity": {}, "embedding": {}}}
    live = jaxdistill.distill(config_of(home, teachers={"big": known}, **plain), home / "live", QUIET)
    option = f"outputs(folder={str(home / 'cache')!r})"
    config = config_of(home, teachers={"big": {**known, "cache": option}}, **plain)
    cache.write(config, QUIET)
    fields = store.read_manifest(home / "cache" / "train").fields
    assert fields == {"image": ((32,), "float32"), "text": ((32,), "float32"), "scale": ((), "float32")}
    cached = jaxdistill.distill(config, home / "cached", QUIET)
    for name, x in live.variables["student"].params.items():
        if "key/bias" not in name:  # this bias changes no output; its gradient is a rounding error
            np.testing.assert_allclose(x, cached.variables["student"].params[name], atol=2e-5, err_msg=name)
    first, second = ({row["name"]: row for row in each.rows}["teacher big"] for each in (live, cached))
    assert first["image_text_r5"] == second["image_text_r5"] > first["chance_image_text_r5"]
    classifier = {"student": {"model": "mlp(widths=(4,), classes=3)"}, "objective": {"kd": {}}}
    with pytest.raises(ConfigError, match=r"teachers\.big\.model: it has two towers, and the student has none"):
        check_config(config_of(home, teachers={"big": known}, **classifier), None)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("outputs(folder='F', top=3)", "the teacher has two towers, whose embeddings are kept; leave out top"),
        ("draws(folder='F')", "leave out top, features and draws"),
    ],
)
def test_a_cache_of_classes_is_refused(home, option, said):
    known = {"model": towers(32), "checkpoint": "", "cache": option.replace("F", str(home / "none")), "steps": 3}
    with pytest.raises(ConfigError, match=said):
        cache.write(config_of(home, teachers={"big": known}), QUIET)


def names(split: str):
    """Return two names of each pair of colours; the second is in a language with the same words but other meanings."""
    other = dict(zip(COLOURS, COLOURS[3:] + COLOURS[:3], strict=True))
    said = lambda text: " ".join(other[word] for word in text.split())
    return [{"text": each["text"], "other": said(each["text"])} for each in squares(split)]


def of_names(home, **more):
    datasets.register(names)
    text = f"bert(vocabulary={len(WORDS)}, width=16, depth=1, heads=2, ffn=16, positions=8, classes=0)"
    tokens = sentences(home, 8, ", teacher_fields=('other',)")
    plain = {"student": {"model": f"siamese({text})"}, "data": {"name": "names", "tokens": tokens}, "control": False}
    return text, config_of(home, **{**plain, "teachers": {}, "objective": {"contrastive": {}}, "steps": 30, **more})


def test_a_siamese_network_is_a_checkpoint_of_the_network_itself(home):
    text, config = of_names(home)
    folder = home / "siamese"
    (row,) = jaxdistill.distill(config, folder, QUIET).rows
    assert row["gallery_first_texts"] == row["gallery_texts"] == len(squares("test")) / 2  # each name is there twice
    assert "test first texts, the student finds the second text of" in (folder / "report.html").read_text()
    predicted = jaxdistill.load(folder).predict(["a b", "b a"])
    assert predicted.embeddings.shape == (2, 16) and predicted.text_embeddings is None
    hub = folder / "student" / "hub"  # holds the network itself, as transformers and sentence-transformers load it
    assert json.loads((hub / "config.json").read_text())["model_type"] == "bert" and (hub / "modules.json").is_file()
    assert "sentence-similarity" in (hub / "README.md").read_text()
    teacher = {"model": text, "checkpoint": str(folder), "reads": "teacher/"}
    changes = {"student": {"model": text}, "teachers": {"adapted": teacher}, "objective": {"logit_mse": {}}}
    teacher_row, student_row = jaxdistill.distill(of_names(home, **changes)[1], home / "taught", QUIET).rows
    plain = {
        **changes,
        "teachers": {"adapted": {**teacher, "reads": ""}},
        "data": {"name": "names", "tokens": sentences(home, 8)},
    }
    _, deaf = jaxdistill.distill(of_names(home, **plain)[1], home / "deaf", QUIET).rows
    assert student_row["similarity"] > 0.8
    params = jaxdistill.load(home / "taught").variables.params, jaxdistill.load(home / "deaf").variables.params
    assert any(np.abs(params[0][name] - params[1][name]).max() > 0.05 for name in params[0])
    assert deaf["similarity"] > 0.5
    assert teacher_row["parameters"] == student_row["parameters"] == row["parameters"]
    narrow = {**changes, "student": {"model": text.replace("width=16", "width=8")}}
    with pytest.raises(
        ConfigError, match=r"adapted\.model: it returns 16 numbers, and the student, .* embedding of 8\."
    ):
        check_config(of_names(home, **narrow)[1], None)


def test_a_cached_siamese_teacher_is_measured_as_the_live_one(home):
    text, config = of_names(home, steps=5)
    jaxdistill.distill(config, home / "siamese_teacher", QUIET)
    teacher = {"model": f"siamese({text})", "checkpoint": str(home / "siamese_teacher")}
    config = of_names(home, teachers={"big": teacher}, objective={"affinity": {}}, steps=2)[1]
    live = jaxdistill.distill(config, home / "with_live", QUIET).rows[0]
    option = f"outputs(folder={str(home / 'siamese_cache')!r})"
    config = differ(config, teachers={"big": {**teacher, "cache": option}})
    cache.write(config, QUIET)
    cached = jaxdistill.distill(config, home / "with_cached", QUIET).rows[0]
    measures = [name for name in live if "gallery" in name or "_r5" in name]
    assert cached["gallery_first_texts"] == len(squares("test")) / 2 and len(measures) == 6
    assert {name: cached[name] for name in measures} == {name: live[name] for name in measures}


def test_one_network_under_two_tokenizers_is_refused(home, tmp_path):
    other = written(tmp_path, [*WORDS[:5], *COLOURS[::-1]])
    config = of_names(home)[1]
    tokens = config.data.tokens.replace("teacher_fields", f"teacher={str(other)!r}, teacher_fields")
    with pytest.raises(ConfigError, match=r"^student\.model: the model reads both texts .* their tokenizers differ"):
        check_config(differ(config, data={"tokens": tokens}), None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {"name": "names", "tokens": ""}}, "student.model: the model reads the field 'input_ids'"),
        (
            {"teachers": {"big": {"model": towers(16), "steps": 1}}},
            r"teachers\.big\.model: the model reads the field 'image'",
        ),
    ],
)
def test_what_a_siamese_network_needs_is_named(home, changes, said):
    with pytest.raises(ConfigError, match=said):
        check_config(of_names(home, **changes)[1], None)


def test_texts_that_no_model_reads_are_refused(home):
    @datasets.register
    def labelled_names(split):
        return [{**each, "label": number % 2} for number, each in enumerate(names(split))]

    text, config = of_names(home)
    classifier = {"model": text.replace("classes=0", "classes=2")}
    changes = {"student": classifier, "teachers": {"big": {**classifier, "steps": 1}}, "objective": {"kd": {}}}
    config = differ(config, **changes, task={"cross_entropy": {}}, data={"name": "labelled_names"})
    with pytest.raises(
        ConfigError, match=r"^data\.tokens: no model reads the fields 'teacher/'.* Set teachers\.NAME\.reads"
    ):
        check_config(config, None)


def test_a_siamese_network_without_a_second_text_is_refused(home):
    _, config = of_names(home, data={"name": "names", "tokens": sentences(home, 8)})
    said = (
        r"^student\.model: .*no field begins with 'teacher/'; data\.tokens = \"sentences\(..., teacher_fields=...\)\""
    )
    with pytest.raises(ConfigError, match=said):
        check_config(config, None)
