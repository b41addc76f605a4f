"""Tests of the checks of records: a value that no model can read is refused, with its record and field named."""

import re

import grain
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.registry import datasets
from jaxdistill.data import open_records
from jaxdistill.data.records import Records
from jaxdistill.data.stream import train_stream, without_text

IMAGE = np.zeros((2, 2, 1), np.float32)
NAN = np.full((2, 2, 1), np.nan, np.float32)
WIDE = np.array([2**40])
DATE, EMPTY = np.datetime64("2020-01-01"), np.zeros(0, int)


class Own(list):
    """A list of records of three classes, as a data set factory returns it."""

    classes = 3


def own(place, **changed):
    records = Own({"image": IMAGE, "x": np.array([1]), "label": i % 3} for i in range(6))
    records[place] = {**records[place], **changed}
    return records


def opened(records, monkeypatch, tmp_path):
    monkeypatch.setitem(datasets.factories, "own", lambda split: records)
    return open_records("own", "train", tmp_path, "data", "train")


@pytest.mark.parametrize("place", [0, 3])
@pytest.mark.parametrize(
    "label",
    [2**40, -1, 3, 0.5, 1.0, float("nan"), None, "cat", "1", b"1", [], {}, 1j, 10**30, DATE, EMPTY],
    ids=str,
)
def test_a_label_is_a_class(label, place, monkeypatch, tmp_path):
    with pytest.raises(ConfigError) as error:
        opened(own(place, label=label), monkeypatch, tmp_path)
    said = re.escape(" ".join(repr(label).split()))
    assert re.match(
        rf"data\.name: record {place}, field 'label': {said} is not a class: .* 0 to 2\. Correct", str(error.value)
    )


@pytest.mark.parametrize("label", [True, np.int64(2), np.uint8(2), np.array(1)])
def test_any_whole_number_is_a_label(label, monkeypatch, tmp_path):
    assert opened(own(3, label=label), monkeypatch, tmp_path).take(np.arange(6))["label"][3] == label


@pytest.mark.parametrize("place", [1, 3])
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"label": np.array([0, 1])}, "field 'label': its label has another shape"),
        ({"image": None}, "field 'image': None is neither an array of numbers nor a text"),
        ({"image": "x"}, "field 'image': 'x' is of another type than the values before it"),
        ({"image": NAN}, r"field 'image': nan at \[0, 0, 0\] is not a finite number"),
        ({"image": np.inf * NAN[:1]}, r"field 'image': nan at \[0, 0, 0\] is not a finite number"),
        ({"image": IMAGE.astype(np.uint8)}, "it has the type uint8, and the values before it have float32"),
        ({"image": np.ma.masked_equal(IMAGE, IMAGE[0, 0, 0])}, "values are masked out"),
        ({"image": IMAGE > 0}, "it has the type bool, and the values before it have float32"),
        ({"image": IMAGE + 1j}, "values of type complex.* are not supported"),
        ({"image": [[1, [2]]]}, r"\[\[1, \[2\]\]\] is not an array"),
        ({"x": WIDE}, r"field 'x': 1099511627776 at \[0\] is not in -2147483648 to 2147483647"),
        ({"more": 1}, r"its fields are not those of record 0 \(see 'more'\)"),
    ],
)
def test_a_value_that_no_model_reads_is_named(changed, said, place, monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match=rf"data\.name: record {place}.*{said}"):
        opened(own(place, **changed), monkeypatch, tmp_path)


