"""Tests of students that embed only the most frequent tokens, and read all others as the unknown token."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from corpora import WORDS, sentences
from own_runs import QUIET, command, config_of, test_records

import jaxdistill
from jaxdistill import differ
from jaxdistill.compress.vocabulary import unknown_token, with_required_first
from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError
from jaxdistill.run import cutting
from jaxdistill.run.distill import check_config

ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
BIG = "bert(vocabulary={vocabulary}, width=16, depth=1, heads=2, ffn=24, classes=2)"


def cut_config(home, student, **more):
    teachers = {"big": {"model": BIG, "steps": 3}}
    return differ(config_of("bert", home), student={"model": student}, teachers=teachers, control=False, **more)


def test_rows_of_tokens_that_never_occur_change_no_answer(home, tmp_path, capsys):
    config = cut_config(home, "cut(teacher='big', vocabulary=11)", steps=1, rate="0.0")  # all 12 tokens but <end>
    found = jax.device_get(jaxdistill.distill(config, tmp_path, QUIET).variables)
    kept = json.loads((tmp_path / cutting.FILE).read_text())["units"]["vocabulary"]
    assert [WORDS[n] for n in kept] == [word for word in WORDS if word != "<end>"]
    rows = found["student"].state["embed/rows"]
    assert rows.tolist() == [0, 1, 2, 3, 1, *range(4, 11)]
    table = found["teacher big"].params["embed/token/embedding"]
    np.testing.assert_array_equal(found["student"].params["embed/token/embedding"], table[kept])
    student, teacher = jaxdistill.load(tmp_path), jaxdistill.load(tmp_path, "teachers/big")
    texts = [record["text"] for record in test_records("bert", home)]
    ours, theirs = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("student", "teachers/big"))
    np.testing.assert_allclose(ours["answers"]["confidence"], theirs["answers"]["confidence"], atol=1e-6)
    assert student.predict(texts).labels == teacher.predict(texts).labels
    sizes = {row["name"]: row["parameters"] for row in json.loads((tmp_path / "results.json").read_text())["rows"]}
    assert sizes["teacher big"] - sizes["student"] == 16
    assert not (tmp_path / "student" / "hub" / "config.json").exists()  # transformers has no such model
    pytest.importorskip("onnx")
    assert command("export", tmp_path, "--to", "onnx", "--records", 5) == 0


@pytest.mark.slow
def test_the_most_frequent_tokens_stay_and_others_are_read_as_unknown(home, tmp_path):
    config = cut_config(home, "cut(teacher='big', vocabulary=0.5)", steps=1, rate="0.0")
    found = jax.device_get(jaxdistill.distill(config, tmp_path, QUIET).variables)
    content = json.loads((tmp_path / cutting.FILE).read_text())
    counts, kept = content["scores"]["vocabulary"], content["units"]["vocabulary"]
    assert len(kept) == 6 and content["unknown"] == 1 and 1 in kept
    assert min(counts[n] for n in kept) >= max(counts[n] for n in range(12) if n not in kept)
    rows = found["student"].state["embed/rows"]
    assert [rows[n] for n in kept] == list(range(6))
    assert {int(rows[n]) for n in range(12) if n not in kept} == {kept.index(1)}


@pytest.mark.parametrize(
    ("student", "said"),
    [
        ("cut(teacher='big', vocabulary=13)", "vocabulary=13: the model has 12; give at most 12"),
        ("cut(teacher='big', vocabulary=0)", "vocabulary=0: give a number above 0"),
        ("bert(vocabulary=9, width=16, depth=1, heads=2, ffn=24, classes=2, tokens=8)", "tokens=8 are fewer than"),
    ],
)
def test_a_wrong_vocabulary_is_refused(student, said, home):
    with pytest.raises(ConfigError, match=r"student\.model") as error:
        check_config(cut_config(home, student), None)
    assert said in str(error.value)


def test_another_family_has_none(home):
    config = differ(config_of("mlp", home), student={"model": "cut(teacher='big', vocabulary=0.5)"})
    with pytest.raises(ConfigError, match=r"a mlp has no vocabulary; leave vocabulary=0.5 out"):
        check_config(config, None)


def test_a_tokenizer_without_an_unknown_token_is_refused_before_the_teacher_is_trained(home, tmp_path):
    tokenizer = json.loads((home / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [{"id": n, "content": WORDS[n], "special": True} | ADDED for n in range(4)]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = cut_config(home, "cut(teacher='big', vocabulary=3)")
    config = differ(config, data={"tokens": sentences(tmp_path, 8)})
    with pytest.raises(ConfigError, match=r"student.model: .* keeps 3 rows; the tokenizer has 4 special tokens"):
        check_config(config, None)
    tokenizer["model"]["unk_token"] = "[NONE]"
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match=r"student.model: .* the tokenizer has no unknown token"):
        check_config(config, None)


def test_special_tokens_stay_although_no_text_has_them():
    model = {"vocab": {"a": 0, "b": 1, "[UNK]": 2, "[X]": 3}, "unk_token": "[UNK]"}
    tokenizer = {"model": model, "added_tokens": [{"id": 3, "content": "[X]"}]}
    counts = with_required_first(tokenizer, np.array([2.0, 1.0, 0.0, 0.0]))
    assert np.argsort(-counts, kind="stable").tolist() == [2, 3, 0, 1]
    unigram = {"model": {"type": "Unigram", "vocab": [["<unk>", 0.0], ["a", -1.0]], "unk_id": 0}}
    assert unknown_token(unigram) == 0


def test_a_token_beyond_the_tokenizer_is_not_read_as_another():
    model = registry.models.build("bert(vocabulary=3, width=8, depth=1, heads=2, ffn=8, classes=2, tokens=5)", "model")
    rows = {
        "input_ids": jnp.array([[1, 9]], jnp.int32),
        "attention_mask": jnp.ones((1, 2), jnp.int32),
        "mask": jnp.ones(1),
    }
    params, state = model.init(jax.random.key(0), rows)
    out, _ = model.apply(params, state, rows, train=False, key=jax.random.key(0))
    assert np.isnan(np.asarray(out.logits)).any()
