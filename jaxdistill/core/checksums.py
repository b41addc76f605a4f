"""Checksums of arrays, computed from memory when an array is saved and again when it is restored.

No file is read just for the check, each process works on the shards that it holds, and the folder may be a bucket.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np


def array_checksums(arrays: Mapping[str, Any]) -> dict[str, str]:
    """Compute a checksum of the values of each array, which does not depend on how the array is sharded.

    The checksum of `x[i, j, ...]` is the sum of `x[i, j, ...] * u[i] * v[j] * ...` modulo 2^64, where x are the bits of
    the values, read as unsigned integers, and u, v, ... are fixed odd random numbers. So one changed value always
    changes the checksum, and each shard can be summed by itself. The checksum is not cryptographic: it does not protect
    against forged arrays.

    In a run with several processes, all processes must call this together.

    Args:
        arrays: arrays by name, of any sharding.

    Returns:
        A dict by name of the array, with the checksum as 16 hexadecimal digits.
    """
    return dict(zip(arrays, _checksums([(x, 0) for x in arrays.values()]), strict=True))


def differing_arrays(arrays: Mapping[str, Any], checksums: Mapping[str, str]) -> list[str]:
    """Return the names of the arrays whose values do not match their checksums.

    Every copy of a replicated array is checked, because each process reads its own copies from disk, and one copy alone
    may be wrong. In a run with several processes, all processes must call this together, and get the same answer.

    Args:
        arrays: arrays by name, of any sharding.
        checksums: the expected checksums by name, from `array_checksums`.

    Returns:
        A list of names, empty if all arrays match.
    """
    copies = [(name, copy) for name, x in arrays.items() for copy in range(_copies(x))]
    now = _checksums([(arrays[name], copy) for name, copy in copies])
    wrong = {name for (name, _), checksum in zip(copies, now, strict=True) if checksum != checksums[name]}
    return [name for name in arrays if name in wrong]


def _checksums(copies: Sequence[tuple[Any, int]]) -> list[str]:
    """Compute the checksum of each `(array, number of its copy)`, a list of texts, from the shards of all processes."""
    sums = np.array([_local_sum(x, copy) for x, copy in copies], np.uint64)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        halves = multihost_utils.process_allgather(sums.view(np.uint32))  # JAX has no 64-bit integers by default
        sums = np.ascontiguousarray(halves).view(np.uint64).sum(axis=0, dtype=np.uint64)
    return [f"{total:016x}" for total in sums.tolist()]


def _copies(x: Any) -> int:
    """Return the number of copies (replicas) of an array on all devices of all processes; 1 for a NumPy array."""
    return 1 + max(shard.replica_id for shard in x.global_shards) if isinstance(x, jax.Array) else 1


def _local_sum(x: Any, copy: int) -> np.uint64:
    """Return the weighted sum over the shards that this process holds of one copy (replica) of an array."""
    if not isinstance(x, jax.Array):
        return _weighted_sum(np.asarray(x), tuple(slice(0, size) for size in np.shape(x)))
    shards = [shard for shard in x.addressable_shards if shard.replica_id == copy]
    return np.sum([_weighted_sum(np.asarray(shard.data), shard.index) for shard in shards], dtype=np.uint64)


def _weighted_sum(values: np.ndarray, index: tuple[slice, ...]) -> np.uint64:
    """Return the weighted sum of the values of one shard, which lies at `index` in the array."""
    bits = np.ascontiguousarray(values).reshape(values.shape).view(f"u{values.dtype.itemsize}")
    for axis in range(values.ndim - 1, -1, -1):
        first = index[axis].start or 0
        weights = _weights(axis, math.ceil((first + values.shape[axis]) / 1024) * 1024)[first:][: values.shape[axis]]
        bits = np.einsum("...i,i->...", bits, weights, dtype=np.uint64, casting="unsafe")
    return np.uint64(bits)


@functools.lru_cache(maxsize=64)
def _weights(axis: int, count: int) -> np.ndarray:
    """Return the first `count` odd random numbers of an axis, `[count]` uint64, by the generator SplitMix64.

    Steele et al., Fast splittable pseudorandom number generators, 2014 (doi.org/10.1145/2660193.2660195).
    """
    start = ((axis + 1) * 0xD1B54A32D192ED03) % 2**64
    x = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) | np.uint64(1)
