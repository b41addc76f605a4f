"""Tests of checksums of arrays: they notice every flipped bit, ignore the sharding, and are stable over versions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxdistill.core import checksums
from jaxdistill.core.checksums import array_checksums, differing_arrays
from jaxdistill.parallel.mesh import make_mesh


def test_every_flipped_bit_of_the_values_is_noticed():
    values = {"x": jnp.arange(6.0).reshape(2, 3), "flag": jnp.asarray([True, False]), "one": jnp.asarray(3, jnp.int8)}
    before = array_checksums(values)
    for name, x in values.items():
        bits = np.asarray(x).view(np.uint8).reshape(-1)
        for bit in range(8 * bits.size):
            changed = bits.copy()
            changed[bit // 8] ^= 1 << bit % 8
            other = changed.view(np.asarray(x).dtype).reshape(x.shape)
            assert array_checksums({name: other})[name] != before[name]
    assert array_checksums({"x": values["x"][::-1]})["x"] != before["x"]


def splitmix64(seed: int, count: int) -> list[int]:
    """Draw random numbers with the generator SplitMix64, in plain Python integers."""
    drawn = []
    for number in range(1, count + 1):
        x = (seed + number * 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        drawn.append(x ^ x >> 31)
    return drawn


def test_a_checksum_by_hand():
    """Check a checksum against its formula, whose weights must not change, or older manifests would no longer match."""
    assert splitmix64(0, 2) == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]  # the first numbers of the published generator
    rows, columns = ([w | 1 for w in splitmix64(axis * 0xD1B54A32D192ED03 % 2**64, 3)] for axis in (1, 2))
    x = np.uint8([[1, 20, 3], [0, 255, 7]])
    total = sum(int(x[i, j]) * rows[i] * columns[j] for i in range(2) for j in range(3)) % 2**64
    assert f"{total:016x}" in array_checksums({"x": x})["x"]


@pytest.mark.parametrize("spec", [(), ("data",), (None, "tensor"), ("fsdp", "tensor"), (("data", "fsdp"),)])
def test_a_checksum_does_not_depend_on_the_sharding(spec):
    x = jax.random.normal(jax.random.key(0), (8, 6), jnp.bfloat16)
    sharded = jax.device_put(x, NamedSharding(make_mesh((2, 2, 2)), PartitionSpec(*spec)))
    assert array_checksums({"x": sharded}) == array_checksums({"x": np.asarray(x)})


def test_one_wrong_copy_is_noticed():
    """Check that one wrong copy is noticed on any device, because each process reads its own copies from disk."""
    mesh = make_mesh((2, 2, 2))
    x = np.arange(8.0, dtype=np.float32)
    for spec in ((), ("fsdp",)):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        good = jax.device_put(x, sharding)
        sums = array_checksums({"x": good, "y": x})
        assert differing_arrays({"x": good, "y": x}, sums) == []
        for place in range(8):
            parts = [np.array(shard.data) for shard in good.addressable_shards]
            parts[place][0] += 1
            on_devices = [
                jax.device_put(part, s.device) for part, s in zip(parts, good.addressable_shards, strict=True)
            ]
            bad = jax.make_array_from_single_device_arrays(x.shape, sharding, on_devices)
            assert differing_arrays({"x": bad, "y": x}, sums) == ["x"]


def test_weights_are_made_for_the_next_thousand_entries_alone(monkeypatch):
    """Check that a small array needs a small table of weights, which are made once for many sizes."""
    counts = []
    weights = checksums._weights
    monkeypatch.setattr(checksums, "_weights", lambda axis, count: counts.append(count) or weights(axis, count))
    array_checksums({"x": np.ones((3, 1025), np.float32)})
    assert counts == [2048, 1024]
