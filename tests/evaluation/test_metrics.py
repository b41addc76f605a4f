"""Tests of metrics: values by hand or by numpy and scipy, sums over batches and devices, and masked rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxdistill.core import collectives, sums
from jaxdistill.core.interfaces import Model
from jaxdistill.core.types import Outputs
from jaxdistill.evaluation import metrics
from jaxdistill.evaluation.evaluator import ANSWERS, _cka_metrics, evaluator, totals

LOGITS = ("student", "teacher")
METRICS = {  # name -> the arguments it takes
    "accuracy": ("student", "labels"),
    "nll": ("student", "labels"),
    "perplexity": ("student", "labels"),
    "calibration": ("student", "labels"),
    "agreement": LOGITS,
    "divergence": LOGITS,
    "agreement_on_errors": (*LOGITS, "labels"),
    "rank_correlation": (*LOGITS, "labels"),
    "cka": LOGITS,
}
SUMS = sorted(set(METRICS) - {"cka"})


def data(rows=24, classes=7, seed=0):
    """Draw similar logits of student and teacher, labels that are often the teacher's, and a mask of half the rows."""
    rng = np.random.default_rng(seed)
    teacher = 2 * rng.normal(size=(rows, classes))
    labels = np.where(rng.random(rows) < 0.6, teacher.argmax(-1), rng.integers(0, classes, rows))
    return {
        "student": (teacher + rng.normal(size=teacher.shape)).astype(np.float32),
        "teacher": teacher.astype(np.float32),
        "labels": labels.astype(np.int32),
        "mask": (rng.permutation(rows) < rows // 2).astype(np.float32),
    }


def eager(name, batch):
    return getattr(metrics, name)(*(batch[key] for key in METRICS[name]), batch["mask"])


@jax.jit  # one program per shape: metric by metric and op by op this file takes five times as long
def everything(batch):
    return {name: eager(name, batch) for name in METRICS}


def call(name, batch):
    return jax.device_get(everything(batch)[name])


@functools.cache
def compiled(name):
    return jax.jit(getattr(metrics if hasattr(metrics, name) else sums, name))


cka = compiled("cka")


@jax.jit
def over_devices(shards):
    """Return what each device has after `psum`. A `vmap` with an axis name stands for the devices."""
    return jax.vmap(lambda batch: collectives.psum(everything(batch)), axis_name=collectives.PMAP_AXIS)(shards)


def assert_close(a, b, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def test_by_hand():
    half = np.log(np.float32([[0.5, 0.25, 0.25], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]]))
    other = np.log(np.float32([[0.25, 0.5, 0.25], [0.2, 0.6, 0.2], [0.7, 0.2, 0.1]]))
    labels, ones = np.int32([0, 1, 0]), np.ones(3, np.float32)
    on_errors = compiled("agreement_on_errors")
    assert_close(compiled("accuracy")(half, labels, ones), sums.Mean(2.0, 3.0))
    assert_close(compiled("nll")(half, labels, ones), sums.Mean(-np.log(0.5 * 0.7 * 0.1), 3.0))
    assert_close(compiled("agreement")(half, other, ones), sums.Mean(1.0, 3.0))
    # KL(teacher || student) of row 1: .2 ln(.2/.2) + .6 ln(.6/.7) + .2 ln(.2/.1); the other way round it is .0386
    row, by_hand = np.float32([0, 1, 0]), 0.6 * np.log(0.6 / 0.7) + 0.2 * np.log(2)
    assert_close(compiled("divergence")(half, other, row), sums.Mean(by_hand, 1.0))
    # As a teacher `half` errs in row 2 only (says 2, not 0), where the student `other` says 0: no agreement
    assert_close(on_errors(other, half, labels, ones), sums.Mean(0.0, 1.0))
    assert_close(on_errors(half, half, labels, ones), sums.Mean(1.0, 1.0))
    # Row 1 without its label: the student has (.2, .1), the teacher the tie (.2, .2), ranked by class, 0 < 2: so -1
    assert_close(compiled("rank_correlation")(half, other, labels, row), sums.Mean(-1.0, 1.0))


@pytest.mark.parametrize(("rows", "width"), [(3, 3), (3, 5)])  # a square hides which axis is normalised
def test_cosines_are_those_of_rows(rows, width):
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(2, rows, width)).astype(np.float32) * [[[1.0]], [[9.0]]]
    x[0] = 0
    expected = [np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(x[1:], y[1:], strict=True)]
    found = metrics.cosine_similarity(jnp.asarray(x), jnp.asarray(y), jnp.ones(rows)).compute()
    np.testing.assert_allclose(found, np.sum(expected) / rows, rtol=1e-5)


