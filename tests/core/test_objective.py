"""Tests of the objective against values by hand: weights, schedules, masks, temperatures, streams and state."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from batches import signals
from checks import all_finite, assert_close, assert_same
from terms import build_loss

from jaxdistill.core import registry
from jaxdistill.core.interfaces import Fusion, Term
from jaxdistill.core.objective import TEXT_SHARE, WeightedTerm, objective, reduce
from jaxdistill.core.schedules import Horizon, as_schedule, resolve
from jaxdistill.core.types import Factored, Outputs
from jaxdistill.losses.term import stateless

KEY = jax.random.key(0)
AVERAGE = registry.fusions.build("average", "fusion")


def says(out, **fields) -> Term:
    """Build a term that returns `out`, whatever signals it gets."""
    return stateless(lambda seen: out, **fields)


def evaluate(terms, streams, step: int = 0, fusion: Fusion = AVERAGE):
    """Return the means of an objective by term, their weighted total, and the new state."""
    minimised = objective(
        {name: t if isinstance(t, WeightedTerm) else WeightedTerm(t) for name, t in terms.items()}, fusion
    )

    @jax.jit
    def whole():
        params, state = minimised.init(KEY, streams)
        means, new = minimised.apply(params, state, streams, key=KEY)
        return means, minimised.total(means, jnp.asarray(step, jnp.int32)), new

    return whole()


def masked(*mask: int, **fields):
    return replace(signals(batch=(len(mask),), **fields), mask=jnp.asarray(mask, jnp.float32))


VALUES = jnp.array([1.0, 2.0, 4.0, 100.0])


def test_a_mean_is_over_the_rows_that_count():
    means, total, _ = evaluate({"a": says(VALUES)}, {"train": masked(1, 0, 1, 0)})
    assert (means["a"].sum, means["a"].count) == (5, 2)
    assert total == 2.5


def test_the_total_is_the_weighted_sum_of_means():
    terms = {
        "a": WeightedTerm(says(VALUES), 0.7),
        "b": WeightedTerm(says(2 * VALUES), 0.1),
        "c": WeightedTerm(says(jnp.asarray(3.0)), 2),
    }
    means, total, _ = evaluate(terms, {"train": masked(1, 1, 1, 0)})
    assert_close({name: mean.compute() for name, mean in means.items()}, {"a": 7 / 3, "b": 14 / 3, "c": 3.0})
    assert_close(total, 0.7 * 7 / 3 + 0.1 * 14 / 3 + 2 * 3)


def test_weights_follow_their_schedules():
    distil = resolve("phases(values=(0.7, 0), at=(0.5,))", Horizon(100, 10), "")
    terms = {
        "distil": WeightedTerm(says(VALUES), distil),
        "task": WeightedTerm(says(10 * VALUES), resolve("linear(start=0, end=1)", Horizon(100, 10), "")),
    }
    for step, expected in {0: 0.7, 49: 0.7 + 4.9, 50: 5.0, 100: 10.0}.items():
        assert_close(evaluate(terms, {"train": masked(1, 0, 0, 0)}, step)[1], expected)


def test_tokens_are_weighed_alike_whatever_their_sequence():
    values = jnp.array([[1.0, 2.0, 3.0], [10.0, 0.0, 0.0]])
    seen = replace(signals(batch=(2, 3)), mask=jnp.array([[1.0, 1, 1], [1, 0, 0]]))
    assert evaluate({"a": says(values)}, {"train": seen})[1] == 16 / 4  # not (2 + 10) / 2


def test_a_term_may_know_better_what_counts():
    for kind in (bool, jnp.int32, jnp.float32):
        own = jnp.array([0, 1, 1, 0], kind)
        means, total, _ = evaluate({"a": says((VALUES, own)), "b": says(VALUES)}, {"train": masked(1, 1, 0, 0)})
        assert (means["a"].sum, means["a"].count, means["b"].sum, means["b"].count) == (6, 2, 3, 2)
        assert total == 3 + 1.5


@pytest.mark.parametrize(
    ("out", "part"), [((np.ones(3), 1), "mask is of type int"), (2.0, "values is of type float"), (None, "NoneType")]
)
def test_what_is_no_array_is_named(out, part):
    with pytest.raises(ValueError, match=f"a term returns values, .*; its .*{part}"):
        reduce(out, signals(batch=(3,)))


def test_in_chunks_the_mean_of_a_text_needs_the_mask_of_the_batch():
    seen = signals(batch=(2, 3))
    seen = replace(seen, batch={**seen.batch, TEXT_SHARE: jnp.ones((2, 3)) / 3})
    values = jnp.arange(6.0).reshape(2, 3)
    assert float(reduce(values, seen, "text").compute()) == pytest.approx(2.5)
    with pytest.raises(ValueError, match="reduction='text' needs chunks=1 for a term with a mask of its own"):
        reduce((values, jnp.ones((2, 3), bool)), seen, "text")


def test_a_regulariser_is_one_scalar_whatever_the_mask():
    for mask in ((1, 1, 1, 1), (1, 0, 0, 0), (0, 0, 0, 0)):
        means, total, _ = evaluate({"a": says(jnp.asarray(5.0))}, {"train": masked(*mask)})
        assert (means["a"].count, total) == (1, 5)


def test_a_batch_of_padding_alone_is_0_with_no_gradient():
    seen = masked(0, 0, 0, 0)
    terms = {name: build_loss(name) for name in ("kd", "cross_entropy", "logit_mse", "hidden")}
    loss = lambda student: evaluate(terms, {"train": replace(seen, student=student)})[1]
    value, gradient = jax.value_and_grad(loss)(seen.student)
    assert value == 0 and not any(np.any(x) for x in jax.tree.leaves(gradient))


def test_a_nan_in_a_row_that_does_not_count_is_selected_away():
    values = jnp.array([1.0, jnp.nan, 3.0, jnp.inf])
    assert evaluate({"a": says(values)}, {"train": masked(1, 0, 1, 0)})[1] == 2
    assert evaluate({"a": says((values, jnp.array([True, False, True, False])))}, {"train": masked(1, 1, 1, 1)})[1] == 2
    assert np.isnan(evaluate({"a": says(values)}, {"train": masked(1, 1, 1, 0)})[1])


@pytest.mark.parametrize("batch", [(4,), (2, 3)])
def test_what_a_teacher_says_of_rows_that_do_not_count_is_not_heard(batch):
    mask = np.arange(np.prod(batch)).reshape(batch) < 3  # of two sequences, the second is masked
    seen = jax.device_get(replace(signals(batch=batch), mask=mask.astype(np.float32)))
    at = lambda x, m: m.reshape(m.shape + (1,) * (x.ndim - m.ndim)) > 0
    spoil = lambda tree, m: jax.tree.map(lambda x: np.where(at(x, m), x, np.float32(np.nan)), tree)
    clean, example = seen.teachers[0], mask if len(batch) == 1 else mask.any(1)
    spoilt = Outputs(
        spoil(clean.logits, mask),
        spoil(clean.hidden_states, mask),
        spoil(clean.attentions, example),
        spoil(clean.embedding, example),
        input_gradients=spoil(clean.input_gradients, example),
        state_gradients=spoil(clean.state_gradients, mask),
    )
    minimised = objective({"a": WeightedTerm(build_loss("kd"))}, registry.fusions.build("single", ""))
    none = {"fusion": {}}
    fuse = jax.jit(lambda seen: minimised.fuse(none, none, seen, key=KEY)[0].teacher)
    for teacher in (clean, spoilt):
        heard = fuse(replace(seen, teachers=(teacher,)))
        zero = lambda tree, m: jax.tree.map(lambda x: np.where(at(x, m), x, 0), tree)
        assert_same(heard.logits, zero(clean.logits, mask))
        assert_same(heard.hidden_states, zero(clean.hidden_states, mask))
        assert_same(heard.attentions, zero(clean.attentions, example))
        assert_same(heard.embedding, zero(clean.embedding, example))
        assert_same(heard.input_gradients, zero(clean.input_gradients, example))
        assert_same(heard.state_gradients, zero(clean.state_gradients, mask))


def test_teachers_are_fused_at_the_temperature_of_each_term():
    """Check that teachers are averaged at each term's temperature; softening the average at T = 1 would be wrong."""
    seen = signals(depths=(4, 3))

    def listener(temperature):
        def apply(params, state, seen, *, key):
            return jnp.zeros(6), (seen.temperature, jax.nn.softmax(seen.teacher.logits / seen.temperature))

        return Term(lambda key, seen: ({}, {}), apply, needs=frozenset({"teacher"}), temperature=temperature)

    cooling = resolve("linear(start=8, end=2)", Horizon(100, 10), "")
    terms = {"one": listener(None), "four": listener(as_schedule(4.0)), "cooling": listener(cooling)}
    heard = evaluate(terms, {"train": seen})[2]["terms"]
    for name, temperature in {"one": 1.0, "four": 4.0, "cooling": 5.0}.items():
        mean = sum(scipy.special.softmax(np.asarray(teacher.logits) / temperature, -1) for teacher in seen.teachers) / 2
        assert_close(heard[name], (temperature, mean))


