"""Tests of the counts of a plan: FLOPs of a step, bytes that devices send, and the share of each device."""

import jax
import jax.numpy as jnp
import pytest
import runs
from jax.sharding import NamedSharding, PartitionSpec
from plans import PODS, SIZES, decoder

from jaxdistill.evaluation.flops import flops
from jaxdistill.parallel.mesh import make_mesh
from jaxdistill.run.config import override
from jaxdistill.run.config_files import load_config
from jaxdistill.run.plan import ahead, topology
from jaxdistill.run.plan.device import device_work


@pytest.fixture(scope="module")
def _drawn():
    load_config(PODS)  # registers its data set


# --- FLOPs


def traced(function, *shapes):
    return flops(jax.make_jaxpr(function)(*(jnp.ones(shape) for shape in shapes)))


def test_flops_of_products_are_those_of_the_formula():
    assert traced(lambda a, b: a @ b, (3, 4), (4, 5)).total == 2 * 3 * 4 * 5
    assert traced(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (7, 3, 4), (7, 4, 5)).total == 7 * 2 * 3 * 4 * 5
    image = lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    assert traced(image, (2, 8, 8, 3), (3, 3, 3, 5)).total == 2 * (2 * 6 * 6 * 5) * (3 * 3 * 3)


def test_a_loop_counts_with_every_turn_and_a_branch_once():
    def scanned(x, kernels):
        return jax.lax.scan(lambda x, kernel: (x @ kernel, None), x, kernels)[0]

    assert traced(scanned, (2, 4), (6, 4, 4)) == (6 * 2 * 2 * 4 * 4, 0)
    either = lambda x, k: jax.lax.cond(x[0, 0] > 0, lambda: x @ k, lambda: x)
    assert traced(either, (2, 4), (4, 4)).total == 2 * 2 * 4 * 4
    forever = lambda x, k: jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ k, x)
    assert traced(forever, (2, 4), (4, 4)) == (2 * 2 * 4 * 4, 1)


def test_what_is_computed_twice_counts_once_and_what_nobody_reads_not_at_all():
    def twice(x, k):
        unread = jnp.sin(x) @ k  # noqa: F841
        return jax.nn.relu(x @ k).sum() + jnp.tanh(x @ k).sum()

    assert traced(twice, (2, 4), (4, 4)).total == 2 * 2 * 4 * 4


def step_of(config, devices=8):
    engine, *_ = ahead.prepare(config, topology.find(f"cpu:{devices}", 1))
    return engine.traced()


def test_a_scanned_model_has_the_flops_of_an_unrolled_one(_drawn):
    config = decoder(mesh={"data": 1})
    unrolled = override(
        config,
        [(path, text.replace("depth", "scan_layers=False, depth")) for path, text in _models(config)],
    )
    scanned, whole = (flops(step_of(each, 1).jaxpr) for each in (config, unrolled))
    assert scanned == whole and scanned.unknown == 0


def _models(config):
    return [("student.model", config.student.model), ("teachers.large.model", config.teachers.large.model)]


def test_flops_are_those_that_the_compiler_counts_where_there_is_no_loop():
    """Check against the count of XLA; the layers are wide, so that matrix products are nearly all of it."""
    config = override(
        load_config(str(runs.TINY)), [("student.model", "mlp(widths=(512, 512), classes=4)"), ("batch_size", "64")]
    )
    step = step_of(config, 1)
    said = step.lower().compile().cost_analysis()["flops"]
    assert flops(step.jaxpr).total == pytest.approx(said, rel=0.05)


def test_a_mesh_changes_no_flops_and_remat_adds_the_layers_once_more(_drawn):
    one, mesh = (
        flops(step_of(decoder(mesh=m), n).jaxpr).total for m, n in (({"data": 1}, 1), ({"data": 4, "tensor": 2}, 8))
    )
    assert one == mesh  # counted through shard_map, where each device sees its own rows
    again = flops(step_of(decoder(student={"model": f"decoder({SIZES}, depth=3, remat='full')"}), 8).jaxpr).total
    tokens, width, heads, ffn = 8 * 16, 16, 32, 32
    layer = 2 * tokens * (width * (2 * heads + 2 * 16) + 3 * width * ffn) + 2 * 2 * 8 * 4 * 16 * 16 * 8
    kept = 2 * tokens * width * ffn  # no gradient needs the last product of a layer again
    assert again - mesh == 3 * (layer - kept)


# --- what one device does


