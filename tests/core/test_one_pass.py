"""Tests of losses in one pass over chunks of a factored head: value and gradients of whole logits, less memory."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from factored_heads import EVERY, apart, plain, streamed, world
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from experiments.benchmarks.head import loss_and_gradient, shapes
from experiments.benchmarks.sizes import SIZES
from jaxdistill.core.chunked.one_pass import sum_over_chunks as pieces_of
from jaxdistill.core.collectives import ROWS
from jaxdistill.parallel.mesh import make_mesh

SHAPES = {
    "seed": st.integers(0, 99),
    "rows": st.integers(1, 3),
    "pieces": st.sampled_from([(1, 3), (2, 2), (4, 2), (3, 1)]),
    "classes": st.integers(2, 70),
    "widths": st.lists(st.integers(1, 12), min_size=2, max_size=3),
    "cap": st.sampled_from([0.0, 1.5, 30.0]),
}


@pytest.mark.sampled("weighted sum")
@pytest.mark.parametrize("weights", [*({name: 1.0} for name in EVERY), EVERY], ids=[*EVERY, "weighted sum"])
@settings(max_examples=2, deadline=None, derandomize=True)
@given(**SHAPES)
def test_in_one_pass_value_and_gradients_are_those_in_float64(weights, seed, rows, pieces, classes, widths, cap):
    chunks, length = pieces
    for kind, within in ((jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)):
        made = world(seed, rows, chunks * length, classes, widths, cap, kind)
        assert apart(streamed(weights, *made, chunks), plain(weights, *made)) < within


def test_so_they_are_with_the_vocabulary_on_several_devices():
    """Check value and gradients on 8 devices, with the vocabulary divided over two of them."""
    student, teachers, label, mask = world(5, 8, 8, 64, (8, 12, 4), 5.0, jnp.float32)
    wanted, mesh = plain(EVERY, student, teachers, label, mask), make_mesh((2, 2, 2))
    lay = lambda x, *axes: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))
    put = lambda head: replace(head, features=lay(head.features, *ROWS), kernel=lay(head.kernel, None, "tensor"))
    with jax.set_mesh(mesh):
        found = streamed(EVERY, put(student), tuple(map(put, teachers)), lay(label, *ROWS), lay(mask, *ROWS), 4)
    assert apart(found, wanted) < 1e-5


def test_what_many_pieces_add_to_a_gradient_is_summed_in_float32_and_scaled_by_what_the_sum_is_for():
    rows, kernel = jnp.ones((1000, 1), jnp.bfloat16), jnp.ones((), jnp.bfloat16)
    twice = lambda kernel: 2 * pieces_of(lambda kernel, rows: (jnp.sum(kernel * rows), ()), kernel, rows)[0]
    assert jax.grad(twice)(kernel) == 2000  # in bfloat16, 256 + 1 = 256, and the sum would stop there


def test_a_large_vocabulary_takes_little_beside_the_gradient_of_its_head():
    """Check that 8,192 tokens of 151,936 classes take less than 1.5 GiB; whole float32 logits would take 9 GiB."""
    size = SIZES["head"]["gpu"]
    heads = shapes(size, jnp.bfloat16)
    memory = jax.jit(loss_and_gradient(size["chunks"])).lower(*heads).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 1.5 * 2**30
