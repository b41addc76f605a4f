"""Teachers of other tokens: `uld` and `gold` beside published code, by hand, and where tokens are the same."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import all_finite, assert_close, assert_same, build_loss, signals, single, slow
from jax.sharding import NamedSharding

from jaxdistill.core import registry
from jaxdistill.core.collectives import PMAP_AXIS, ROWS, psum
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.core.types import Array, Factored, Outputs, Signals, TokenSpans
from jaxdistill.core.vocabulary import SharedVocabulary
from jaxdistill.losses.logits.kd import kl_divergence
from jaxdistill.losses.text import gold as gold_file
from jaxdistill.losses.text.alignment import align, match_spans, span_log_probs
from jaxdistill.losses.text.gold import shared_divergence
from jaxdistill.losses.text.uld import sorted_distance
from jaxdistill.parallel.mesh import make_mesh

KEY = jax.random.key(0)
GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "logits.npz")
SINGLE = registry.fusions.build("single", "")


def softmax(z: Any) -> np.ndarray:
    e = np.exp(np.asarray(z, np.float64))
    return e / e.sum(-1, keepdims=True)


def seen_by(student: Array, teacher: Outputs, batch: dict[str, Array], mask: Array) -> Signals:
    return replace(signals(), student=Outputs(student), teachers=(teacher,), teacher=teacher, batch=batch, mask=mask)


def of_spans(rows: int = 4, classes: int = 6, others: int = 9, seed: int = 0) -> Signals:
    """Rows of 7 and 8 tokens: spans of 1:2, 1:1 and 2:2 tokens, one that only the student has, one more of 1:1."""
    rng = np.random.default_rng(seed)
    numbers = [[0, 1, 2, 3, 3, 4, 5], [1, 1, 2, 3, 3, 5, 0, 0]]
    numbers = [np.broadcast_to(np.int32(n), (rows, len(n))) for n in numbers]
    labels = [np.int32(rng.integers(0, c, n.shape)) for c, n in zip((classes, others), numbers, strict=True)]
    draw = lambda n, c: np.float32(2 * rng.normal(size=(*n.shape, c)))
    teacher = Outputs(draw(numbers[1], others), spans=TokenSpans(numbers[1], labels[1]))
    batch = {"span": numbers[0], "label": labels[0]}
    seen = seen_by(draw(numbers[0], classes), teacher, batch, np.ones(numbers[0].shape, np.float32))
    return jax.device_put(seen)


SHARED = SharedVocabulary(np.array([0, 2, 3, 5]), np.array([8, 5, 2, 0]))


def term_of(name: str, **arguments: Any) -> Any:
    return registry.losses[name](**arguments)


def mean(term: Any, seen: Signals, chunks: int = 1) -> Any:
    return compiled(term, chunks)(seen)


@functools.cache
def compiled(term: Any, chunks: int) -> Any:
    minimised = objective({"a": WeightedTerm(term)}, SINGLE, chunks)

    def apply(seen):
        params, state = minimised.init(KEY, {"train": seen})
        return minimised.apply(params, state, {"train": seen}, key=KEY)[0]["a"]

    return jax.jit(apply)


def values_of(term: Any, seen: Signals) -> Any:
    """A term's values, with what counts of them if it knows better."""
    return jax.device_get(jax.jit(lambda seen: term.apply({}, {}, seen, key=KEY)[0])(seen))


# Published code


@pytest.mark.sampled("*float64")
@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("name", ["uld", "gold_merged", "gold_shared"])
def test_what_is_published_is_equalled_in_value_and_gradient(name, precision):
    """`gold_merged` is compared by rank at every span, `gold_shared` has spans of one token each."""
    said = {key.removeprefix(f"{name}/"): x for key, x in GOLDEN.items() if key.startswith(f"{name}/")}
    with jax.enable_x64(precision == "float64"):
        teacher = Outputs(jnp.asarray(said["teacher"], precision))
        if name == "uld":
            mask = jnp.roll(jnp.asarray(said["label"] != -100), -1, axis=1)  # of what is predicted
            batch, term = {}, term_of("uld")
        else:
            numbers = SPANS if name == "gold_merged" else ([[1, 2, 3, 4, 0]], [[1, 2, 3, 4, 0]])
            labels = [jnp.roll(jnp.asarray(said[f"{whose}_ids"]), -1, axis=1) for whose in ("student", "teacher")]
            batch = {"span": jnp.asarray(numbers[0]), "label": labels[0]}
            teacher = replace(teacher, spans=TokenSpans(jnp.asarray(numbers[1]), labels[1]))
            mask, shared = jnp.ones(batch["span"].shape), SharedVocabulary(*said["shared"].T)
            weights = {"shared_weight": 0.7, "rest_weight": 0.4, "scale_t2": False, "vocabulary": shared}
            term = term_of("uld") if name == "gold_merged" else term_of("gold", beta=0.5, **weights)
        temperature = jnp.asarray(1.0 if name == "uld" else 1.5, precision)

        def loss(student):
            seen = replace(seen_by(student, teacher, batch, mask), temperature=temperature)
            out, _ = term.apply({}, {}, seen, key=KEY)
            values, counts = out if isinstance(out, tuple) else (out, mask)
            return jnp.sum(jnp.where(counts, values, 0)) / jnp.sum(counts)

        found = jax.jit(jax.value_and_grad(loss))(jnp.asarray(said["student"], precision))
    tolerance = 1e-12 if precision == "float64" else 1e-5
    for ours, theirs in zip(found, (said["value"], said["grad"]), strict=True):
        assert ours.dtype == precision
        assert np.abs(np.asarray(ours, np.float64) - theirs).max() <= tolerance * max(1.0, np.abs(theirs).max())


