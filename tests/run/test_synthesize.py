"""Tests of texts that a teacher generates: prompts, records parsed from its answers, resumption, and a run on them."""

import functools
import io
import json
import shutil

import jax
import numpy as np
import parity
import pytest
import runs
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import jaxdistill
from jaxdistill.core import registry, seal
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.types import Variables
from jaxdistill.data.text import synthesis
from jaxdistill.data.text.synthesis import PromptTemplate, synthetic
from jaxdistill.models.generate import generate
from jaxdistill.run.commands import synthesize
from jaxdistill.run.commands.synthesize import Settings
from jaxdistill.run.config import differ

QUIZ = PromptTemplate("{text}\nQuestion:", r"Question:(?P<question>.+)\nAnswer:(?P<answer>.+)", "\n\n")


def test_a_question_and_its_answer_are_read_out_of_what_was_said():
    assert QUIZ.prompt("Cats purr.") == "Cats purr.\nQuestion:"
    text = "Question: Who purrs?\nAnswer: Cats."
    assert QUIZ.record(" Who purrs?\nAnswer: Cats.\n\nQuestion: and then") == {
        "text": text,
        "question": "Who purrs?",
        "answer": "Cats.",
    }
    for other in (" Who purrs?", " Who?\nAnswer:", "\n\n Who?\nAnswer: Cats."):
        assert QUIZ.record(other) is None


def test_of_a_prompt_without_a_real_text_the_whole_is_a_record():
    assert PromptTemplate("The").record(" cat purrs. ") == {"text": "The cat purrs."}
    assert PromptTemplate("{text}").record(" \n") is None
    assert PromptTemplate("{text}").record("a\nb") == {"text": "a\nb"}


TEXTS = ["BCDEFG", "HI", "JKLMNOPQRS", "TU"]


