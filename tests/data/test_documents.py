"""Tests of the packing of tokenised documents into rows, all at once and in parts."""

import numpy as np
import pytest

from jaxdistill.data.text.documents import _Packer, pack_documents


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("length", [1, 3, 8, 64])
def test_every_token_but_the_first_of_a_document_is_predicted_once(share, length):
    rng = np.random.default_rng(length)
    texts = [rng.integers(1, 50, size, dtype=np.int32) for size in rng.integers(1, 30, 40)]
    rows = pack_documents(texts, length, share)
    assert all(field.shape == rows["mask"].shape and field.shape[1] == length for field in rows.values())
    assert rows["mask"].dtype == np.float32 and {rows[n].dtype for n in rows if n != "mask"} == {np.dtype("int32")}
    real, counts = rows["segment_ids"] > 0, rows["mask"] > 0
    assert np.array_equal(rows["input_ids"][real], np.concatenate(texts))
    assert np.array_equal(rows["label"][counts], np.concatenate([text[1:] for text in texts]))
    assert not rows["label"][~counts].any() and not rows["input_ids"][~real].any() and not (counts & ~real).any()
    inside = counts[:, :-1] & (rows["segment_ids"][:, 1:] == rows["segment_ids"][:, :-1])
    assert np.array_equal(rows["label"][:, :-1][inside], rows["input_ids"][:, 1:][inside])
    assert (real.sum() / real.size > 0.95) if share and length < 64 else True
    assert share or not (np.diff(rows["segment_ids"], axis=1) > 0).any()


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("sizes", [(1,), (4, 4), (3, 1, 9), (2, 11, 1, 1, 5), (5, 3, 4, 4, 1)])
def test_documents_in_parts_are_the_same_rows(sizes, pack):
    """Check that documents packed one at a time give the same rows as documents packed at once."""
    start = iter(range(1, 1000))
    texts = [np.array([next(start) for _ in range(size)], np.int32) for size in sizes]
    whole = pack_documents(texts, 4, pack)
    packer = _Packer(4, pack)
    parts = []
    for text in texts:
        packer.add([text])
        parts.append(packer.full_rows())
    parts.append(packer.last_rows())
    for field, expected in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[field] for part in parts]), expected, err_msg=field)
    flat = np.concatenate(texts)
    assert whole["input_ids"][whole["segment_ids"] > 0].tolist() == flat.tolist()