def test_a_number_that_is_infinite_in_32_bits_is_named(monkeypatch, tmp_path):
    # 1e+20 fits into 32 bits, but its square does not, so that the norm of such an image would be infinite.
    for field, number in (("x", "1e+300"), ("image", "1e+300"), ("image", "1e+20")):
        said = rf"record 1, field '{field}': {re.escape(number)} at \[0\] is not a finite number in 32 bits"
        with pytest.raises(ConfigError, match=said):
            opened([{field: np.array([x])} for x in (2.0, float(number))], monkeypatch, tmp_path)
    many = np.full(40, 1.5e19)  # in 32 bits the sum of their squares is infinite, but each square is finite
    assert len(opened([{"image": many}, {"image": many}], monkeypatch, tmp_path)) == 2
    lowest = np.full(2, np.finfo(np.float32).min)  # occurs in masks that are added to logits
    assert len(opened([{"bias": lowest}, {"bias": lowest}], monkeypatch, tmp_path)) == 2


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([7.0, -3.0, 0.0], r"-3\.0 at \[1\] is no probability of a class"),
        ([0.0, 0.0, 0.0], r"0\.0 is the sum of the probabilities"),
        ([0.5, 0.2, 0.2], r"0\.8\d* is the sum of the probabilities"),
    ],
)
def test_soft_labels_are_probabilities(row, said, monkeypatch, tmp_path):
    good = {"label_probs": np.float16([0.335, 0.333, 0.333])}
    assert len(opened([good] * 2, monkeypatch, tmp_path)) == 2
    with pytest.raises(ConfigError, match=rf"record 1, field 'label_probs': {said}"):
        opened([good, {"label_probs": np.float16(row)}], monkeypatch, tmp_path)
    padded = {"label_probs": np.float32([[0.5, 0.5], [0, 0]])}  # the second token is padding, without probabilities
    assert len(opened([padded] * 2, monkeypatch, tmp_path)) == 2
    with pytest.raises(ConfigError, match=r"record 1, field 'label_probs': .* at \[1\] is the sum"):
        opened([padded, {"label_probs": np.float32([[0.5, 0.5], [1, 1]])}], monkeypatch, tmp_path)


@pytest.mark.parametrize("dtype", [np.int16, np.int64, np.uint16])
def test_whole_numbers_of_other_types_are_no_pixels(dtype, monkeypatch, tmp_path):
    """Check that pixels of other integer types than uint8 are refused, because models scale only uint8."""
    with pytest.raises(ConfigError, match=rf"record 0, field 'image': pixels of type {np.dtype(dtype)} would be read"):
        opened([{"image": np.ones((2, 2, 1), dtype)}] * 2, monkeypatch, tmp_path)
    assert len(opened([{"image": np.ones(3, dtype)}] * 2, monkeypatch, tmp_path)) == 2  # vectors are never scaled


def test_the_type_of_a_field_is_that_of_its_first_record_in_every_batch(monkeypatch, tmp_path):
    """Check that a record of another dtype is refused, because it would change the pixels of its whole batch."""
    monkeypatch.setattr("jaxdistill.data.records.IN_MEMORY", 0)
    records = opened([{"image": IMAGE}] * 9 + [{"image": IMAGE.astype(np.float16)}], monkeypatch, tmp_path)
    records.take(np.array([0]))
    with pytest.raises(ConfigError, match="record 9, field 'image': it has the type float16"):
        records.take(np.array([9]))


def test_a_missing_field_is_named(monkeypatch, tmp_path):
    records = own(3)
    del records[3]["label"]
    with pytest.raises(ConfigError, match=r"record 3: its fields are not those of record 0 \(see 'label'\)"):
        opened(records, monkeypatch, tmp_path)


def test_tokens_are_not_negative(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match=r"record 1, field 'teacher/input_ids': -3 at \[1\] is not in 0 to"):
        opened([{"teacher/input_ids": np.array([1, x])} for x in (2, -3)], monkeypatch, tmp_path)


@pytest.mark.parametrize("classes", [0, 2.5, "3", True])
def test_classes_are_a_number(classes, monkeypatch, tmp_path):
    records = own(0)
    records.classes = classes
    with pytest.raises(ConfigError, match="classes is a whole number, 1 or more"):
        opened(records, monkeypatch, tmp_path)


def test_what_is_read_later_is_checked_too(monkeypatch, tmp_path):
    """Check records that a thread reads when their batch is made, as if the data did not fit into memory."""
    monkeypatch.setattr("jaxdistill.data.records.IN_MEMORY", 0)
    records = opened(Own(own(0) + own(3, label=7)), monkeypatch, tmp_path)
    batches = train_stream(records, batch_size=12, seed=0, transforms=(), rows=slice(12))
    assert isinstance(batches, grain.DatasetIterator)
    with pytest.raises(ConfigError, match="record 9, field 'label': 7 is not a class"):
        next(batches)


