"""Losses against plain float64 numpy, and layer maps by hand; `test_golden.py` has the published code."""

from dataclasses import replace

import examples
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from examples import all_finite, assert_close, signals, single
from examples import loss_values as values

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.types import Outputs, Signals
from jaxdistill.fusion.mixture import mixture_logits
from jaxdistill.losses.hidden.hidden import cosine_distance, squared_distance
from jaxdistill.losses.hidden.layers import layer_pairs
from jaxdistill.losses.logits.kd import kl_divergence
from jaxdistill.losses.logits.logit_mse import mean_squared_error
from jaxdistill.losses.task.cross_entropy import soft_cross_entropy, softmax_cross_entropy

KEY = jax.random.key(0)


def float64(x) -> np.ndarray:
    return np.asarray(x, np.float64)


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
    # softened at T = 2 the teacher says sqrt 3 : 1
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
    """T^2 makes up for 1/T^2: at high temperatures it tends to (s - t) / classes of centred logits."""
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
    """In bfloat16 itself it came out at -0.014."""
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
    """Cross-entropy with a distribution is its divergence plus its entropy, which no student can change."""
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
        examples.build_loss(f"cross_entropy(label_smoothing={smoothing})")


# Hidden states


def mse(student, teacher):
    return ((float64(student) - float64(teacher)) ** 2).mean(-1)


def cosine(student, teacher):
    s, t = float64(student), float64(teacher)
    return 1 - (s * t).sum(-1) / np.linalg.norm(s, axis=-1) / np.linalg.norm(t, axis=-1)


@pytest.mark.parametrize("distance", [mse, cosine], ids=["mse", "cosine"])
@pytest.mark.parametrize(("batch", "extent"), [((6,), ()), ((2, 3), ()), ((6,), (2, 3))])
def test_hidden_is_the_mean_over_its_pairs_and_the_extent(distance, batch, extent):
    seen = signals(batch=batch, extent=extent)  # 2 layers learn from 4: (1, 2) and (2, 4)
    student, teacher = seen.student.hidden_states, seen.teachers[0].hidden_states
    pairs = [distance(student[1], teacher[2]), distance(student[2], teacher[4])]
    expected = np.mean([pair.mean(tuple(range(len(batch), pair.ndim))) for pair in pairs], axis=0)
    name = distance.__name__
    assert_close(values(f"hidden(projector='none', distance='{name}')", seen), expected)
    assert_close(
        values(f"hidden('last', 'none', '{name}')", seen), pairs[1].mean(tuple(range(len(batch), pairs[1].ndim)))
    )


def test_hidden_compares_unlike_extents_by_their_means():
    seen = signals(extent=(4, 4))
    coarse = signals(seed=1, extent=(2, 2)).teachers
    mean = lambda outputs, layer: np.asarray(outputs.hidden_states[layer]).mean((1, 2))
    expected = mse(mean(seen.student, 2), mean(coarse[0], 4))
    assert_close(values("hidden(layers='last', projector='none')", replace(seen, teachers=coarse)), expected)


def test_a_projector_learns_to_undo_what_keeps_student_and_teacher_apart():
    """Hidden states that are a linear image of the student's are matched to 0 by the right kernels."""
    seen = signals(batch=(20,), width=3)
    kernel, states = (
        np.float32(np.random.default_rng(0).normal(size=(3, 7))),
        jax.device_get(seen.student.hidden_states),
    )
    taught = replace(
        seen.teachers[0],
        hidden_states=tuple(single(states[i] @ kernel) for i in (0, 0, 1, 1, 2)),
    )
    seen = replace(seen, teachers=(taught,))
    term = examples.build_loss("hidden")
    params, _ = term.init(KEY, seen)
    assert {name: x.shape for name, x in params.items()} == {"0/kernel": (3, 7), "1/kernel": (3, 7)}
    assert not np.array_equal(params["0/kernel"], params["1/kernel"])
    assert values("hidden", seen, params).mean() > 1
    assert_close(values("hidden", seen, dict.fromkeys(params, kernel)), np.zeros(20))


def test_hidden_learns_from_the_teacher_that_it_names():
    seen = signals(depths=(4, 3))
    other = replace(seen, teachers=seen.teachers[1:])
    spec = "hidden(layers='last', projector='none', teacher={})"
    assert_close(values(spec.format(1), seen), values(spec.format(0), other))
    assert_close(values(spec.format(-1), seen), values(spec.format(0), other))
    with pytest.raises(ValueError, match="no teacher 2"):
        values(spec.format(2), seen)


def test_unlike_widths_without_a_projector_are_refused_with_the_cure():
    seen = replace(signals(width=4), teachers=signals(width=5).teachers)
    with pytest.raises(ValueError, match=r"student 4, teacher 5.*use projector='linear'"):
        values("hidden(projector='none')", seen)


def test_distances_by_hand():
    a, b = np.float32([[3.0, 4.0], [1.0, 0.0]]), np.float32([[4.0, 3.0], [0.0, 2.0]])
    assert_close(jax.jit(squared_distance)(a, b), [1.0, 2.5])
    cosine = jax.jit(cosine_distance)
    assert_close(cosine(a, b), [1 - 24 / 25, 1.0])
    assert_close(cosine(a, 7 * a), [0.0, 0.0])


def test_the_cosine_of_a_zero_vector_is_0_with_no_gradient():
    both = jax.jit(jax.value_and_grad(lambda x: cosine_distance(x, jnp.ones((1, 3))).sum()))
    distance, gradient = both(np.zeros((1, 3), np.float32))
    assert distance == 1 and not np.any(gradient)


