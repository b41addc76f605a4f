"""Tests of data sets and batches: contents, order, resuming, evaluation, image transforms and error messages."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.packages import default_folder
from jaxdistill.core.registry import datasets, transforms
from jaxdistill.data import Batches, Transform, check_name, evaluation_batches, open_records, records, train_stream
from jaxdistill.data.builders import digits
from jaxdistill.data.splits import share_records
from jaxdistill.data.stream import transformed

PLAIN = {"batch_size": 4, "seed": 3, "transforms": ()}


@pytest.fixture(autouse=True, scope="module")
def registered():
    """Register the data sets below for this file only, because error messages list all registered names."""
    ours = (counting, nothing, nonsense)
    for factory in ours:
        datasets.register(factory)
    yield
    for factory in ours:
        del datasets.factories[factory.__name__]


def counting(split: str, size: int = 10):
    """Return records of which number i holds i in every field; images of the split `ragged` have two heights."""
    if split not in ("train", "ragged"):
        raise ValueError(f"unknown split {split!r}. Known: train, ragged.")
    heights = [1 + i % 2 if split == "ragged" else 2 for i in range(size)]
    return [{"image": np.full((h, 3, 1), i, np.uint8), "label": i, "name": f"no. {i}"} for i, h in enumerate(heights)]


def nothing(split: str):
    return []


def nonsense(split: str):
    return 7


@pytest.fixture(scope="session")
def train():
    return open_records("mnist5k", "train", default_folder(), "data", "train")


def count(split="train", size=10):
    return open_records(f"counting(size={size})", split, default_folder(), "data", "train")


def equal(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


# What is in the sets


def test_mnist5k_has_equally_many_of_each_digit(train):
    test = open_records("mnist5k", "test", default_folder(), "data", "test")
    for split, size in ((train, 4000), (test, 1000)):
        digits = split.take(np.arange(size))
        assert len(split) == size and split.classes == 10
        assert digits["image"].shape == (size, 28, 28, 1) and digits["image"].dtype == np.uint8
        assert np.bincount(digits["label"]).tolist() == [size // 10] * 10
    assert 0.12 < digits["image"].mean() / 255 < 0.14  # the mean of MNIST is 0.1307


def test_a_slice_of_a_split_is_balanced_too():
    tenth = open_records("mnist5k", "train[:10%]", default_folder(), "data", "train")
    assert np.bincount(tenth.take(np.arange(400))["label"]).tolist() == [40] * 10


def test_a_record_of_one_split_is_in_no_other(train):
    test = open_records("mnist5k", "test", default_folder(), "data", "test")
    seen = {image.tobytes() for image in train.take(np.arange(4000))["image"]}
    assert not any(image.tobytes() in seen for image in test.take(np.arange(1000))["image"])


def test_clothes_are_read_from_idx_files(tmp_path):
    import gzip

    images, labels = np.arange(2 * 784, dtype=np.uint8), np.array([3, 9], np.uint8)
    for kind, header, array in (("images-idx3", 16, images), ("labels-idx1", 8, labels)):
        (tmp_path / f"train-{kind}-ubyte.gz").write_bytes(gzip.compress(bytes(header) + array.tobytes()))
    read, classes = digits._read_pair(tmp_path, "train")
    assert np.array_equal(read.ravel(), images) and classes.tolist() == [3, 9]


def test_tensorflow_is_not_imported_and_the_package_alone_is_light():
    code = (
        "import sys, jaxdistill.data as d, jaxdistill.core.packages as f;"
        "slow = {'grain', 'tensorflow_datasets', 'jax'} & set(sys.modules);"
        "r = d.open_records('mnist5k', 'test', f.default_folder(), 'data', 'test');"
        "next(d.train_stream(r, batch_size=8, seed=0, transforms=(), rows=slice(8)));"
        "sys.exit(str(slow) if slow else 'tensorflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_transform_has_draws_of_its_own():
    keep = lambda name: Transform(2, lambda batch, draws: batch | {name: draws})
    draws = np.arange(20.0).reshape(4, 5)
    one = Transform(1, lambda batch, draws: batch | {"c": draws})
    out = transformed({"x": np.zeros(4)}, (keep("a"), one, keep("b")), draws)
    for name, columns in (("a", [0, 1]), ("c", [2]), ("b", [3, 4])):
        np.testing.assert_array_equal(out[name], draws[:, columns])


def test_a_large_set_is_read_batch_by_batch(monkeypatch):
    small = count()
    monkeypatch.setattr(records, "IN_MEMORY", 0)
    large = count()
    assert small.in_memory and not large.in_memory
    assert equal(small.take(np.array([7, 0, 7])), large.take(np.array([7, 0, 7])))


# Batches


@pytest.mark.parametrize("size", [3, 10, 16])
def test_every_record_comes_once_an_epoch_and_orders_differ(size):
    batches = Batches(count(size=size), rows=slice(4), **PLAIN)
    rows = np.concatenate([batches[i]["index"] for i in range(3 * size)])
    assert all(len(batches[i]["index"]) == 4 for i in range(3 * size))
    epochs = rows.reshape(-1, size)
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) > 1


def test_a_batch_holds_label_mask_and_index_but_no_text():
    batch = Batches(count(), rows=slice(4), **PLAIN)[5]
    assert {k: (v.dtype.name, v.shape) for k, v in batch.items()} == {
        "image": ("uint8", (4, 2, 3, 1)),
        "label": ("int32", (4,)),
        "mask": ("float32", (4,)),
        "index": ("int32", (4,)),
    }
    assert np.array_equal(batch["label"], batch["index"]) and np.array_equal(batch["image"][:, 0, 0, 0], batch["index"])


def test_the_seed_changes_order_and_draws(train):
    jitter = (transforms.build("shift(pixels=2)", ""),)
    one, other = (Batches(train, batch_size=64, seed=s, transforms=jitter, rows=slice(64))[0] for s in (0, 1))
    assert not np.array_equal(one["index"], other["index"])


def test_processes_share_one_batch(train):
    augment = tuple(transforms.build(spec, "") for spec in ("shift(pixels=2)", "flip", "crop(padding=1)"))
    draw = {"batch_size": 96, "seed": 1, "transforms": augment}
    whole = Batches(train, rows=slice(96), **draw)[41]  # ends one epoch and begins the next
    for processes in (2, 3):
        size = 96 // processes
        parts = [Batches(train, rows=slice(p * size, (p + 1) * size), **draw)[41] for p in range(processes)]
        assert equal(whole, {k: np.concatenate([part[k] for part in parts]) for k in whole})


def test_resumed_is_uninterrupted(train):
    def stream():
        return train_stream(
            train, batch_size=128, seed=0, transforms=(transforms.build("shift(pixels=2)", ""),), rows=slice(128)
        )

    straight = stream()
    expected = list(itertools.islice(straight, 40))
    first = stream()
    assert all(map(equal, itertools.islice(first, 17), expected))
    state = first.get_state()
    next(first)  # after the state was taken
    resumed = stream()
    resumed.set_state(state)
    assert all(map(equal, itertools.islice(resumed, 23), expected[17:]))
    for it in (straight, first, resumed):
        it.close()


def test_evaluation_sees_every_record_once_and_pads_with_mask_0():
    halve = Transform(0, lambda batch, uniforms: batch | {"half": batch["label"] / 2})
    drawing = Transform(1, lambda batch, uniforms: pytest.fail("evaluation must not augment"))
    batches = list(evaluation_batches(count(), batch_size=4, rows=slice(4), transforms=(halve, drawing)))
    assert [b["index"].tolist() for b in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 9, 9]]
    assert [b["mask"].tolist() for b in batches] == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]]
    assert batches[1]["half"].tolist() == [2, 2.5, 3, 3.5]
    mine = list(evaluation_batches(count(), batch_size=4, rows=slice(2, 4)))
    assert [b["index"].tolist() for b in mine] == [[2, 3], [6, 7], [9, 9]]


def test_evaluation_sets_every_mask_of_rows_that_fill_the_last_batch_to_0():
    tokens = {"mask": np.ones((3, 2), np.float32), "teacher/mask": np.ones((3, 4), np.int32)}
    *_, last = evaluation_batches(records.Records(tokens, None), batch_size=2, rows=slice(2))
    for mask in (last["mask"], last["teacher/mask"]):
        assert mask[0].all() and not mask[1].any()


# Transforms


def draws(rows, number, value=None):
    return np.random.default_rng(0).random((rows, number)) if value is None else np.full((rows, number), value)


@pytest.mark.parametrize("spec", ["shift(pixels=3)", "crop(padding=3)", "flip"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_laws_of_image_transforms(spec, dtype):
    transform = transforms.build(spec, "data.augment")
    batch = {"image": np.random.default_rng(1).integers(1, 255, (6, 8, 9, 3)).astype(dtype), "label": np.arange(6)}
    before = batch["image"].copy()
    out = transform.apply(batch, draws(6, transform.draws))
    assert out["image"].dtype == dtype and out["image"].shape == batch["image"].shape
    assert out["label"] is batch["label"] and np.array_equal(batch["image"], before)
    assert all(set(new.ravel()) <= {0, *old.ravel()} for new, old in zip(out["image"], before, strict=True))
    assert equal(out, transform.apply(batch, draws(6, transform.draws)))
    assert np.array_equal(transform.apply(batch, draws(6, transform.draws, 0.5))["image"], before)
    assert not np.array_equal(out["image"], before)


def test_transforms_by_hand():
    image = {"image": np.array([[1, 2], [3, 4]], np.uint8)[None, :, :, None]}

    def apply(spec, *uniforms):
        out = transforms.build(spec, "").apply(image, np.array([uniforms]))
        return out["image"][0, :, :, 0].tolist()

    assert apply("shift(pixels=1)", 0.0, 0.0) == [[0, 0], [0, 1]]
    assert apply("shift(pixels=1)", 0.99, 0.5) == [[3, 4], [0, 0]]
    assert apply("crop(padding=1)", 0.0, 0.5) == [[3, 4], [1, 2]]
    assert apply("flip", 0.49) == [[2, 1], [4, 3]]
    assert apply("flip", 0.5) == [[1, 2], [3, 4]]


def test_every_shift_is_as_likely():
    image = {"image": np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3, 1).repeat(9000, 0)}
    moved = transforms.build("shift(pixels=1)", "").apply(image, draws(9000, 2))["image"]
    centres = np.bincount(moved[:, 1, 1, 0], minlength=10)[1:]
    assert centres.min() > 850 and centres.max() < 1150


# Mistakes


@pytest.mark.parametrize(
    ("name", "split", "path", "words"),
    [
        ("mnist5", "train", "data.name", ["'mnist5'", "Did you mean 'mnist5k'?", "clothes", "counting"]),
        ("cifr100", "train", "data.name", ["'cifr100'", "TensorFlow Datasets has 'cifar100'"]),
        ("two words", "train", "data.name", ["'two words'", "Known:"]),
        ("", "train", "data.name", ["Known:"]),
        ("countin(size=3)", "train", "data.name", ["Did you mean 'counting'?"]),
        ("counting(size=3", "train", "data.name", ["'counting(size=3'", "Write a registered name"]),
        ("counting(sizes=3)", "train", "data.name", ["'sizes'", "Did you mean 'size'?"]),
        ("counting(size='3')", "train", "data.name", ["'3'", "int"]),
        ("counting", "test", "data.name", ["'test'", "Known: train, ragged"]),
        ("nothing", "train", "data.name", ["'nothing'", "no records", "dict of arrays"]),
        ("nonsense", "train", "data.name", ["int", "return a list"]),
        ("mnist5k", "tran", "data.test", ["'tran'", "Did you mean 'train'?", "Known: test, train", "train[:80%]"]),
        ("mnist5k", "train[:80%", "data.test", ["'train[:80%'", "A slice is written train[:80%]"]),
        ("mnist5k", "train[:0]", "data.test", ["may not be empty"]),
        ("mnist5k", "train[90%:80%]", "data.test", ["'train[90%:80%]'", "may not be empty"]),
        ("mnist5k", "train[50%:50%]", "data.test", ["'train[50%:50%]'", "may not be empty"]),
        ("mnist5k", "train[9000:]", "data.test", ["'train[9000:]'"]),
        ("mnist5k:7.0.0", "train", "data.name", ["'mnist5k:7.0.0'", "only: 1.0.0", "Correct its version"]),
        ("mnist/size=3", "train", "data.name", ["'mnist/size=3'", "'size'", "configuration"]),
    ],
)
def test_a_mistake_names_path_value_and_cure(train, name, split, path, words):
    with pytest.raises(ConfigError) as error:
        open_records(name, split, default_folder(), "data", "test")
    assert str(error.value).startswith(f"{path}: ")
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("name", ["mnist5k", "clothes", "counting(size=3)", "cifar100", "glue/sst2", "mnist:3.0.1"])
def test_known_names_pass_without_network(name, tmp_path):
    check_name(name, tmp_path)


def test_ragged_images_need_a_transform_and_augmentation_needs_images():
    ragged = count("ragged")
    with pytest.raises(ConfigError, match=r"data\.augment: 'image' has the shape"):
        Batches(ragged, rows=slice(4), **PLAIN)[0]
    with pytest.raises(ConfigError, match=r"data\.augment: 'flip' needs image \[rows, height, width, channels\]"):
        transforms.build("flip", "data.augment").apply({"tokens": np.zeros((4, 8))}, draws(4, 1))
    with pytest.raises(ConfigError, match=r"data\.augment: shift: -1 pixels; give 0 or more"):
        transforms.build("shift(pixels=-1)", "data.augment")


def test_an_error_in_the_thread_reaches_the_user():
    stream = train_stream(count("ragged"), rows=slice(4), **PLAIN)
    with pytest.raises(ConfigError, match=r"data\.augment"):
        next(stream)
    stream.close()


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("train", "train", True),
        ("train", "test", False),
        ("train[:80%]", "train[80%:]", False),
        ("train[:90%]", "train[80%:]", True),
        ("train[:3]", "train[30%:]", False),
        ("train[:4]", "train[30%:]", True),
        ("train[-2:]", "train[:8]", False),
        ("train[-20%:]+test", "train[:9]", True),
        ("train[:2]+test[5:]", "train[2:]+test[:5]", False),
        ("train[5:5]", "train", False),
        ("any words", "any words", True),
        ("any words", "train", False),
    ],
)
def test_splits_share_records_where_their_slices_meet(one, other, shared):
    for pair in ((one, other), (other, one)):
        assert share_records(*pair, {"train": 10, "test": 10}.__getitem__) is shared
