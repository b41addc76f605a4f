"""Tests of `kd`, `logit_mse`, `cross_entropy` and `decay` against float64 numpy, and of the checks of shapes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from batches import signals, single
from checks import all_finite, assert_close, float64
from terms import build_loss
from terms import loss_values as values

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.types import Outputs
from jaxdistill.fusion.mixture import mixture_logits
from jaxdistill.losses.hidden.hidden import cosine_distance, mean_squared_distance
from jaxdistill.losses.logits.kd import kl_divergence
from jaxdistill.losses.logits.logit_mse import mean_squared_error
from jaxdistill.losses.task.cross_entropy import soft_cross_entropy, softmax_cross_entropy

KEY = jax.random.key(0)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(student: np.ndarray, teacher: np.ndarray, temperature: float) -> np.ndarray:
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    return (p * (np.log(p) - np.log(q))).sum(-1)


# Soft targets


def test_kd_by_hand():
    student, teacher = jnp.zeros((1, 2)), single(np.log([[3.0, 1.0]]))
    by_hand = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
    assert_close(jax.jit(kl_divergence)(student, teacher), [by_hand])
    # at T = 2 the teacher's probabilities are as sqrt 3 to 1
    p = np.sqrt(3) / (np.sqrt(3) + 1)
    softened = p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p))
    seen = replace(signals(batch=(1,), classes=2), student=Outputs(student), teachers=(Outputs(teacher),))
    assert_close(values("kd(temperature=2.0)", seen), [4 * softened])
    assert_close(values("kd(temperature=2.0, scale_t2=False)", seen), [softened])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("batch", [(6,), (2, 3)])
def test_kd_is_t_squared_times_the_divergence_of_teacher_from_student(temperature, batch):
    seen = signals(batch=batch)
    expected = kl(float64(seen.student.logits), float64(seen.teachers[0].logits), temperature)
    assert_close(values(f"kd(temperature={temperature})", seen), temperature**2 * expected)
    assert_close(values(f"kd(temperature={temperature}, scale_t2=False)", seen), expected)


def test_kd_follows_its_temperatures_schedule():
    seen = signals()  # step 50 of 100
    assert_close(values("kd(temperature=linear(start=8, end=2))", seen), values("kd(temperature=5)", seen))


def test_the_gradient_of_kd_keeps_its_size_when_the_temperature_changes():
    """Check that for high T the gradient of T^2 KL tends to (s - t) / classes, for centred logits s and t."""
    rng = np.random.default_rng(0)
    student, teacher = (np.float32(z - z.mean(-1, keepdims=True)) for z in rng.normal(size=(2, 6, 5)))
    scaled = lambda s, t: jnp.sum(200.0**2 * kl_divergence(s, t, 200.0))
    assert_close(jax.jit(jax.grad(scaled))(student, teacher), (student - teacher) / 5, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("loss", [kl_divergence, mean_squared_error])
def test_a_class_that_student_and_teacher_mask_counts_nothing(loss):
    seen = signals(classes=6)
    student, teacher = np.asarray(seen.student.logits), np.asarray(seen.teachers[0].logits)
    hide = lambda z: jnp.where(jnp.arange(6) < 4, z, -jnp.inf)
    both = jax.jit(jax.value_and_grad(lambda s, t: loss(hide(s), hide(t)).sum(), argnums=(0, 1)))
    value, gradients = both(student, teacher)
    assert_close(value, np.sum(jax.jit(loss)(student[:, :4], teacher[:, :4])))
    assert all_finite(gradients)


def test_a_divergence_in_bfloat16_is_never_negative():
    """Check that the divergence is computed in float32; computed in bfloat16, it was -0.014."""
    close = jax.random.normal(KEY, (64, 100), jnp.bfloat16)
    divergence = jax.jit(lambda x: kl_divergence(x, x + jnp.bfloat16(0.01), 1.0))(close)
    assert divergence.dtype == jnp.float32 and np.min(divergence) > -1e-6


# Logits and labels


def test_logit_mse_is_the_mean_over_classes():
    seen = signals()
    expected = ((float64(seen.student.logits) - float64(seen.teachers[0].logits)) ** 2).mean(-1)
    assert_close(values("logit_mse", seen), expected)
    assert_close(jax.jit(mean_squared_error)(np.float32([[1, 2]]), np.float32([[3, -1]])), [(4 + 9) / 2])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("batch", [(6,), (2, 3)])
def test_cross_entropy_is_that_of_smoothed_labels(smoothing, batch):
    seen = signals(batch=batch)
    log_q = np.log(softmax(float64(seen.student.logits)))
    target = (1 - smoothing) * np.eye(5)[np.asarray(seen.batch["label"])] + smoothing / 5
    assert_close(values(f"cross_entropy(label_smoothing={smoothing})", seen), -(target * log_q).sum(-1))


def test_soft_labels_are_labels_where_they_are_sure():
    seen = signals()
    sure = replace(seen, batch={"label": seen.batch["label"], "sure": np.float32(np.eye(5)[seen.batch["label"]])})
    for smoothing in (0.0, 0.3):
        hard, soft = (f"cross_entropy(label_smoothing={smoothing}, target='{target}')" for target in ("label", "sure"))
        assert_close(values(soft, sure), values(hard, sure))


@pytest.mark.parametrize("label", [-1, 5])
def test_a_label_that_is_no_class_is_not_taken_for_one(label):
    seen = signals()
    labels = np.where(np.arange(6) == 1, np.int32(label), seen.batch["label"])
    wrong = replace(seen, batch=seen.batch | {"label": labels})
    assert np.isnan(values("cross_entropy", wrong)[1])
    assert_close(np.delete(values("cross_entropy", wrong), 1), np.delete(values("cross_entropy", seen), 1))


@pytest.mark.parametrize("target", ["label", "sure"])
def test_smoothing_leaves_out_a_class_that_the_student_masks(target):
    seen = signals(classes=4)
    seen = replace(seen, batch=seen.batch | {"sure": np.float32(np.eye(4)[seen.batch["label"]])})
    wide = np.pad(seen.student.logits, ((0, 0), (0, 1)), constant_values=-np.inf)
    sure = np.pad(seen.batch["sure"], ((0, 0), (0, 1)))
    masked = replace(seen, student=replace(seen.student, logits=wide), batch=seen.batch | {"sure": sure})
    spec = f"cross_entropy(label_smoothing=0.2, target='{target}')"
    assert_close(values(spec, masked), values(spec, seen))


def test_soft_labels_are_learned_from_as_from_a_teacher():
    """Check that cross-entropy with a distribution is KL plus its entropy, which no student can change."""
    seen = signals()
    target = float64(seen.batch["label_probs"])
    entropy = -(target * np.log(target)).sum(-1)
    expected = kl(float64(seen.student.logits), np.log(target), 1.0) + entropy
    assert_close(values("cross_entropy(target='label_probs')", seen), expected)
    found = jax.jit(soft_cross_entropy)(np.log(np.float32([[0.2, 0.8]])), np.float32([[0.5, 0.5]]))
    assert_close(found, [-np.log(0.4)])


def test_a_class_that_nobody_named_adds_nothing_whatever_its_logit():
    target = np.float32([[0.5, 0.5, 0.0]])
    loss = lambda z, t: soft_cross_entropy(jnp.where(jnp.arange(3) < 2, z, -jnp.inf), t).sum()
    value, gradient = jax.jit(jax.value_and_grad(loss))(np.zeros((1, 3), np.float32), target)
    assert_close((value, gradient), (np.log(2), np.zeros((1, 3))))


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("labels", "no field 'labels'; it has attention_mask, index, label, label_probs"),
        ("wide", r"'wide' has shape \[6, 4\] .* \[6, 5\]"),
    ],
)
def test_a_target_that_does_not_fit_is_told_with_the_cure(target, said):
    seen = signals()
    if target == "wide":
        seen = replace(seen, batch=seen.batch | {"wide": jnp.ones((6, 4))})
    with pytest.raises(ValueError, match=said):
        values(f"cross_entropy(target='{target}')", seen)


def test_cross_entropy_by_hand():
    loss = jax.jit(softmax_cross_entropy)
    logits = np.log(np.float32([[0.5, 0.25, 0.25], [0.2, 0.7, 0.1]]))
    assert_close(loss(logits, np.int32([1, 1])), [np.log(4), -np.log(0.7)])
    masked = np.float32([[0.0, 0.0, -np.inf]])
    assert_close(loss(masked, np.int32([0])), [np.log(2)])


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, 2])
def test_cross_entropy_refuses_to_smooth_everything(smoothing):
    with pytest.raises(ConfigError, match="at least 0 and below 1"):
        build_loss(f"cross_entropy(label_smoothing={smoothing})")


# Decay


def test_decay_is_half_the_squared_norm_of_the_kernels():
    seen = signals()
    names = ("a/kernel", "b/kernel", "head/kernel")  # a/bias is not a kernel
    kernels = [float64(seen.params["student"][name]) for name in names]
    assert_close(values("decay", seen), 0.5 * sum((w**2).sum() for w in kernels))


def test_decay_towards_a_teacher_is_over_the_kernels_that_both_have():
    seen = signals(depths=(4, 3))
    student, teachers = seen.params["student"], seen.params["teachers"]
    square = lambda name, anchor: 0.5 * ((float64(student[name]) - float64(anchor[name])) ** 2).sum()
    assert_close(
        values("decay(towards='teacher')", seen), sum(square(n, teachers[0]) for n in ("a/kernel", "b/kernel"))
    )
    assert_close(values("decay('teacher', 1)", seen), sum(square(n, teachers[1]) for n in ("a/kernel", "b/kernel")))
    wider = teachers[0] | {"b/kernel": jnp.ones((3, 5)), "c/kernel": jnp.ones((3, 4))}
    seen = replace(seen, params=seen.params | {"teachers": (wider,)})
    assert_close(values("decay(towards='teacher')", seen), square("a/kernel", teachers[0]))


def test_decay_towards_a_teacher_that_shares_no_kernel_is_refused():
    seen = replace(signals(), params=signals().params | {"teachers": ({"c/kernel": jnp.ones((3, 4))},)})
    with pytest.raises(ValueError, match="share no kernel"):
        values("decay(towards='teacher')", seen)


# Shapes


@pytest.mark.parametrize("loss", [kl_divergence, mean_squared_error, mean_squared_distance, cosine_distance])
def test_shapes_are_checked_in_tests(loss):
    with pytest.raises(jaxtyping.TypeCheckError):
        loss(jnp.zeros((6, 5)), jnp.zeros((6, 4)))
    with pytest.raises(jaxtyping.TypeCheckError):
        loss(jnp.zeros((6, 5)), jnp.zeros((1, 5)))
    with pytest.raises(jaxtyping.TypeCheckError):
        loss(jnp.zeros((6, 5)), jnp.zeros((6, 5), int))


def test_shapes_of_labels_and_weights_are_checked_in_tests():
    with pytest.raises(jaxtyping.TypeCheckError):
        softmax_cross_entropy(jnp.zeros((6, 5)), jnp.zeros(5, int))
    with pytest.raises(jaxtyping.TypeCheckError):
        softmax_cross_entropy(jnp.zeros((6, 5)), jnp.zeros(6))
    with pytest.raises(jaxtyping.TypeCheckError):
        mixture_logits(jnp.zeros((3, 6, 5)), jnp.ones(2) / 2, 1.0)
