"""Tests of runs with pretrained models: unchanged teachers, students cut from them, exported folders, and errors."""

import io
import json
import re

import jax
import numpy as np
import parity
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

import jaxdistill
from jaxdistill.core import registry
from jaxdistill.core.checkpoint import load_variables
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.types import Variables
from jaxdistill.models.hub.locate import open_source
from jaxdistill.models.pretrained import architecture_of
from jaxdistill.run.distill import check_config

REFERENCE = parity.reference("bert_classifier")  # 3 classes


class Sentences(list):
    classes = 3


def sentences(split: str) -> Sentences:
    """Return random sentences of 3 to 9 tokens, whose label is the number of their first token modulo 3."""
    draw = np.random.default_rng({"train": 0, "test": 1}[split])
    made = Sentences()
    for _ in range(96):
        ids, length = draw.integers(0, 60, 9).astype(np.int32), draw.integers(3, 10)
        real = (np.arange(9) < length).astype(np.int32)
        made.append({"input_ids": ids * real, "attention_mask": real, "label": int(ids[0] % 3)})
    return made


@pytest.fixture(scope="module", autouse=True)
def _registered():
    registry.datasets.register(sentences)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return parity.write_folder(tmp_path_factory.mktemp("hub"), REFERENCE)


def config(folder, **differences):
    return jaxdistill.make(
        **{
            "steps": 6,
            "batch_size": 32,
            "student": {"model": f"pretrained({str(folder)!r}, layers=(1,))"},
            "teachers": {"whole": {"model": f"pretrained({str(folder)!r})"}},
            "objective": {"kd": {}, "hidden": {"weight": 0.1}},
            "data": {"name": "sentences"},
            "evaluate": {"every": 6, "batch_size": 32},
            "mesh": {"data": 1},
            "logging": {"every": 3, "tensorboard": False},
            **differences,
        }
    )


def distill(made, workdir):
    return jaxdistill.distill(made, workdir, console=Console(file=io.StringIO()))


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, distill(config(folder, rate="0"), workdir)


@pytest.mark.slow
def test_a_teacher_is_used_as_it_is(finished, folder):
    _, result = finished
    variables = parity.ours(folder, REFERENCE.batch)[-1]
    for name, value in variables.params.items():
        np.testing.assert_array_equal(result.variables["teacher whole"].params[name], value)
    assert [row["name"] for row in result.rows] == ["teacher whole", "student", "control"]


def test_student_and_control_start_from_the_chosen_layer(finished, folder):
    """Check the final weights of a run with learning rate 0, which are the initial ones."""
    _, result = finished
    file = load_file(folder / "model.safetensors")
    for name in ("student", "control"):
        params = result.variables[name].params
        assert not any(key.startswith("blocks/1") for key in params)
        up = next(key for key in file if key.endswith("layer.1.intermediate.dense.weight"))
        np.testing.assert_array_equal(params["blocks/0/up/kernel"], file[up].T)


def test_what_was_trained_is_handed_out_and_loads_to_the_bit(finished):
    workdir, result = finished
    hub = workdir / "student" / "hub"
    variables = parity.ours(hub, REFERENCE.batch)[-1]
    for name, value in result.variables["student"].params.items():
        np.testing.assert_array_equal(variables.params[name], value)
    made = json.loads((hub / "config.json").read_text())
    assert made["num_hidden_layers"] == 1 and made["architectures"] == ["BertForSequenceClassification"]
    card = (hub / "README.md").read_text()
    assert "pretrained(" in card and "`kd`, weight 1.0" in card and "| student |" in card and "| control |" in card
    assert not (workdir / "teachers").exists()  # a teacher that was not trained is not exported


def test_transformers_reads_the_config_that_we_write(finished):
    from transformers import AutoConfig

    workdir, _ = finished
    read = AutoConfig.from_pretrained(workdir / "student" / "hub")
    assert (read.model_type, read.num_hidden_layers, read.hidden_size, read.num_labels) == ("bert", 1, 32, 3)


