"""Tests of the step `on_policy` and the loss `policy_gradient`: samples, masks and gradients by hand."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import signals, tokens
from checks import assert_close
from examples import TIMED, slow
from terms import build_loss

import jaxdistill.run.parts  # noqa: F401  (registers the parts)
from jaxdistill.core import registry
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.core.optim import optimizer
from jaxdistill.core.spec import parse
from jaxdistill.core.types import Outputs, Variables
from jaxdistill.models.generate import Generated, generate
from jaxdistill.steps.observe import step_key
from jaxdistill.steps.on_policy import _text_lengths as text_lengths
from jaxdistill.steps.on_policy import rows_of_samples

KEY = jax.random.key(0)
STUDENT, TEACHER = (
    registry.models.build(f"decoder(vocabulary=5, width={w}, depth=1, heads=2, kv_heads=1, head_size=4, ffn=12)", "")
    for w in (8, 12)
)
ROWS = tokens(rows=8, length=6)
FROZEN = (Variables(*jax.jit(TEACHER.init)(jax.random.key(1), ROWS)),)


def world(spec: str, stream: str, read=(), **weights: float):
    """Build a step and its first state; terms are `weights` on `stream`, and `read`: tuples (stream, loss, weight)."""
    read = [*((stream, name, weight) for name, weight in weights.items()), *read]
    terms = {f"{own} of {s}": WeightedTerm(build_loss(own)._replace(stream=s), w) for s, own, w in read}
    update = optimizer(registry.optimizers.build("sgd(momentum=0.0)", ""), 1.0)
    given = (STUDENT, (TEACHER,), objective(terms, registry.fusions["single"]()), update)
    step = registry.steps.build(parse(spec, "")._replace(args=given), "", TIMED)
    return step, jax.jit(step.init)(KEY, FROZEN, {"train": ROWS})


def gradient(spec: str, stream: str, rows=ROWS, read=()):
    """Return the student's gradient, which one update at rate 1 subtracts, and the metrics of the update."""
    step, start = world(spec, stream, read) if read else world(spec, stream, reverse_kl=1.0)
    new, metrics = jax.jit(step.update)(start, FROZEN, {"train": rows})
    return jax.tree.map(jnp.subtract, start.params["student"], new.params["student"]), metrics


def written(prompt: int, **settings):
    """Generate texts with the student's first params, and build by hand the batch that the step makes of them."""
    _, start = world("on_policy(prompt=2)", "samples", reverse_kl=1.0)
    real = np.asarray(ROWS["mask"]).sum(1).astype(int)
    lengths = jnp.clip(np.where(real > 0, real + 1, 0), 1, prompt)
    draw = {"steps": 7 - prompt, "temperature": 1.0, **settings}
    found = jax.jit(lambda p: generate(STUDENT, p, ROWS["input_ids"][:, :prompt], lengths, step_key(start), **draw))(
        start.params["student"]
    )
    text, mask = np.zeros((8, 7), np.int32), np.zeros((8, 6), np.float32)
    for row, (first, count) in enumerate(zip(lengths, found.lengths, strict=True)):
        whole = [*np.asarray(ROWS["input_ids"])[row, :first], *np.asarray(found.tokens)[row, :count]][:7]
        text[row, : len(whole)] = whole
        mask[row, first - 1 : len(whole) - 1] = real[row] > 0
    return {"input_ids": text[:, :-1], "label": text[:, 1:], "mask": mask}


def apart(a, b) -> float:
    size = lambda tree: float(sum(jnp.sum(x**2) for x in jax.tree.leaves(tree)) ** 0.5)
    return size(jax.tree.map(jnp.subtract, a, b)) / size(b)


@pytest.mark.parametrize("settings", [slow({}), {"stop": (1, 3)}, slow({"temperature": 0.5})])
def test_the_gradient_is_that_of_what_the_student_wrote(settings):
    rows = written(3, **settings)
    spelt = "".join(f", {name}={value}" for name, value in settings.items())
    found, metrics = gradient(f"on_policy(prompt=3{spelt})", "samples")
    by_hand, _ = gradient("offline()", "train", rows)
    assert apart(found, by_hand) < 1e-4
    assert metrics["terms/reverse_kl of samples"].count == rows["mask"].sum()
    assert_close(metrics["samples/length"].compute(), rows["mask"].sum() / 6)


