"""Tests of zero-shot classification: classes as texts, by hand and by the command, held-out classes, and mistakes."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
from corpora import WORDS, sentences
from own_runs import QUIET, command
from pictured_names import config_of, squares, towers

import jaxdistill
from jaxdistill import differ
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.registry import datasets
from jaxdistill.export.predictions import Predictions
from jaxdistill.export.zero_shot import ZeroShotClassifier
from jaxdistill.run.distill import check_config


@pytest.fixture(scope="module", autouse=True)
def registered():
    datasets.register(squares)


@pytest.fixture(scope="module")
def pairs(home):
    """Train two towers on pictures of two colours and their names; return the folder of the run."""
    alone = {"student": {"model": towers(32)}, "teachers": {}, "objective": {"contrastive": {}}, "control": False}
    jaxdistill.distill(config_of(home, **alone, steps=200), home / "pairs", QUIET)
    return home / "pairs"


def held_out():
    """Return pictures and names of pairs of colours that the model has not seen, and the numbers of their classes."""
    records = squares("test")
    classes = sorted({each["text"] for each in records})
    return records, classes, np.array([classes.index(each["text"]) for each in records])


def test_held_out_classes_are_found_by_their_names_alone(pairs):
    records, classes, labels = held_out()
    found = jaxdistill.load(pairs).zero_shot(classes).predict([each["image"] for each in records])
    accuracy, chance = float(np.mean(found.predicted == labels)), 1 / len(classes)
    assert accuracy > 4 * chance
    assert found.labels == [classes[number] for number in found.predicted]
    swapped = jaxdistill.load(pairs).zero_shot(classes[::-1]).predict([each["image"] for each in records])
    assert swapped.labels == found.labels  # the order of the classes does not matter
    turned = [f"{b} {a}" for a, b in (name.split() for name in classes)]
    others = jaxdistill.load(pairs).zero_shot(turned).predict([each["image"] for each in records])
    assert float(np.mean(others.predicted == labels)) < accuracy / 2  # other names, other answers


def test_probabilities_are_those_of_the_cosines_with_the_mean_of_the_templates(pairs):
    records, classes, _ = held_out()
    predictor, templates = jaxdistill.load(pairs), ("{}", "{} {}")
    pictures = [each["image"] for each in records[:5]]
    found = predictor.zero_shot(classes, templates).predict(pictures)
    unit = lambda x: np.float64(x) / np.linalg.norm(x, axis=-1, keepdims=True)
    blank = np.zeros_like(pictures[0])
    vectors = np.zeros((len(classes), found.embeddings.shape[1]))
    for template in templates:
        texts = [{"image": blank, "text": template.replace("{}", name)} for name in classes]
        vectors += unit(predictor.predict(texts).text_embeddings)
    whole = predictor.predict([{"image": picture, "text": "a"} for picture in pictures])
    logits = whole.scale[:, None] * (unit(whole.embeddings) @ unit(vectors).T)
    wanted = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(found.probabilities, wanted, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.confidence, found.probabilities.max(1))
    assert np.abs(predictor.zero_shot(classes).predict(pictures).probabilities - wanted).max() > 1e-3


def test_the_command_classifies_a_file_of_images(pairs, tmp_path, capsys):
    records, classes, _ = held_out()
    np.savez(tmp_path / "images.npz", image=np.stack([each["image"] for each in records]))
    words = ("--input", tmp_path / "images.npz", "--output", tmp_path / "out.csv", "--classes", ", ".join(classes))
    assert command("predict", pairs, *words) == 0, capsys.readouterr().err
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = jaxdistill.load(pairs).zero_shot(classes).predict([each["image"] for each in records])
    assert [row["prediction"] for row in rows] == found.labels and rows[0].keys() == {"prediction", "confidence"}
    assert command("predict", pairs, *words, "--overwrite", "--template", "a") == 2
    assert "--template: 'a' has no {} for the name of a class" in capsys.readouterr().err
    assert command("predict", pairs, *words[:4], "--overwrite", "--template", "a {}") == 2
    assert "--template: a template needs --classes, which is not set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("classes", "templates", "said"),
    [
        ((), ("{}",), "give the names of two classes or more"),
        (("a",), ("{}",), "give the names of two classes or more"),
        ("ab", ("{}",), "give the names of two classes or more"),
        (("a", " "), ("{}",), "' ' names no class"),
        (("a", "b", "a"), ("{}",), "contains 'a' twice"),
        (("a", "b"), (), "is missing. Give at least one text with {}"),
        (("a", "b"), ("c",), "'c' has no {} for the name"),
    ],
)
def test_wrong_classes_and_templates_are_named(pairs, classes, templates, said):
    with pytest.raises(ConfigError) as error:
        jaxdistill.load(pairs).zero_shot(classes, templates)
    assert said in str(error.value) and error.value.path in ("--classes", "--template")


def test_a_model_that_reads_padded_texts_alone_gets_them_padded(home, tmp_path):
    """Check with SigLIP, which pools a text at its last position, and is refused if texts are shorter than that."""
    sizes = "patch=4, image=8, vision_width=16, vision_depth=1, vision_heads=2, vision_ffn=16"
    sizes += ", text_width=16, text_depth=1, text_heads=2, text_ffn=16, positions=16"
    student = {"model": f"siglip(vocabulary={len(WORDS)}, {sizes})"}
    alone = {"student": student, "teachers": {}, "objective": {"contrastive": {}}, "control": False}
    with pytest.raises(ConfigError, match=r"student\.model: .*padded to 16 tokens, and these have 8; set length=16 in"):
        check_config(config_of(home, **alone), None)
    config = differ(config_of(home, **alone, steps=2), data={"tokens": sentences(home, 16)})
    jaxdistill.distill(config, tmp_path / "run", QUIET)
    predictor, records = jaxdistill.load(tmp_path / "run"), squares("test")[:8]
    outputs, exact = predictor.predict(records), predictor.predict(records, batch_size=8)
    np.testing.assert_allclose(outputs.text_embeddings, exact.text_embeddings, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("classes", "template"), [(("zebra", "horse"), "{}"), (("red red", "blue blue"), "red " * 40 + "{}")]
)
def test_names_that_the_tokenizer_cannot_tell_apart_are_refused(pairs, classes, template):
    with pytest.raises(ConfigError, match=f"--classes: '{classes[0]}' and '{classes[1]}' have one embedding"):
        jaxdistill.load(pairs).zero_shot(classes, (template,))


@pytest.mark.parametrize("transform", ["resize(size=8)", "processed(source='{}')"])
def test_pictures_are_preprocessed_and_so_is_the_blank_one(home, tmp_path, transform):
    processor = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 8}, "crop_size": 8}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    alone = {"student": {"model": towers(16)}, "teachers": {}, "objective": {"contrastive": {}}, "control": False}
    config = differ(config_of(home, **alone, steps=2), data={"augment": (transform.format(tmp_path),)})
    jaxdistill.distill(config, tmp_path / "run", QUIET)
    records, classes, _ = held_out()
    outputs = jaxdistill.load(tmp_path / "run").zero_shot(classes).predict([each["image"] for each in records[:3]])
    assert outputs.probabilities.shape == (3, len(classes)) and np.isfinite(outputs.probabilities).all()


@pytest.mark.parametrize(
    ("word", "said"), [("", "give the names of two classes"), (",", "names no class"), ("a,,b", "names no class")]
)
def test_empty_classes_of_the_command_are_no_missing_ones(pairs, tmp_path, word, said, capsys):
    words = ("--input", tmp_path / "x.npz", "--output", tmp_path / "out.csv", "--classes", word)
    assert command("predict", pairs, *words) == 2
    err = capsys.readouterr().err
    assert "--classes: " in err and said in err
    assert command("predict", pairs, *words[:4], "--classes", "a,b", "--features", "x") == 2
    assert "--features: is not read with --classes" in capsys.readouterr().err
    assert command("predict", pairs, *words[:2], "--output", tmp_path / "out.xlsx", "--classes", "a,b") == 2
    assert "out.xlsx' has an unknown format" in capsys.readouterr().err
    assert command("predict", pairs, *words[:4], "--classes", "a,b", "--text", "caption") == 2
    assert "--text: is not read with --classes, which needs images alone" in capsys.readouterr().err


def test_a_model_without_two_towers_has_no_such_classes(trained):
    with pytest.raises(ConfigError, match=r"--classes: classes are texts, .* Choose a run with two towers"):
        jaxdistill.load(trained("mlp")).zero_shot(("a", "b"))


def test_a_classifier_of_images_reads_no_column_of_texts():
    class Trained:
        about = SimpleNamespace(
            inputs={"image": ((2, 2, 1), "uint8")},
            transforms=(),
            texts=["text"],
            columns={"text": ("caption",), "image": ("file",)},
            _replace=lambda **changed: SimpleNamespace(**changed),
        )
        text_fields, class_names = ("text",), ()

        def predict(self, records, batch_size=None, first=0):
            x = np.eye(len(records), dtype=np.float32)
            return Predictions(embeddings=x, text_embeddings=x, scale=np.ones(len(records)))

    about = ZeroShotClassifier(Trained(), ("a", "b")).about
    assert about.columns == {"image": ("file",)} and about.texts == []
