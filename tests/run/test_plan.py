"""Check that a plan counts what a run would hold, and refuses what would make a run fail."""

import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from jax.sharding import NamedSharding, PartitionSpec
from plans import PODS, SIZES, decoder

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.types import Variables
from jaxdistill.parallel.compile import local_shard, row_numbers_on
from jaxdistill.parallel.mesh import AXES, make_mesh
from jaxdistill.run.commands import plan as command
from jaxdistill.run.config import override
from jaxdistill.run.config_files import load_config
from jaxdistill.run.distill import check_config
from jaxdistill.run.plan import ahead, summary, topology
from jaxdistill.teachers.teacher import Teacher


@pytest.fixture(scope="module")
def _drawn():
    load_config(PODS)  # registers its data set


# --- what is held, and whether it fits


@pytest.fixture(scope="module")
def planned(_drawn):
    found = topology.find("cpu:8", 1)
    return ahead.plan(decoder(), found), found


def test_a_plan_holds_what_a_run_holds(planned, monkeypatch):
    plan, found = planned

    def real(self, rows):
        zeros = {name: jnp.zeros(x.shape, x.dtype) for name, x in rows.items()}
        return self.shard(Variables(*self.network.init(jax.random.key(0), zeros)))

    monkeypatch.setattr(Teacher, "abstract", real)
    engine, frozen, *_ = ahead.prepare(decoder(), found)
    ids = np.zeros((8, 16), np.int32)
    rows = {"input_ids": ids, "label": ids, "mask": np.ones((8, 16), np.float32), "index": np.zeros(8, np.int32)}
    ts = engine.init(jax.random.key(0), engine.put({"train": rows}))
    bytes_here = lambda tree: sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))
    held = {"student": ts.params["student"], "optimiser": ts.opt_state, "teacher large": frozen}
    assert plan.held == {kind: bytes_here(tree) for kind, tree in held.items()}
    trained = plan.held["student"] + plan.held["optimiser"]
    assert 0 < plan.temporaries < engine.traced().lower().compile().memory_analysis().temp_size_in_bytes + trained / 2
    assert plan.tokens == 8 * 16
    ts, _ = engine.update(ts, engine.put({"train": rows}))
    assert int(ts.step) == 1  # what was planned is what runs


def test_the_bounds_are_those_of_the_chip(planned):
    plan, _ = planned
    assert summary.bounds(plan, topology.Topology("cpu:8", [None] * 8, None)) is None
    chip = topology.Chip(flops=1e9, memory=2**30, memory_speed=1e8, link_speed=1e7)
    found = summary.bounds(plan, topology.Topology("made up", [None] * 8, chip))
    assert found.products == plan.device.flops / 1e9
    state = plan.held["student"] + plan.held["optimiser"]  # is read and written, so counts twice
    assert found.memory == (state + sum(plan.held.values()) + 2 * plan.temporaries) / 1e8
    assert found.links == sum(each.bytes for each in plan.device.collectives.values()) / 1e7
    assert found.best == max(found) and found.worst == sum(found)


OUT = "RESOURCE_EXHAUSTED: "
NEEDS = f"{OUT}Ran out of memory in memory space hbm. Used 41.26G of 31.25G hbm. Exceeded hbm by 10.01G."
TEMPORARIES = f"{OUT}the total memory required for HLO temporaries (117.86G) exceeds available HBM (15.75G)."


def test_temporaries_that_do_not_fit_are_named():
    assert ahead._short(TEMPORARIES) == "its temporaries need 117.86G of the 15.75G of a chip's memory"
    assert ahead._short(f"{OUT}something new") == f"{OUT}something new"


def test_what_does_not_fit_is_refused_with_what_it_needs(_drawn, monkeypatch, tmp_path, capsys):
    def refuse(self, *args, **more):
        raise jax.errors.JaxRuntimeError(NEEDS)

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    words = [
        "--config",
        f"{PODS}:qwen3",
        "--topology",
        "cpu:8",
        "--config.batch_size=8",
        "--config.evaluate.batch_size=8",
    ]
    assert (
        command.run([*words, "--json", str(tmp_path / "plan.json")]) == 1
    )  # the teacher has 131 GB; none of its arrays are made
    said = capsys.readouterr().out
    assert "does not fit: it needs 41.26G of the 31.25G of a chip's memory" in said
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["fits"] is False and plan["temporaries"] is None
    billions = {"student": 4.02, "optimiser": 2 * 4.02, "teacher large": 32.76}
    for kind, expected in billions.items():
        assert plan["held"][kind] * 8 / 4e9 == pytest.approx(expected, rel=0.01)
    tokens, layers = 8 * 4096, 8  # rows of attention: two products of head_size 128, 64 and 32 heads
    attention = 2 * 2 * layers * 4096 * 4096 * 128 * (64 * 64 + 4 * 36 * 32)
    head = 2 * tokens * 151936 * (5120 + 3 * 2560)
    body = lambda billion, head_rows: 1e9 * billion - 151936 * head_rows
    expected = 2 * tokens * (body(32.76, 2 * 5120) + 4 * body(4.02, 2560)) + attention + head
    assert plan["flops"]["total"] == pytest.approx(expected, rel=0.02)


