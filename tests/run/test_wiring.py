"""Tests that the values of a config reach the parts that they configure, and that engines place and donate arrays."""

import signal
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
import runs
from jax.sharding import PartitionSpec

from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError, Stopped
from jaxdistill.core.types import Variables
from jaxdistill.data.records import Records
from jaxdistill.evaluation.cost import cost
from jaxdistill.evaluation.evaluator import evaluator
from jaxdistill.losses.term import stateless
from jaxdistill.parallel.compile import jit_engine, keep_programs, shard_variables
from jaxdistill.parallel.mesh import make_mesh
from jaxdistill.parallel.pmap import pmap_engine
from jaxdistill.run import distill, parts, provenance
from jaxdistill.run.config import differ, make
from jaxdistill.run.preemption import Preemption
from jaxdistill.run.resolve import resolve
from jaxdistill.run.stages import Stage, plan_stages
from jaxdistill.run.train import Data, open_streams

KEY = jax.random.key(0)
ROWS = {
    "image": np.zeros((32, 8, 8, 1), np.uint8),
    "label": np.zeros(32, np.int32),
    "mask": np.ones(32, np.float32),
    "index": np.zeros(32, np.int32),
}
SHAPES = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in ROWS.items()}
TEACHERS = {
    "zed": {"model": "mlp(widths=(16, 16), classes=4)", "steps": 7, "rate": "0.5", "augment": ("flip()",)},
    "amy": {"model": "mlp(widths=(12, 12), classes=4)", "steps": 5},
}


def planned(**differences) -> Stage:
    return resolve(differ(runs.load(), **differences), jax.devices()).student


def test_a_teacher_has_the_seed_of_the_stage_that_trains_it_and_runs_on_one_device_if_it_is_alone():
    resolved = resolve(differ(runs.load(), teachers=TEACHERS, mesh={"data": 2}), jax.devices())
    trained = {stage.teacher: stage.config.seed for stage in resolved.definitions if stage.kind == "teacher"}
    assert {name: teacher.seed for name, teacher in resolved.teacher_configs.items()} == trained
    assert len({resolved.config.seed, *trained.values()}) == 3
    sizes = [resolved.live_teacher("amy", alone=alone).mesh.size for alone in (True, False)]
    assert sizes == [1, 2]


def networks(stage: Stage):
    return tuple(teacher.model for teacher in stage.parts.teachers)


def engine_of(stage: Stage, backend: str, shape=(2, 2, 2), rules=()):
    plan = stage.parts
    values = [Variables(*teacher.init(KEY, ROWS)) for teacher in networks(stage)]
    evaluate = evaluator(plan.student, networks(stage), plan.components.fusion, ())
    if backend == "pmap":
        return pmap_engine(plan.step, evaluate, jax.devices()[:8], tuple(values), tuple(values), {"train": SHAPES})
    mesh = make_mesh(shape)
    placed = tuple(shard_variables(value, mesh) for value in values)
    return jit_engine(
        plan.step, evaluate, mesh, placed, placed, {"train": SHAPES}, **({"rules": rules} if rules else {})
    )


def updated(plan: Stage, steps: int = 1):
    """Return the parameters before and after some steps on random images, and the metrics of the last step."""
    engine = engine_of(plan, "jit", (1, 1, 1))
    image = np.random.default_rng(0).integers(0, 255, ROWS["image"].shape, dtype=np.uint8)
    batch = engine.put({"train": {**ROWS, "image": image}})
    ts = engine.init(KEY, batch)
    before = jax.device_get(ts.params)
    for _ in range(steps):
        ts, metrics = engine.update(ts, batch)
    return before, jax.device_get(ts.params), jax.device_get(metrics)


# --- engines