def remarks(split: str):
    return [{"text": text} for text in (TEXTS if split == "train" else ["VWX", "YZ"])]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Write a small Llama in the layout of Hugging Face and a tokenizer for it, and yield a config that uses both."""
    folder = tmp_path_factory.mktemp("world")
    ref = parity.reference("llama_tied")
    hub = parity.write_folder(folder / "hub", ref)
    vocabulary = ref.config["vocab_size"]
    made = Tokenizer(models.WordLevel({chr(65 + i): i for i in range(vocabulary)}, unk_token="A"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    made.save(str(folder / "tokenizer.json"))
    with runs.registries_as_found(), runs.compilation_cache(folder / "compiled"):
        registry.datasets.register(remarks)
        yield jaxdistill.make(
            steps=3,
            batch_size=4,
            student={"model": f"pretrained({str(hub)!r})"},
            teachers={"llama": {"model": f"pretrained({str(hub)!r})"}},
            objective={"kd": {}},
            control=False,
            data={"name": "remarks", "tokens": f"documents(tokenizer={str(folder / 'tokenizer.json')!r}, length=5)"},
            evaluate={"every": 3, "batch_size": 4, "layers": ()},
            logging={"tensorboard": False},
            mesh={"data": 1},
        )


GO_ON = PromptTemplate("{text}")
HOW = Settings("llama", rows=5, part=2, length=6, steps=4)


def write(config, out, ask=GO_ON, how=HOW):
    synthesize.synthesize(config, out, ask, how, Console(file=io.StringIO()))
    return [json.loads(line) for file in sorted(out.glob("0*.jsonl")) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def written(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("written") / "texts"
    return out, write(world, out)


def test_records_are_what_the_teacher_says_of_real_texts_cut_to_fit(world, written):
    model = registry.models.build(world.teachers.llama.model, "")
    shapes = Variables(*jax.eval_shape(model.init, jax.random.key(0), {"input_ids": np.zeros((2, 6), np.int32)}))
    params = model.load(shapes).read().params
    prompts = np.zeros((2, 6), np.int32)
    prompts[0], prompts[1, :2] = [ord(c) - 65 for c in "JKLMNO"], [ord(c) - 65 for c in "TU"]
    key = jax.random.fold_in(jax.random.key(0), 1)  # the key of part 1
    said = jax.jit(functools.partial(generate, model, steps=4, temperature=1.0, top_p=0.95))
    tokens = said(params, prompts, np.array([6, 2]), key).tokens
    expected = [{"text": "".join(chr(65 + token) for token in row)} for row in tokens.tolist()]
    out, records = written
    assert len(records) == 5 and records[2:4] == expected
    assert [json.loads(line)["text"] for line in (out / "test.jsonl").read_text().splitlines()] == ["VWX", "YZ"]


@pytest.mark.slow
def test_what_was_cut_short_goes_on_to_the_same_and_other_settings_are_refused(world, written, tmp_path, monkeypatch):
    honest, parts = synthesis.write_part, []

    def dies(folder, number, records):
        if len(parts) == 1:
            raise KeyboardInterrupt
        parts.append(number)
        honest(folder, number, records)

    monkeypatch.setattr(synthesis, "write_part", dies)
    with pytest.raises(KeyboardInterrupt):
        write(world, tmp_path / "out")
    with pytest.raises(ValueError, match=r"is not finished: 1 of 3 parts are written"):
        synthetic(str(tmp_path / "out"), "train")
    monkeypatch.setattr(synthesis, "write_part", honest)
    assert write(world, tmp_path / "out") == written[1] == synthetic(str(tmp_path / "out"), "train")
    ask = PromptTemplate("{text}A")
    for other in ({"how": HOW._replace(temperature=0.5)}, {"ask": ask}, {"config": differ(world, seed=1)}):
        with pytest.raises(ConfigError, match=r"--out: .* written with other settings \((temperature|ask|seed)\)"):
            write(**{"config": world, "out": tmp_path / "out", **other})


@pytest.mark.slow
def test_a_student_learns_from_what_was_written_and_is_judged_on_what_is_real(world, written, tmp_path):
    config = differ(world, data={"name": f"synthetic(folder={str(written[0])!r})"})
    (teacher, student) = jaxdistill.distill(config, tmp_path, Console(quiet=True)).rows
    assert np.isfinite(student["nll"]) and np.isfinite(teacher["nll"])


def test_a_text_whose_end_merges_with_the_prompt_is_cut_until_it_fits():
    """Check that a text is cut further if a cut removes no token: one and two line breaks after "ab" are one token."""
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "\n": 2, "\n\n": 3}, [("\n", "\n")]))
    encoded = lambda text, length: synthesize._encoded_prompt(tokenizer, PromptTemplate("{text}\n"), text, length)
    assert encoded("ab\n", 3) == [0, 1, 3]
    assert encoded("ab\n", 2) == [0, 2]
    assert encoded("ab\n", 1) == [2]
    with pytest.raises(ConfigError, match=r"--ask: .* has 1 tokens; it must have 1 to 0"):
        encoded("ab\n", 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--teacher", "lama"], "--teacher: the config has no teacher 'lama'. Did you mean 'llama'?"),
        (["--form", "(a"], "--form: '(a' is not a regular expression"),
        (["--rows", "0"], "--rows: 0 rows"),
        (["--ask", "ABCDEFGH"], "--ask: 'ABCDEFGH' has 8 tokens; it must have 1 to 6"),
        (["--ask", ""], "--ask: '' has 0 tokens"),
        (
            ["--top-p", "0.0"],
            "cannot generate text with these settings: steps and top_k must be positive",
        ),
        (
            ["--steps", "9999"],
            "cannot generate text with these settings: 10004 tokens exceed the",
        ),
        (["--stop", "<end>"], "the tokenizer has no token '<end>'"),
        (["--field", "title"], "the records have no text field 'title'; name one of text"),
        (["--config.data.tokens="], "data.tokens: is empty. Set it to the teacher's tokenizer"),
        (["--config.teachers.llama.model=mlp(widths=(4,), classes=64)"], "teachers.llama.model"),
    ],
)
def test_a_mistake_is_told_before_anything_compiles(world, tmp_path, capsys, words, said):
    file, before = tmp_path / "config.json", len(runs.compilations)
    file.write_text(json.dumps({"config": world.to_dict()}))
    given = ["--config", str(file), "--out", str(tmp_path / "out"), "--teacher", "llama", "--ask", "{text}"]
    assert synthesize.run([*given, "--length", "6", "--part", "2", "--steps", "4", *words]) == 2
    assert said in capsys.readouterr().err
    assert not {"generate"} & set(runs.compilations[before:])


def test_files_of_others_are_not_mixed_with_a_set(world, tmp_path):
    (tmp_path / "test.csv").write_text("mine")
    with pytest.raises(ConfigError, match=r"--out: .* holds other files \(test\.csv\)\. Choose a new or empty folder"):
        write(world, tmp_path)


def test_a_part_without_its_seal_is_written_again(written, tmp_path):
    out, spec = tmp_path / "texts", f"synthetic(folder={str(tmp_path / 'texts')!r}, split='train')"
    shutil.copytree(written[0], out)
    (out / "00001.json").unlink()
    (out / "00001.jsonl").write_text('{"text": "other"}\n')
    with pytest.raises(ConfigError, match=r"is not finished or damaged: 2 of 3 parts"):
        registry.datasets.build(spec, "data.name")
    for file in out.glob("*.json"):  # an earlier version wrote no seals
        file.unlink()
    seal.write_text(out / "manifest.json", json.dumps({"rows": 5, "part": 2}))
    assert len(registry.datasets.build(spec, "data.name")) == 4


def test_a_folder_that_is_none_is_told():
    with pytest.raises(ConfigError, match=r"data\.name: synthetic: 'nowhere' holds no manifest\.json; write it"):
        registry.datasets.build("synthetic(folder='nowhere', split='train')", "data.name")
