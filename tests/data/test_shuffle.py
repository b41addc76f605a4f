"""Tests of the order of records: every record once an epoch, another order in every epoch, little memory."""

import tracemalloc

import numpy as np
import pytest

from jaxdistill.data import shuffle
from jaxdistill.data.records import Records
from jaxdistill.data.shuffle import keyed, permutation, records_at
from jaxdistill.data.stream import Batches

BILLIONS = 10**10


@pytest.mark.parametrize("records", [1, 2, 3, 5, 64, 65, 1000, 4097])
def test_every_record_is_visited_once(records):
    for epoch in range(3):
        found = keyed(np.arange(records), 7, epoch, records)
        assert sorted(found.tolist()) == list(range(records))


def test_orders_depend_on_seed_and_epoch_alone():
    places = np.arange(1000)
    first = keyed(places, 1, 0, 1000)
    assert np.array_equal(first, keyed(places, 1, 0, 1000))
    for other in (keyed(places, 2, 0, 1000), keyed(places, 1, 1, 1000), places):
        assert (first == other).mean() < 0.01
    assert np.array_equal(first[10:20], keyed(places[10:20], 1, 0, 1000))  # part of an order needs no other part


def test_no_place_prefers_a_record():
    """Check with chi-squared tests that records are equally frequent at all places, and pairs at the first two."""
    found = np.stack([keyed(np.arange(16), 3, epoch, 16) for epoch in range(4000)])
    counts = np.stack([np.bincount(found[:, place], minlength=16) for place in range(16)])
    assert ((counts - 250) ** 2 / 250).sum() < 320  # 225 degrees of freedom: 99.997 % of fair draws
    pairs = np.bincount(found[:, 0] * 16 + found[:, 1], minlength=256).reshape(16, 16)[~np.eye(16, dtype=bool)]
    assert ((pairs - 4000 / 240) ** 2 / (4000 / 240)).sum() < 340


def test_few_records_keep_their_order():
    assert np.array_equal(records_at(np.arange(100), 5, 2, 100), permutation(5, 2, 100))


def test_ten_billion_records_need_no_memory():
    tracemalloc.start()
    found = records_at(np.arange(BILLIONS - 512, BILLIONS), 0, 3, BILLIONS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20
    assert len(set(found.tolist())) == 512 and found.min() >= 0 and 2**32 < found.max() < BILLIONS


class Endless:
    """Ten billion records that hold the last 16 bits of their own number."""

    def __len__(self):
        return BILLIONS

    def __getitem__(self, number):
        return {"low": np.int32(number % 2**16), "label": 0}


def test_batches_of_ten_billion_records():
    batches = Batches(Records(Endless(), None), batch_size=8, seed=1, transforms=(), rows=slice(0, 8))
    last = BILLIONS // 8 - 1
    found, again = batches[last], batches[last]
    places = np.arange(BILLIONS - 8, BILLIONS)
    numbers = keyed(places, 1, 0, BILLIONS)
    assert found["low"].tolist() == (numbers % 2**16).tolist() == again["low"].tolist()
    assert found["index"].tolist() == (numbers % 2**31).tolist()
    assert batches[last + 1]["low"].tolist() == (keyed(np.arange(8), 1, 1, BILLIONS) % 2**16).tolist()
    half = Batches(Records(Endless(), None), batch_size=8, seed=1, transforms=(), rows=slice(4, 8))
    assert half[last]["low"].tolist() == found["low"].tolist()[4:]


def test_the_array_and_the_function_change_at_many(monkeypatch):
    monkeypatch.setattr(shuffle, "MANY", 9)
    assert np.array_equal(records_at(np.arange(9), 0, 0, 9), permutation(0, 0, 9))
    assert np.array_equal(records_at(np.arange(10), 0, 0, 10), keyed(np.arange(10), 0, 0, 10))


def test_orders_never_change_from_one_version_to_the_next():
    """Check stored orders, because a run of an earlier version must resume with the records that follow there."""
    words = {
        shuffle.ORDER: [8893702929424106994, 13357943582879616415],
        shuffle.AUGMENTATION: [3845544696532098304, 9931676275916508706],
        shuffle.SELECTION: [6626441875418973127, 4298078626401097108],
    }
    for purpose, wanted in words.items():
        assert shuffle.random_words(7, 3, purpose, 2).tolist() == wanted
    assert permutation(7, 3, 8).tolist() == [2, 5, 7, 3, 0, 6, 4, 1]
    wanted = [4390928126, 9412252495, 2448090631, 5715834414, 99080260, 8990324989]
    assert keyed(np.arange(6), 7, 3, BILLIONS).tolist() == wanted