def test_terms_at_several_temperatures_are_those_at_each():
    seen = signals(depths=(4, 3))
    kd = {f"kd{t}": build_loss(f"kd(temperature={t})") for t in (1, 2, 8)}
    together = evaluate(kd, {"train": seen})[1]
    apart = [evaluate({name: term}, {"train": seen})[1] for name, term in kd.items()]
    assert_close(together, sum(apart))


def test_the_classic_objective_is_one_case():
    """Check `alpha L_distill + beta L_task + gamma L_reg` against plain numpy."""
    seen = replace(signals(batch=(6,)), mask=jnp.array([1.0, 1, 1, 1, 0, 0]))
    terms = {
        "kd": WeightedTerm(build_loss("kd(temperature=4)"), 0.7),
        "cross_entropy": WeightedTerm(build_loss("cross_entropy"), 0.2),
        "decay": WeightedTerm(build_loss("decay"), 0.1),
    }
    s, t = (np.asarray(z, np.float64)[:4] for z in (seen.student.logits, seen.teachers[0].logits))
    softmax = lambda z: np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    p, q = softmax(t / 4), softmax(s / 4)
    distil = 16 * (p * np.log(p / q)).sum(-1).mean()
    task = -np.log(softmax(s)[np.arange(4), np.asarray(seen.batch["label"])[:4]]).mean()
    decay = 0.5 * sum(
        (np.asarray(w, np.float64) ** 2).sum() for n, w in seen.params["student"].items() if "kernel" in n
    )
    means, total, _ = evaluate(terms, {"train": seen})
    assert_close(
        {name: mean.compute() for name, mean in means.items()}, {"kd": distil, "cross_entropy": task, "decay": decay}
    )
    assert_close(total, 0.7 * distil + 0.2 * task + 0.1 * decay)