SPANS = [[1, 2, 3, 3, 4, 0]], [[1, 1, 2, 3, 3, 4, 0]]


# Ranks and measures


def test_sorted_distance_by_hand():
    p, q = np.float32([[0.1, 0.7, 0.2]]), np.float32([[0.3, 0.1, 0.4, 0.1, 0.1]])
    distance = jax.jit(sorted_distance)
    by_hand = abs(0.7 - 0.4) + abs(0.2 - 0.3) + abs(0.1 - 0.1) + 0.1 + 0.1
    assert_close(distance(q, p), [by_hand])
    assert_close(distance(p, q), [by_hand])
    assert_close(distance(q[:, ::-1], q), [0.0])  # whatever the tokens are called


def test_the_measure_of_a_span_is_the_chain_rule():
    rng = np.random.default_rng(0)
    p = softmax(rng.normal(size=(1, 6, 4)))
    label, number = np.int32([[3, 1, 0, 2, 2, 1]]), np.int32([[1, 0, 2, 2, 2, 3]])
    found = np.exp(jax.jit(span_log_probs)(np.log(p), TokenSpans(number, label)))
    first = {0: 1.0, 1: 1.0, 2: 1.0, 3: p[0, 2, 0], 4: p[0, 2, 0] * p[0, 3, 2], 5: 1.0}
    assert_close(found[0], np.stack([p[0, i] * factor for i, factor in first.items()]))


def test_partners_by_hand():
    spans = np.int32([[0, 1, 2, 2, 3, 5]]), np.int32([[1, 1, 0, 2, 3, 3, 4]])
    at, found = jax.device_get(jax.jit(match_spans)(*spans))
    assert found.tolist() == [[False, True, False, True, True, False]]
    assert (at[0, 1], at[0, 3], at[0, 4]) == (1, 3, 5)


def test_gold_by_hand():
    """A span of one token each, and one of two tokens of the teacher's; of the student's 3 classes, 2 are shared."""
    seen = of_spans(rows=1, classes=3, others=4)
    q, p = softmax(seen.student.logits)[0], softmax(seen.teacher.logits)[0]
    batch, spans = (np.asarray(x)[0] for x in (seen.batch["label"], seen.teacher.spans.label))
    direct = sum(p[2, b] * np.log(p[2, b] / q[2, a]) - p[2, b] + q[2, a] for a, b in ((0, 3), (2, 1)))
    rank = lambda a, b: np.abs(np.sort(np.pad(a, (0, 4 - len(a))))[::-1] - np.sort(np.pad(b, (0, 4 - len(b))))[::-1])
    apart = rank(q[2, [1]], p[2, [0, 2]]).sum()
    first = rank(q[1], p[1] * p[0, spans[0]]).sum()
    third = rank(q[4] * q[3, batch[3]], p[4] * p[3, spans[3]]).sum()
    last = sum(p[5, b] * np.log(p[5, b] / q[6, a]) - p[5, b] + q[6, a] for a, b in ((0, 3), (2, 1)))
    last += 0.5 * rank(q[6, [1]], p[5, [0, 2]]).sum()
    term = term_of("gold", vocabulary=SharedVocabulary(np.array([0, 2]), np.array([3, 1])), rest_weight=0.5)
    values, counts = values_of(term, seen)
    assert counts.tolist() == [[False, True, True, False, True, False, True]]
    expected = [0.5 * first, direct + 0.5 * apart, 0.5 * third, last]
    assert_close(values[counts], expected)
    assert_close(mean(term, seen).compute(), np.mean(expected))


