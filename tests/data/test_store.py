"""Tests of stores of arrays: damaged and foreign shards are refused, and differences are shown briefly."""

import shutil

import numpy as np
import pytest
import runs

from jaxdistill.core.errors import DamageError
from jaxdistill.data.store import StoreManifest, differences, verify_store, write_manifest, write_shard


def written(folder, identity="one"):
    """Write a store of 9 rows in 3 shards, and return its folder."""
    manifest = StoreManifest(9, 3, {"x": ((2,), "float32")}, {"identity": identity})
    write_manifest(folder, manifest)
    rows = np.arange(18, dtype=np.float32).reshape(9, 2)
    for number in range(3):
        write_shard(folder, manifest, number, {"x": rows[3 * number : 3 * number + 3]})
    assert verify_store(folder) == manifest
    return folder


@pytest.mark.parametrize("number", range(3))
def test_a_change_of_any_shard_is_noticed(number, tmp_path):
    folder = written(tmp_path / "store")
    shard = folder / f"{number:05d}.array_record"
    runs.flip(shard, len(shard.read_bytes()) // 2)
    with pytest.raises(DamageError, match=rf"{shard.name} has changed since it was written"):
        verify_store(folder)


@pytest.mark.parametrize("suffixes", [(".array_record", ".json"), (".json",)])
def test_a_shard_of_another_store_of_the_same_shapes_is_noticed(suffixes, tmp_path):
    one, other = written(tmp_path / "one"), written(tmp_path / "other", identity="another teacher")
    for suffix in suffixes:
        shutil.copy(other / f"00002{suffix}", one)
    with pytest.raises(DamageError, match=r"00002\.array_record belongs to something else \(store differs\)"):
        verify_store(one)


def test_a_difference_at_the_end_of_a_long_value_is_shown():
    long = "table(path='a/rather/long/path/to/a/file.csv', features=('a', 'b'), label='kind', seed={})"
    (said,) = differences({"name": long.format(1)}, {"name": long.format(2)}, "data.")
    assert said.startswith("data.name was ...") and "seed=1)" in said and "seed=2)" in said and len(said) < 150
    assert differences({"top": 0}, {"top": 2}) == ["top was 0, is 2"]
