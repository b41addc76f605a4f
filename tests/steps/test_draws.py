"""Tests that random numbers are independent: those of steps, and those of order, augmentation and selection."""

import functools
import itertools
from collections import Counter

import batches
import examples
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from examples import STEPS, every
from terms import build_loss

from jaxdistill.core import registry
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.core.spec import parse
from jaxdistill.core.types import Variables
from jaxdistill.data.shuffle import AUGMENTATION, ORDER, SELECTION, permutation, random_words
from jaxdistill.data.stream import uniforms

KEY = jax.random.key(0)
DRAWS = ("bernoulli", "categorical", "gumbel", "normal", "randint", "uniform")
DROPOUT = tuple(f"mlp(widths=(8, 8), classes=4, dropout={rate})" for rate in (0.3, 0.3, 0.4))
TOKENS = tuple(
    f"decoder(vocabulary=4, width={width}, depth=1, heads=2, kv_heads=1, head_size=4, ffn=8)" for width in (8, 8, 12)
)
# Steps that compute something twice, and so must draw the same random numbers twice; with the reason
REPEATS = {
    "meta": "the backward pass computes the inner steps again",
    "pseudo_labels": "the quiz before and after the update; the teacher's probabilities, and their gradient",
    "routing(by='quiz')": "the gate's loss follows the student's own gradient of this batch",
}


@functools.cache
def built(spec: str):
    """Build the step of an example, its teachers' variables, and a batch; models of images have dropout."""
    example = next(example for each in STEPS.values() for example in each if example.spec == spec)
    models = [registry.models.build(s, "m") for s in (DROPOUT if example.inputs == "image" else TOKENS)]
    student, *teachers = models
    rows = (batches.images if example.inputs == "image" else batches.tokens)(rows=8, classes=4)
    frozen = tuple(Variables(*jax.jit(t.init)(jax.random.key(n), rows)) for n, t in enumerate(teachers, 1))
    parsed = parse(spec, "step")
    names = {"kd": 0.5, "cross_entropy": 0.5, "hidden": 0.1}
    terms = {name: WeightedTerm(build_loss(name), weight) for name, weight in names.items()}
    if example.stream != "train":
        terms["kd"] = WeightedTerm(build_loss("kd")._replace(stream=example.stream), 0.5)
    fusion = registry.fusions.build(examples.FUSED_BY.get(parsed.name, "average"), "fusion")
    parts = {"student": student, "teachers": tuple(teachers), "objective": objective(terms, fusion)}
    spec_of_parts = parsed._replace(kwargs=parsed.kwargs | parts | {"optimizer": optax.sgd(0.01)})
    step = registry.steps.build(spec_of_parts, "step", examples.TIMED)
    return step, frozen, dict.fromkeys(step.streams, rows)


@pytest.fixture
def draws(monkeypatch):
    """Record every random draw of compiled programs, with its key, in a list that grows while they run."""
    drawn: list[tuple[int, ...]] = []

    def recorded(name: str):
        draw = getattr(jax.random, name)

        def record(data, what):
            drawn.extend((*map(int, row), what) for row in np.asarray(data).reshape(-1, 2))

        def spy(key, *args, **kwargs):
            what = f"{name} {kwargs.get('shape', args[:1])}"  # one key gives other numbers in another shape
            jax.debug.callback(functools.partial(record, what=what), jax.random.key_data(key))
            return draw(key, *args, **kwargs)

        return spy

    for name in DRAWS:
        monkeypatch.setattr(jax.random, name, recorded(name))
    return drawn


@pytest.mark.sampled("replay*", "mutual(terms=('kd'*", "offline", "pseudo_labels", "routing")
@every(STEPS)
def test_no_key_draws_twice(example, draws):
    """Check that a key draws once, unless a step repeats a computation; else peers would drop the same units."""
    step, frozen, batch = built(example.spec)
    state, update = jax.jit(step.init)(KEY, frozen, batch), jax.jit(step.update)
    of_steps = []
    for _ in range(2):
        jax.effects_barrier()
        draws.clear()
        state, _ = update(state, frozen, batch)
        jax.effects_barrier()
        of_steps.append(Counter(draws))
    assert example.inputs == "tokens" or len(of_steps[0]) >= 8, "nothing was drawn"
    assert not set(of_steps[0]) & set(of_steps[1]), "the second step draws what the first drew"
    repeats = {count for of_step in of_steps for count in of_step.values()} - {1}
    allowed = {2} if {example.spec, example.spec.partition("(")[0]} & set(REPEATS) else set()
    assert repeats <= allowed, [key for key, count in of_steps[1].items() if count > 1]


def test_the_law_sees_a_key_that_draws_twice(draws):
    def both(key):
        return jax.random.uniform(key, (3,)) + jax.random.uniform(key, (3,))

    jax.jit(both)(KEY)
    jax.effects_barrier()
    assert set(Counter(draws).values()) == {2}


def test_peers_begin_with_other_values():
    step, frozen, batch = built("mutual(terms=('kd', 'cross_entropy'))")
    params = jax.device_get(jax.jit(step.init)(KEY, frozen, batch)).params
    kernels = [x for x in jax.tree.leaves(params) if x.ndim == 2 and x.shape == (64, 8)]
    assert len(kernels) >= 2
    for a, b in itertools.combinations(kernels, 2):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.2


def test_order_augmentation_and_selection_share_no_random_number():
    words = np.concatenate(
        [
            random_words(seed, number, purpose, 500)
            for seed, number, purpose in itertools.product(range(4), range(4), (ORDER, AUGMENTATION, SELECTION))
        ]
    )
    assert len(np.unique(words)) == len(words) == 4 * 4 * 3 * 500


def test_what_is_selected_does_not_depend_on_the_order_nor_the_order_on_the_epoch():
    records, ranks = 2000, lambda words: np.argsort(np.argsort(words))
    of = {
        "order": permutation(7, 0, records),
        "next order": permutation(7, 1, records),
        "of another seed": permutation(8, 0, records),
        "selection": np.argsort(random_words(7, 0, SELECTION, records)),
        "augmentation": ranks(uniforms(7, 0, records, 1)[:, 0]),
        "of the next batch": ranks(uniforms(7, 1, records, 1)[:, 0]),
    }
    for a, b in itertools.combinations(of, 2):
        assert abs(np.corrcoef(of[a], of[b])[0, 1]) < 0.1, (a, b)  # 4.5 standard deviations


def test_the_columns_of_a_batch_are_drawn_apart():
    drawn = uniforms(0, 0, 4000, 3)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.07
    assert np.abs(drawn.mean(0) - 0.5).max() < 0.02 and jnp.all((drawn >= 0) & (drawn < 1))
