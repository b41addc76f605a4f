"""Tests of the objective of factored heads, in chunks of tokens and on 8 devices: it equals that of whole logits."""

import functools
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import signals
from examples import FUSIONS, LOSSES, every, slow
from jax.sharding import NamedSharding, PartitionSpec
from terms import build_loss

from jaxdistill.core import registry
from jaxdistill.core.collectives import ROWS
from jaxdistill.core.interfaces import Term
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.core.types import Factored, Outputs
from jaxdistill.losses.term import stateless
from jaxdistill.parallel.mesh import make_mesh

KEY = jax.random.key(0)
AVERAGE = registry.fusions.build("average", "fusion")


def test_terms_draw_anew_in_every_piece():
    draw = lambda p, s, seen, *, key: (jnp.broadcast_to(jax.random.uniform(key), seen.mask.shape), s)
    minimised = objective({"a": WeightedTerm(Term(lambda key, seen: ({}, {}), draw))}, AVERAGE, 4)
    seen, state = of_tokens(), {"fusion": {}, "terms": {"a": {}}}
    of_piece = lambda n: jnp.broadcast_to(jnp.arange(16) // 4 == n, (8, 16)).astype(jnp.float32)
    means = [minimised.apply(state, state, {"train": replace(seen, mask=of_piece(n))}, key=KEY)[0] for n in range(4)]
    assert len({float(mean["a"].compute()) for mean in means}) == 4


def of_tokens(vocabulary: int = 512, widths: tuple[int, ...] = (12, 10)):
    """Build signals of texts, for a student and teachers of other widths, all with factored heads (no logits yet)."""
    draw = lambda number, *shape: jax.random.normal(jax.random.fold_in(KEY, number), shape)
    head = lambda number, width: Outputs(Factored(draw(number, 8, 16, width), draw(number + 9, width, vocabulary)))
    base = signals(batch=(8, 16), classes=8)
    label = jax.random.randint(KEY, (8, 16), 0, vocabulary)
    mask = (jax.random.uniform(KEY, (8, 16)) < 0.7).astype(jnp.float32)
    teachers = tuple(head(number, width) for number, width in enumerate(widths, 2))
    return replace(base, student=head(1, 8), teachers=teachers, batch={"label": label}, mask=mask)


def objective_of_tokens(chunks: int):
    """Build an objective of three local terms and one that is not local, because it reads all tokens of the batch."""
    terms = {name: WeightedTerm(build_loss(name)) for name in ("kd(temperature=2.0)", "logit_mse", "cross_entropy")}
    batchwise = lambda s: jnp.broadcast_to(jnp.std(s.student.logits), s.mask.shape)
    terms["std"] = WeightedTerm(stateless(batchwise, local=False), 0.5)
    return objective(terms, AVERAGE, chunks)


def loss_of_tokens(chunks: int, how: str):
    """Return a function `(student, teachers) -> (loss, means)`, which sums the means or computes all in one pass."""
    minimised, seen = objective_of_tokens(chunks), of_tokens()
    params, state = minimised.init(KEY, {"train": seen})

    def loss(student, teachers):
        given = {"train": replace(seen, student=Outputs(student), teachers=tuple(map(Outputs, teachers)))}
        if how == "one pass":
            value, (means, _) = minimised.loss(params, state, given, minimised.weights(0), key=KEY)
            return value, means
        means, _ = minimised.apply(params, state, given, key=KEY)
        return minimised.total(means, 0), means

    return loss


def heads_of_tokens():
    seen = of_tokens()
    return seen.student.logits, tuple(teacher.logits for teacher in seen.teachers)


@pytest.mark.sampled("both-one pass-2")
@pytest.mark.parametrize("chunks", [2, slow(16)])
@pytest.mark.parametrize("how", ["means", "one pass"])
@pytest.mark.parametrize("learns", [slow((0,)), (0, 1)], ids=["student", "both"])
def test_a_factored_head_in_chunks_is_the_head_in_one(chunks, how, learns):
    """Check loss, means, and gradients of the student's features and kernel, and of the teachers' where they learn."""
    differ = lambda *case: jax.value_and_grad(loss_of_tokens(*case), learns, has_aux=True)
    gradient = lambda *case: jax.jit(differ(*case))(*heads_of_tokens())
    found, want = gradient(chunks, how), gradient(1, "means")
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-5)


@pytest.mark.sampled("shape0")
@pytest.mark.parametrize("shape", [(2, 2, 2), (8, 1, 1)])
def test_in_one_pass_every_device_goes_over_its_own_rows(shape):
    """Check that 8 devices give the numbers of one, and add up a kernel's gradient once, not in every chunk."""
    student, teachers = heads_of_tokens()
    both = jax.value_and_grad(loss_of_tokens(4, "one pass"), (0, 1), has_aux=True)
    mesh = make_mesh(shape)
    lay = lambda x, *axes: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))
    put = lambda head: Factored(lay(head.features, *ROWS), lay(head.kernel, "fsdp", "tensor"))
    with jax.set_mesh(mesh):
        compiled = jax.jit(both).lower(put(student), tuple(map(put, teachers))).compile()
        found = compiled(put(student), tuple(map(put, teachers)))
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(jax.jit(both)(student, teachers)), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-5)
    reduced = [line for line in compiled.as_text().splitlines() if " all-reduce(" in line]
    sizes = lambda line: [int(size) for shape in re.findall(r"f32\[([\d,]+)\]", line) for size in shape.split(",")]
    inside, outside = ([max(sizes(x), default=0) for x in reduced if ("/while/body" in x) == loop] for loop in (1, 0))
    assert max(outside) >= 512 / shape[2] and max(inside, default=0) < 512 / shape[2]