def test_every_term_reads_its_own_stream():
    streams = {"train": masked(1, 1, 1, 1), "quiz": masked(1, 1, 0, 0, seed=1)}
    terms = {"a": build_loss("cross_entropy"), "b": build_loss("cross_entropy")._replace(stream="quiz")}
    minimised = objective({name: WeightedTerm(term) for name, term in terms.items()}, AVERAGE)
    assert minimised.streams == {"train", "quiz"}
    means = evaluate(terms, streams)[0]
    alone = {stream: evaluate({"a": terms["a"]}, {"train": seen})[0]["a"] for stream, seen in streams.items()}
    assert_close(means, {"a": alone["train"], "b": alone["quiz"]})


def test_params_and_state_of_fusion_and_terms_are_kept_by_role():
    def counting(start):
        def apply(params, state, seen, *, key):
            return params["scale"] * state["seen"] * jnp.ones(seen.mask.shape), {"seen": state["seen"] + 1}

        return Term(lambda key, seen: ({"scale": jnp.full((), start)}, {"seen": jnp.ones(())}), apply)

    def gate(params, state, seen, *, key):
        return replace(seen.teachers[0], logits=params["gate"] * seen.teachers[0].logits), {"calls": state["calls"] + 1}

    fusion = Fusion(lambda key, seen: ({"gate": jnp.full((), 2.0)}, {"calls": jnp.zeros(())}), gate)
    seen = {"train": signals(), "quiz": signals(seed=1)}
    terms = {"a": WeightedTerm(counting(3.0)), "b": WeightedTerm(counting(5.0)._replace(stream="quiz"))}
    minimised = objective(terms, fusion)
    params, state = minimised.init(KEY, seen)
    assert params == {"fusion": {"gate": 2.0}, "terms": {"a": {"scale": 3.0}, "b": {"scale": 5.0}}}
    means, new = minimised.apply(params, state, seen, key=KEY)
    assert {name: mean.compute() for name, mean in means.items()} == {"a": 3, "b": 5}
    assert new == {"fusion": {"calls": 1.0}, "terms": {"a": {"seen": 2.0}, "b": {"seen": 2.0}}}
    means, _ = minimised.apply(params, new, seen, key=KEY)
    assert {name: mean.compute() for name, mean in means.items()} == {"a": 6, "b": 10}
    fused, _ = minimised.fuse(params, state, seen["train"], key=KEY)
    assert_close(fused.teacher.logits, 2 * seen["train"].teachers[0].logits)