def test_every_array_of_a_train_state_is_born_in_its_shards_optimiser_moments_included():
    engine = engine_of(planned(student={"model": "mlp(widths=(8, 8), classes=4)"}), "jit")
    ts = engine.init(KEY, engine.put({"train": ROWS}))
    kernels = [
        (path, x)
        for path, x in jax.tree_util.tree_leaves_with_path(ts)
        if "layers/0/kernel" in jax.tree_util.keystr(path)
    ]
    assert len(kernels) == 3  # the parameter and two moments of Adam
    for _, x in kernels:
        assert x.sharding.shard_shape(x.shape) == (x.shape[0] // 2, x.shape[1] // 2)


@pytest.mark.sampled("jit")
@pytest.mark.parametrize("backend", ["jit", "pmap"])
def test_an_update_donates_the_train_state_and_keeps_the_teachers(backend):
    engine = engine_of(planned(), backend)
    batch = engine.put({"train": ROWS})
    ts = engine.init(KEY, batch)
    kernel = ts.params["student"]["layers/0/kernel"]
    ts, _ = engine.update(ts, batch)
    assert kernel.is_deleted()
    engine.update(ts, batch)  # this update needs the teachers again


def test_rule_tables_are_obeyed():
    mesh = make_mesh((1, 2, 2))
    teacher = registry.models.build("mlp(widths=(8, 8), classes=4)", "")
    values = Variables(*teacher.init(KEY, ROWS))
    placed = shard_variables(values, mesh, (("layers/0/kernel$", ("tensor", None)),))
    assert placed.params["layers/0/kernel"].sharding.spec == PartitionSpec("tensor", None)
    assert placed.params["layers/1/kernel"].sharding.is_fully_replicated
    engine = engine_of(planned(), "jit", (1, 2, 2), rules=(("layers/0/kernel$", (None, "fsdp")),))
    assert engine.abstract.params["student"]["layers/0/kernel"].sharding.spec == PartitionSpec(None, "fsdp")


# --- what a stage is given


def test_teachers_are_numbered_as_they_are_named_and_train_as_they_say():
    config = differ(runs.load(), teachers=TEACHERS)
    assert list(config.teachers) == ["zed", "amy"]
    assert list(make(**config.to_dict()).teachers) == ["zed", "amy"]
    zed, amy, student, control = plan_stages(config)
    assert [stage.name for stage in (zed, amy, student, control)] == [
        "teacher zed",
        "teacher amy",
        "student",
        "control",
    ]
    assert (zed.config.rate, amy.config.rate) == ("0.5", config.rate)
    assert (zed.config.steps, amy.config.steps, control.config.steps) == (7, 5, config.steps)
    assert (zed.config.data.augment, amy.config.data.augment) == (("flip()",), ())
    assert student.config.data.augment == control.config.data.augment == ("shift(pixels=1)",)
    assert len({zed.config.seed, amy.config.seed, student.config.seed}) == 3
    assert control.config.seed == student.config.seed
    assert list(planned(teachers=TEACHERS).teachers) == ["zed", "amy"]


def test_a_further_teacher_leaves_the_seeds_of_those_before_it():
    alone = next(plan_stages(differ(runs.load(), teachers={"zed": TEACHERS["zed"]})))
    first = next(plan_stages(differ(runs.load(), teachers=TEACHERS)))
    assert alone.config.seed == first.config.seed


def test_the_dtype_reaches_student_and_teachers():
    plan = planned(dtype="bfloat16")
    for model in (plan.parts.student, *networks(plan)):
        values = jax.eval_shape(model.init, KEY, SHAPES)
        out, _ = jax.eval_shape(lambda v, b, m=model: m.apply(*v, b, train=True, key=KEY), values, SHAPES)
        assert out.logits.dtype == "bfloat16"


def test_accumulation_runs_the_student_in_pieces_and_the_teachers_at_once():
    plan = planned(accumulate=4)
    for model, pieces in ((plan.parts.student, 1), (networks(plan)[0], 0)):
        values = jax.eval_shape(model.init, KEY, SHAPES)
        traced = jax.make_jaxpr(lambda v, b, m=model: m.apply(*v, b, train=True, key=KEY)[0].logits)(values, SHAPES)
        assert str(traced).count("length=4") == pieces


def test_chunks_reach_the_objective(monkeypatch):
    seen = []
    original = parts.objective
    monkeypatch.setattr(
        parts, "objective", lambda terms, fusion, chunks, kernels: seen.append(chunks) or original(terms, fusion)
    )
    planned(chunks=3)
    assert 3 in seen


def test_roles_have_optimisers_of_their_own():
    objective = {"hidden": {}, "cross_entropy": {}}
    roles = {"terms": {"optimizer": "sgd(momentum=0.0)", "rate": "0.0"}}
    before, after, _ = updated(planned(objective=objective, roles=roles))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), before, after)
    assert all(jax.tree.leaves(same["terms"]))
    assert not any(jax.tree.leaves(same["student"]))


