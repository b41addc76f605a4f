"""The random order in which an epoch visits the records of a data set.

Up to `MANY` records the order is an array, made once for an epoch. Beyond that it is a function of the place: a keyed
permutation that needs no memory, so that ten billion records cost what ten thousand do.

The permutation is a Feistel network on the smallest even number of bits that holds all numbers (Luby and Rackoff, How
to construct pseudorandom permutations from pseudorandom functions, 1988, doi.org/10.1137/0217022). A result that is no
record's number goes through the network again until it is one, which leaves a permutation of the records (Black and
Rogaway, Ciphers with arbitrary finite domains, 2002, doi.org/10.1007/3-540-45760-7_9).
"""

import functools

import numpy as np

ORDER, AUGMENTATION, SELECTION = 0, 1, 2  # purposes of random numbers: their sequences start 2^192 draws apart
# Four arrays of so many numbers are kept, in 4 GiB; runs that earlier versions began keep their order up to here
MANY = 2**27
ROUNDS = 8


def random_words(seed: int, number: int, purpose: int, count: int) -> np.ndarray:
    """Return random 64-bit words from the counter-based generator Philox, `[count]` uint64.

    Args:
        seed: random seed, the first half of the generator's key.
        number: number of the batch or epoch that the words are for, the second half of the generator's key.
        purpose: `ORDER`, `AUGMENTATION` or `SELECTION`; each purpose has its own sequence of words.
        count: number of words.
    """
    key = np.array([seed, number], np.uint64)
    return np.random.Philox(key=key, counter=[0, 0, 0, purpose]).random_raw(count)


def records_at(places: np.ndarray, seed: int, epoch: int, records: int) -> np.ndarray:
    """Return the number of the record at each place of an epoch's order, `[places]` int64.

    Args:
        places: places in the order, from 0 to `records - 1`; int64.
        seed: random seed.
        epoch: number of the epoch.
        records: number of records.
    """
    return permutation(seed, epoch, records)[places] if records <= MANY else keyed(places, seed, epoch, records)


@functools.lru_cache(maxsize=4)  # a batch may span two epochs, and threads prefetch
def permutation(seed: int, epoch: int, records: int) -> np.ndarray:
    """Return the order of an epoch as an array of record numbers, `[records]`.

    The array is cached and shared by all callers, so do not modify it.

    Args:
        seed: random seed.
        epoch: number of the epoch.
        records: number of records.
    """
    return np.argsort(random_words(seed, epoch, ORDER, records), kind="stable")


def keyed(places: np.ndarray, seed: int, epoch: int, records: int) -> np.ndarray:
    """Compute the number of the record at each place of an epoch's order with a keyed permutation, `[places]` int64.

    No array of all record numbers is needed. See `records_at` for the arguments.
    """
    keys = random_words(seed, epoch, ORDER, ROUNDS)
    half = np.uint64(max(1, -(-(records - 1).bit_length() // 2)))
    mask = (np.uint64(1) << half) - np.uint64(1)
    shuffled = _encrypted(places.astype(np.uint64), keys, half, mask)
    # at least a quarter of the numbers are below `records`, so few rounds are needed
    while (outside := shuffled >= records).any():
        shuffled[outside] = _encrypted(shuffled[outside], keys, half, mask)
    return shuffled.astype(np.int64)


def _encrypted(numbers: np.ndarray, keys: np.ndarray, half: np.uint64, mask: np.uint64) -> np.ndarray:
    left, right = numbers >> half, numbers & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return (left << half) | right


def _mixed(x: np.ndarray) -> np.ndarray:
    """Mix the bits of 64-bit words: the finaliser of SplitMix64 (Steele et al., 2014, see `core/checksums.py`)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