def padded(seen: Signals, padding: int) -> Signals:
    """The same texts with more positions behind them, in which anything may stand."""

    def longer(outputs: Outputs) -> Outputs:
        fill = lambda x: np.pad(x, ((0, 0), (0, padding), (0, 0)), constant_values=7)
        return replace(outputs, hidden_states=tuple(map(fill, outputs.hidden_states)))

    real = np.pad(seen.batch["attention_mask"], ((0, 0), (0, padding)))
    teachers = tuple(map(longer, seen.teachers))
    return replace(seen, student=longer(seen.student), teachers=teachers, batch=seen.batch | {"attention_mask": real})


@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_hidden_does_not_see_padding(distance):
    lengths = np.array([3, 1, 5, 4])
    text = signals(batch=(4,), extent=(5,), width=3)
    text = replace(text, batch=text.batch | {"attention_mask": (np.arange(5) < lengths[:, None]).astype(np.int32)})
    spec = f"hidden(projector='none', distance='{distance}', layers='last')"
    assert_close(values(spec, padded(text, 5)), values(spec, text))
    student, teacher = (np.asarray(x.hidden_states[-1]) for x in (text.student, text.teachers[0]))
    apart = float64(jax.jit(squared_distance if distance == "mse" else cosine_distance)(student, teacher))
    by_hand = [apart[i, :n].mean() for i, n in enumerate(lengths.tolist())]
    assert_close(values(spec, text), by_hand)


def test_unlike_extents_are_averaged_without_padding_too():
    text = signals(batch=(2,), extent=(4,), width=3)
    real = np.array([[1, 1, 0, 0], [1, 1, 1, 0]], np.int32)
    pooled = signals(seed=1, batch=(2,), extent=(1,), width=3)
    seen = replace(text, teachers=pooled.teachers, batch=text.batch | {"attention_mask": real})
    states, teacher = (np.asarray(x.hidden_states[-1]) for x in (text.student, pooled.teachers[0]))
    means = np.stack([states[0, :2].mean(0), states[1, :3].mean(0)])
    expected = jax.jit(squared_distance)(means, teacher[:, 0])
    assert_close(values("hidden(projector='none', layers='last')", seen), expected)


# Layer maps: layers count from 1, 0 is the embedding


@pytest.mark.parametrize(
    ("layers", "student", "teacher", "pairs"),
    [
        ("uniform", 4, 12, [(1, 3), (2, 6), (3, 9), (4, 12)]),
        ("uniform", 6, 12, [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10), (6, 12)]),
        ("uniform", 3, 3, [(1, 1), (2, 2), (3, 3)]),
        ("uniform", 3, 2, [(1, 1), (2, 1), (3, 2)]),
        ("uniform", 12, 2, [(i, 1) for i in range(1, 9)] + [(i, 2) for i in range(9, 13)]),
        ("uniform", 1, 12, [(1, 12)]),
        ("last", 4, 12, [(4, 12)]),
        ("last", 1, 1, [(1, 1)]),
        ("6-9", 4, 12, [(2, 6), (2, 7), (3, 8), (3, 9)]),
        ("6-9", 12, 12, [(6, 6), (7, 7), (8, 8), (9, 9)]),
        ("12-12", 4, 12, [(4, 12)]),
        ("1-1", 4, 12, [(1, 1)]),
        (((1, 2), (2, 4)), 4, 12, [(1, 2), (2, 4)]),
        (((0, 0), (4, 1)), 4, 12, [(0, 0), (4, 1)]),
        (((-1, -1), (-2, -5)), 4, 12, [(4, 12), (3, 8)]),
        (((-5, -13),), 4, 12, [(0, 0)]),
    ],
)
def test_layer_maps_by_hand(layers, student, teacher, pairs):
    assert layer_pairs(layers, student + 1, teacher + 1) == pairs


@pytest.mark.parametrize(
    ("layers", "problem"),
    [
        ("6-13", "teacher has no layer 13; it has layers 0 .* to 12"),
        ("9-6", "unknown layer map '9-6'"),
        ("first", "unknown layer map 'first'"),
        ("", "no layers are named"),
        ("-1", "unknown layer map '-1'"),
        ((), "no layers are named"),
        (((5, 1),), "student has no layer 5; it has layers 0 .* to 4"),
        (((-6, 1),), "student has no layer -6"),
        (((1, 13),), "teacher has no layer 13"),
        (((1, -14),), "teacher has no layer -14"),
    ],
)
def test_a_layer_that_does_not_exist_is_refused(layers, problem):
    with pytest.raises(ValueError, match=problem):
        layer_pairs(layers, 5, 13)


def test_a_model_without_layers_is_refused():
    with pytest.raises(ValueError, match="at least an embedding and a layer"):
        layer_pairs("last", 1, 13)


def test_a_misspelt_layer_map_fails_before_any_model_exists():
    with pytest.raises(ConfigError, match="unknown layer map 'unifrom'"):
        examples.build_loss("hidden(layers='unifrom')")


# Decay


def test_decay_is_half_the_squared_norm_of_the_kernels():
    seen = signals()
    kernels = [float64(seen.params["student"][name]) for name in ("a/kernel", "b/kernel")]  # and not a/bias
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


@pytest.mark.parametrize("loss", [kl_divergence, mean_squared_error, squared_distance, cosine_distance])
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
