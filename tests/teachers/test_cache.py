"""Tests of cached teachers: how caches are written, resumed, checked and refused, and how students learn from them."""

import io
import json
import re
import shutil

import jax
import numpy as np
import pytest
import runs
from examples import slow
from rich.console import Console

import jaxdistill
from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError, DamageError
from jaxdistill.data import store
from jaxdistill.run.commands import cache
from jaxdistill.run.config import differ
from jaxdistill.run.distill import check_config
from jaxdistill.run.resolve import resolve
from jaxdistill.teachers.cache import parse_encoding
from jaxdistill.teachers.cache_identity import identity

KEYS = jax.random.split(jax.random.key(0), 4)


@pytest.fixture(scope="module", autouse=True)
def _registered():
    runs.load()


def quiet():
    return Console(file=io.StringIO())


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Train a teacher, and yield the config of a student that learns from its checkpoint without augmentation."""
    workdir = tmp_path_factory.mktemp("teacher")
    with runs.compilation_cache(tmp_path_factory.mktemp("compiled")):
        config = differ(runs.load(), steps=10, control=False)
        config = differ(config, data={"augment": ()})
        jaxdistill.distill(config, workdir, console=quiet())
        teacher = {**config.teachers["big"].to_dict(), "steps": 0, "checkpoint": str(workdir / "teachers" / "big")}
        yield differ(config, teachers={"big": teacher}, objective={"kd": {}, "hidden": {"weight": 0.1}})


def with_cache(config, folder, words="", kind="outputs", **differences):
    teacher = {**config.teachers["big"].to_dict(), "cache": f"{kind}(folder={str(folder)!r}{words})"}
    return differ(config, teachers={"big": teacher}, **differences)


def student(config, workdir):
    result = jaxdistill.distill(config, workdir, console=quiet())
    return result.variables["student"].params, result


@pytest.mark.parametrize("augment", [slow(()), ("shift(pixels=1)",)])
def test_float32_trains_as_the_living_teacher_does_to_the_bit(taught, tmp_path, augment):
    taught = differ(taught, data={"augment": augment})
    made = with_cache(taught, tmp_path / "cache", ", layers=(0, 1)")
    cache.write(made, quiet())
    live, beside = student(taught, tmp_path / "live")
    read, result = student(made, tmp_path / "read")
    assert result.rows[0]["nll"] == pytest.approx(beside.rows[0]["nll"], rel=1e-6)  # the teacher on the test examples
    for name in live:
        np.testing.assert_array_equal(read[name], live[name])
    assert result.variables["teacher big"].params == {}  # the weights are never loaded
    teacher, own = result.rows[0], result.rows[1]
    assert teacher["parameters"] > own["parameters"] and own["agreement"] > 0


@pytest.mark.parametrize("words", [slow(", dtype='float16'"), slow(", top=2"), ", top=3, dtype='float16'"])
def test_smaller_caches_end_close_to_the_whole(taught, tmp_path, words):
    taught = differ(taught, objective={"kd": {}})
    made = with_cache(taught, tmp_path / "cache", words)
    cache.write(made, quiet())
    assert set(store.Store(tmp_path / "cache" / "test")[0]) == {"logits"}
    live, read = (student(config, tmp_path / name)[1].rows[-1] for config, name in ((taught, "live"), (made, "read")))
    assert abs(live["nll"] - read["nll"]) < 0.02


@pytest.mark.slow
def test_from_draws_a_student_ends_where_it_does_beside_the_living_teacher(taught, tmp_path):
    taught = differ(taught, objective={"kd": {"term": "kd(temperature=2.0)"}})
    made = with_cache(taught, tmp_path / "cache", ", count=24, temperature=2.0", kind="draws")
    cache.write(made, quiet())
    assert set(store.Store(tmp_path / "cache" / "train")[0]) == {"classes"}
    live, read = (student(config, tmp_path / name)[1].rows[-1] for config, name in ((taught, "live"), (made, "read")))
    assert abs(live["nll"] - read["nll"]) < 0.03


@pytest.mark.parametrize(
    ("differences", "path", "said"),
    [
        (
            {"objective": {"kd": {"term": "reverse_kl(temperature=2.0)"}}},
            "objective.kd",
            "is biased with a cache of draws",
        ),
        (
            {"objective": {"kd": {"term": "hard(loss=kd(temperature=2.0))"}}},
            "objective.kd",
            "is biased with a cache of draws",
        ),
        (
            {"objective": {"kd": {"term": "standardized(loss=kd(temperature=2.0))"}}},
            "objective.kd",
            "is biased with a cache of draws",
        ),
        ({"fusion": "entropy()"}, "objective.kd", "is biased with a cache of draws"),
        ({"objective": {"kd": {"term": "kd(temperature=4.0)"}}}, "objective.kd", "which is 2"),
        ({"objective": {"kd": {"term": "kd(temperature=linear(start=2, end=1))"}}}, "objective.kd", "which is 2"),
        ({"objective": {"kd": {"term": "kd(temperature=linear(start=2, end=4))"}}}, "objective.kd", "which is 2"),
        ({"data": {"select": "hardest(share=0.5, cache='CACHE')"}}, "data.select", "holds draws"),
        ({"step": "batch_selection(loss=kd(), share=0.5)"}, r"teachers\.big\.cache", "needs all its logits"),
        ({"step": "batch_selection(loss=kd(), share=0.5, by='hard')"}, r"teachers\.big\.cache", "needs all its logits"),
    ],
)
def test_what_draws_cannot_tell_is_refused(taught, tmp_path, differences, path, said):
    taught = differ(taught, objective={"kd": {"term": "kd(temperature=2.0)"}})
    made = with_cache(taught, tmp_path / "cache", ", count=8, temperature=2.0", kind="draws")
    cache.write(made, quiet())
    select = differences.get("data", {}).get("select", "").replace("CACHE", str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match=rf"^{path}: .*{said}"):
        check_config(differ(made, **differences | ({"data": {"select": select}} if select else {})), tmp_path / "never")


def test_a_cache_of_the_largest_logits_does_not_tell_a_teachers_own_loss(taught, tmp_path):
    made = with_cache(differ(taught, objective={"kd": {}}), tmp_path / "cache", ", top=2")
    cache.write(made, quiet())
    step = "batch_selection(loss=cross_entropy(), share=0.5{})"
    with pytest.raises(
        ConfigError, match=r"^teachers\.big\.cache: .* needs all its logits\. Use outputs\(.* without top="
    ):
        check_config(differ(made, step=step.format("")), tmp_path / "never")
    with pytest.raises(ConfigError, match="needs all its logits"):
        check_config(differ(made, step=step.format(", by='easy'")), tmp_path / "never")
    check_config(differ(made, step=step.format(", by='hard'")), tmp_path / "never")  # reads no loss of the teacher


@pytest.mark.slow
def test_of_the_test_records_all_logits_are_kept(taught, tmp_path):
    made = with_cache(differ(taught, objective={"kd": {}}), tmp_path / "cache", ", top=2")
    cache.write(made, quiet())
    assert set(store.Store(tmp_path / "cache" / "train")[0]) == {"top", "classes", "tail"}
    assert set(store.Store(tmp_path / "cache" / "test")[0]) == {"logits"}
    measured = [student(config, tmp_path / name)[1].rows[0] for name, config in (("live", taught), ("read", made))]
    assert measured[0]["nll"] == pytest.approx(measured[1]["nll"], rel=1e-6)


def test_a_shard_of_large_rows_holds_few_of_them():
    assert cache._shard_rows({"logits": ((4,), "float32")}, 60) == 4140
    assert cache._shard_rows({"logits": ((256, 49152), "float16"), "tail": ((256,), "float16")}, 4) == 4
    assert cache._shard_rows({"top": ((256, 128), "float16"), "classes": ((256, 128), "int32")}, 8) == 344


def test_an_interrupted_cache_goes_on_where_it_stopped(taught, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SHARD", 64)
    folder = tmp_path / "cache"
    made, honest, written = with_cache(taught, folder), store.write_shard, []

    def dies(to, manifest, number, columns):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append((to, number))
        honest(to, manifest, number, columns)

    monkeypatch.setattr(cache, "write_shard", dies)
    with pytest.raises(KeyboardInterrupt):
        cache.write(made, quiet())
    with pytest.raises(store.StoreError, match="is not finished: 2 of 4 shards"):
        store.verify_store(folder / "train")
    monkeypatch.setattr(cache, "write_shard", lambda *args: (written.append((args[0], args[2])), honest(*args)))
    cache.write(made, quiet())
    assert len(written) == len(set(written)) == 4 + 2  # shards of 250 and of 90 rows, none written twice
    whole = store.Store(folder / "train")
    assert len(whole) == 250 and whole[249]["logits"].shape == (4,)


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        ({"data": {"name": "blobs", "augment": ("shift(pixels=1)",)}}, r"augmentation was \[\], is \['shift"),
        ({"dtype": "bfloat16"}, r"teacher\.dtype was 'float32', is 'bfloat16'"),
    ],
)
def test_a_stale_cache_is_refused(taught, tmp_path, differences, said):
    made = with_cache(taught, tmp_path / "cache")
    cache.write(made, quiet())
    with pytest.raises(ConfigError, match=rf"teachers\.big\.cache: .* is stale: .*{said}"):
        check_config(differ(made, **differences), tmp_path / "never")


@pytest.mark.parametrize(
    ("differences", "said"),
    [({"seed": 1}, r"is stale: draws\.seed was 0, is 1"), ({"steps": 20}, "holds 320 rows, 640 are needed")],
)
def test_a_cache_of_augmented_rows_serves_the_run_that_draws_them_alone(taught, tmp_path, differences, said):
    made = with_cache(differ(taught, data={"augment": ("shift(pixels=1)",)}), tmp_path / "cache")
    cache.write(made, quiet())
    with pytest.raises(ConfigError, match=said):
        check_config(differ(made, objective={"kd": {}}, **differences), tmp_path / "never")


def test_a_cache_of_data_that_have_changed_is_refused(taught, tmp_path, monkeypatch):
    made = with_cache(taught, tmp_path / "cache")
    cache.write(made, quiet())
    blobs = registry.datasets["blobs"]

    def changed(**words):
        records = [dict(record) for record in blobs(**words)]
        records[3]["image"] = records[3]["image"] + 1
        return records

    monkeypatch.setitem(registry.datasets.factories, "blobs", changed)
    with pytest.raises(ConfigError, match=r"is stale: data\.contents was"):
        check_config(made, tmp_path / "never")


def test_a_cache_of_another_teacher_is_refused(taught, tmp_path):
    made = with_cache(taught, tmp_path / "cache")
    cache.write(made, quiet())
    other = tmp_path / "other"
    jaxdistill.distill(differ(taught, teachers={}, objective={"cross_entropy": {}}, seed=5), other, console=quiet())
    entry = {**made.teachers["big"].to_dict(), "model": made.student.model, "checkpoint": str(other)}
    with pytest.raises(ConfigError, match=r"stale: teacher\.model was .*; teacher\.weights was"):
        check_config(differ(made, teachers={"big": entry}), tmp_path / "never")


def test_mistakes_are_named(taught, tmp_path):
    made = with_cache(taught, tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"teachers\.big\.cache: .*train has no cached outputs\. Write it: "):
        check_config(made, tmp_path / "never")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"teachers\.big\.cache: '.*file' is a file; give the folder that"):
        check_config(with_cache(taught, tmp_path / "file"), tmp_path / "never")
    with pytest.raises(ConfigError, match="no teacher has a cache"):
        cache.write(taught, quiet())
    with pytest.raises(ConfigError, match=r"the teacher has no layer 9; it has layers 0"):
        cache.write(with_cache(taught, tmp_path / "nine", ", layers=(9,)"), quiet())
    with pytest.raises(ConfigError, match=r"top=4 keeps all 4 classes"):
        cache.write(with_cache(taught, tmp_path / "top", ", top=4"), quiet())
    for argument in ("count=0", "count=2, temperature=0.0"):
        option = f"draws(folder={str(tmp_path / 'drawn')!r}, {argument})"
        with pytest.raises(ConfigError, match=r"teachers\.big\.cache: .*(count|temperature)"):
            entry = {**taught.teachers["big"].to_dict(), "cache": option}
            check_config(differ(taught, teachers={"big": entry}), tmp_path / "never")
    cache.write(made, quiet())
    with pytest.raises(
        ConfigError, match=r"objective\.jacobian: needs input_gradients, and a cached teacher has none\."
    ):
        check_config(differ(made, objective={"jacobian": {}}), tmp_path / "never")
    with pytest.raises(ConfigError, match=r"objective\.hidden: the teacher's outputs lack layers \[\d.*\]"):
        check_config(made, tmp_path / "never")


def test_a_damaged_shard_is_named_and_written_again(taught, tmp_path):
    made = with_cache(differ(taught, objective={"kd": {}}), tmp_path / "cache")
    cache.write(made, quiet())
    shard = tmp_path / "cache" / "train" / "00000.array_record"
    whole = shard.read_bytes()
    runs.flip(shard, len(whole) // 2)
    with pytest.raises(DamageError, match=r"teachers\.big\.cache: .*00000\.array_record has changed since it was writ"):
        jaxdistill.distill(made, tmp_path / "run", console=quiet())
    shard.unlink()
    with pytest.raises(DamageError, match=r"00000\.array_record is missing\. The same `jaxdistill cache` command writ"):
        jaxdistill.distill(made, tmp_path / "run", console=quiet())
    cache.write(made, quiet())
    assert shard.read_bytes() == whole
    runs.flip(shard.with_suffix(".json"), 20)  # damage the seal of the shard, too
    runs.flip(shard.with_name("manifest.json"), 20)
    cache.write(made, quiet())
    assert store.verify_store(shard.parent).rows == 250 and shard.read_bytes() == whole


def test_a_shard_in_the_place_of_another_is_noticed(taught, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SHARD", 64)
    made = with_cache(taught, tmp_path / "cache")
    cache.write(made, quiet())
    folder = tmp_path / "cache" / "train"
    for suffix in (".array_record", ".json"):
        shutil.copy(folder / f"00001{suffix}", folder / f"00000{suffix}")
    with pytest.raises(DamageError, match=r"00000\.array_record belongs to something else \(shard differs\)"):
        store.verify_store(folder)


def test_the_command_speaks(taught, tmp_path, capsys):
    made = with_cache(taught, tmp_path / "cache")
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"config": made.to_dict(), "source": "tiny.py"}))
    assert cache.run(["--config", str(file)]) == 0
    assert re.search(r"big\s+train: 250 rows", capsys.readouterr().out)
    assert cache.run(["--config", str(file), "--config.dtype=float64"]) == 2
    assert "dtype" in capsys.readouterr().err


def test_an_unfinished_teacher_cannot_be_cached(tmp_path):
    config = with_cache(runs.load(), tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"teachers\.big\.cache: its weights do not exist before the run"):
        cache.write(config, quiet())
    entry = {**config.teachers["big"].to_dict(), "checkpoint": "/no/run"}
    with pytest.raises(ConfigError, match=r"big\.checkpoint: .*no finished checkpoint.*Set it to the folder of a run"):
        cache.write(differ(config, teachers={"big": entry}), quiet())
    assert "caches" in vars(registry)


def identity_of(config):
    resolved = resolve(config, jax.devices())
    teacher = resolved.live_teacher("big")
    return identity(teacher, parse_encoding(config.teachers.big.cache, ""), resolved.data, "train")


def test_what_the_teacher_says_and_of_which_rows_is_in_a_caches_identity(taught, tmp_path):
    made = with_cache(differ(taught, data={"augment": ("shift(pixels=1)",)}), tmp_path)
    eight = differ(made, teachers={"big": {**made.teachers["big"].to_dict(), "quantized": "int8"}})
    for other, path in (
        (eight, "teacher.quantized was None"),
        (differ(made, batch_size=16), "draws.batch_size was 32"),
    ):
        (found,) = store.differences(identity_of(made), identity_of(other))
        assert found.startswith(path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (", top=2", r"kept\.top was 0, is 2"),
        (", dtype='float16'", r"kept\.dtype was 'float32', is 'float16'"),
        (", layers=(1,)", r"kept\.layers was \[\], is \[1\]"),
    ],
)
def test_a_cache_that_keeps_something_else_is_stale(taught, tmp_path, words, said):
    cache.write(with_cache(taught, tmp_path / "cache"), quiet())
    with pytest.raises(ConfigError, match=rf"is stale: .*{said}"):
        check_config(with_cache(taught, tmp_path / "cache", words), tmp_path / "never")


def test_draws_at_another_temperature_are_stale(taught, tmp_path):
    big = lambda cache: differ(taught, teachers={"big": {**taught.teachers["big"].to_dict(), "cache": cache}})
    options = (f"draws(folder={str(tmp_path)!r}, temperature={t})" for t in (1.0, 2.0))
    assert "kept.temperature was 1.0, is 2.0" in store.differences(*(identity_of(big(option)) for option in options))
