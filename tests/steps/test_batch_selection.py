"""Tests of the step `batch_selection`: scores and choice by hand, wrong labels, pairs, tokens, and mistakes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_close
from examples import TIMED
from terms import build_loss

from jaxdistill.core import registry
from jaxdistill.core.collectives import PMAP_AXIS
from jaxdistill.core.interfaces import Model
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.core.spec import parse
from jaxdistill.core.types import Outputs, TokenSpans, Variables
from jaxdistill.steps.batch_selection import largest

KEY = jax.random.key(0)
ROWS, CLASSES = 12, 3


def linear(seen: list | None = None) -> Model:
    """Build a model whose logits are `x @ kernel`; it notes which rows it is trained on."""

    def apply(params, state, rows, *, train, key):
        if train and seen is not None:
            jax.debug.callback(lambda numbers: seen.append(np.asarray(numbers).tolist()), rows["index"])
        return Outputs(rows["x"] @ params["kernel"], embedding=rows["x"]), state

    return Model(lambda key, rows: ({"kernel": jnp.zeros((CLASSES, CLASSES))}, {}), apply)


def build(spec: str, student: Model, teachers: tuple[Model, ...], **terms):
    parsed = parse(spec, "step")
    minimised = objective(
        terms or {"cross_entropy": WeightedTerm(build_loss("cross_entropy"))}, registry.fusions["single"]()
    )
    parts = {"student": student, "teachers": teachers, "objective": minimised, "optimizer": optax.sgd(0.1)}
    return registry.steps.build(parsed._replace(kwargs=parsed.kwargs | parts), "step", TIMED)


def batch(labels, mask=None):
    """Return rows whose right class is their number modulo 3, which the inputs show, with the given labels."""
    x = jax.nn.one_hot(jnp.arange(ROWS) % CLASSES, CLASSES)
    rows = {"x": x, "label": jnp.asarray(labels), "mask": jnp.ones(ROWS) if mask is None else jnp.asarray(mask)}
    return {"train": rows | {"index": jnp.arange(ROWS)}}


RIGHT = np.arange(ROWS) % CLASSES
WRONG = np.where(np.arange(ROWS) % 2 == 0, RIGHT, (RIGHT + 1) % CLASSES)  # half of the labels
KNOWS = Variables({"kernel": 4 * jnp.eye(CLASSES)}, {})  # a teacher that is sure of the right class


def trained_on(spec: str, rows) -> tuple[list[int], dict]:
    """Take one step, and return the numbers of the rows that the student was trained on, and the metrics."""
    seen = []
    step = build(spec, linear(seen), (linear(),))
    state = step.init(KEY, (KNOWS,), rows)
    seen.clear()
    _, metrics = jax.jit(step.update)(state, (KNOWS,), rows)
    jax.effects_barrier()
    (numbers,) = seen
    return numbers, metrics


@pytest.mark.parametrize(
    ("by", "expected"), [("learnability", "right"), ("easy", "right"), ("hard", "first"), ("hard, trained", "wrong")]
)
def test_rows_with_wrong_labels_are_left_out_and_are_the_hard_ones(by, expected):
    rows = batch(WRONG)
    step_by = by.partition(",")[0]
    seen = []
    step = build(f"batch_selection(loss=cross_entropy(), share=0.5, by={step_by!r})", linear(seen), (linear(),))
    state = step.init(KEY, (KNOWS,), rows)
    if "trained" in by:
        state.params["student"]["kernel"] = jnp.eye(CLASSES)
    seen.clear()
    jax.jit(step.update)(state, (KNOWS,), rows)
    jax.effects_barrier()
    right = np.flatnonzero(WRONG == RIGHT).tolist()
    wrong = np.flatnonzero(WRONG != RIGHT).tolist()
    assert seen == [
        {"right": right, "wrong": wrong, "first": list(range(6))}[expected]
    ]  # a student of zeros: all equal


def test_scores_choice_update_and_metrics_by_hand():
    rows = batch(WRONG, mask=np.arange(ROWS) != 2)
    numbers, metrics = trained_on("batch_selection(loss=cross_entropy(), share=0.25)", rows)
    z = 4 * np.eye(CLASSES)[RIGHT]
    teacher = np.log(np.exp(z).sum(1)) - z[np.arange(ROWS), WRONG]
    score = np.log(3) - teacher
    assert numbers == [0, 4, 6]  # row 2 has the score of the others and does not count
    assert_close(metrics["selection/selected"].compute(), score[0])
    assert_close(metrics["selection/all"].compute(), score[np.arange(ROWS) != 2].mean())
    assert metrics["terms/cross_entropy"].count == 3
    step = build("batch_selection(loss=cross_entropy(), share=0.25)", linear(), (linear(),))
    after, _ = step.update(step.init(KEY, (KNOWS,), rows), (KNOWS,), rows)
    plain = build("offline()", linear(), (linear(),))
    part = {"train": {name: x[np.array([0, 4, 6])] for name, x in rows["train"].items()}}
    wanted, _ = plain.update(plain.init(KEY, (KNOWS,), part), (KNOWS,), part)
    assert_close(after.params["student"]["kernel"], wanted.params["student"]["kernel"])


def test_the_largest_scores_are_taken_in_the_order_of_the_rows():
    scores = jnp.array([1.0, 3.0, -jnp.inf, 3.0, 2.0, jnp.inf])
    assert largest(scores, 3).tolist() == [1, 3, 5] and largest(scores, 2).tolist() == [1, 5]


def test_rows_are_scored_at_the_temperature_of_the_step():
    """Compare the mean score with the divergence of a student of zeros, by hand."""
    spec = "batch_selection(loss=kd(temperature=phases(values=(1.0, 3.0), at=(0.5,))), share=0.25, by='hard')"
    step, rows = build(spec, linear(), (linear(),)), batch(RIGHT)
    state = step.init(KEY, (KNOWS,), rows)
    for number, t in ((0, 1.0), (10**6, 3.0)):
        p = np.exp(np.array([4.0, 0, 0]) / t) / np.exp(np.array([4.0, 0, 0]) / t).sum()
        _, metrics = step.update(replace(state, step=jnp.asarray(number)), (KNOWS,), rows)
        assert_close(metrics["selection/all"].compute(), t**2 * (p * np.log(3 * p)).sum(), rtol=1e-4)


def test_a_score_that_is_nan_stops_the_run_where_the_minimised_loss_is_finite():
    rows = batch(
        np.where(np.arange(ROWS) == 7, -1, RIGHT)
    )  # the cross-entropy of no class is NaN, and kd has no labels
    spec = "batch_selection(loss=cross_entropy(), share=0.25)"
    step = build(spec, linear(), (linear(),), kd=WeightedTerm(build_loss("kd")))
    _, metrics = jax.jit(step.update)(step.init(KEY, (KNOWS,), rows), (KNOWS,), rows)
    assert np.isfinite(metrics["loss"].compute())
    assert np.isnan(metrics["selection/all"].compute()) and np.isnan(metrics["selection/selected"].compute())


def test_a_row_of_tokens_has_the_mean_loss_of_its_tokens():
    """Compare two texts with one wrong token each, of four tokens and of two."""
    x = jax.nn.one_hot(jnp.zeros((2, 4), int), CLASSES)
    label = jnp.array([[1, 0, 0, 0], [1, 0, 0, 0]])
    mask = jnp.array([[1.0, 1, 1, 1], [1, 1, 0, 0]])
    rows = {"train": {"x": x, "label": label, "mask": mask, "index": jnp.arange(2)}}
    seen = []
    step = build("batch_selection(loss=cross_entropy(), share=0.5, by='hard')", linear(seen), ())
    state = step.init(KEY, (), rows)
    state.params["student"]["kernel"] = 2 * jnp.eye(CLASSES)
    seen.clear()
    jax.jit(step.update)(state, (), rows)
    jax.effects_barrier()
    assert seen == [[1]]  # the sum of the first text is larger, and its mean smaller


def test_the_scores_of_pairs_are_those_of_contrastive_in_both_directions():
    draw = np.random.default_rng(0)
    arrays = {name: jnp.asarray(draw.normal(size=(8, 4)), jnp.float32) for name in ("a", "b", "c", "d")}
    rows = {"train": arrays | {"mask": jnp.ones(8), "index": jnp.arange(8)}}
    scale = jnp.full(8, 5.0)

    def towers(image, text, seen=None):
        def apply(params, state, rows, *, train, key):
            if train and seen is not None:
                jax.debug.callback(lambda numbers: seen.append(np.asarray(numbers).tolist()), rows["index"])
            shift = params["kernel"].sum()
            factor = scale[: len(rows["mask"])]
            return Outputs(
                rows[image] @ rows[text].T, embedding=rows[image] + shift, text_embedding=rows[text], scale=factor
            ), state

        return Model(lambda key, rows: ({"kernel": jnp.zeros(2)}, {}), apply)

    def losses(image, text):
        unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
        z = 5 * unit(np.float64(arrays[image])) @ unit(np.float64(arrays[text])).T
        own = np.arange(8)
        return (np.log(np.exp(z).sum(1)) + np.log(np.exp(z).sum(0))) / 2 - z[own, own]

    seen, term = [], {"contrastive": WeightedTerm(build_loss("contrastive"))}
    step = build(
        "batch_selection(loss=contrastive(), share=0.375)", towers("a", "b", seen), (towers("c", "d"),), **term
    )
    state = step.init(KEY, (Variables({"kernel": jnp.zeros(2)}, {}),), rows)
    seen.clear()
    _, metrics = jax.jit(step.update)(state, (Variables({"kernel": jnp.zeros(2)}, {}),), rows)
    jax.effects_barrier()
    score = losses("a", "b") - losses("c", "d")
    wanted = np.sort(np.argsort(-score)[:3])
    assert seen == [wanted.tolist()] and wanted.tolist() != [0, 1, 2]
    assert_close(metrics["selection/selected"].compute(), score[wanted].mean())


def test_the_teacher_whose_loss_counts_can_be_chosen():
    """Let the first teacher be sure of the wrong labels, and the second of the right classes."""
    rows, misled = batch(WRONG), Variables({"kernel": 4 * jnp.roll(jnp.eye(CLASSES), 1, axis=1)}, {})
    for teacher, is_chosen in ((0, WRONG != RIGHT), (1, WRONG == RIGHT), (-2, WRONG != RIGHT)):
        seen = []
        spec = f"batch_selection(loss=cross_entropy(), share=0.5, teacher={teacher})"
        step = build(spec, linear(seen), (linear(), linear()))
        state = step.init(KEY, (misled, KNOWS), rows)
        seen.clear()
        jax.jit(step.update)(state, (misled, KNOWS), rows)
        jax.effects_barrier()
        assert seen == [np.flatnonzero(is_chosen).tolist()] and step.selection.teacher == teacher % 2


def test_a_class_that_the_teacher_lacks_has_no_infinite_mean():
    rows = batch(np.where(np.arange(ROWS) == 0, 2, np.arange(ROWS) % 2))
    lacking = lambda: Model(
        lambda key, rows: ({}, {}),
        lambda params, state, rows, *, train, key: (
            Outputs(jnp.zeros((len(rows["mask"]), CLASSES)).at[:, 2].set(-jnp.inf)),
            state,
        ),
    )
    none = Variables({}, {})
    step = build("batch_selection(loss=cross_entropy(), share=0.25)", linear(), (lacking(),))
    _, metrics = jax.jit(step.update)(step.init(KEY, (none,), rows), (none,), rows)
    assert_close(metrics["selection/all"].compute(), np.log(3) - np.log(2))
    assert metrics["selection/all"].count == ROWS - 1


def test_pairs_under_pmap_are_selected_as_under_jit():
    draw, count = np.random.default_rng(1), 8 * jax.local_device_count()
    x = {name: jnp.asarray(draw.normal(size=(count, 4)), jnp.float32) for name in ("a", "b", "c", "d")}
    rows = {"train": x | {"mask": jnp.ones(count).at[3].set(0.0)}}

    def towers(image, text):
        def apply(params, state, rows, *, train, key):
            embedding = rows[image] @ params["kernel"]
            scale = jnp.full(len(embedding), 5.0)
            return Outputs(embedding, embedding=embedding, text_embedding=rows[text], scale=scale), state

        return Model(lambda key, rows: ({"kernel": jnp.eye(4)}, {}), apply)

    frozen = (Variables({"kernel": jnp.eye(4)}, {}),)
    term = {"contrastive": WeightedTerm(build_loss("contrastive"))}
    step = build("batch_selection(loss=contrastive(), share=0.25)", towers("a", "b"), (towers("c", "d"),), **term)
    state = step.init(KEY, frozen, rows)
    wanted, metrics = jax.jit(step.update)(state, frozen, rows)
    split = jax.tree.map(lambda x: x.reshape(jax.local_device_count(), 8, *x.shape[1:]), rows)
    found, mapped = jax.pmap(step.update, axis_name=PMAP_AXIS, in_axes=(None, None, 0))(state, frozen, split)
    assert_close(found.params["student"]["kernel"][0], wanted.params["student"]["kernel"], rtol=1e-5, atol=1e-6)
    for name in ("selection/selected", "selection/all", "terms/contrastive"):
        assert_close(jax.tree.map(lambda x: x[0], mapped[name]).compute(), metrics[name].compute(), rtol=1e-5)


@pytest.mark.parametrize("spec", ["batch_selection(loss=kd(), by='hard')", "batch_selection(loss=cross_entropy())"])
def test_a_score_that_reads_a_teacher_needs_one(spec):
    with pytest.raises(ValueError, match="there is no teacher 0; the config has 0"):
        build(spec, linear(), ())


def test_a_teacher_with_its_own_tokens_is_refused_unless_its_loss_does_not_count():
    x, ids = jax.nn.one_hot(jnp.zeros((2, 4), int), CLASSES), jnp.ones((2, 4), jnp.int32)
    rows = {"train": {"x": x, "label": ids, "mask": jnp.ones((2, 4)), "index": jnp.arange(2)}}
    apply = lambda params, state, rows, *, train, key: (Outputs(rows["x"], spans=TokenSpans(ids, ids)), state)
    teacher, none = Model(lambda key, rows: ({}, {}), apply), Variables({}, {})
    start = lambda loss, by: build(f"batch_selection(loss={loss}, share=0.5, by={by!r})", linear(), (teacher,)).init
    start("cross_entropy()", "hard")(KEY, (none,), rows)
    for loss, by in (("cross_entropy()", "learnability"), ("cross_entropy()", "easy"), ("kd()", "hard")):
        with pytest.raises(ValueError, match="has its own tokens, which are not those of the student"):
            start(loss, by)(KEY, (none,), rows)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("batch_selection(loss=cross_entropy(), share=0.0)", "share must be above 0 and at most 1; got 0.0"),
        ("batch_selection(loss=cross_entropy(), share=1.5)", "share must be above 0 and at most 1; got 1.5"),
        ("batch_selection(loss=cross_entropy(), teacher=1)", "there is no teacher 1; the config has 1"),
        ("batch_selection(loss=jacobian())", "the loss needs input_gradients; choose one that reads outputs"),
        (
            "batch_selection(loss=crd(width=4, negatives=2, records=12))",
            "the loss has parameters or a state of its own",
        ),
        ("batch_selection(loss=decay())", r"loss=.*gives one number for the whole batch; choose one with a value"),
        ("batch_selection(loss=3)", "3 is no loss"),
        ("batch_selection()", "missing a required argument: 'loss'"),
    ],
)
def test_mistakes_are_named(spec, said):
    with pytest.raises(ValueError, match=said):
        build(spec, linear(), (linear(),)).init(KEY, (KNOWS,), batch(RIGHT))