def test_top_p_limits_what_is_sampled():
    greedy, _ = gradient("on_policy(prompt=3, temperature=0.0)", "samples")
    nucleus, _ = gradient("on_policy(prompt=3, top_p=1e-6)", "samples")
    assert apart(nucleus, greedy) < 1e-5 and apart(gradient("on_policy(prompt=3)", "samples")[0], greedy) > 0.01


@pytest.mark.slow
def test_a_step_that_reads_the_data_instead_or_counts_the_prompt_is_told_apart():
    rows, (found, _) = written(3), gradient("on_policy(prompt=3)", "samples")
    off_policy, _ = gradient("offline()", "train")
    whole, _ = gradient(
        "offline()", "train", rows | {"mask": np.float32(rows["mask"].any(1, keepdims=True) * np.ones(6))}
    )
    assert apart(off_policy, found) > 0.1 and apart(whole, found) > 0.1


@pytest.mark.slow
def test_of_a_share_of_0_the_samples_are_the_data():
    assert apart(gradient("on_policy(prompt=3, share=0.0)", "samples")[0], gradient("offline()", "train")[0]) < 1e-5


METHODS = {  # weights of the losses on each stream, as in the docstring of `on_policy`
    "GKD in one step": {"samples": {"jsd": 0.3}, "train": {"jsd(beta=0.5)": 0.7}},
    "MiniLLM": {"samples": {"reverse_kl": 1.0, "policy_gradient": 0.5}, "train": {"cross_entropy": 1.0}},
    "DistiLLM-2": {"samples": {"skew_reverse_kl": 1.0}, "train": {"skew_kl": 0.5}},
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_published_method_is_the_sum_of_its_terms_each_on_its_own_texts(method):
    rows, terms = {"samples": written(3), "train": ROWS}, METHODS[method]
    read = [(stream, spec, weight) for stream, found in terms.items() for spec, weight in found.items()]
    whole = gradient("on_policy(prompt=3)", "", ROWS, read)[0]
    parts = [gradient("offline()", "", rows[stream], [("train", spec, weight)])[0] for stream, spec, weight in read]
    assert apart(whole, jax.tree.map(lambda *each: sum(each), *parts)) < 1e-4
    crossed = [gradient("offline()", "", ROWS, [("train", spec, weight)])[0] for _, spec, weight in read]
    assert apart(whole, jax.tree.map(lambda *each: sum(each), *crossed)) > 0.1


def test_a_share_is_that_of_the_steps():
    """Check that no step of the first half of the training uses samples, and 0.3 of the later steps do."""
    step, state = world("on_policy(prompt=1, share=phases(values=(0.0, 0.3), at=(0.5,)))", "samples", reverse_kl=1e-3)
    update, counts = jax.jit(step.update), []
    first = [update(replace(state, step=jnp.int32(n)), FROZEN, {"train": ROWS})[1] for n in range(0, 50, 5)]
    assert all(float(metrics["samples/length"].sum) == float(ROWS["mask"].sum()) for metrics in first)
    state = replace(state, step=jnp.int32(50))
    for _ in range(60):
        state, metrics = update(state, FROZEN, {"train": ROWS})
        counts.append(float(metrics["samples/length"].sum) == float(ROWS["mask"].sum()))
    assert 0.5 < np.mean(counts) < 0.9


def test_texts_are_put_together_and_counted_by_hand():
    rows = {
        "input_ids": jnp.array([[1, 2, 3, 4], [5, 0, 0, 0], [6, 7, 8, 9]]),
        "label": jnp.zeros((3, 4), jnp.int32),
        "mask": jnp.array([[1.0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]),
        "segment_ids": jnp.array([[1, 1, 2, 2], [1, 0, 0, 0], [1, 1, 1, 1]]),
        "index": jnp.arange(3),
    }
    drawn = Generated(jnp.array([[11, 12, 13], [14, 15, 0], [16, 17, 18]]), jnp.array([3, 2, 3]))
    found = rows_of_samples(rows, jnp.array([2, 1, 2]), drawn)
    assert found["input_ids"].tolist() == [[1, 2, 11, 12], [5, 14, 15, 0], [6, 7, 16, 17]]
    assert found["label"].tolist() == [[2, 11, 12, 13], [14, 15, 0, 0], [7, 16, 17, 18]]
    assert found["mask"].tolist() == [[0, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert found["segment_ids"].tolist() == [[1] * 4] * 3  # one segment, as the student saw the whole prompt
    assert found["index"].tolist() == [0, 1, 2]
    assert all(found[name].dtype == rows[name].dtype for name in rows)


def test_the_length_of_a_text_is_where_its_last_prediction_ends():
    mask = jnp.array([[1.0, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0], [1, 0, 1]])
    assert text_lengths({"mask": mask}).tolist() == [3, 3, 0, 2, 4]


def test_nothing_leaves_the_device_while_the_student_writes():
    step, start = world("on_policy(prompt=2)", "samples", reverse_kl=1.0)
    text = jax.jit(step.update).lower(start, FROZEN, {"train": ROWS}).as_text()
    assert "while" in text
    assert not any(word in text for word in ("callback", "infeed", "outfeed", "send"))


@pytest.mark.parametrize(
    ("spec", "stream", "said"),
    [
        ("on_policy(prompt=0)", "samples", "prompt must be at least 1"),
        ("on_policy(prompt=2, share=1.5)", "samples", "share from 0 to 1"),
        ("on_policy(prompt=2)", "train", "objective.NAME.stream='samples'"),
        ("on_policy(prompt=7)", "samples", "prompt=7 is longer than the rows of 6 tokens"),
    ],
)
def test_what_writes_nothing_is_refused(spec, stream, said):
    with pytest.raises(ValueError, match=said):
        world(spec, stream, reverse_kl=1.0)


# The policy gradient, against the exact one of the KL between all texts of three tokens


TEXTS = list(itertools.product(range(2), repeat=3))


def tables(seed: int):
    """Draw logits of the next token after each text of 0, 1 or 2 tokens."""
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(2,) * (n + 1)), jnp.float32) for n in range(3)]


def said(tables, text) -> jax.Array:
    """Return the logits of each token of a text, `[3, 2]`."""
    return jnp.stack([table[tuple(text[:n])] for n, table in enumerate(tables)])


def log_probability(tables, text):
    return jnp.sum(jax.nn.log_softmax(said(tables, text))[jnp.arange(3), jnp.asarray(text)])


def exact(student, teacher):
    """Return the exact gradient of KL(student || teacher) over all texts."""

    def divergence(tables):
        both = [(log_probability(tables, text), log_probability(teacher, text)) for text in TEXTS]
        return sum(jnp.exp(q) * (q - p) for q, p in both)

    return jax.grad(divergence)(student)


def expected(student, teacher, *specs: str):
    """Return the expected gradient of the losses on texts that the student samples."""

    def of_text(tables, text):
        base = signals(batch=(1, 3), classes=2)
        seen = [Outputs(said(each, text)[None]) for each in (tables, teacher)]
        batch = {"label": jnp.asarray([text], jnp.int32)}
        here = replace(base, student=seen[0], teachers=(seen[1],), teacher=seen[1], batch=batch)
        return sum(build_loss(spec).apply({}, {}, here, key=KEY)[0].sum() for spec in specs)

    slopes = [
        jax.tree.map(lambda x, t=text: jnp.exp(log_probability(student, t)) * x, jax.grad(of_text)(student, text))
        for text in TEXTS
    ]
    return jax.tree.map(lambda *each: sum(each), *slopes)


@pytest.mark.slow
def test_the_policy_gradient_beside_the_reverse_kl_is_that_of_the_kl_between_texts():
    student, teacher = tables(0), tables(1)
    whole = exact(student, teacher)
    long = "policy_gradient(normalized=False)"
    assert apart(expected(student, teacher, "reverse_kl", long), whole) < 1e-4
    assert apart(expected(student, teacher, "policy_gradient(own=True, normalized=False)"), whole) < 1e-4
    for broken in (["reverse_kl"], [long], ["reverse_kl", "policy_gradient(own=True, normalized=False)"]):
        assert apart(expected(student, teacher, *broken), whole) > 0.05


def test_a_mean_of_what_follows_counts_what_counts():
    seen = signals(batch=(1, 4))
    seen = replace(seen, teacher=seen.teachers[0], mask=jnp.array([[0.0, 1, 1, 1]]))
    nll = lambda out: -jnp.take_along_axis(jax.nn.log_softmax(out.logits), seen.batch["label"][..., None], -1)[0, :, 0]
    q, p = nll(seen.student), nll(seen.teacher)
    r = q - p
    found = build_loss("policy_gradient").apply({}, {}, seen, key=KEY)[0][0]
    assert_close(found[1:], [q[1] * (r[2] + r[3]) / 2, q[2] * r[3], 0.0])
    assert np.abs(build_loss("policy_gradient(clip=1e-9)").apply({}, {}, seen, key=KEY)[0]).max() < 1e-7