def test_mean_selects_and_broadcasts_over_trailing_dimensions():
    values, mean_of = np.float32([[1.0, 2.0], [np.nan, np.inf], [3.0, 4.0]]), compiled("masked_mean")
    mean = jax.device_get(mean_of(values, np.int32([1, 0, 1])))
    assert (mean.sum, mean.count, mean.compute()) == (10.0, 4.0, 2.5)
    assert jax.device_get(mean_of(values > 1, np.array([True, False, True]))).compute() == 0.75


def test_nothing_counted_is_nan_on_the_host_and_zero_with_zero_gradient_in_a_step():
    empty = compiled("masked_mean")(np.ones(3, np.float32), np.zeros(3, np.float32))
    host = sums.add(empty, empty)
    assert np.isnan(host.compute()) and f"{host.compute():.2f}" == "nan"
    loss = jax.jit(jax.value_and_grad(lambda v: sums.masked_mean(v, jnp.zeros(3)).compute()))
    value, gradient = loss(np.ones(3, np.float32))
    assert value == 0 and not np.any(gradient)
    assert np.isnan(metrics.Alignment(*np.zeros(3)).compute())


def test_calibration_equals_a_plain_loop():
    batch = data(rows=200)
    got = jax.device_get(jax.jit(lambda batch: eager("calibration", batch))(batch))
    got = sums.add(got, got)  # twice the rows, the same error
    logits, labels, mask = (np.asarray(batch[key], np.float64) for key in ("student", "labels", "mask"))
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    confidence, correct = probs.max(-1), probs.argmax(-1) == labels
    error = 0.0
    for i in range(15):
        rows = (mask > 0) & (confidence > i / 15) & (confidence <= (i + 1) / 15)
        assert got.curve()[2][i] == 2 * rows.sum()
        if rows.any():
            np.testing.assert_allclose(got.curve()[0][i], confidence[rows].mean(), rtol=1e-5)
            np.testing.assert_allclose(got.curve()[1][i], correct[rows].mean(), rtol=1e-5)
            error += rows.sum() / mask.sum() * abs(confidence[rows].mean() - correct[rows].mean())
    np.testing.assert_allclose(got.compute(), error, rtol=1e-5)
    assert np.isnan(got.curve()[0][0]) and 0.01 < error < 0.5


def test_confidence_on_an_edge_falls_into_the_lower_bin():
    logits = np.float32([[0.0, 0.0], [50.0, 0.0]])  # confidence 1/2 and 1
    calibration = jax.jit(metrics.calibration, static_argnames="bins")
    got = jax.device_get(calibration(logits, np.int32([0, 0]), np.ones(2, np.float32), bins=4))
    np.testing.assert_array_equal(got.count, [0, 1, 0, 1])
    np.testing.assert_allclose(got.compute(), 0.25)


def test_divergence_is_finite_where_the_teacher_has_no_probability():
    teacher, uniform, one = np.float32([[0.0, -np.inf, 0.0]]), np.zeros((1, 3), np.float32), np.ones(1, np.float32)
    divergence = lambda student, teacher: jax.device_get(compiled("divergence")(student, teacher, one)).compute()
    np.testing.assert_allclose(divergence(uniform, teacher), np.log(1.5), rtol=1e-6)
    assert divergence(teacher, teacher) == 0
    assert divergence(teacher, uniform) == np.inf


def test_rank_correlation_equals_scipy_without_the_label():
    batch = data()
    student, teacher, labels, mask = (np.asarray(batch[key]) for key in ("student", "teacher", "labels", "mask"))
    rows = [np.delete(np.stack(row), label, axis=1) for *row, label in zip(student, teacher, labels, strict=True)]
    expected = np.array([scipy.stats.spearmanr(*row)[0] for row in rows])
    got = call("rank_correlation", batch)
    assert_close(got, sums.Mean((expected * mask).sum(), mask.sum()))
    # What the models say of the label itself must not matter
    moved = student + np.linspace(-9, 9, 24, dtype=np.float32)[:, None] * (labels[:, None] == np.arange(7))
    assert_close(call("rank_correlation", batch | {"student": moved}), got)


def test_rank_correlation_needs_three_classes_and_bears_a_vocabulary():
    two, rank_correlation = data(classes=2), compiled("rank_correlation")
    assert_close(rank_correlation(*(two[key] for key in METRICS["rank_correlation"]), two["mask"]), sums.Mean(0.0, 0.0))
    logits = np.arange(50_000, dtype=np.float32)[None]
    got = jax.device_get(rank_correlation(logits, -logits, np.int32([7]), np.ones(1, np.float32)))
    np.testing.assert_allclose(got.compute(), -1, rtol=1e-5)


