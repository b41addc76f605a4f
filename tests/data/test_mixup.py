"""Tests of `mixup` and `cutmix`: images and labels by hand, equal batches for any number of processes, runs."""

import numpy as np
import parity
import pytest
import runs
from rich.console import Console
from scipy import stats

import jaxdistill
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.registry import datasets, transforms
from jaxdistill.data import Batches, Records
from jaxdistill.run.commands import cache


def build(spec: str):
    return transforms.build(spec, "data.augment")


def batch(rows: int = 6, dtype: type = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {"image": rng.integers(0, 255, (rows, 2, 3, 1)).astype(dtype), "label": np.arange(rows) % 4}


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_mixture_is_of_neighbours_with_their_labels(dtype):
    before = batch(dtype=dtype)
    kept = before["image"].copy()
    uniforms = np.array([[0.3], [0.9], [0.0], [0.5], [1 - 2**-53], [0.5]])
    out = build("mixup(alpha=1.0, classes=4)").apply(before, uniforms)  # Beta(1, 1): share = random number
    partner = kept[[1, 0, 3, 2, 5, 4]].astype(float)
    expected = uniforms[:, :, None, None] * kept + (1 - uniforms[:, :, None, None]) * partner
    assert np.allclose(out["image"], np.rint(expected) if dtype == np.uint8 else expected, rtol=1e-6)
    assert np.allclose(out["label_probs"][0], [0.3, 0.7, 0, 0]) and np.allclose(out["label_probs"][1], [0.1, 0.9, 0, 0])
    assert out["image"].dtype == dtype and out["label_probs"].dtype == np.float32
    assert np.array_equal(out["image"][4], kept[4]) and np.allclose(out["image"][2], kept[3])
    assert out["label"] is before["label"] and np.array_equal(before["image"], kept) and "label_probs" not in before


def test_what_raters_said_is_mixed_too():
    raters = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    out = build("mixup(alpha=1.0, classes=2)").apply(batch(2) | {"label_probs": raters}, np.array([[0.5], [0.25]]))
    assert np.allclose(out["label_probs"], [[0.55, 0.45], [0.725, 0.275]])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_follow_the_beta_distribution(alpha):
    rows = 4000
    ends = {"image": np.tile(np.array([0.0, 1.0], np.float32), rows // 2).reshape(-1, 1, 1, 1), "label": np.zeros(rows)}
    uniforms = np.random.default_rng(0).random((rows, 1))
    mixed = build(f"mixup(alpha={alpha}, classes=2)").apply(ends, uniforms)["image"].ravel()
    shares = np.where(np.arange(rows) % 2, mixed, 1 - mixed).astype(np.float64)
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_a_box_is_pasted_and_the_label_has_the_share_of_its_area():
    """Check two boxes by hand: with alpha=1, a random number of 0.75 is the share that stays, outside of the box."""
    images = np.stack([np.zeros((4, 8, 1), np.uint8), np.full((4, 8, 1), 9, np.uint8)])
    apply = build("cutmix(alpha=1.0, classes=2)").apply
    out = apply({"image": images, "label": np.arange(2)}, np.array([[0.75, 0.5, 0.5], [0.75, 0.0, 0.99]]))
    first, second = np.zeros((4, 8)), np.full((4, 8), 9)
    first[1:3, 2:6] = 9
    second[0:1, 6:8] = 0  # the part of the box outside of the image does not count
    assert np.array_equal(out["image"][..., 0], [first, second]) and out["image"].dtype == np.uint8
    assert np.allclose(out["label_probs"], [[0.75, 0.25], [2 / 32, 30 / 32]])
    assert out["label"].tolist() == [0, 1] and not images[0].any()


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_what_is_pasted_is_what_the_label_says(alpha):
    rows, rng = 200, np.random.default_rng(0)
    label = np.arange(rows) % 2
    images = np.broadcast_to(label.astype(np.float32)[:, None, None, None], (rows, 7, 5, 3))
    apply = build(f"cutmix(alpha={alpha}, classes=2)").apply
    out = apply({"image": images, "label": label}, rng.random((rows, 3)))
    assert np.allclose(out["image"].mean((1, 2, 3)), out["label_probs"][:, 1], atol=1e-6)
    assert 0.1 < out["label_probs"][::2, 1].mean() < 0.45 and out["label_probs"][:, 1].std() > 0.2


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_processes_mix_one_batch(name):
    records = Records([{"image": np.full((2, 2, 1), i, np.float32), "label": i % 3} for i in range(50)], 3)
    draw = {"batch_size": 24, "seed": 1, "transforms": (build(f"{name}(alpha=0.4, classes=3)"),)}
    whole = Batches(records, rows=slice(24), **draw)[4]  # ends one epoch and begins the next
    for processes in (2, 3, 4):
        size = 24 // processes
        parts = [Batches(records, rows=slice(p * size, (p + 1) * size), **draw)[4] for p in range(processes)]
        assert all(np.array_equal(whole[field], np.concatenate([part[field] for part in parts])) for field in whole)


@pytest.mark.parametrize(
    ("spec", "fields", "said"),
    [
        ("mixup(alpha=0.0, classes=4)", {}, "alpha=0.0, classes=4; give positive numbers"),
        ("mixup(alpha=1.0, classes=0)", {}, "classes=0; give positive numbers"),
        ("mixup(alpha=1.0)", {}, "classes"),
        ("cutmix(alpha=-1.0, classes=4)", {}, "give positive numbers"),
        ("cutmix(alpha=1.0, classes=4)", {"image": np.ones((3, 2, 2, 1)), "label": np.ones(3)}, "'cutmix' pairs rows"),
        ("mixup(alpha=1.0, classes=4)", {"image": np.ones((3, 2, 2, 1)), "label": np.ones(3)}, "3 is odd. Choose a"),
        ("mixup(alpha=1.0, classes=4)", {"tokens": np.ones((2, 5))}, "'mixup' needs image"),
        ("mixup(alpha=1.0, classes=4)", {"image": np.ones((2, 2, 2, 1))}, "needs label or label_probs"),
        (
            "mixup(alpha=1.0, classes=4)",
            {"image": np.ones((2, 2, 2, 1)), "label_probs": np.ones((2, 3))},
            "label_probs [2, 3]; set classes=3",
        ),
    ],
)
def test_a_mistake_is_told_with_its_cure(spec, fields, said):
    with pytest.raises(ConfigError) as error:
        build(spec).apply(fields, np.zeros((len(next(iter(fields.values()))), 3)))
    assert str(error.value).startswith("data.augment") and said in str(error.value)


def stripes(split: str):
    """Build 64 images of one shade each, by class."""
    return [{"image": np.full((4, 4, 1), 60 * (i % 4), np.uint8), "label": i % 4} for i in range(64)]


def noise(size: int, classes: int):
    """Return a data set factory of 48 images of random pixels."""
    draw = np.random.default_rng(0).integers(0, 256, (48, size, size, 3), np.uint8)

    def noise(split: str):
        return [{"image": image, "label": i % classes} for i, image in enumerate(draw)]

    return noise


@pytest.fixture
def registered():
    with runs.registries_as_found():
        datasets.register(stripes)
        yield


def test_a_run_learns_from_mixed_labels_beside_a_teacher_that_does_not(registered, tmp_path):
    config = jaxdistill.make(
        steps=4,
        batch_size=32,
        student={"model": "mlp(widths=(8,), classes=4)"},
        teachers={"big": {"model": "mlp(widths=(16,), classes=4)", "steps": 4}},
        objective={"kd": {}, "mixed": {"term": "cross_entropy(target='label_probs')"}},
        control=False,
        data={"name": "stripes", "augment": ("mixup(alpha=0.4, classes=4)",)},
        evaluate={"every": 4, "batch_size": 32, "layers": ()},
        mesh={"data": 1},
        logging={"tensorboard": False},
    )
    rows = jaxdistill.distill(config, tmp_path).rows
    assert [row["name"] for row in rows] == ["teacher big", "student"] and all(np.isfinite(row["nll"]) for row in rows)
    unmixed = jaxdistill.config.differ(config, data={"augment": ()})
    with pytest.raises(ConfigError, match=r"objective.mixed: the batch has no field 'label_probs'; it has image"):
        jaxdistill.distill(unmixed, tmp_path / "unmixed")


@pytest.mark.slow
@pytest.mark.parametrize(
    "kept", [pytest.param(False, id="live"), pytest.param(True, id="cached", marks=pytest.mark.slow)]
)
def test_a_pretrained_teacher_sees_the_view_of_its_student(registered, tmp_path, kept):
    """Check that the loss stays 0 for a teacher with the student's weights, so both see the same mixed images."""
    vit = parity.reference("vit")
    size, classes = vit.batch["image"].shape[1], vit.said["logits"].shape[1]
    datasets.register(noise(size, classes))
    mixed = (f"mixup(alpha=1.0, classes={classes})", f"cutmix(alpha=1.0, classes={classes})")
    same = f"pretrained({str(parity.write_folder(tmp_path / 'vit', vit))!r})"
    config = jaxdistill.make(
        steps=5,
        batch_size=16,
        student={"model": same},
        teachers={"twin": {"model": same, "cache": f"outputs(folder={str(tmp_path / 'said')!r})" if kept else ""}},
        objective={"kd": {"term": "kd(temperature=1.0)"}},
        control=False,
        rate="0",
        data={"name": "noise", "augment": ("flip", "crop(padding=2)", *mixed)},
        evaluate={"every": 5, "batch_size": 16, "layers": ()},
        mesh={"data": 1},
        logging={"every": 1, "tensorboard": False},
    )
    if kept:
        cache.write(config, Console(quiet=True))
    said = lambda folder: [line["terms/kd"] for line in runs.log(folder / "student").train]
    jaxdistill.distill(config, tmp_path / "run", Console(quiet=True))
    assert len(said(tmp_path / "run")) == 5 and max(map(abs, said(tmp_path / "run"))) < 1e-6
    if kept:  # another seed draws other mixtures, so that the cache does not fit
        with pytest.raises(ConfigError, match=r"is stale: draws\.seed was 0, is 1"):
            jaxdistill.distill(jaxdistill.config.differ(config, seed=1), tmp_path / "other")