def test_weights_that_a_step_learns_have_an_optimiser_of_their_own():
    roles = {"weights": {"optimizer": "sgd(momentum=0.0)", "rate": "0.5"}}
    before, after, metrics = updated(planned(step="uncertainty(terms=('kd',))", roles=roles))
    slope = 0.5 * 0.9 * (1 - float(metrics["terms/kd"].compute()))
    np.testing.assert_allclose(after["weights"], before["weights"] - 0.5 * slope, rtol=1e-5)
    assert float(metrics["weights/kd"].sum) == pytest.approx(0.9 / 2)
    assert float(metrics["weights/cross_entropy"].sum) == pytest.approx(0.1)


def test_what_has_no_teacher_learns_by_the_plain_step():
    """Check that stages without a teacher use `offline()`: a step that weighs terms would not find its terms there."""
    roles = {"weights": {"rate": "0.01"}, "student": {"rate": "0.02"}}
    config = differ(runs.load(), step="mgda(terms=('kd', 'cross_entropy'))", roles=roles)
    teacher, student, control = (stage.config for stage in plan_stages(config))
    assert student.step == config.step and set(student.roles) == {"weights", "student"}
    for alone in (teacher, control):
        assert alone.step == "offline()" and set(alone.roles) == {"student"}


def test_clipping_bounds_the_step():
    plain = {"optimizer": "sgd(momentum=0.0)", "rate": "1.0"}
    before, after, metrics = updated(planned(**plain, clip_norm=0.01))
    moved = np.sqrt(
        sum(float(((a - b) ** 2).sum()) for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True))
    )
    assert float(metrics["grad_norm"].sum) > 0.05
    np.testing.assert_allclose(moved, 0.01, rtol=1e-3)


def test_every_stream_has_an_order_and_an_augmentation_of_its_own():
    streams = {"quiz": {"split": "extra", "batch_size": 32, "augment": ("flip()",)}}
    config = differ(runs.load(), streams=streams)
    data = resolve(config, jax.devices()).data
    assert [len(data.streams[name].transforms) for name in ("train", "quiz")] == [1, 1]
    assert data.streams["train"].transforms[0].draws != data.streams["quiz"].transforms[0].draws
    plan = planned(streams=streams)
    reading = plan.parts.step._replace(streams=frozenset({"train", "quiz"}))
    plan = plan._replace(parts=plan.parts._replace(step=reading))
    records = Records(registry.datasets["blobs"]("train"), 4)
    engine = engine_of(planned(), "jit", (1, 1, 1))
    found = open_streams(plan, Data({"train": records, "quiz": records}, records), engine)
    assert (next(found["train"])["index"] != next(found["quiz"])["index"]).any()


# --- what a run says of itself


def test_cost_is_that_of_one_example():
    model = registry.models.build("mlp(widths=(32,), classes=10)", "")
    one = {name: x[:1] for name, x in ROWS.items()}
    found = cost(model, Variables(*model.init(KEY, one)), one)
    products = 2 * (64 * 32 + 32 * 10)
    assert products <= found["flops"] <= 1.2 * products
    assert found["parameters"] == 64 * 32 + 32 + 32 * 10 + 10