def song(x, y):
    """Compute the unbiased HSIC as printed in Song et al. 2012, eq. 5, in float64."""
    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0), np.fill_diagonal(m, 0)
    n = len(k)
    mixed = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(0) @ m.sum(0))
    return (np.trace(k @ m) + mixed) / (n * (n - 3))


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_cka_sums_equal_the_published_estimator_of_the_valid_rows(offset):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(15, 2, 4)) + offset
    y = np.tanh(x.reshape(15, -1)[:, :5] - offset + rng.normal(size=(15, 5)))
    valid = np.arange(15) % 5 != 2
    got = cka(x, y, valid)
    x, y = x.reshape(15, -1)[valid], y[valid]
    assert_close(got, metrics.Alignment(song(x, y), song(x, x), song(y, y)), rtol=1e-4, atol=1e-4)


def test_cka_of_noise_is_zero_where_the_biased_one_is_not():
    total, biased = None, []
    centre = np.eye(20) - 1 / 20
    for seed in range(50):
        x, y = np.random.default_rng(seed).normal(size=(2, 20, 64)).astype(np.float32)
        new = jax.device_get(cka(x, y, np.ones(20)))
        total = sums.add(total, new) if total else new
        k, m = (centre @ z @ z.T @ centre for z in (x, y))
        biased.append((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))
        assert abs(new.compute()) < 0.4  # one batch of 20 is noisy, but centred on zero
    assert abs(total.compute()) < 0.02 and np.min(biased) > 0.5


def test_cka_of_a_rotated_and_scaled_copy_is_one():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 8)).astype(np.float32)
    rotation = np.linalg.qr(rng.normal(size=(8, 8)))[0].astype(np.float32)
    np.testing.assert_allclose(jax.device_get(cka(x, 3 * x @ rotation + 1, np.ones(20))).compute(), 1, rtol=1e-5)
    tokens = cka(x.reshape(5, 4, 8), x.reshape(5, 4, 8), np.ones((5, 4)))
    assert_close(tokens, cka(x, x, np.ones(20)))


def test_cka_of_fewer_than_four_rows_adds_nothing():
    x = np.random.default_rng(0).normal(size=(6, 3))
    for n in range(4):
        assert_close(cka(x, x, np.arange(6) < n), metrics.Alignment(0.0, 0.0, 0.0), atol=0)
    assert cka(x, x, np.arange(6) < 4).xx > 0


@pytest.mark.parametrize("name", METRICS)
def test_masked_rows_change_nothing(name):
    batch = data()
    off = batch["mask"] == 0
    rows = {key: value[~off] for key, value in batch.items()}
    spoilt = {key: np.where(off[:, None], np.float32(np.nan), batch[key]) for key in LOGITS}
    labels = np.where(off, np.int32(-100), batch["labels"])
    assert_close(call(name, batch), call(name, rows))
    assert_close(call(name, batch | spoilt | {"labels": labels}), call(name, rows))


@pytest.mark.parametrize("name", METRICS)
def test_a_nan_that_counts_is_not_hidden(name):
    batch = data()
    first = np.arange(24)[:, None] == 0
    rows = {"student": np.where(first, np.float32(np.nan), batch["student"]), "mask": np.ones(24, np.float32)}
    if name in ("nll", "calibration", "divergence", "cka"):  # the others only compare order
        assert np.isnan(call(name, batch | rows).compute())
    if name in ("divergence", "cka"):
        assert np.isnan(call(name, batch | {"teacher": rows["student"], "mask": rows["mask"]}).compute())


@pytest.mark.parametrize("name", SUMS)
def test_two_half_batches_add_up_to_the_whole(name):
    batch = data()
    first, second = ({key: value[rows] for key, value in batch.items()} for rows in (slice(0, 12), slice(12, None)))
    assert_close(sums.add(call(name, first), call(name, second)), call(name, batch))


@pytest.mark.parametrize("name", SUMS)
def test_tokens_are_rows(name):
    batch = data()
    tokens = {key: value.reshape(4, 6, *value.shape[1:]) for key, value in batch.items()}
    sequences = np.float32([1, 0, 1, 1])  # one entry masks a whole sequence
    assert_close(call(name, tokens | {"mask": sequences}), call(name, batch | {"mask": np.repeat(sequences, 6)}))