def test_collectives_are_counted_in_every_turn_with_what_is_sent():
    mesh = make_mesh((1, 8, 1))
    split, whole = NamedSharding(mesh, PartitionSpec(None, "fsdp")), NamedSharding(mesh, PartitionSpec())

    def gathered(x, kernels):
        turn = lambda x, kernel: (jnp.tanh(x @ jax.lax.with_sharding_constraint(kernel, whole)), None)
        return jax.lax.scan(turn, x, kernels)[0]

    step = jax.jit(gathered, in_shardings=(whole, split), out_shardings=whole)
    x, kernels = jax.ShapeDtypeStruct((4, 64), jnp.float32), jax.ShapeDtypeStruct((6, 64, 64), jnp.float32)
    found = device_work(step.lower(x, kernels).compile().as_text(), 8)
    gather = found.collectives["all-gather"]
    assert gather.bytes == pytest.approx(6 * 64 * 64 * 4 * 7 / 8)  # a device sends 7/8 of it in a ring
    assert found.flops == 6 * 2 * 4 * 64 * 64  # every device computes the whole product


@pytest.mark.sampled("rows")
@pytest.mark.parametrize("mesh", [{"data": 1, "fsdp": 8}, {"data": 1, "fsdp": 4, "tensor": 2}], ids=["rows", "tensor"])
def test_a_device_does_its_share(mesh, _drawn):
    """Check that devices split the FLOPs; they would sum to 1.7 times as many if a tensor group repeated its work."""
    step = step_of(decoder(mesh=mesh))
    found = device_work(step.lower().compile().as_text(), 8)
    assert found.flops * 8 == pytest.approx(flops(step.jaxpr).total, rel=0.02)


TPU = """HloModule step
%condition (p: (s32[], f32[8])) -> pred[] {
  %p = (s32[], f32[8]{0:T(256)}) parameter(0)
  %count = s32[]{:T(128)} get-tuple-element(%p), index=0
  %bound = s32[]{:T(128)} constant(7)
  ROOT %lt = pred[]{:T(512)} compare(%count, %bound), direction=LT
}
%all-reduce-scatter.1 (input: bf16[16,8]) -> bf16[4,8] {
  %input = bf16[16,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-reduce.3 = bf16[16,8]{1,0} all-reduce(%input), replica_groups=mesh['data'=2,'fsdp'=4] {'fsdp'}
}
%body (q: (s32[], f32[8])) -> (s32[], f32[8]) {
  %q = (s32[], f32[8]{0:T(256)}) parameter(0)
  %k = bf16[4,8]{1,0:T(8,128)(2,1)} constant({...})
  %start = (bf16[4,8]{1,0}, bf16[16,8]{1,0}) all-gather-start(%k), replica_groups=[2,4]<=[8], dimensions={0}
  %gathered = bf16[16,8]{1,0} all-gather-done(%start)
  %cut = bf16[4,8]{1,0} fusion(%gathered), kind=kCustom, calls=%all-reduce-scatter.1
  %x = f32[4,4,8,16]{3,2,1,0} constant({...})
  %y = f32[4,4,16,6]{3,2,1,0} constant({...})
  %z = f32[4,4,8,6] convolution(%x, %y), window={size=4x4 stride=3x3 lhs_dilate=4x4}, dim_labels=01bf_01io->01bf
  ROOT %next = (s32[], f32[8]{0:T(256)}) tuple(%q)
}
ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %one = s32[]{:T(128)} constant(1)
  %begin = (s32[], f32[8]{0}) tuple(%one, %a)
  %while.1 = (s32[], f32[8]{0}) while(%begin), condition=%condition, body=%body
  %permuted = f32[8]{0} collective-permute(%a), source_target_pairs={{0,1},{1,0}}
  ROOT %sum = f32[8]{0} all-reduce(%permuted), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%body
}
"""


def test_the_text_of_a_tpu_is_read_too():
    """Check the counts in a loop from 1 to 7, so of six turns; TPUs write a batch of products as a convolution."""
    found = device_work(TPU, 8)
    assert found.collectives == {
        "all-gather": (6, 6 * 3 * 4 * 8 * 2),
        "reduce-scatter": (6, 6 * 16 * 8 * 2 * 3 / 4),
        "all-reduce": (1, 2 * 8 * 4 * 7 / 8),
        "collective-permute": (1, 8 * 4),
    }
    assert found.flops == 6 * 2 * (4 * 4) * 8 * 6 * 16
