"""Tests of runs in which student and teacher have different tokenizers, and of the mistakes that they report."""

import io
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from checks import assert_close
from flax import nnx
from rich.console import Console
from spelt import aligned, letters, written

import jaxdistill
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.registry import datasets
from jaxdistill.core.registry import models as networks
from jaxdistill.core.types import Factored, Outputs
from jaxdistill.models.combinators import strip_prefix, with_prefix
from jaxdistill.models.nnx import from_nnx
from jaxdistill.run.commands import cache


def reader(classes: int, width: int = 8):
    """Build a network that predicts the next token from the last two, with logits as features times a head."""

    class Reader(nnx.Module):
        def __init__(self, rngs):
            self.words = nnx.Embed(300, width, rngs=rngs)
            self.before = nnx.Embed(300, width, rngs=rngs)
            self.head = nnx.Linear(width, classes, use_bias=False, rngs=rngs)

        def __call__(self, batch, *, train, key):
            ids, own = batch["input_ids"], batch["segment_ids"]
            shift = lambda x: jnp.pad(x, ((0, 0), (1, 0)))[:, :-1]
            before = jnp.where((shift(own) == own)[..., None], self.before(shift(ids)), 0)
            states = jnp.tanh(self.words(ids) + before)
            return Outputs(Factored(states, self.head.kernel[...]), (states, states))

    return from_nnx(lambda rngs, batch: Reader(rngs))


def judge(classes: int, width: int = 8):
    """Build a classifier of texts that reads the mean embedding of the tokens."""

    class Judge(nnx.Module):
        def __init__(self, rngs):
            self.words, self.head = nnx.Embed(300, width, rngs=rngs), nnx.Linear(width, classes, rngs=rngs)

        def __call__(self, batch, *, train, key):
            real = batch["attention_mask"][..., None]
            mean = jnp.sum(self.words(batch["input_ids"]) * real, 1) / jnp.maximum(jnp.sum(real, 1), 1)
            return Outputs(self.head(mean), (mean, mean), embedding=mean)

    return from_nnx(lambda rngs, batch: Judge(rngs))


@pytest.fixture(autouse=True, scope="module")
def registered():
    datasets.register(letters)
    for factory in (reader, judge):
        networks.register(factory)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return written(tmp_path_factory.mktemp("tokenizers"))


# Readers


def test_a_reader_sees_its_own_fields_in_place_of_the_others():
    batch = {name: jnp.full((2, 3), n) for n, name in enumerate(("input_ids", "teacher/input_ids", "segment_ids"))}
    assert (
        strip_prefix(batch, "teacher/")["input_ids"].max() == 1
        and strip_prefix(batch, "teacher/")["segment_ids"].max() == 2
    )
    model = with_prefix(reader(5), "teacher/")
    params, state = model.init(jax.random.key(0), batch)
    apply = lambda m, b: m.apply(params, state, b, train=False, key=jax.random.key(0))[0]
    own = {"input_ids": batch["teacher/input_ids"], "segment_ids": batch["segment_ids"]}
    out = apply(model, batch)
    assert_close(out.dense().logits, apply(reader(5), own).dense().logits)
    assert out.hidden_states == () and out.spans is None
    spans = {"teacher/span": jnp.ones((2, 3), int), "teacher/label": jnp.zeros((2, 3), int)}
    assert apply(model, batch | spans).spans.number.shape == (2, 3)


# Runs


def config(tokens: str, folder: Path, **differences):
    data = {"name": "letters", "folder": str(folder), "tokens": tokens}
    common = {"batch_size": 8, "control": False, "rate": 0.03, "mesh": {"data": 1}, "logging": {"tensorboard": False}}
    evaluate = {"batch_size": 8, "every": 40, "layers": ()}
    return jaxdistill.make(**{**common, "evaluate": evaluate, "data": data, **differences})


@pytest.fixture(scope="module")
def taught(folders, tmp_path_factory) -> Path:
    """Train a teacher on the tokens of its own tokenizer, and return the folder of its run."""
    folder = tmp_path_factory.mktemp("teacher")
    tokens = f"documents(tokenizer='{folders['pairs']}', length=16, end='<halt>')"
    learned = config(tokens, folder, steps=60, student={"model": "reader(classes=10)"}, objective={"cross_entropy": {}})
    (row,) = jaxdistill.distill(learned, folder / "run").rows
    assert row["accuracy"] > 0.75
    return folder / "run"


def learning(folders, taught, folder, objective, **teacher):
    teacher = {"model": "reader(classes=10)", "checkpoint": str(taught), "reads": "teacher/", **teacher}
    tokens = aligned(folders, "words", "pairs", 16, ", end='<stop>', teacher_end='<halt>'")
    return config(
        tokens, folder, student={"model": "reader(classes=9)"}, teachers={"big": teacher}, objective=objective, steps=60
    )