# Where both read the same


@pytest.mark.sampled("0.25")
@pytest.mark.parametrize("beta", [0.0, 0.25, 0.5])
def test_gold_is_the_divergence_where_tokens_are_the_same(beta):
    seen = replace(signals(batch=(3, 4)), temperature=2.0)
    whole = values_of(term_of("gold", beta=beta), seen)
    number = np.broadcast_to(np.arange(1, 5, dtype=np.int32), (3, 4))
    spans = TokenSpans(number, seen.batch["label"])
    own = replace(seen.teachers[0], spans=spans)
    cut = replace(seen, teachers=(own,), batch=seen.batch | {"span": number})
    values, counts = values_of(term_of("gold", beta=beta), cut)
    name = "kd(temperature=2.0)" if beta == 0 else f"jsd(beta={beta}, temperature=2.0)"
    fused = replace(seen, teacher=seen.teachers[0])
    assert counts.all()
    for found in (whole, values):
        assert_close(found, values_of(build_loss(name), fused))
    p, q = (softmax(np.asarray(said.logits) / 2) for said in (seen.teachers[0], seen.student))
    ranked = np.abs(np.sort(p) - np.sort(q)).sum(-1)
    for each in (seen, cut):
        out = values_of(term_of("uld"), each)
        assert_close(out[0] if isinstance(out, tuple) else out, ranked)


def test_a_part_of_the_vocabulary_is_matched_exactly_and_not_overshot():
    """The broken twin is the published form at b = 0: the student that gives shared tokens all it has is the best."""
    p = np.array([0.3, 0.2, 0.5])  # the first two are shared
    published = lambda q: (p[:2] * np.log(p[:2] / q)).sum()
    divergence = jax.jit(shared_divergence, static_argnums=2)
    found = lambda q, beta: float(divergence(np.log(np.float32(q)), np.float32(np.log(p[:2])), beta))
    assert published(np.array([0.6, 0.4])) < -0.3 < 0 == published(p[:2])
    for beta in (0.0, 0.1, 0.5, 0.9):
        assert abs(found(p[:2], beta)) < 1e-6
        for q in ([0.6, 0.4], [0.2, 0.2], [0.25, 0.25], [0.01, 0.7]):
            assert found(q, beta) > 1e-4
    assert_close(found([0.6, 0.4], 0.0), published(np.array([0.6, 0.4])) - 0.5 + 1)


def test_a_span_that_the_teacher_spells_in_two_does_not_teach_its_last_piece():
    """The student writes "ab" where the teacher writes "a", "b". Compared as tokens, "b" would be pushed up."""
    words = {"ab": 0, "a": 1, "b": 2, "c": 3}  # of both; the teacher's "ab" is never used
    number = lambda *x: jnp.asarray(np.int32([x]))
    teacher = single(np.log([[[0.02, 0.94, 0.02, 0.02], [0.02, 0.02, 0.94, 0.02]]]))
    spans = TokenSpans(number(1, 1), number(words["a"], words["b"]))
    batch = {"span": number(1), "label": number(words["ab"])}
    start = single(np.log([[[0.4, 0.2, 0.2, 0.2]]]))
    same = SharedVocabulary(np.arange(4), np.arange(4))

    def slope(alike: bool):
        def loss(student):
            seen = seen_by(student, Outputs(teacher, spans=spans), batch, jnp.ones((1, 1)))
            if alike:  # the twin: as if the measures were of the same event
                at = align(seen, 0)
                return shared_divergence(at.student, at.teacher, 0.0).sum()
            return mean(term_of("gold", vocabulary=same), seen).compute()

        return -np.asarray(jax.jit(jax.grad(loss))(start))[0, 0]

    wrong, right = slope(True), slope(False)
    assert wrong[words["b"]] > 0.5 and wrong[words["ab"]] < 0
    assert right[words["ab"]] > 0.1 and right[words["b"]] < 0


# Laws, where tokens differ


TERMS = pytest.mark.parametrize("name", ["uld", "gold"])


def made(name: str) -> Any:
    return term_of("gold", beta=0.3, vocabulary=SHARED) if name == "gold" else term_of("uld")


@functools.cache
def both(name: str) -> Any:
    """Mean and gradient in the logits of student and teacher, compiled."""

    def found(seen):
        def loss(student, teacher):
            own = replace(seen.teacher, logits=teacher)
            return mean(made(name), replace(seen, student=Outputs(student), teachers=(own,), teacher=None)).compute()

        return jax.value_and_grad(loss, (0, 1))(seen.student.logits, seen.teacher.logits)

    return jax.jit(found)


