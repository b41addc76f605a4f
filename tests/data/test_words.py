"""Tests of the transform `replace_tokens`: how many tokens are replaced, by which, and which never are."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.registry import transforms
from jaxdistill.data import Batches, Records

SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]  # ids 0 to 3; the ids 4 to 19 are words


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("words") / "tokenizer.json"
    names = SPECIAL + [f"w{i}" for i in range(16)]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(names)}, unk_token="[PAD]"))
    made.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    made.save(str(file))
    return file


def build(words: Path, more: str = "share=0.3, length=6"):
    return transforms.build(f"replace_tokens({more}, tokenizer={str(words)!r})", "data.augment")


IDS = np.array([[1, 4, 5, 6, 2, 0], [1, 7, 2, 0, 0, 0]], np.int32)
BATCH = {"input_ids": IDS, "attention_mask": (IDS > 0).astype(np.int32), "label": np.array([1, 0])}


def test_by_hand(words):
    """Check that random numbers of at least 0.3 keep a token, and lower ones choose a word: 0.2999 the last of 16."""
    numbers = np.array([[0.0, 0.15, 0.3, 0.2999, 0.0, 0.0], [0.9, 0.0, 0.0, 0.0, 0.0, 0.0]])
    out = build(words).apply(BATCH, numbers)
    assert out["input_ids"].tolist() == [[1, 12, 5, 19, 2, 0], [1, 4, 2, 0, 0, 0]]
    assert out["input_ids"].dtype == np.int32 and out["label"] is BATCH["label"] and IDS[0, 1] == 4
    masked = build(words, "share=0.3, length=6, by='[MASK]'").apply(BATCH, numbers)
    assert masked["input_ids"].tolist() == [[1, 3, 5, 3, 2, 0], [1, 3, 2, 0, 0, 0]]


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_as_many_as_asked_and_never_padding_or_a_special_token(words, share):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 20, (400, 50)).astype(np.int32)
    lengths = rng.integers(1, 50, 400)
    real = np.arange(50) < lengths[:, None]
    for mask in ("attention_mask", "segment_ids"):
        out = build(words, f"share={share}, length=50").apply({"input_ids": ids, mask: real * 2}, rng.random((400, 50)))
        changed = out["input_ids"] != ids
        assert not changed[~real].any() and not changed[ids < 4].any()
        assert (out["input_ids"][changed] >= 4).all() and (out["input_ids"] < 20).all()
        assert changed[real & (ids >= 4)].mean() == pytest.approx(share * 15 / 16, abs=0.02)  # a word may draw itself
    drawn = np.bincount(out["input_ids"][changed], minlength=20)[4:] / max(changed.sum(), 1)
    assert share == 0 or (abs(drawn - 1 / 16) < 0.03).all()


def test_processes_replace_in_one_batch(words):
    records = Records([{"input_ids": IDS[i % 2], "attention_mask": IDS[i % 2] > 0} for i in range(9)], None)
    draw = {"batch_size": 6, "seed": 1, "transforms": (build(words),)}
    whole = Batches(records, rows=slice(6), **draw)[1]
    parts = [Batches(records, rows=slice(3 * p, 3 * p + 3), **draw)[1] for p in range(2)]
    assert all(np.array_equal(whole[field], np.concatenate([part[field] for part in parts])) for field in whole)
    plain = Batches(records, rows=slice(6), **draw | {"transforms": ()})[1]
    assert not np.array_equal(whole["input_ids"], plain["input_ids"])


@pytest.mark.parametrize(
    ("more", "batch", "said"),
    [
        ("share=1.1, length=6", BATCH, "share=1.1, length=6; give a share from 0 to 1"),
        ("share=0.1, length=0", BATCH, "length=0; give a share from 0 to 1 and a length of 1 or more"),
        ("share=0.1, length=6, by='[MSK]'", BATCH, "no token '[MSK]'"),
        ("share=0.1, length=8", BATCH, "has length=8, but rows have 6 tokens. Set length=6"),
        ("share=0.1, length=6", {"image": IDS}, "needs input_ids; the batch has image. Remove it"),
        (
            "share=0.1, length=6",
            BATCH | {"teacher/input_ids": IDS},
            "reads the text from teacher/input_ids",
        ),
    ],
)
def test_a_mistake_is_told_with_its_cure(words, more, batch, said):
    with pytest.raises(ConfigError) as error:
        build(words, more).apply(batch, np.zeros(IDS.shape))
    assert said in str(error.value)
