"""Tests of the reductions of token losses: over all tokens, or over the tokens of each text and then over texts."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import spans
from batches import signals
from checks import assert_close
from examples import slow
from terms import build_loss

from jaxdistill.core import registry
from jaxdistill.core.objective import WeightedTerm, objective, reduce
from jaxdistill.core.types import Factored, Outputs

KEY = jax.random.key(0)
LENGTHS = (8, 1, 5)  # tokens of three texts; a fourth row only fills the batch
LOSSES = ["kd", "cross_entropy", *map(slow, ("reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "logit_mse", "ttm"))]


def of_texts():
    """Build signals of texts of several lengths, with factored heads."""
    rng = np.random.default_rng(3)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    head = lambda: Outputs(Factored(draw(4, 8, 3), draw(3, 6)))
    batch = {"label": jnp.asarray(rng.integers(0, 6, (4, 8)), jnp.int32)}
    mask = jnp.asarray(np.arange(8) < np.array([*LENGTHS, 0])[:, None], jnp.float32)
    return replace(signals(batch=(4, 8)), student=head(), teachers=(head(),), teacher=None, batch=batch, mask=mask)


def mean(terms, seen, chunks=1, by_loss=False):
    minimised = objective(terms, registry.fusions.build("single", ""), chunks)

    def run(seen):
        given = {"train": seen}
        params, state = minimised.init(KEY, given)
        if by_loss:
            return minimised.loss(params, state, given, minimised.weights(0), key=KEY)[0]
        return minimised.total(minimised.apply(params, state, given, key=KEY)[0], 0)

    return jax.jit(run)(seen)


def row(seen, number):
    cut = lambda tree: jax.tree.map(lambda x: x[number : number + 1], tree)
    head = lambda out: Outputs(replace(out.logits, features=cut(out.logits.features)))
    return replace(
        seen,
        student=head(seen.student),
        teachers=tuple(map(head, seen.teachers)),
        batch=cut(seen.batch),
        mask=cut(seen.mask),
    )


@pytest.mark.parametrize("chunks", [1, 4])
@pytest.mark.parametrize("name", LOSSES)
def test_the_mean_of_texts_is_that_of_each_text_alone(name, chunks):
    seen, term = of_texts(), build_loss(name)
    alone = [float(mean({"a": WeightedTerm(term)}, row(seen, number))) for number in range(len(LENGTHS))]
    by_text, by_token = ({"a": WeightedTerm(term, 1.0, reduction)} for reduction in ("text", "token"))
    for by_loss in (False, True):
        assert_close(mean(by_text, seen, chunks, by_loss), np.mean(alone), rtol=1e-5)
        assert_close(mean(by_token, seen, chunks, by_loss), np.average(alone, weights=LENGTHS), rtol=1e-5)
    assert abs(np.mean(alone) - np.average(alone, weights=LENGTHS)) > 0.005 * np.mean(alone), "both would be the same"


def test_terms_of_both_reductions_share_a_pass():
    seen = of_texts()
    terms = {
        "kd": WeightedTerm(build_loss("kd"), 0.5, "text"),
        "cross_entropy": WeightedTerm(build_loss("cross_entropy")),
    }
    whole, pieces = ({name: mean({name: each}, seen, n) for name, each in terms.items()} for n in (1, 4))
    assert_close(pieces, whole, rtol=1e-5)
    assert_close(mean(terms, seen, 4, by_loss=True), sum(whole.values()), rtol=1e-5)


@pytest.mark.parametrize("name", ["uld", "gold"])
def test_a_text_of_spans_counts_once_also_without_a_span(name):
    """Check the mean over a text's spans, then over texts; as in TRL's GOLD, a text without a span counts as 0."""
    seen = spans.of_spans(rows=3)
    numbers = np.array(seen.batch["span"])
    numbers[1, :4], numbers[2] = 0, 0  # the second text has fewer spans, the third has none
    seen = replace(seen, batch={**seen.batch, "span": jnp.asarray(numbers)})
    term = spans.term_of(name, **({"vocabulary": spans.SHARED} if name == "gold" else {}))
    (values, ends), *_ = jax.jit(lambda seen: term.apply({}, {}, replace(seen, teacher=None), key=KEY))(seen)
    ends = np.asarray(ends) != 0
    counts = ends.sum(axis=1)
    assert counts[0] > counts[1] > counts[2] == 0
    of_text = np.where(ends, values, 0).sum(axis=1, dtype=np.float64) / np.maximum(counts, 1)
    assert_close(mean({"a": WeightedTerm(term, 1.0, "text")}, seen), of_text.mean(), rtol=1e-5)
    of_tokens = np.where(ends, values, 0).sum(dtype=np.float64) / counts.sum()
    assert_close(mean({"a": WeightedTerm(term)}, seen), of_tokens, rtol=1e-5)


def test_images_are_no_texts(tmp_path, capsys):
    assert runs.run(tmp_path / "run", "--config.objective.kd.reduction=text") == 2
    said = capsys.readouterr().err
    assert (
        "objective.kd.reduction: 'text' averages over the tokens of each text, and the records of 'train' are no t"
        in said
    )


def test_a_reduction_is_one_of_two(tmp_path, capsys):
    assert runs.run(tmp_path / "run", "--config.objective.kd.reduction=batch") == 2
    assert "objective.kd.reduction: 'batch' is not 'token' or 'text'" in capsys.readouterr().err


def test_texts_that_are_packed_into_one_row_count_each():
    """Check rows of 3 + 5 and of 6 + 2 tokens, some of them masked."""
    numbers = jnp.asarray([[1, 1, 1, 2, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1, 2, 2]], jnp.int32)
    mask = jnp.asarray([[1, 1, 0, 1, 1, 1, 1, 0], [1] * 6 + [1, 0]], jnp.float32)
    values = np.random.default_rng(0).normal(size=(2, 8))
    chosen = [(np.asarray(numbers[row]) == n) & (np.asarray(mask[row]) != 0) for row in (0, 1) for n in (1, 2)]
    alone = [values[place // 2][rows].mean() for place, rows in enumerate(chosen)]
    seen = replace(signals(batch=(2, 8)), mask=mask, batch={"segment_ids": numbers})
    found = reduce(jnp.asarray(np.where(mask != 0, values, np.nan), jnp.float32), seen, "text")
    assert_close((found.sum, found.count), (np.sum(alone), 4.0), rtol=1e-5)
    rows = reduce(jnp.asarray(values, jnp.float32), replace(seen, batch={}), "text")
    assert abs(rows.compute() - np.mean(alone)) > 1e-2 and rows.count == pytest.approx(2)


def test_packed_texts_count_each_in_chunks_too():
    seen = of_texts()
    numbers = jnp.asarray(np.where(np.arange(8) < 3, 1, 2) * np.ones((4, 1)), jnp.int32)
    seen = replace(seen, batch={**seen.batch, "segment_ids": numbers})
    terms = {"a": WeightedTerm(build_loss("kd"), 1.0, "text")}
    whole = mean(terms, seen)
    assert_close(mean(terms, seen, 4), whole, rtol=1e-5)
    assert_close(mean(terms, seen, 4, by_loss=True), whole, rtol=1e-5)
    assert abs(whole - mean(terms, of_texts())) > 1e-3