def test_a_plan_is_told_and_written(_drawn, tmp_path, capsys):
    words = ["--topology", "cpu:8", "--json", str(tmp_path / "plan.json"), "--config.mesh.data=-1"]
    assert command.run(["--config", str(runs.TINY), *words]) == 0
    said = capsys.readouterr().out
    assert "8 chips, data 8 x fsdp 1 x tensor 1; 32 tokens (or rows) per step" in said
    assert "fits: " in said and "all-reduce" in said and "teacher big" in said
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["fits"] is True and all(name in said for name in plan["held"])


def test_what_fits_is_the_sum_of_what_is_held_and_of_temporaries(planned):
    plan, found = planned
    gib = 2**30
    large = plan._replace(held={"student": gib, "teacher large": gib // 2}, temporaries=gib // 4)
    assert "fits: 1.75 GiB on each chip" in summary.text(large, found, "config")


def test_a_teacher_is_laid_out_by_a_table_of_its_own(planned):
    plan, found = planned
    rules = {"large": {**decoder().teachers.large.to_dict(), "rules": ((".*", ()),)}}
    _, (large,), *_ = ahead.prepare(decoder(teachers=rules), found)
    whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(large))
    assert ahead.bytes_per_device(large) == whole > 2 * plan.held["teacher large"]


ODD = f"decoder({SIZES}, depth=1)".replace("64", "65")
MISTAKES = {
    "an unknown topology": (["--topology", "v6e:3x5"], "--topology: unknown topology 'v6e:3x5'. Known: v5e: 1x1"),
    "an unknown chip": (["--topology", "v9:2x2"], "v6e: 1x1, 2x2"),
    "no compiler": (["--topology", "v6e:16x16"], "needs the TPU compiler, libtpu, .* EXTRAS=test,lint,tpu"),
    "too many devices": (["--topology", "cpu:999"], "--topology: 1 x 999 CPU devices are asked for, and there are 8"),
    "no slice": (["--slices", "0"], "--slices: 0 slices"),
    "idle chips": (["--config.mesh.fsdp=4"], "mesh: .* uses 4 of the 8 chips of cpu:8"),
    "rows that do not divide": (["--config.batch_size=12"], "batch_size: 12 rows are not divisible by 8"),
    "heads that do not divide": (
        ["--config.mesh.tensor=8", "--config.mesh.fsdp=1"],
        r"mesh\.tensor: 8 does not divide heads=4 of student\.model\. Choose a divisor of 4",
    ),
    "a vocabulary that does not divide": (
        ["--config.mesh.tensor=2", "--config.mesh.fsdp=4", f"--config.student.model={ODD}",
         f"--config.teachers.large.model={ODD}"],
        r"mesh\.tensor: 2 does not divide vocabulary=65",
    ),
    "a context longer than the positions": (
        ["--config.data.name=drawn_tokens(vocabulary=64, length=64, rows=64)"],
        r"student\.model: 64 tokens exceed the 32 positions",
    ),
    "unlike vocabularies": (
        [f"--config.teachers.large.model=decoder({SIZES}, depth=1)".replace("64", "96")],
        r"teachers\.large\.model: .* has 96 classes, 64 are needed; set classes=64, or map them",
    ),
    "pmap": (["--config.mesh.backend=pmap"], "mesh.backend: 'pmap' is not supported"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_before_anything_compiles(mistake, _drawn, tmp_path, monkeypatch, capsys):
    words, said = MISTAKES[mistake]
    saved = tmp_path / "config.json"
    saved.write_text(json.dumps({"config": decoder(mesh={"data": 1, "fsdp": -1}).to_dict()}))
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(jax.stages.Lowered, "compile", None)
    assert command.run(["--config", str(saved), "--topology", "cpu:8", *words]) == 2
    found = capsys.readouterr().err
    assert found.startswith("error: ")
    assert re.search(said, found), found


# --- where rows lie


def test_rows_of_a_host_need_not_be_neighbours():
    """Check that a host gets its own rows even with gaps, such as 0 to 3 and 28 to 31 on a v6e:16x16."""
    winding = np.asarray(jax.devices()).reshape(2, 4)[:, [0, 3, 1, 2]].T.reshape(4, 2, 1)
    mesh = jax.sharding.Mesh(winding, AXES)
    whole = np.arange(48).reshape(16, 3)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    for host in (jax.devices()[:4], jax.devices()[4:]):
        mine = row_numbers_on(mesh, 16, host)
        assert len(mine) == 8 and list(mine) != list(range(mine[0], mine[0] + 8))
        for device_, index in rows.devices_indices_map((16, 3)).items():
            if device_ in host:
                np.testing.assert_array_equal(local_shard(whole[mine], mine, index), whole[index])


class Chip:
    """A stand-in for a TPU chip, with what JAX reads to build a mesh."""

    __class__ = jax.Device  # passes `isinstance`: tests cannot make a real one

    platform = device_kind = "tpu"
    core_on_chip = 0

    def __init__(self, number, slice_index, coords):
        self.id, self.slice_index, self.coords, self.process_index = number, slice_index, coords, number // 4

    def __repr__(self):
        return f"{self.slice_index}:{self.coords}"


def test_between_slices_goes_data_then_fsdp_and_never_tensor():
    chips = [Chip(16 * s + 4 * y + x, s, (x, y, 0)) for s in range(2) for y in range(4) for x in range(4)]
    slices = lambda mesh: np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
    apart = slices(make_mesh((2, 8, 2), chips))
    assert (apart[0] == apart[0, 0, 0]).all() and (apart[1] == 1 - apart[0, 0, 0]).all()
    apart = slices(make_mesh((1, 16, 2), chips))
    assert len(set(apart[0, :8].flat)) == len(set(apart[0, 8:].flat)) == 1
    with pytest.raises(ValueError, match=r"data 1 x fsdp 1 does not divide into 2 slices"):
        make_mesh((1, 1, 32), chips)


def test_a_run_needs_the_weights_that_a_plan_does_without(_drawn, tmp_path):
    config = override(load_config(f"{PODS}:qwen3"), [("mesh.fsdp", "8")])
    with pytest.raises(ConfigError, match=r"student\.model: .*configs/shapes/Qwen3-4B has no safetensors file"):
        check_config(config, tmp_path)


def test_chips_that_are_no_box_are_refused():
    """Check the message for chips with a gap, which a teacher on chips of its own may leave; JAX only asserts."""
    chips = [Chip(4 * y + x, 0, (x, y, 0)) for y in range(4) for x in range(4)]
    with pytest.raises(ValueError, match=r"^15 chips are no box of neighbours; choose sizes"):
        make_mesh((15, 1, 1), chips[:15])


# --- the compiler of the real chip, where it is installed


def real(*words):
    command_line = [sys.executable, "-m", "jaxdistill.main", "plan", "--config", f"{PODS}:qwen3", *words]
    return subprocess.run(command_line, cwd=runs.ROOT, capture_output=True, text=True)


SMALL = "vocabulary=4096, width=1024, heads=8, kv_heads=8, head_size=128, ffn=4096, positions=4096"
FEW = (
    f"--config.student.model=decoder({SMALL}, depth=4, remat='full')",
    "--config.data.name=drawn_tokens(vocabulary=4096, length=2048, rows=64)",
    "--config.evaluate.batch_size=16",
    "--config.batch_size=16",
    "--config.teachers.large.steps=1",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e:4x4", "v5p:2x2x2", "v6e:2x4"])
def test_the_real_compiler_passes_what_fits_and_refuses_what_does_not(name):
    pytest.importorskip("libtpu")
    fits = real("--topology", name, *FEW, f"--config.teachers.large.model=decoder({SMALL}, depth=8)")
    assert fits.returncode == 0, fits.stderr
    assert "fits: " in fits.stdout and "all-gather" in fits.stdout and "% of the peak" in fits.stdout
    broad = SMALL.replace("ffn=4096", "ffn=32768").replace("width=1024", "width=8192")
    large = f"--config.teachers.large.model=decoder({broad}, depth=400)"  # 1.3 TB
    refused = real("--topology", name, *FEW, large)
    assert refused.returncode == 1, refused.stderr
    assert re.search("does not fit: it(s temporaries)? needs? .* of a chip's memory", refused.stdout)