def test_a_student_learns_its_own_tokens_from_a_teacher_of_others(folders, taught, tmp_path):
    """Check that a student learns letters from `gold` alone, of a teacher whose tokenizer merges a and b."""
    result = jaxdistill.distill(learning(folders, taught, tmp_path, {"gold": {}}), tmp_path / "run")
    teacher, student = result.rows
    assert teacher["accuracy"] > 0.75  # on its own tokens
    assert student["accuracy"] > 0.5 > 1 / 7 and "agreement" not in student


@pytest.mark.slow
def test_a_cached_teacher_of_other_tokens_is_the_living_one(folders, taught, tmp_path):
    objective = {"gold": {"term": "gold(beta=0.5)"}, "uld": {"weight": 0.5}, "cross_entropy": {}}
    living = learning(folders, taught, tmp_path, objective)
    cached = learning(folders, taught, tmp_path, objective, cache=f"outputs(folder='{tmp_path / 'said'}')")
    living.steps = cached.steps = 10
    cache.write(cached, Console(file=io.StringIO()))
    rows = [jaxdistill.distill(each, tmp_path / str(n)).rows[-1] for n, each in enumerate((living, cached))]
    assert rows[0]["nll"] == pytest.approx(rows[1]["nll"], rel=1e-6)


@pytest.mark.slow
def test_classes_need_no_tokens_in_common(folders, tmp_path):
    tokens = f"sentences(tokenizer='{folders['words']}', length=5, teacher='{folders['pairs']}')"
    own = config(
        f"sentences(tokenizer='{folders['pairs']}', length=5)",
        tmp_path,
        steps=120,
        student={"model": "judge(classes=2)"},
        objective={"cross_entropy": {}},
    )
    jaxdistill.distill(own, tmp_path / "teacher")
    teacher = {"model": "judge(classes=2)", "checkpoint": str(tmp_path / "teacher"), "reads": "teacher/"}
    both = config(
        tokens,
        tmp_path,
        steps=120,
        student={"model": "judge(classes=2)"},
        teachers={"big": teacher},
        objective={"kd": {}},
    )
    rows = jaxdistill.distill(both, tmp_path / "run").rows
    assert rows[1]["agreement"] > 0.9 and rows[0]["accuracy"] > 0.9


@pytest.mark.slow
def test_a_student_learns_a_language_that_its_teacher_does_not_know(folders, tmp_path):
    """Check that both are accurate if the teacher reads the field `english`, and not if it reads the translation."""

    @datasets.register
    def translated(split):
        other = str.maketrans("abcdefg", "bcdefga")
        return [{**each, "text": each["text"].translate(other), "english": each["text"]} for each in letters(split)]

    def run(name, tokens, **changes):
        data = {"name": "translated", "folder": str(tmp_path), "tokens": tokens}
        network = {"steps": 120, "student": {"model": "judge(classes=2)"}, "data": data}
        return jaxdistill.distill(config(tokens, tmp_path, **network, **changes), tmp_path / name).rows

    tokens = f"sentences(tokenizer='{folders['words']}', length=5, "
    run("teacher", f"{tokens}fields=('english',))", objective={"cross_entropy": {}})
    teacher = {"model": "judge(classes=2)", "checkpoint": str(tmp_path / "teacher")}
    rows = {
        fields: run(
            f"run{len(fields)}",
            f"{tokens}{fields})",
            teachers={"big": {**teacher, "reads": "teacher/" if fields else ""}},
            objective={"kd": {}},
        )
        for fields in ("teacher_fields=('english',)", "")
    }
    reading, guessing = rows.values()
    assert reading[0]["accuracy"] > 0.9 and reading[1]["accuracy"] > 0.9
    assert guessing[0]["accuracy"] < 0.7 and guessing[1]["accuracy"] < 0.7


# Mistakes


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"objective": {"kd": {}}}, "objective.kd: the teacher reads other tokens than the student; only gold and uld"),
        (
            {"reads": "tutor/"},
            "teachers.big.reads: 'tutor/': the data have no fields with this prefix. Known: 'teacher/'",
        ),
        (
            {"checkpoint": "", "steps": 9},
            "teachers.big.reads: this run trains the teacher, and such training uses the student's tokens",
        ),
        ({"objective": {"gold": {"term": "gold(vocabulary=3)"}}}, "leave it out"),
        ({"layers": ((-1, -1),)}, "evaluate.layers: .* it returns no hidden states; set evaluate.layers="),
    ],
)
def test_a_run_says_what_is_wrong_before_it_compiles(folders, taught, tmp_path, change, said):
    change = dict(change)
    objective, layers = change.pop("objective", {"gold": {}}), change.pop("layers", ())
    wrong = learning(folders, taught, tmp_path, objective, **change)
    with wrong.unlocked():
        wrong.evaluate.layers = layers
    with pytest.raises(ConfigError, match=said):
        jaxdistill.distill(wrong, tmp_path / "run")