def test_outputs_of_teachers_may_be_infinite():
    assert Records([{"cached": np.array([-np.inf])}] * 2, None).take(np.arange(2))["cached"][0] == -np.inf


@pytest.mark.parametrize("label", [[1], [0, 1, 0]])
def test_a_label_is_one_number(label, monkeypatch, tmp_path, capsys):
    records = Own({"image": np.zeros((8, 8, 1), np.float32), "label": np.array(label)} for _ in range(40))
    monkeypatch.setitem(datasets.factories, "own", lambda split: records)
    assert runs.run(tmp_path / "run", "--config.data.name=own", "--config.data.augment=()") == 2
    said = f"a label of the split 'train' has the shape {list(np.shape(label))}, so it is not one class number"
    assert said in capsys.readouterr().err


def test_an_input_that_is_not_finite_is_no_divergence(tmp_path, capsys):
    """Check that a loss that is NaN before the first update is not blamed on the learning rate."""
    from jaxdistill.run.log import _check_finite

    with pytest.raises(ConfigError, match=r"objective\.kd: student: nan at step 1, before an update\. Check"):
        _check_finite("student", 1, {"terms/kd": float(jnp.nan), "loss": float(jnp.nan)}, at_start=True)


@pytest.mark.parametrize("label", [2**40, 2**31, 2**31 - 1])
def test_without_a_number_of_classes_a_label_has_32_bits(label, monkeypatch, tmp_path):
    records = list(own(3, label=label))
    if label < 2**31:
        assert opened(records, monkeypatch, tmp_path).take(np.arange(6))["label"][3] == label
        return
    with pytest.raises(ConfigError, match=r"is not a class: .* 0 to 2147483647"):
        opened(records, monkeypatch, tmp_path)


class TooLong(list):
    """A list of fewer records than its `len()` says."""

    def __len__(self):
        return 9


class Unknown(list):
    """A list of records of which number 3 raises an IndexError when it is read."""

    def __getitem__(self, number):
        return super().__getitem__(number) | {"label": [0, 1, 2][7 if number == 3 else 1]}


def test_a_length_that_is_a_lie_and_a_dict_are_named(monkeypatch, tmp_path):
    with pytest.raises(
        ConfigError, match=r"^data\.name: the data set has 9 records by its len\(\), and fewer can be read"
    ):
        opened(TooLong(own(0)), monkeypatch, tmp_path)
    with pytest.raises(
        ConfigError, match=r"^data\.name: one of the records \[.*3.*\] cannot be read \(list index out.*line"
    ):
        opened(Unknown(own(0)), monkeypatch, tmp_path)
    with pytest.raises(ConfigError, match=r"returned a dict; return a list, or an object with len"):
        opened(dict(enumerate(own(0))), monkeypatch, tmp_path)


def test_vectors_of_several_lengths_are_named(monkeypatch, tmp_path):
    records = opened([{"image": np.zeros(size, np.float32)} for size in (2, 2, 3)], monkeypatch, tmp_path)
    said = r"^data\.name: 'image' has the shape \[2\] in one record and \[3\] in another. Give all records one shape"
    with pytest.raises(ConfigError, match=said):
        without_text(records.take(np.arange(3)))
    with pytest.raises(
        ConfigError, match=r"the shape \[2\] in one record and another shape in another. Give all records"
    ):
        without_text(records.take(np.arange(2)))  # the third shape is not in this batch


@pytest.mark.parametrize("kind", ["by number", "random", "one array"])
def test_records_that_change_when_they_are_read_again_are_named(kind, monkeypatch, tmp_path):
    numbers, array = np.random.default_rng(0), np.zeros(1)

    class Drawn(Own):
        def __getitem__(self, number):
            source = numbers if kind == "random" else np.random.default_rng(number)
            drawn = source.normal(size=1)
            array[:] = drawn
            return {**super().__getitem__(number), "x": array if kind == "one array" else drawn}

    if kind == "by number":
        assert len(opened(Drawn(own(0)), monkeypatch, tmp_path)) == 6
    else:
        with pytest.raises(ConfigError, match=r"data\.name: record 0, field 'x': it has another value when it is read"):
            opened(Drawn(own(0)), monkeypatch, tmp_path)
