"""Tests of safetensors checkpoints: names and layouts, sharded reading, export, smaller students, and errors."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import save_file

from jaxdistill.core import seal
from jaxdistill.core.errors import DamageError, WeightsError
from jaxdistill.core.hub_files import fingerprint
from jaxdistill.core.types import Variables
from jaxdistill.models.hub.family import Family, Rule, family_name
from jaxdistill.models.hub.locate import open_source
from jaxdistill.models.hub.slice import average_neighbours, heads_to_units, keep_evenly, keep_units, narrow
from jaxdistill.models.hub.source import Safetensors
from jaxdistill.models.hub.weights import export_arrays, load, map_weights
from jaxdistill.parallel.mesh import make_mesh

RULES = (
    Rule("embedding", "toy.words.weight", axes=("vocabulary", "width")),
    Rule(r"blocks/(\d+)/up/kernel", "toy.layer.{0}.up.weight", "linear", ("width", "ffn")),
    Rule("stack/down/kernel", "toy.stacked.{layer}.down.weight", "linear", ("ffn", "width")),
    Rule("stem/kernel", "toy.stem.weight", "conv", ("", "", "", "width")),
    Rule("stem/mean", "toy.stem.running_mean", axes=("width",)),
    Rule("head/kernel", "head.weight", "linear", ("width", "")),
)
TOY = Family(
    lambda: None,
    ("toy",),
    dict,
    dict,
    lambda arguments: RULES,
    prefix="toy.",
    fresh="head/.*",
    ignored=r".*position_ids",
)
DRAW = np.random.default_rng(0)
FILE = {
    "toy.words.weight": DRAW.normal(size=(12, 4)).astype(np.float32),
    "toy.layer.0.up.weight": DRAW.normal(size=(8, 4)).astype(np.float32),
    "toy.layer.1.up.weight": DRAW.normal(size=(8, 4)).astype(np.float32),
    "toy.stacked.0.down.weight": DRAW.normal(size=(4, 8)).astype(np.float32),
    "toy.stacked.1.down.weight": DRAW.normal(size=(4, 8)).astype(np.float32),
    "toy.stem.weight": DRAW.normal(size=(4, 3, 2, 2)).astype(np.float32),
    "toy.stem.running_mean": DRAW.normal(size=(4,)).astype(np.float32),
    "head.weight": DRAW.normal(size=(5, 4)).astype(np.float32),
}
PARAMS = {
    "embedding": (12, 4),
    "blocks/0/up/kernel": (4, 8),
    "blocks/1/up/kernel": (4, 8),
    "stack/down/kernel": (2, 8, 4),
    "stem/kernel": (2, 2, 3, 4),
    "head/kernel": (4, 5),
}
STATE = {"stem/mean": (4,)}


def folder(path: Path, arrays=FILE, config=None) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config or {"model_type": "toy"}))
    save_file(arrays, path / "model.safetensors")
    return path


def shapes(params=PARAMS, state=STATE, sharding=None) -> Variables:
    look = lambda tree: {n: jax.ShapeDtypeStruct(s, jnp.float32, sharding=sharding) for n, s in tree.items()}
    return Variables(look(params), look(state))


def read(path: Path, abstract=None, **kept) -> Variables:
    source, abstract = Safetensors(path), abstract or shapes()
    return load(source, map_weights(source, TOY, {}, abstract, **kept), abstract)


def test_names_and_layouts_become_ours(tmp_path):
    found = read(folder(tmp_path))
    np.testing.assert_array_equal(found.params["blocks/1/up/kernel"], FILE["toy.layer.1.up.weight"].T)
    np.testing.assert_array_equal(found.params["stack/down/kernel"][1], FILE["toy.stacked.1.down.weight"].T)
    np.testing.assert_array_equal(found.params["stem/kernel"][1, 0, 2], FILE["toy.stem.weight"][:, 2, 1, 0])
    np.testing.assert_array_equal(found.state["stem/mean"], FILE["toy.stem.running_mean"])


def test_what_is_loaded_and_written_back_is_the_same_to_the_bit(tmp_path):
    back = export_arrays(TOY, {}, read(folder(tmp_path)))
    assert back.keys() == FILE.keys()
    for name, array in FILE.items():
        np.testing.assert_array_equal(back[name], array)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_any_float_type_becomes_float32(tmp_path, dtype):
    found = read(folder(tmp_path, {name: array.astype(jnp.dtype(dtype)) for name, array in FILE.items()}))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(found))
    np.testing.assert_array_equal(found.params["embedding"], FILE["toy.words.weight"].astype(jnp.dtype(dtype)))


def test_the_bare_base_model_lacks_prefix_and_head(tmp_path):
    bare = {name.removeprefix("toy."): array for name, array in FILE.items() if name != "head.weight"}
    source = Safetensors(folder(tmp_path, bare))
    planned = map_weights(source, TOY, {}, shapes())
    assert planned.fresh == ("head/kernel",)
    assert load(source, planned, shapes()).params.keys() == PARAMS.keys() - {"head/kernel"}


def test_a_head_for_other_classes_is_new_and_one_of_another_width_is_wrong(tmp_path):
    counting = TOY._replace(arguments=lambda config: {"classes": config["classes"]})
    source = Safetensors(folder(tmp_path, config={"model_type": "toy", "classes": 5}))
    three = shapes({**PARAMS, "head/kernel": (4, 3)})
    planned = map_weights(source, counting, {"classes": 3}, three)
    assert planned.fresh == ("head/kernel",)
    assert load(source, planned, three).params.keys() == PARAMS.keys() - {"head/kernel"}
    assert not map_weights(source, counting, {"classes": 5}, shapes()).fresh
    with pytest.raises(
        WeightsError, match=r"head.weight is \[4, 5\] in the model's axis order, head/kernel is \[4, 3\]"
    ):
        map_weights(source, counting, {"classes": 5}, three)
    with pytest.raises(WeightsError, match=r"toy\.words\.weight is"):
        map_weights(source, counting, {"classes": 3}, shapes({**PARAMS, "embedding": (13, 4)}))


def test_each_device_reads_its_own_shard_and_no_more(tmp_path, monkeypatch):
    mesh, asked = make_mesh((1, 4, 2)), []
    source = Safetensors(folder(tmp_path))
    honest = source.read
    monkeypatch.setattr(source, "read", lambda name, index: (asked.append(index), honest(name, index))[1])
    abstract = shapes({"blocks/0/up/kernel": (4, 8)}, {}, NamedSharding(mesh, PartitionSpec("fsdp", "tensor")))
    one = {"toy.layer.0.up.weight": FILE["toy.layer.0.up.weight"]}
    source.arrays = {name: source.arrays[name] for name in one}
    found = load(source, map_weights(source, TOY, {}, abstract), abstract).params["blocks/0/up/kernel"]
    np.testing.assert_array_equal(found, one["toy.layer.0.up.weight"].T)
    assert len(asked) == 8 and all(rows.stop - rows.start == 4 and cols.stop - cols.start == 1 for rows, cols in asked)


def test_shards_are_one_checkpoint_and_a_missing_one_is_named(tmp_path):
    names = list(FILE)
    parts = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
    for file, own in parts.items():
        save_file({name: FILE[name] for name in own}, tmp_path / file)
    weight_map = {name: file for file, own in parts.items() for name in own}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text('{"model_type": "toy"}')
    np.testing.assert_array_equal(read(tmp_path).params["head/kernel"], FILE["head.weight"].T)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"b\.safetensors is missing"):
        Safetensors(tmp_path)


def test_all_wrong_names_are_told_at_once(tmp_path):
    wrong = dict(FILE) | {"toy.surplus": np.ones((2, 2), np.float32), "toy.words.weight": np.ones((12, 5), np.float32)}
    wrong["toy.stem.running_mean"] = np.ones(4, np.int32)
    del wrong["toy.layer.1.up.weight"]
    wrong["toy.position_ids"] = np.arange(3)  # matches `ignored` of TOY
    wrong["toy.position_ids.extra"] = np.ones(3, np.float32)
    with pytest.raises(WeightsError) as error:
        read(folder(tmp_path, wrong))
    for said in (
        r"toy\.layer\.1\.up\.weight is missing \(for blocks/1/up/kernel",
        r"toy\.surplus \[2, 2\] is surplus",
        r"toy\.words\.weight is \[12, 5\]",
        r"running_mean is I32, not a float",
        r"toy\.position_ids\.extra \[3\] is surplus",
    ):
        assert re.search(said, str(error.value)), error.value
    assert "position_ids [" not in str(error.value)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[:-3], "is damaged"),
        (lambda data: (10**6).to_bytes(8, "little") + data[8:], "is damaged"),
        (lambda data: b"\x80\x02}q\x00.", "is damaged"),
        (lambda data: b"", "is damaged"),
    ],
)
def test_a_damaged_file_is_named_and_nothing_is_loaded(tmp_path, damage, said):
    file = folder(tmp_path) / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(WeightsError, match=said):
        Safetensors(tmp_path)


def test_a_fingerprint_is_of_every_byte(tmp_path):
    weights = {"large": np.zeros((512, 1024), np.float32), "small": np.zeros(3, np.float32)}
    prints = []
    for number in range(2):
        weights["small"][1] = number
        (tmp_path / str(number)).mkdir()
        save_file(weights, tmp_path / str(number) / "model.safetensors")
        prints.append(fingerprint(str(tmp_path / str(number))))
    assert prints[0] != prints[1]
    assert prints[1] == fingerprint(str(tmp_path / "1"))


def test_a_folder_that_is_not_there_is_not_looked_for_on_a_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    with pytest.raises(WeightsError, match="there is no folder 'runs/teacher'"):
        open_source("runs/teacher")


def test_a_pickle_is_never_opened(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "toy"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/opened'\ntR.")
    with pytest.raises(WeightsError, match=r"only a pickle \(pytorch_model\.bin\), which is never opened"):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "said"),
    [("/nowhere/at/all", "there is no folder"), ("./one", "not a hub id"), ("word", "not a hub id")],
)
def test_a_checkpoint_that_is_not_there(text, said):
    with pytest.raises(WeightsError, match=said):
        open_source(text)


def test_a_folder_without_config_or_weights(tmp_path):
    with pytest.raises(WeightsError, match=r"config\.json is missing"):
        open_source(str(tmp_path))
    (tmp_path / "config.json").write_text("{]")
    with pytest.raises(WeightsError, match="cannot be read"):
        open_source(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="no safetensors"):
        open_source(str(tmp_path))


def test_an_unknown_architecture_lists_the_known_ones():
    with pytest.raises(WeightsError, match=r"'rwkv' is not supported\. Known: "):
        family_name({"model_type": "rwkv"})


def test_a_student_of_some_layers(tmp_path):
    few = PARAMS | {"stack/down/kernel": (1, 8, 4)}
    del few["blocks/1/up/kernel"]
    found = read(folder(tmp_path), shapes(few), layers=(1,))
    np.testing.assert_array_equal(found.params["blocks/0/up/kernel"], FILE["toy.layer.1.up.weight"].T)
    np.testing.assert_array_equal(found.params["stack/down/kernel"][0], FILE["toy.stacked.1.down.weight"].T)


def test_a_narrower_student_keeps_the_chosen_units_everywhere(tmp_path):
    few = PARAMS | {"blocks/0/up/kernel": (4, 2), "blocks/1/up/kernel": (4, 2), "stack/down/kernel": (2, 2, 4)}
    found = read(folder(tmp_path), shapes(few), selections={"ffn": keep_units((1, 6))})
    np.testing.assert_array_equal(found.params["blocks/1/up/kernel"], FILE["toy.layer.1.up.weight"].T[:, [1, 6]])
    np.testing.assert_array_equal(found.params["stack/down/kernel"][0], FILE["toy.stacked.0.down.weight"].T[[1, 6]])


def test_averaging_units_that_agree_keeps_the_function():
    draw = np.random.default_rng(1)
    up, down = draw.normal(size=(3, 4)).repeat(2, axis=1), draw.normal(size=(8, 5))
    halves = {"ffn": average_neighbours(8, 4)}
    small_up = narrow(up, Rule("", "", "linear", ("width", "ffn")), halves)
    small_down = narrow(down, Rule("", "", "linear", ("ffn", "width")), halves)
    x = draw.normal(size=(7, 3))
    np.testing.assert_allclose(np.tanh(x @ small_up) @ small_down, np.tanh(x @ up) @ down, rtol=1e-12)


def test_removing_a_unit_that_nobody_reads_changes_nothing():
    draw = np.random.default_rng(2)
    up, down = draw.normal(size=(3, 4)), draw.normal(size=(4, 5))
    down[2] = 0
    kept = {"ffn": keep_units((0, 1, 3))}
    small = [narrow(a, Rule("", "", "linear", axes), kept) for a, axes in ((up, ("", "ffn")), (down, ("ffn", "")))]
    x = draw.normal(size=(7, 3))
    np.testing.assert_allclose(np.tanh(x @ small[0]) @ small[1], np.tanh(x @ up) @ down, rtol=1e-12)


def test_selections():
    assert keep_evenly(12, 3) == ((0,), (4,), (8,))
    assert average_neighbours(4, 2) == ((0, 1), (2, 3))
    assert heads_to_units(((1,),), 3) == ((3,), (4,), (5,))
    for wrong in (lambda: keep_evenly(3, 4), lambda: average_neighbours(4, 3), lambda: keep_evenly(3, 0)):
        with pytest.raises(ValueError, match=r"units"):
            wrong()


def test_averaged_inputs_of_a_convolution_are_added_up():
    k = np.random.default_rng(3).normal(size=(3, 3, 4, 5))
    small = narrow(k, Rule("", "", "conv", ("", "", "width", "")), {"width": average_neighbours(4, 2)})
    np.testing.assert_allclose(small, k[:, :, ::2] + k[:, :, 1::2], rtol=1e-12)


def test_an_array_in_two_shards_and_one_that_no_shard_has_are_named(tmp_path):
    arrays = lambda *names: {name: np.ones(2, np.float32) for name in names}
    (tmp_path / "config.json").write_text("{}")
    index, shards = tmp_path / "model.safetensors.index.json", ["1.safetensors", "2.safetensors"]
    save_file(arrays("a", "b"), tmp_path / shards[0])
    save_file(arrays("c", "b"), tmp_path / shards[1])
    index.write_text(json.dumps({"weight_map": {"a": shards[0], "b": shards[0], "c": shards[1]}}))
    with pytest.raises(WeightsError, match="has 'b' twice"):
        Safetensors(tmp_path)
    save_file(arrays("c"), tmp_path / shards[1])
    assert set(Safetensors(tmp_path).arrays) == {"a", "b", "c"}
    index.write_text(json.dumps({"weight_map": {"a": shards[0], "b": shards[0], "d": shards[1]}}))
    with pytest.raises(WeightsError, match="no shard has 'd'"):
        Safetensors(tmp_path)
    for wrong in ({"a": 3}, {"a": ["x"]}, {"a": None, "b": "1"}):
        index.write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(WeightsError, match=r"index\.json"):
            Safetensors(tmp_path)


def test_weights_that_are_added_to_a_sealed_folder_are_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
    seal.seal_folder(tmp_path)
    Safetensors(tmp_path)
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "other.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "other.safetensors"}}')
    with pytest.raises(DamageError, match="was added after the folder was sealed; if it is meant, delete"):
        Safetensors(tmp_path)
