"""Tests of the losses `uld` and `gold`: values by hand, equal and unlike tokens, and refused teachers."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import signals, single
from checks import assert_close
from spans import SHARED, mean, of_spans, seen_by, term_of
from terms import build_loss

from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.core.types import Outputs, Signals, TokenSpans
from jaxdistill.core.vocabulary import SharedVocabulary
from jaxdistill.losses.logits.kd import kl_divergence
from jaxdistill.losses.text import gold as gold_file
from jaxdistill.losses.text.alignment import align, match_spans, span_log_probs
from jaxdistill.losses.text.gold import shared_divergence
from jaxdistill.losses.text.uld import sorted_distance

KEY = jax.random.key(0)


def softmax(z: Any) -> np.ndarray:
    e = np.exp(np.asarray(z, np.float64))
    return e / e.sum(-1, keepdims=True)


def values_of(term: Any, seen: Signals) -> Any:
    """Return a term's values, or the pair of values and mask that a term over spans returns."""
    return jax.device_get(jax.jit(lambda seen: term.apply({}, {}, seen, key=KEY)[0])(seen))


# Ranks and measures


def test_sorted_distance_by_hand():
    p, q = np.float32([[0.1, 0.7, 0.2]]), np.float32([[0.3, 0.1, 0.4, 0.1, 0.1]])
    distance = jax.jit(sorted_distance)
    by_hand = abs(0.7 - 0.4) + abs(0.2 - 0.3) + abs(0.1 - 0.1) + 0.1 + 0.1
    assert_close(distance(q, p), [by_hand])
    assert_close(distance(p, q), [by_hand])
    assert_close(distance(q[:, ::-1], q), [0.0])  # the order of the tokens does not matter


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
    """Check four spans of one or two tokens, if the teacher shares 2 of the student's 3 classes."""
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


def test_the_square_of_the_temperature_scales_the_divergence_and_not_the_rank_distance():
    seen, kept = of_spans(rows=1, classes=3, others=4), SharedVocabulary(np.array([0, 2]), np.array([3, 1]))
    warm, halved = replace(seen, temperature=jnp.float32(2.0)), lambda out: replace(out, logits=out.logits / 2)
    cold = replace(seen, student=halved(seen.student), teacher=halved(seen.teacher))
    cold = replace(cold, teachers=tuple(map(halved, seen.teachers)))
    for weights, factor in (({"shared_weight": 0.0}, 1), ({"rest_weight": 0.0}, 4)):
        term = term_of("gold", vocabulary=kept, **weights)
        (by_temperature, counts), (by_hand, _) = values_of(term, warm), values_of(term, cold)
        assert_close(by_temperature[counts], factor * by_hand[counts])
        assert np.abs(by_hand[counts]).max() > 0.01


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
    """Check that the loss is least at the teacher; the published form at beta = 0 falls below 0 elsewhere."""
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
    """Check that "ab", which the teacher spells "a", "b", is made likelier; comparing tokens would do so with "b"."""
    words = {"ab": 0, "a": 1, "b": 2, "c": 3}  # in both models; the teacher never uses "ab"
    number = lambda *x: jnp.asarray(np.int32([x]))
    teacher = single(np.log([[[0.02, 0.94, 0.02, 0.02], [0.02, 0.02, 0.94, 0.02]]]))
    spans = TokenSpans(number(1, 1), number(words["a"], words["b"]))
    batch = {"span": number(1), "label": number(words["ab"])}
    start = single(np.log([[[0.4, 0.2, 0.2, 0.2]]]))
    same = SharedVocabulary(np.arange(4), np.arange(4))

    def slope(alike: bool):
        def loss(student):
            seen = seen_by(student, Outputs(teacher, spans=spans), batch, jnp.ones((1, 1)))
            if alike:  # the mistake: compares the probabilities token by token
                at = align(seen, 0)
                return shared_divergence(at.student, at.teacher, 0.0).sum()
            return mean(term_of("gold", vocabulary=same), seen).compute()

        return -np.asarray(jax.jit(jax.grad(loss))(start))[0, 0]

    wrong, right = slope(True), slope(False)
    assert wrong[words["b"]] > 0.5 and wrong[words["ab"]] < 0
    assert right[words["ab"]] > 0.1 and right[words["b"]] < 0


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
