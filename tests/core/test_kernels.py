"""Tests of loss terms in one Pallas kernel: value and gradients are those of plain JAX, or the terms are refused."""

import re
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from examples import FUSIONS, LOSSES
from factored_heads import EVERY, apart, plain, streamed, world
from jax.sharding import NamedSharding, PartitionSpec
from terms import build_loss

from jaxdistill.core import softmax
from jaxdistill.core.collectives import ROWS
from jaxdistill.core.kernels import launch
from jaxdistill.core.kernels.trace import Unsupported
from jaxdistill.parallel.mesh import make_mesh


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    """Use tiles of 64 classes, which divide no number of classes in this file."""
    monkeypatch.setattr(launch, "TILE", 64)


CHUNKS = 3  # each has 14 tokens, which is no multiple of a block of 8 or 16 rows


def odd(kind):
    """Build heads of a student and two teachers: 150 classes (more than two tiles of 64), logits capped at 1.5."""
    return world(3, 2, 7 * CHUNKS, 150, (6, 9, 4), 1.5, kind)


@pytest.mark.sampled("kd*", "jsd*")
@pytest.mark.parametrize("name", EVERY)
def test_by_a_kernel_value_and_gradients_are_those_in_float64(name):
    made = odd(jnp.float32)
    assert apart(streamed({name: 1.0}, *made, CHUNKS, "pallas"), plain({name: 1.0}, *made)) < 1e-5


@pytest.mark.sampled("kd*", "skew_kl*")
@pytest.mark.parametrize("name", EVERY)
def test_so_they_are_for_divergences_by_hand(name, monkeypatch):
    """Check the kernel with hand-written gradients of divergences, which are otherwise used from 1,024 classes on."""
    monkeypatch.setattr(softmax, "MANY", 0)
    made = odd(jnp.float32)
    assert apart(streamed({name: 1.0}, *made, CHUNKS, "pallas"), plain({name: 1.0}, *made)) < 1e-5


SUM = {"kd(temperature=2.0)": 0.7, "jsd(beta=0.3, temperature=2.0)": 2.0, "cross_entropy": 0.3}


@pytest.mark.slow
def test_so_is_a_weighted_sum_of_bfloat16():
    """Check value and gradients of a weighted sum of three terms in bfloat16."""
    made = odd(jnp.bfloat16)
    assert apart(streamed(SUM, *made, CHUNKS, "pallas"), plain(SUM, *made)) < 1e-2


def test_so_they_are_with_the_rows_on_several_devices():
    """Check value and gradients of a kernel with the rows on four devices."""
    student, teachers, label, mask = world(5, 8, 8, 100, (8, 12, 4), 5.0, jnp.float32)
    weights = {"kd(temperature=2.0)": 1.0}
    wanted, mesh = plain(weights, student, teachers, label, mask), make_mesh((2, 2, 1))
    lay = lambda x, *axes: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))
    put = lambda head: replace(head, features=lay(head.features, *ROWS))
    with jax.set_mesh(mesh):
        given = put(student), tuple(map(put, teachers)), lay(label, *ROWS), lay(mask, *ROWS)
        found = streamed(weights, *given, 4, "pallas")
    assert apart(found, wanted) < 1e-5


# --- programs compiled for TPUs that are not present


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e"])
def test_the_compiler_of_a_tpu_takes_it_and_little_memory(chip):
    """Check that a kernel moves less than a quarter of XLA's bytes, and that 8,192 tokens take less than 1.5 GiB."""
    pytest.importorskip("libtpu")
    words = ["--chips", chip, "--cases", "five terms, summed", "--head"]
    command = [sys.executable, "-m", "experiments.benchmarks.moved", *words]
    ended = subprocess.run(command, cwd=runs.ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    moved = dict(re.findall(r"(xla|pallas): ([\d.]+) bytes", ended.stdout))
    assert float(moved["pallas"]) < 6.1 < float(moved["xla"]) / 4
    assert float(re.search(r"head, pallas: ([\d.]+) GiB", ended.stdout)[1]) < 1.5


# --- terms and fusions that a kernel supports

TERMS = {examples[0].spec for examples in LOSSES.values() if build_loss(examples[0].spec).local}
FUSED = {examples[0].spec for examples in FUSIONS.values()}


REFUSED = {
    "term": {"dkd": "'reduce_and'", "related_labels(edges=((0, 1), (1, 1, 0.5)), share=0.3)": "[100, 3] numbers"},
    "fusion": {"min_norm": "this takes", "sampled": "draws at random"},
}


def taken(spec, kind):
    """Return whether a kernel supports a term or fusion; None if it fails with XLA too, because an input is missing."""
    made, given = world(1, 2, 4, 100, (5, 7, 3), 0.0, jnp.float32), {"term": "kd", "fusion": "average", kind: spec}
    by = lambda kernels: jax.eval_shape(lambda: streamed({given["term"]: 1.0}, *made, 2, kernels, given["fusion"]))
    try:
        by("xla")
    except (ValueError, TypeError, KeyError):
        return None
    try:
        by("pallas")
    except Unsupported as error:
        assert REFUSED[kind].get(spec, "") in str(error)
        return False
    return True


def as_by_xla(weights, fusion, length=4):
    made = world(1, 2, length, 100, (5, 7, 3), 0.0, jnp.float32)
    by = lambda kernels: streamed(weights, *made, 2, kernels, fusion)
    return apart(by("pallas"), jax.tree.map(np.asarray, by("xla"))) < 1e-5


@pytest.mark.slow
def test_a_kernel_takes_every_term_as_it_is_or_refuses_it():
    found = {spec: taken(spec, "term") for spec in sorted(TERMS)}
    assert {spec for spec, is_taken in found.items() if is_taken is False} >= set(REFUSED["term"])
    weights = {spec: 1.0 for spec, is_taken in found.items() if is_taken}
    assert {"kd", "cross_entropy", "logit_mse", "ttm"} < set(weights)
    assert as_by_xla(weights, "average")


@pytest.mark.slow
def test_a_kernel_takes_every_fusion_as_it_is_or_refuses_it():
    """Check each fusion. A kernel sees single rows, so it refuses `min_norm`, which needs several, and random draws."""
    found = {spec: taken(spec, "fusion") for spec in sorted(FUSED)}
    assert {spec for spec, is_taken in found.items() if is_taken is False} >= set(REFUSED["fusion"])
    others = {spec for spec, is_taken in found.items() if is_taken} - {"average"}
    assert {"single", "entropy", "confidence"} <= others
    assert all(as_by_xla({"kd": 1.0}, fusion) for fusion in others)


def test_a_second_derivative_is_refused():
    made = world(1, 2, 4, 100, (5, 7), 0.0, jnp.float32)
    slope = lambda student: jnp.sum(streamed({"kd": 1.0}, student, *made[1:], 2, "pallas")[1][1])
    with pytest.raises(Unsupported, match="second derivative"):
        jax.eval_shape(jax.grad(slope), made[0])