@pytest.mark.slow
def test_a_new_head_is_trained_here_on_top_of_what_was_loaded(folder, tmp_path):
    bare = {n: x for n, x in load_file(folder / "model.safetensors").items() if not n.startswith("classifier")}
    base = tmp_path / "base"
    base.mkdir()
    save_file(bare, base / "model.safetensors")
    (base / "config.json").write_text(json.dumps(REFERENCE.config))
    model = f"pretrained({str(base)!r}, classes=3)"
    as_it_is = config(folder, teachers={"base": {"model": model}})
    with pytest.raises(ConfigError, match=r"teachers\.base\.model: .* has no weights for head/.*steps=1000"):
        check_config(as_it_is, tmp_path / "never")
    tuned = config(folder, teachers={"base": {"model": model, "steps": 3}}, rate="0", control=False)
    result = distill(tuned, tmp_path / "run")
    up = next(key for key in bare if key.endswith("layer.0.intermediate.dense.weight"))
    np.testing.assert_array_equal(result.variables["teacher base"].params["blocks/0/up/kernel"], bare[up].T)
    again = config(tmp_path / "run" / "teachers" / "base" / "hub", rate="0", control=False, steps=1)
    assert distill(again, tmp_path / "again").rows[0]["accuracy"] == result.rows[0]["accuracy"]


@pytest.mark.parametrize(
    ("layers", "numbers"),
    [
        (("uniform", 3), (0, 2, 4)),
        (("uniform", 6), (0, 1, 2, 3, 4, 5)),
        (("first", 2), (0, 1)),
        (("last", 2), (4, 5)),
        ((5, 0), (5, 0)),
    ],
)
def test_layers_are_chosen_by_number_or_place(folder, layers, numbers):
    source = open_source(str(folder))
    source.config = source.config | {"num_hidden_layers": 6}
    form = architecture_of(source, layers, (), "", {})
    assert form.layers == numbers and form.arguments["depth"] == len(numbers)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("pretrained('/no/such/folder')", r"student\.model: pretrained: there is no folder"),
        ("pretrained(FOLDER, layers=(7,))", r"there is no layer 7; .* has layers 0 to 1"),
        ("pretrained(FOLDER, layers=('last', 3))", r"3 layers cannot be selected; .* has 2"),
        ("pretrained(FOLDER, cut=(('ffn', 'evenly', 99),))", r"99 of \d+ units cannot be kept"),
        ("pretrained(FOLDER, cut=(('depth', 'evenly', 1),))", r"axes: width, ffn, heads"),
        (
            "pretrained(FOLDER, hheads=3)",
            r"student\.model: model 'bert' has no argument 'hheads'. Did you mean",
        ),
        ("pretrained(FOLDER, ffn=17)", r"does not fit the model: .*intermediate.* is \[32, \d+\] in the model's"),
    ],
)
def test_mistakes_are_told_before_anything_compiles(folder, tmp_path, model, said):
    with pytest.raises(ConfigError) as error:
        check_config(config(folder, student={"model": model.replace("FOLDER", repr(str(folder)))}), tmp_path / "never")
    assert re.search(said, str(error.value)), str(error.value)


@pytest.mark.slow
def test_a_narrower_student_begins_in_the_middle_of_its_teacher(folder, tmp_path):
    ffn = REFERENCE.config["intermediate_size"]
    cut = f"pretrained({str(folder)!r}, cut=(('ffn', 'evenly', {ffn // 2}),))"
    result = distill(config(folder, student={"model": cut}, rate="0", control=False), tmp_path)
    whole = result.variables["teacher whole"].params["blocks/0/up/kernel"]
    np.testing.assert_array_equal(result.variables["student"].params["blocks/0/up/kernel"], whole[:, ::2])


@pytest.mark.slow
def test_a_pretrained_student_is_laid_out_on_a_mesh_as_it_is_read(folder, tmp_path):
    made = config(folder, mesh={"data": 2, "fsdp": 2, "tensor": 2}, rate="0", control=False, steps=1)
    result = distill(made, tmp_path)
    kernel = result.variables["student"].params["blocks/0/up/kernel"]
    assert len({shard.index for shard in kernel.addressable_shards}) == 4
    file = load_file(folder / "model.safetensors")
    up = next(key for key in file if key.endswith("layer.1.intermediate.dense.weight"))
    np.testing.assert_array_equal(kernel, file[up].T)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), Variables(*result.variables["student"]))
    saved = load_variables(tmp_path / "student" / "checkpoints", "last", abstract)
    np.testing.assert_array_equal(saved.params["blocks/0/up/kernel"], kernel)