@pytest.mark.sampled("*gold")
@TERMS
@pytest.mark.parametrize(
    "change",
    [
        lambda seen: seen,
        lambda seen: on_logits(seen, lambda x: 0 * x),
        lambda seen: on_logits(seen, lambda x: 1e4 * x),
        lambda seen: on_teacher(seen, lambda x: np.where(np.arange(9) % 2 == 1, np.float32(-np.inf), x)),
        lambda seen: on_teacher(seen, lambda x: np.where(np.arange(9) == 4, x, np.float32(-np.inf))),
    ],
    ids=["random", "zeros", "huge", "masked", "one class"],
)
def test_value_and_gradient_are_finite_whatever_the_teacher_says(name, change):
    assert all_finite(both(name)(change(of_spans())))


def on_teacher(seen: Signals, function: Any) -> Signals:
    return replace(seen, teacher=replace(seen.teacher, logits=function(np.asarray(seen.teacher.logits))))


def on_logits(seen: Signals, function: Any) -> Signals:
    return replace(on_teacher(seen, function), student=Outputs(function(np.asarray(seen.student.logits))))


@pytest.mark.sampled("gold")
@TERMS
def test_what_stands_where_nothing_counts_changes_no_bit(name):
    """In rows that fill up a batch, and at tokens of either model that belong to no span."""
    seen, term = jax.device_get(of_spans()), made(name)
    seen = replace(seen, mask=np.float32([[1], [1], [0], [1]]) * seen.mask)
    at = lambda x, rows: x[..., None] & rows[:, None, None]
    rows = np.asarray([True, True, False, True])
    ours, theirs = at(seen.batch["span"] > 0, rows), at(seen.teacher.spans.number > 0, rows)
    found = [
        both(name)(
            replace(
                on_teacher(seen, lambda x, f=filler: np.where(theirs, x, f)),
                student=Outputs(np.where(ours, seen.student.logits, f)),
            ),
        )
        for filler, f in np.float32([(0, 0), (1e6, -1e6), (np.nan, 7)])
    ]
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])
    spoilt = replace(seen, student=Outputs(np.where(ours, seen.student.logits, np.float32(np.nan))))
    assert_same(mean(term, spoilt), mean(term, seen))