def test_terms_draw_from_keys_of_their_own():
    drawing = Term(
        lambda key, seen: ({"kernel": jax.random.normal(key, (3,))}, {}),
        lambda p, s, seen, *, key: (jax.random.normal(key, (6,)), s),
    )
    minimised = objective({"a": WeightedTerm(drawing), "b": WeightedTerm(drawing)}, AVERAGE)
    params, state = jax.jit(minimised.init)(KEY, {"train": signals()})
    assert not np.array_equal(params["terms"]["a"]["kernel"], params["terms"]["b"]["kernel"])
    apply = jax.jit(lambda: minimised.apply(params, state, {"train": signals()}, key=KEY)[0])
    means = apply()
    assert means["a"].sum != means["b"].sum
    assert_same(apply(), means)


def test_without_teachers_the_task_alone_is_minimised():
    seen = replace(signals(), teachers=(), params=signals().params | {"teachers": ()})
    with_teacher = evaluate({"a": build_loss("cross_entropy"), "b": build_loss("decay")}, {"train": signals()})[1]
    assert evaluate({"a": build_loss("cross_entropy"), "b": build_loss("decay")}, {"train": seen})[1] == with_teacher


def test_a_factored_head_is_the_head_multiplied_out():
    seen = signals()
    draw = np.random.default_rng(0)
    head = Factored(*(jnp.asarray(draw.normal(size=shape), jnp.float32) for shape in ((6, 4), (4, 5), (5,))))
    factored = replace(seen, student=Outputs(head), teachers=(Outputs(replace(head, bias=None)),))
    dense = replace(seen, student=Outputs(head.dense()), teachers=(Outputs(head.features @ head.kernel),))
    terms = {name: build_loss(name) for name in ("kd", "cross_entropy", "logit_mse")}
    assert_close(evaluate(terms, {"train": factored})[0], evaluate(terms, {"train": dense})[0])
    gradient = jax.grad(lambda student: evaluate(terms, {"train": replace(factored, student=student)})[1])(
        factored.student
    )
    assert all_finite(gradient) and all(x.any() for x in jax.tree.leaves(gradient))


def test_reduce_is_a_sum_over_a_count_in_float32():
    mean = reduce(VALUES.astype(jnp.bfloat16), masked(1, 1, 1, 0))
    assert (mean.sum, mean.count, mean.sum.dtype) == (7, 3, jnp.float32)


@pytest.mark.parametrize("shape", [(4, 1), (1,), (4, 3)])
def test_values_of_another_shape_than_the_rows_are_refused(shape):
    with pytest.raises(ValueError, match=r"one value per row, \[4\], or a scalar; got \["):
        reduce(jnp.zeros(shape), masked(1, 1, 1, 1))