@pytest.mark.sampled("average*", "gate*")
@every(FUSIONS)
def test_a_fusion_is_the_same_in_pieces_and_on_8_devices(example):
    """Check that the loss with a fusion depends neither on devices nor, except for `min_norm`, on chunks."""
    seen = of_tokens(7, (12, 10, 3))  # with two teachers, min_norm's weights are always equal
    student = replace(seen.student, hidden_states=(seen.student.logits.features,))
    fusion = registry.fusions.build(example.spec, "")

    def loss(chunks, student):
        minimised = objective({"kd": WeightedTerm(build_loss("kd(temperature=1.0)"))}, fusion, chunks)
        given = {"train": replace(seen, student=student)}
        return minimised.loss(*minimised.init(KEY, given), given, minimised.weights(0), key=KEY)[0]

    ways = {"whole": (1, (1, 1, 1)), "in pieces": (2, (1, 1, 1)), "on 8 devices": (2, (8, 1, 1))}
    found = {}
    for way, (chunks, shape) in ways.items():
        with jax.set_mesh(make_mesh(shape)):
            found[way] = float(jax.jit(functools.partial(loss, chunks))(student))
    assert found["on 8 devices"] == pytest.approx(found["in pieces"], rel=1e-5)
    if example.spec != "min_norm":  # min_norm computes its weights for each chunk
        assert found["in pieces"] == pytest.approx(found["whole"], rel=1e-5)


def test_a_gradient_through_the_gradient_in_one_pass_is_that_of_the_plain_form():
    """Check the teacher's gradient through the student's gradient, which meta-learning needs."""

    def meta(how):
        loss = loss_of_tokens(4, how)
        inner = lambda teachers: jax.grad(loss, has_aux=True)(heads_of_tokens()[0], teachers)[0]
        outer = lambda teachers: sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(inner(teachers)))
        return jax.jit(jax.grad(outer))(heads_of_tokens()[1])

    for x, y in zip(jax.tree.leaves(meta("one pass")), jax.tree.leaves(meta("means")), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
        assert x.any()


def test_in_one_pass_a_frozen_teacher_costs_no_gradient():
    """Count the matrix products: three with the student's head, one with each frozen teacher's, as without chunks."""
    seen = of_tokens(4096)

    def products(how):
        minimised = objective({"kd": WeightedTerm(build_loss("kd"))}, AVERAGE, 16)
        params, state = minimised.init(KEY, {"train": seen})

        def loss(student, teachers):
            frozen = tuple(map(Outputs, jax.lax.stop_gradient(teachers)))
            given = {"train": replace(seen, student=Outputs(student), teachers=frozen)}
            if how == "one pass":
                return minimised.loss(params, state, given, minimised.weights(0), key=KEY)[0]
            return minimised.total(minimised.apply(params, state, given, key=KEY)[0], 0)

        heads = seen.student.logits, tuple(teacher.logits for teacher in seen.teachers)
        text = jax.jit(jax.value_and_grad(loss)).lower(*heads).compile().as_text()
        return len(re.findall(r" dot\(", text)) + len(re.findall(r"__onednn\$matmul", text))

    assert products("one pass") == 3 + 2  # the body of a scan is counted once
    assert products("means") == 4 + 2 * 2


def test_chunks_keep_the_logits_of_one_piece_at_a_time():
    """Check the memory: logits of 8 x 16 x 4,096 for three models take 6 MiB, and those of one of 8 chunks 0.8 MiB."""

    def temporaries(chunks: int) -> int:
        minimised, seen = objective({"kd": WeightedTerm(build_loss("kd"))}, AVERAGE, chunks), of_tokens(4096)
        params, state = minimised.init(KEY, {"train": seen})

        def loss(student, teachers):
            given = {"train": replace(seen, student=student, teachers=teachers)}
            return minimised.loss(params, state, given, minimised.weights(0), key=KEY)[0]

        compiled = jax.jit(jax.grad(loss)).lower(seen.student, seen.teachers).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(8) < 0.5 * temporaries(1)


def test_chunks_must_divide_the_sequence():
    with pytest.raises(ValueError, match="3 chunks do not divide a sequence of 16 tokens"):
        evaluate_in_chunks = objective({"kd": WeightedTerm(build_loss("kd"))}, AVERAGE, 3)
        evaluate_in_chunks.apply(
            {"fusion": {}, "terms": {"kd": {}}}, {"fusion": {}, "terms": {"kd": {}}}, {"train": of_tokens()}, key=KEY
        )


LOCAL = {
    *(
        "attention_transfer",
        "cross_entropy",
        "dkd",
        "fsp",
        "fused_hidden",
        "hidden",
        "jsd",
        "kd",
        "known_classes",
        "logit_mse",
        "nst",
    ),
    *("related_labels", "reverse_kl", "routed_hidden", "skew_kl", "skew_reverse_kl", "standardized", "taid", "ttm"),
    "vid",
}  # the value at a token depends on that token alone


def test_terms_that_compare_rows_or_tokens_are_never_computed_in_chunks():
    found = {name: {build_loss(example.spec).local for example in of_one} for name, of_one in LOSSES.items()}
    assert {name for name, local in found.items() if local == {True}} == LOCAL
    assert all(len(local) == 1 for local in found.values())