def test_every_layer_of_a_scanned_stack_costs():
    sizes = "vocabulary=64, width=32, depth=4, heads=4, kv_heads=2, head_size=8, ffn=48"
    one, found = {"input_ids": np.zeros((1, 16), np.int32)}, {}
    for options in ("scan_layers=False", "scan_layers=True", "scan_layers=True, remat='full'"):
        model = registry.models.build(f"decoder({sizes}, {options})", "")
        found[options] = cost(model, Variables(*model.init(KEY, one)), one)["flops"]
    unrolled, *scanned = found.values()
    assert scanned == [pytest.approx(unrolled, rel=0.01)] * 2

    variables, mesh = Variables(*model.init(KEY, one)), make_mesh((1, 1, 1))
    logits = lambda v: model.apply(*v, one, train=False, key=KEY)[0].dense().logits
    with jax.set_mesh(mesh):  # as in a run: JAX then keeps traces that name the mesh
        jax.eval_shape(logits, variables)
    again = cost(model, jax.device_put(shard_variables(variables, mesh), jax.devices()[0]), one)
    assert again["flops"] == scanned[-1]


def test_the_layers_of_the_config_are_compared():
    plan = planned()
    student, teachers = plan.parts.student, networks(plan)
    evaluate = jax.jit(evaluator(student, teachers, plan.parts.components.fusion, ((0, 1), (1, 0))))
    student, teacher = (Variables(*m.init(KEY, ROWS)) for m in (student, teachers[0]))
    found = evaluate({"student": student.params}, {"student": student.state}, (teacher,), ROWS)
    assert {name for name in found if name.startswith("cka/")} == {"cka/0:1", "cka/1:0"}


def test_the_commit_is_recorded():
    here = Path(__file__).parent
    if not (runs.ROOT / ".git").exists():
        pytest.skip("not a repository")
    head = subprocess.run(("git", "rev-parse", "HEAD"), cwd=here, capture_output=True, text=True, check=True).stdout
    assert provenance.git_hash().removesuffix("+changes") == head.strip()


def test_programs_are_kept_where_the_config_says(tmp_path):
    jax.jit(lambda x: x + 1)(1.0).block_until_ready()  # so that JAX has already opened its cache
    with runs.compilation_cache(tmp_path / "before"):
        keep_programs(str(tmp_path / "kept"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.jit(lambda x: x * 2)(1.0).block_until_ready()
    assert any((tmp_path / "kept").iterdir())


def test_signals_are_given_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with Preemption() as interrupts:
        assert signal.getsignal(signal.SIGTERM) == interrupts._on_signal
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_signal_at_the_very_end_stops_what_comes_after(tmp_path, monkeypatch):
    """Check that a signal after the last step raises `Stopped`; else a study of many runs would start the next run."""
    monkeypatch.setattr(distill.Run, "load_teachers", lambda self: None)
    monkeypatch.setattr(distill.Run, "stage", lambda self, stage, preemption: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Stopped, match="all models are trained"):
        distill.distill(runs.load(), tmp_path)


def test_a_mistake_in_a_part_of_ones_own_is_placed(tmp_path):
    def misspelt():
        return stateless(lambda signals: signals.student.logit)

    with runs.registries_as_found():
        registry.losses.register(misspelt)
        config = differ(runs.load(), objective={"misspelt": {}})
        with pytest.raises(ConfigError, match=r"^objective.misspelt: .* 'logit' \(test_wiring.py, line \d+\)$"):
            distill.check_config(config, tmp_path)


def test_a_part_of_ones_own_needs_what_there_is(tmp_path):
    def needy():
        return stateless(lambda signals: signals.student.logits, needs=frozenset({"teachers"}))

    with runs.registries_as_found():
        registry.losses.register(needy)
        config = differ(runs.load(), objective={"needy": {}})
        with pytest.raises(ConfigError, match=r"^objective.needy: needs 'teachers', .* Did you mean 'teacher'\?"):
            distill.check_config(config, tmp_path)