@pytest.mark.parametrize("name", METRICS)
def test_jit_equals_eager_and_bfloat16_is_computed_in_float32(name):
    batch = jax.device_put(data())
    assert_close(call(name, batch), eager(name, batch))
    assert_close(jax.jit(lambda metric: metric.compute())(call(name, batch)), call(name, batch).compute())
    half = batch | {key: batch[key].astype(jnp.bfloat16) for key in LOGITS}
    same = batch | {key: half[key].astype(jnp.float32) for key in LOGITS}
    assert_close(call(name, half), call(name, same))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(call(name, half)))


@pytest.mark.parametrize("name", METRICS)
def test_sums_over_devices_are_those_of_the_whole_batch(name):
    batch = data()
    shards = {key: value.reshape(3, 8, *value.shape[1:]) for key, value in batch.items()}
    assert_close(jax.tree.map(lambda x: np.asarray(x)[0], over_devices(shards)[name]), call(name, batch))


def test_host_totals_count_past_a_float32():
    full = sums.Mean(jnp.float32(2**24), jnp.float32(2**24))
    one = sums.Mean(jnp.float32(1), jnp.float32(1))
    assert jax.tree.map(jnp.add, full, one).count == 2**24  # float32 loses the 1
    total = sums.add({"a": full}, {"a": one})["a"]
    assert total.count == 2**24 + 1 and total.count.dtype == np.float64 and total.compute() == 1


def test_perplexity_is_the_exponential_of_the_mean_and_adds_up():
    logits, labels = np.log(np.float32([[[0.25, 0.75], [0.5, 0.5]]])), np.int32([[0, 1]])
    perplexity = lambda *mask: jax.device_get(compiled("perplexity")(logits, labels, np.float32([mask])))
    one, other = perplexity(1, 0), perplexity(0, 1)
    total = sums.add(one, other)
    assert one.compute() == pytest.approx(4) and other.compute() == pytest.approx(2)
    assert total.compute() == pytest.approx(8**0.5)
    assert np.isnan(sums.add(*2 * [perplexity(0, 0)]).compute())


def test_the_similarity_of_layers_does_not_see_padding():
    draw = np.random.default_rng(0)
    rows = {"mask": jnp.ones(12), "attention_mask": jnp.asarray(np.arange(5) < draw.integers(1, 5, (12, 1)), jnp.int32)}
    states = [jnp.asarray(draw.normal(size=(12, 5, 3)), jnp.float32) for _ in range(2)]
    other = [x + 9 * (1 - rows["attention_mask"])[..., None] * jnp.asarray(draw.normal(size=x.shape)) for x in states]
    of = lambda pair: _cka_metrics(*(Outputs(x[:, 0], (x,)) for x in pair), [(0, 0)], rows)["cka/0:0"]
    found = [float(jax.device_get(of(pair)).compute()) for pair in (states, other)]
    assert found[0] == pytest.approx(found[1], rel=1e-6) and found[0] != 0


def test_an_evaluation_of_texts_has_the_likelihood_of_each_row():
    draw = np.random.default_rng(0)
    logits, labels = jnp.asarray(draw.normal(size=(3, 4, 5)), jnp.float32), jnp.asarray(draw.integers(0, 5, (3, 4)))
    model = Model(lambda key, batch: ({}, {}), lambda p, s, batch, *, train, key: (Outputs(batch["x"], ()), s))
    mask = jnp.asarray([[1.0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
    rows = {"x": logits, "label": labels, "mask": mask}
    found = evaluator(model, (), None, ())({"student": {}}, {"student": {}}, (), rows)[ANSWERS]
    nll = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), np.asarray(labels)[..., None], -1)[..., 0]
    np.testing.assert_allclose(found.values["nll_sum"], (nll * mask).sum(1), rtol=1e-5)
    assert found.values["tokens"].tolist() == [4, 1, 0] and np.asarray(found.mask).tolist() == [True, True, False]


def test_an_evaluation_keeps_a_text_whose_first_token_is_masked():
    model = Model(lambda key, batch: ({}, {}), lambda p, s, batch, *, train, key: (Outputs(batch["x"], ()), s))
    mask = jnp.asarray([[0.0, 1, 1], [1, 0, 0], [0, 0, 0]])
    rows = {"x": jnp.zeros((3, 3, 4)), "label": jnp.zeros((3, 3), jnp.int32), "mask": mask}
    found = evaluator(model, (), None, ())({"student": {}}, {"student": {}}, (), rows)
    assert totals([found])[ANSWERS].values["tokens"].tolist() == [2, 1]
