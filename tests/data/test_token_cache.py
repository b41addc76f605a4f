"""Tests of the cache of tokens: its array files, and what changes its key."""

import numpy as np
import pytest
from corpora import WORDS, sentences, written

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.registry import tokenizations
from jaxdistill.data.records import Records
from jaxdistill.data.text import token_cache
from jaxdistill.data.text.token_cache import ArrayFile


def test_an_array_file_is_read_by_numpy(tmp_path):
    rows = np.arange(14, dtype=np.int32).reshape(7, 2)
    with ArrayFile(tmp_path / "x.npy") as file:
        for start in (0, 3, 3, 5):
            file.append(rows[start : start + 2])
    found = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert found.tolist() == np.concatenate([rows[s : s + 2] for s in (0, 3, 3, 5)]).tolist()
    with ArrayFile(tmp_path / "y.npy") as file:
        file.append(rows[:0])
    assert np.load(tmp_path / "y.npy").shape == (0, 2)
    for other in (rows[:, :1], rows.astype(np.int64)):
        with ArrayFile(tmp_path / "z.npy") as file, pytest.raises(ConfigError, match="a later record has"):
            file.append(rows)
            file.append(other)


def test_the_fingerprint_of_records_tells_types_and_shapes_apart():
    arrays = (np.zeros((4, 2), np.int32), np.zeros((4, 2), np.float32), np.zeros((2, 4), np.int32))
    assert len({token_cache.fingerprint(Records({"x": x}, None)) for x in arrays}) == 3


def test_the_teachers_tokenizer_is_part_of_the_hash(tmp_path):
    words = written(tmp_path, WORDS)
    hashes = set()
    for vocabulary in (WORDS, WORDS[::-1]):
        (tmp_path / vocabulary[0].strip("[]")).mkdir()
        other = written(tmp_path / vocabulary[0].strip("[]"), vocabulary)
        spec = sentences(words, 5, f", teacher={str(other)!r}")
        hashes.add(token_cache.tokenizer_hash(tokenizations.build(spec, "data.tokens")))
    assert len(hashes) == 2
