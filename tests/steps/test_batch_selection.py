"""Tests of the step `batch_selection`: scores and choice by hand, wrong labels, pairs, tokens, and mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_close
from examples import TIMED
from terms import build_loss

from jaxdistill.core import registry
from jaxdistill.core.interfaces import Model
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.core.spec import parse
from jaxdistill.core.types import Outputs, Variables
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
        terms or {"cross_entropy": WeightedTerm(build_loss("cross_entropy"))}, registry.fusions["average"]()
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


def test_a_nan_is_selected_so_that_it_stops_the_run():
    rows = batch(RIGHT)
    rows["train"]["x"] = rows["train"]["x"].at[7].set(jnp.nan)
    _, metrics = trained_on("batch_selection(loss=cross_entropy(), share=0.25)", rows)
    assert np.isnan(metrics["terms/cross_entropy"].compute())


def test_a_row_of_tokens_has_the_mean_loss_of_its_tokens():
    """Compare two texts: a long one with a small loss at each token, and a short one with a larger loss."""
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
    assert seen == [[1]]  # the sums of both would be nearly equal, and larger for the first


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
        ("batch_selection(loss=decay())", r"gives values of shape \[\]; choose one with a value for each row"),
        ("batch_selection(loss=3)", "3 is no loss"),
        ("batch_selection()", "missing a required argument: 'loss'"),
    ],
)
def test_mistakes_are_named(spec, said):
    with pytest.raises(ValueError, match=said):
        build(spec, linear(), (linear(),)).init(KEY, (KNOWS,), batch(RIGHT))
