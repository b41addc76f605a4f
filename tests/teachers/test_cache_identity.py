"""Tests of the identity of cached outputs, which must hold everything that the outputs depend on."""

import dataclasses
import shutil

import corpora
import jax
import numpy as np
import pytest
import runs
from corpora import Labelled, sentences
from rich.console import Console

from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError, DamageError
from jaxdistill.data import store
from jaxdistill.data.pipeline import TEST
from jaxdistill.run.commands import cache
from jaxdistill.run.config import differ
from jaxdistill.run.resolve import resolve
from jaxdistill.teachers.cache import CachedTeacher
from jaxdistill.teachers.cache_identity import _selected, stream_encoding
from jaxdistill.teachers.codec import Encoding


def test_augmented_outputs_belong_to_one_order_of_the_records():
    data = resolve(runs.load(), jax.devices()).data
    spec = "tasks(groups=((0, 1), (2, 3)), steps=10)"
    assert _selected(data) == {} and _selected(dataclasses.replace(data, order=spec)) == {"order": spec}


def test_of_test_records_neither_draws_nor_the_largest_logits_are_stored():
    encoding = Encoding("x", "float16", 5, (1,), draws=8)
    assert stream_encoding(encoding, TEST) == encoding._replace(top=0, draws=0)
    assert stream_encoding(encoding, "train") == encoding


@pytest.mark.parametrize("augment", [(), ("shift(pixels=1)",)])
def test_the_rows_of_a_cache_do_not_depend_on_the_size_of_its_shards(augment):
    config = differ(runs.load(), data={"augment": augment})
    data = resolve(config, jax.devices()).data
    records = data.open(data.streams["train"])

    def images(part):
        batches = cache._batches(data, "train", records, part, slice(32))
        return np.concatenate([batch["image"] for batch in batches])[: part.stop - part.start]

    whole = images(slice(0, 250))
    shards = [images(slice(start, min(start + 64, 250))) for start in range(0, 250, 64)]
    np.testing.assert_array_equal(np.concatenate(shards), whole)


def test_a_cache_that_was_rewritten_after_the_run_read_its_description_is_refused(tmp_path):
    fields = {"logits": ((2,), "float32")}

    def write(classes):
        manifest = store.StoreManifest(4, 4, fields, {"classes": classes})
        store.write_manifest(tmp_path / "train", manifest)
        store.write_shard(tmp_path / "train", manifest, 0, {"logits": np.zeros((4, 2), np.float32)})
        return manifest

    encoding = Encoding(str(tmp_path), "float32", 0, ())
    described = {"encoding": encoding, "stores": {"train": write(2)}, "by_row": frozenset()}
    teacher = CachedTeacher(**vars(resolve(runs.load(), jax.devices()).live_teacher("big")), **described)
    assert len(teacher.stored("train").records) == 4
    shutil.rmtree(tmp_path / "train")
    write(3)
    with pytest.raises(DamageError, match="was written again since the run began"):
        teacher.stored("train")


def test_another_tokenizer_in_the_same_file_changes_the_identity_of_the_data(tmp_path, monkeypatch):
    texts = lambda split: Labelled({"text": "a b c", "label": n % 2} for n in range(4))
    monkeypatch.setitem(registry.datasets.factories, "few_texts", texts)
    own = {"name": "few_texts", "folder": str(tmp_path), "augment": ()}

    def identity(words):
        spec = sentences(corpora.written(tmp_path, words))
        data = resolve(differ(runs.load(), data={**own, "tokens": spec}), jax.devices()).data
        return data.identity(data.streams["train"])

    before, after = (identity(words) for words in (corpora.WORDS, corpora.WORDS[::-1]))
    assert before["tokens"] == after["tokens"] and before["contents"] == after["contents"]
    assert before != after


def test_a_folder_of_pictures_is_no_cache(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").touch()
    with runs.registries_as_found():
        config = differ(runs.load(), teachers={"big": {"cache": f"outputs(folder={str(tmp_path)!r})"}})
        said = r"^teachers\.big\.cache: .* holds other folders with files \(photos\)\. Choose a new or empty folder"
        with pytest.raises(ConfigError, match=said):
            cache.write(config, Console(quiet=True))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["1.jpg", "photos"]
