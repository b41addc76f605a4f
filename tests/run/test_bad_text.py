"""Check that configs of language models that do not fit their vocabulary, mesh or context are refused early."""

import io

import jax
import numpy as np
import pytest
import runs
from rich.console import Console
from spelt import letters, written

import jaxdistill
from jaxdistill.core.checkpoint import Checkpoints
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.registry import datasets
from jaxdistill.models.build import build_model as model
from jaxdistill.run.commands import cache
from jaxdistill.run.config import differ
from jaxdistill.run.distill import check_config

DECODER = "decoder(vocabulary={}, width={}, depth=1, heads=2, kv_heads=2, head_size=4, ffn=12, positions={})"
TEACHER = DECODER.format(9, 12, 64)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Return a config of a student and a trained teacher, and the folders of tokenizers by name."""
    home = tmp_path_factory.mktemp("world")
    folders = written(home)
    batch = {"input_ids": np.zeros((2, 8), np.int32)}
    params, state = jax.jit(lambda key: model(TEACHER, "", "float32").init(key, batch))(jax.random.key(0))
    with Checkpoints(home / "big" / "checkpoints") as checkpoints:
        checkpoints.save(1, {"params": {"student": params}, "state": {"student": state}}, {}, {"accuracy": 0.5})
    with runs.registries_as_found():
        datasets.register(letters)
        yield (
            jaxdistill.make(
                steps=4,
                batch_size=8,
                student={"model": DECODER.format(9, 8, 64)},
                teachers={"big": {"model": TEACHER, "checkpoint": str(home / "big")}},
                objective={"kd": {}},
                control=False,
                data={"name": "letters", "tokens": f"documents(tokenizer={str(folders['words'])!r}, length=16)"},
                evaluate={"every": 4, "batch_size": 8, "layers": ()},
                logging={"tensorboard": False},
                mesh={"data": 1},
            ),
            folders,
        )


def refused(config, folder) -> str:
    before = len(runs.compilations)
    with pytest.raises(ConfigError) as caught:
        check_config(config, folder)
    assert runs.compilations[before:] == []
    return str(caught.value)


def teacher(config, **differences):
    return {"big": {**config.teachers.big.to_dict(), **differences}}


SAMPLES = {"reverse_kl": {"stream": "samples"}}
MISTAKES = {
    "another vocabulary": (
        lambda config: {"teachers": teacher(config, model=DECODER.format(12, 12, 64), checkpoint="", steps=4)},
        "teachers.big.model: ",
        "has 12 classes, 9 are needed",
    ),
    "heads that the mesh does not divide": (
        lambda config: {"mesh": {"tensor": 4}},
        "mesh.tensor: 4 does not divide heads=2 of student.model",
        "Choose a divisor of 2",
    ),
    "heads of keys that the mesh does not divide": (
        lambda config: {
            "mesh": {"tensor": 4},
            "student": {"model": DECODER.format(9, 16, 64).replace("heads=2", "heads=4", 1)},
        },
        "mesh.tensor: 4 does not divide kv_heads=2 of student.model",
        "Choose a divisor of 2",
    ),
    "a vocabulary that the mesh does not divide": (
        lambda config: {"mesh": {"tensor": 2}},
        "mesh.tensor: 2 does not divide vocabulary=9 of student.model",
        "Choose a divisor of 9",
    ),
    "a context longer than the positions": (
        lambda config: {"student": {"model": DECODER.format(9, 8, 12)}},
        "student.model: 16 tokens exceed the 12 positions",
        "truncate them",
    ),
    "pieces that do not divide the context": (
        lambda config: {"chunks": 5},
        "chunks: 5 does not divide 16 tokens",
        "Choose a divisor",
    ),
    "a kernel for a head in one piece": (
        lambda config: {"kernels": "pallas"},
        "kernels: 'pallas' computes the loss terms of chunks, and chunks=1",
        "Set chunks",
    ),
    "a kernel for few classes": (
        lambda config: {"kernels": "pallas", "chunks": 2},
        "objective.kd: kernels='pallas' is for pointwise operations and sums over classes, but there are 9 classes",
        "set it to 'xla'",
    ),
    "a kernel on a CPU": (
        lambda config: {
            "kernels": "pallas",
            "chunks": 2,
            "student": {"model": DECODER.format(80, 8, 64)},
            "teachers": teacher(config, model=DECODER.format(80, 12, 64), checkpoint="", steps=4),
        },
        "kernels: 'pallas' is compiled for TPUs, and these devices are of platform 'cpu'",
        "Set kernels='xla'",
    ),
    "a kernel for rows that the mesh splits": (
        lambda config: {"kernels": "pallas", "chunks": 2, "mesh": {"tensor": 2}},
        "mesh.tensor: 2 splits the rows of logits that kernels='pallas' reads whole",
        "set kernels='xla'",
    ),
    "nobody reads the samples": (
        lambda config: {"step": "on_policy(prompt=4)"},
        "step: on_policy: no term reads the generated samples",
        "objective.NAME.stream='samples'",
    ),
    "nobody writes samples": (
        lambda config: {"objective": SAMPLES},
        "objective.reverse_kl: reads the stream 'samples'",
        "streams.samples.split",
    ),
    "a prompt without room": (
        lambda config: {"objective": SAMPLES, "step": "on_policy(prompt=17)"},
        "step: prompt=17 is longer than the rows of 16 tokens",
        "choose a shorter prompt",
    ),
    "samples that a cache shall judge": (
        lambda config: {
            "objective": SAMPLES,
            "step": "on_policy(prompt=4)",
            "teachers": teacher(config, cache="outputs(folder='CACHE')"),
        },
        "teachers.big.cache: 'on_policy(prompt=4)' generates records",
        "Leave it out",
    ),
}


@pytest.fixture(scope="module")
def kept(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    config = world[0]
    config = differ(config, teachers=teacher(config, cache=f"outputs(folder={str(folder)!r}, top=4)"))
    cache.write(config, Console(file=io.StringIO()))
    return config


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_of_a_language_model_is_told(mistake, world, kept, tmp_path):
    config, _ = world
    differences, begins, cure = MISTAKES[mistake]
    made = differ(config, **differences(config))
    if made.teachers.big.cache:
        made = differ(made, teachers=teacher(made, cache=kept.teachers.big.cache))
    said = refused(made, tmp_path / "run")
    assert said.startswith(begins), said
    assert cure in said


def test_a_cache_of_another_tokenizer_is_refused(world, kept, tmp_path):
    _, folders = world
    check_config(kept, tmp_path / "run")
    other = differ(kept, data={"tokens": kept.data.tokens.replace(str(folders["words"]), str(folders["pairs"]))})
    said = refused(other, tmp_path / "run")
    assert said.startswith("teachers.big.cache: ") and "is stale: data.tokens was" in said
    tokenizer = folders["words"] / "tokenizer.json"
    text = tokenizer.read_text()
    tokenizer.write_text(text.replace('"a"', '"A"'))  # its path stays the same
    try:
        assert "is stale: data.words was" in refused(kept, tmp_path / "run")
    finally:
        tokenizer.write_text(text)


@pytest.mark.slow
def test_a_student_learns_on_its_own_text_from_end_to_end(world, tmp_path):
    config, _ = world
    terms = {"reverse_kl": {"stream": "samples"}, "policy_gradient": {"stream": "samples"}, "cross_entropy": {}}
    made = differ(config, objective=terms, step="on_policy(prompt=4, stop=(1,))", chunks=2)
    (_, row) = jaxdistill.distill(made, tmp_path, Console(quiet=True)).rows
    lines = runs.log(tmp_path / "student").train
    assert np.isfinite(row["nll"]) and 1 <= lines[-1]["samples/length"] <= 13