@pytest.mark.sampled("pmap-uld")
@TERMS
@pytest.mark.parametrize("layout", [slow("mesh"), "pmap"])
def test_rows_may_lie_on_8_devices(name, layout):
    seen, term = of_spans(rows=8), made(name)
    seen = replace(seen, mask=single(np.float32([1, 1, 1, 0, 1, 0, 1, 1])[:, None] * seen.mask))
    whole = mean(term, seen).compute(), both(name)(seen)[1][0]
    rows = (seen.student, seen.teacher, seen.batch, seen.mask)

    def split(rows):
        def loss(student):
            found = mean(
                term, replace(seen, student=student, teachers=(rows[1],), teacher=None, batch=rows[2], mask=rows[3])
            )
            return found.sum / jnp.maximum(found.count, 1)

        value, slope = jax.value_and_grad(loss)(rows[0])
        return psum(value), slope.logits

    if layout == "mesh":
        mesh = make_mesh((2, 2, 2))
        with jax.set_mesh(mesh):
            found = jax.jit(split)(jax.device_put(rows, NamedSharding(mesh, ROWS)))
    else:
        values, slopes = jax.pmap(split, axis_name=PMAP_AXIS)(jax.tree.map(lambda x: np.asarray(x)[:, None], rows))
        found = np.asarray(values)[0], np.asarray(slopes)[:, 0]
    assert_close(found, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.sampled("gold")
@TERMS
def test_the_gradient_is_that_of_the_value(name):
    seen = jax.device_get(replace(of_spans(rows=2), temperature=np.float32(1), params={}))
    with jax.enable_x64(True):
        seen = jax.tree.map(lambda x: jnp.asarray(x.astype(np.float64) if x.dtype == np.float32 else x), seen)

        def loss(student, teacher):
            given = replace(seen, student=Outputs(student), teachers=(replace(seen.teacher, logits=teacher),))
            values, counts = made(name).apply({}, {}, given, key=KEY)[0]
            return jnp.sum(jnp.where(counts, values, 0))

        loss, at = jax.jit(loss), jax.device_get([seen.student.logits, seen.teacher.logits])
        slopes = jax.device_get(jax.jit(jax.grad(loss, (0, 1)))(*at))
        rng = np.random.default_rng(1)
        for which in (0, 1):
            away = rng.normal(size=slopes[which].shape)
            to = lambda size, w=which, d=away: [x + size * d if n == w else x for n, x in enumerate(at)]
            moved = lambda size, to=to: float(loss(*to(size)))
            assert_close((moved(1e-5) - moved(-1e-5)) / 2e-5, np.vdot(slopes[which], away), rtol=1e-6)


def test_a_factored_head_beside_a_teacher_of_other_tokens():
    """The student's cross-entropy is computed in pieces, `gold` on the whole: the numbers are those of one piece."""
    seen = of_spans(rows=2)
    pad = lambda x: jnp.asarray(np.pad(x, ((0, 0), (0, 1))))
    rng = np.random.default_rng(5)
    draw = lambda *shape: single(rng.normal(size=shape))
    batch = {name: pad(x) for name, x in seen.batch.items()}
    spans = jax.tree.map(pad, seen.teacher.spans)  # 9 tokens, which 4 does not divide
    teacher = Outputs(Factored(draw(2, 9, 3), draw(3, 9)), spans=spans)
    seen = replace(seen, teachers=(teacher,), teacher=None, batch=batch, mask=jnp.ones((2, 8)))
    terms = {"gold": WeightedTerm(made("gold")), "ce": WeightedTerm(build_loss("cross_entropy"), 0.5)}

    def run(chunks, head):
        minimised = objective(terms, SINGLE, chunks)
        given = {"train": replace(seen, student=Outputs(head))}
        params, state = minimised.init(KEY, given)
        return minimised.loss(params, state, given, minimised.weights(0), key=KEY)[0]

    head = Factored(draw(2, 8, 4), draw(4, 6))
    found = [jax.jit(jax.value_and_grad(run, 1), static_argnums=0)(chunks, head) for chunks in (1, 4)]
    assert_close(found[1], found[0], rtol=2e-5, atol=1e-5)


# Mistakes


def test_a_term_that_compares_tokens_refuses_a_teacher_of_others():
    seen = of_spans()
    with pytest.raises(ValueError, match="reads other tokens than the student; only gold and uld compare"):
        mean(build_loss("kd"), seen)
    mixed = objective({"a": WeightedTerm(build_loss("kd"))}, registry.fusions.build("average", ""))
    with pytest.raises(ValueError, match=r"cannot be mixed; choose one by fusion='single\(teacher=0\)'"):
        mixed.apply({"fusion": {}, "terms": {"a": {}}}, {"fusion": {}, "terms": {"a": {}}}, {"train": seen}, key=KEY)
    plain = Outputs(seen.student.logits)
    assert mean(build_loss("kd"), replace(seen, teachers=(plain, seen.teacher))).sum == 0
    assert mean(term_of("gold", teacher=1, vocabulary=SHARED), replace(seen, teachers=(plain, seen.teacher))).sum > 0


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("gold(beta=1.0)", "beta must be at least 0 and below 1"),
        ("gold(rest_weight=-1.0)", "weights must be 0 or more"),
        ("gold(vocabulary='words')", "comes from the tokenizers of data.tokens; leave it out"),
        ("uld(temperature=0.0)", "temperature must stay above 0"),
    ],
)
def test_mistakes_are_told_before_anything_compiles(spec, said):
    with pytest.raises(ConfigError, match=said):
        build_loss(spec)


def test_classes_that_differ_need_a_vocabulary_that_fits():
    seen = of_spans()
    for vocabulary, said in (
        (None, "student has 6 classes and the teacher 9; set data.tokens="),
        (SharedVocabulary(np.array([6]), np.array([0])), "the student has 6 classes, but its tokenizer has a token 6"),
        (SharedVocabulary(np.array([0]), np.array([9])), "the teacher has 9 classes, but its tokenizer has a token 9"),
    ):
        with pytest.raises(ValueError, match=said):
            mean(term_of("gold", vocabulary=vocabulary), seen)
    apart = replace(seen, teachers=(Outputs(seen.teacher.logits),))
    with pytest.raises(ValueError, match=r"cannot be aligned; set data\.tokens="):
        term_of("uld").apply({}, {}, apart, key=KEY)


def test_a_teacher_of_the_same_tokens_needs_no_vocabulary_beside_one_that_does():
    seen = replace(signals(), temperature=1.0)
    odd = SharedVocabulary(np.array([0]), np.array([1]))
    divergence = jax.jit(kl_divergence)(seen.student.logits, seen.teachers[0].logits)
    assert_close(values_of(term_of("gold", vocabulary=odd), seen), divergence)
    assert gold_file.Vocabularies == SharedVocabulary | None
