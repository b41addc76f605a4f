"""Tests of checkpoints: damage is noticed, named and set aside, and the last good step is restored."""

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from jax.sharding import NamedSharding, PartitionSpec
from saved_states import ACCURACIES, abstract, reopened, same, state

from jaxdistill.core import seal
from jaxdistill.core.checkpoint import Checkpoints, load_variables
from jaxdistill.core.manifest import CheckpointError, choose_step, flatten, manifests
from jaxdistill.core.types import TrainState, Variables
from jaxdistill.parallel.mesh import make_mesh
from jaxdistill.parallel.sharding import shardings


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Save checkpoints of four steps, of which the best and the last two are kept, and return their folder."""
    folder = tmp_path_factory.mktemp("whole") / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        for step, accuracy in ACCURACIES.items():
            checkpoints.save(step, state(step), {"next": step}, {"accuracy": accuracy})
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """Copy the folder `whole`, so that a test can damage the copy."""
    return shutil.copytree(whole, tmp_path / "checkpoints")


def test_a_state_comes_back_to_the_bit(folder):
    step, restored, said = reopened(folder)
    assert (step, said) == (40, [])
    assert same(restored, state(40))


def test_keys_survive(folder):
    _, restored, _ = reopened(folder)
    assert np.array_equal(jax.random.uniform(restored.key, (5,)), jax.random.uniform(state(40).key, (5,)))


def test_best_and_last_two_are_kept(folder):
    assert list(manifests(folder)) == [10, 30, 40]
    assert {path.name for path in (folder / "steps").iterdir()} == {"10", "30", "40"}


def test_a_step_that_was_not_evaluated_is_the_last_but_never_the_best(folder):
    for step in (50, 60):  # a run may be stopped twice between two evaluations
        with Checkpoints(folder) as checkpoints:
            checkpoints.save(step, state(step), {"next": step}, {})
    assert list(manifests(folder)) == [10, 50, 60]
    assert reopened(folder)[0] == 60
    assert choose_step(folder, "best") == 10


def test_a_saved_state_may_be_donated_at_once(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        tree = {"x": jnp.arange(1000.0)}
        checkpoints.save(1, tree, {}, {})
        jax.jit(lambda tree: {"x": tree["x"] * 0}, donate_argnums=0)(tree)
        checkpoints.wait()
        assert np.array_equal(checkpoints.restore({"x": jnp.zeros(1000)}).tree["x"], np.arange(1000.0))


@pytest.mark.parametrize("how", ["flipped bits", "truncated", "missing"])
def test_damage_in_the_newest_step_is_named_and_the_last_good_step_is_used(how, folder):
    runs.damage(folder / "steps" / "40", how)
    step, restored, said = reopened(folder)
    assert (step, len(said)) == (30, 1)
    assert said[0].startswith("checkpoint of step 40 is set aside: ")
    assert same(restored, state(30))


def test_damage_in_two_steps_leads_to_the_third(folder):
    runs.damage(folder / "steps" / "40", "truncated")
    runs.damage(folder / "steps" / "30", "missing")
    step, restored, said = reopened(folder)
    assert (step, len(said)) == (10, 2)
    assert same(restored, state(10))


def test_a_flipped_bit_in_any_file_never_changes_what_is_restored(folder):
    """Check that a flipped bit is noticed, and an older step restored, or that it lies where nothing is read."""
    files = [file for file in (folder / "steps" / "40").rglob("*") if file.is_file()]
    noticed = 0
    for file in files:
        size = file.stat().st_size
        for place in sorted({0, size // 3, size // 2, size - 1} - {-1}):
            other = shutil.copytree(folder, folder.with_name("flipped"))
            runs.flip(other / file.relative_to(folder), place, 0x10)
            step, restored, said = reopened(other)
            assert same(restored, state(step))
            assert bool(said) == (step == 30)
            noticed += bool(said)
            shutil.rmtree(other)
    assert noticed > 5


def test_checkpoints_of_another_model_of_the_run_are_refused(tmp_path):
    """Check the owner's name, because a student and its control have arrays of the same names and shapes."""
    with Checkpoints(tmp_path, owner="control") as checkpoints:
        checkpoints.save(3, state(3), {}, {})
    other = pytest.raises(CheckpointError, match="has the checkpoints of 'control' and not of 'student'")
    with Checkpoints(tmp_path, owner="student") as checkpoints, other:
        checkpoints.restore(state(3))
    with Checkpoints(tmp_path, owner="control") as checkpoints:
        assert checkpoints.restore(state(3)).step == 3


def test_a_manifest_names_its_own_step(folder):
    """Check that two manifests whose files were swapped are left out, because each one holds the number of its step."""
    (folder / "manifests" / "30.json").rename(folder / "manifests" / "other")
    (folder / "manifests" / "40.json").rename(folder / "manifests" / "30.json")
    (folder / "manifests" / "other").rename(folder / "manifests" / "40.json")
    assert list(manifests(folder)) == [10]
    assert reopened(folder)[0] == 10


def test_two_steps_that_changed_places_are_noticed(folder):
    (folder / "steps" / "30").rename(folder / "steps" / "other")
    (folder / "steps" / "40").rename(folder / "steps" / "30")
    (folder / "steps" / "other").rename(folder / "steps" / "40")
    step, restored, said = reopened(folder)
    assert (step, len(said)) == (10, 2)
    assert same(restored, state(10))


@pytest.mark.parametrize("place", [1, 100, -2])
def test_a_damaged_manifest_vouches_for_nothing(place, folder):
    manifest = folder / "manifests" / "40.json"
    content = bytearray(manifest.read_bytes())
    content[place] ^= 1
    manifest.write_bytes(content)
    step, restored, said = reopened(folder)
    assert (step, said) == (30, [f"checkpoint of step 40 is set aside: {manifest} is damaged"])
    assert same(restored, state(30))


def test_a_truncated_manifest_vouches_for_nothing(folder):
    manifest = folder / "manifests" / "40.json"
    manifest.write_bytes(manifest.read_bytes()[:100])
    assert reopened(folder)[0] == 30


def test_a_step_without_a_manifest_was_never_finished(folder):
    (folder / "manifests" / "40.json").unlink()
    step, _, said = reopened(folder)
    missing = f"{folder / 'manifests' / '40.json'} is missing: the save was never finished"
    assert (step, said) == (30, [f"checkpoint of step 40 is set aside: {missing}"])


def test_a_half_written_step_is_cleaned_away(folder):
    """Check that a save interrupted by a SIGKILL is removed: its folder is not yet renamed, and files are missing."""
    half = folder / "steps" / "50.orbax-checkpoint-tmp"
    shutil.copytree(folder / "steps" / "40", half)
    (half / "commit_success.txt").unlink()
    runs.damage(half, "missing")
    said = []
    with Checkpoints(folder, report=said.append) as checkpoints:
        assert (checkpoints.restore(abstract(state(0))).step, said) == (40, [])
        checkpoints.save(50, state(50), {"next": 50}, {"accuracy": 0.5})
    assert not half.exists()
    assert same(reopened(folder)[1], state(50))


def test_a_run_killed_in_its_first_save_begins_anew(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, state(10), {}, {})
    (tmp_path / "manifests" / "10.json").unlink()
    for _ in range(2):
        with Checkpoints(tmp_path, report=lambda line: None) as checkpoints:
            assert checkpoints.restore(abstract(state(10))) is None


def test_what_was_damaged_is_kept_and_its_number_can_be_saved_again(folder):
    for attempt in range(2):
        file = runs.damage(folder / "steps" / "40", "flipped bits")
        with Checkpoints(folder, report=lambda line: None) as checkpoints:
            assert checkpoints.restore(abstract(state(0))).step == 30
            checkpoints.save(40, state(99), {"next": 40}, {"accuracy": 0.5})
        aside = folder / "damaged" / f"40-{attempt}"
        assert (aside / file.relative_to(folder / "steps" / "40")).is_file()
        assert "arrays" in json.loads(aside.with_suffix(".json").read_text())
    step, restored, said = reopened(folder)
    assert (step, said) == (40, [])
    assert same(restored, state(99))


def test_with_none_left_there_is_a_clear_error(folder):
    for step in ("10", "30", "40"):
        runs.damage(folder / "steps" / step, "flipped bits")
    for _ in range(2):  # the second attempt must fail in the same way
        with Checkpoints(folder, report=lambda line: None) as checkpoints, pytest.raises(CheckpointError) as error:
            checkpoints.restore(abstract(state(0)))
        assert str(error.value).startswith(f"{folder}: every checkpoint is damaged, none is left to resume from")
        assert "start in another workdir" in str(error.value)


def test_with_none_left_the_command_says_so_with_exit_code_4(folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "run" / "teachers" / "big" / "checkpoints")
    steps = tmp_path / "run" / "teachers" / "big" / "checkpoints" / "steps"
    shutil.rmtree(steps.parent)
    with runs.registries_as_found():
        assert runs.run(tmp_path / "run", "--config.steps=2", "--config.teachers.big.steps=2") == 0
        (step,) = steps.iterdir()
        runs.damage(step, "truncated")
        assert runs.run(tmp_path / "run", "--config.steps=2", "--config.teachers.big.steps=2") == 4
    said = capsys.readouterr()
    assert said.err == (
        f"error: {steps.parent}: every checkpoint is damaged, none is left to resume from; "
        "restore it from a copy, or start in another workdir\n"
    )
    flat = "".join(said.out.split())
    assert "checkpointofstep2issetaside" in flat


def test_a_checkpoint_of_another_model_names_the_arrays(folder):
    other = state(0)
    other.params["student"] = {"up/kernel": jnp.zeros((8, 5)), "down/kernel": jnp.zeros((5, 3))}
    with Checkpoints(folder) as checkpoints, pytest.raises(CheckpointError, match="of another model") as error:
        checkpoints.restore(abstract(other))
    said = str(error.value)
    assert "params/student/down/kernel [5, 3] is missing" in said
    assert "params/student/up/bias [4] is surplus" in said
    assert "params/student/up/kernel is [8, 4] float32, needed [8, 5] float32" in said


@pytest.mark.parametrize(("written", "read"), [((1, 1, 1), (2, 2, 2)), ((2, 2, 2), (1, 1, 1)), ((2, 2, 2), (8, 1, 1))])
def test_another_mesh_restores_the_same_bits(written, read, tmp_path):
    def laid_out(shape):
        mesh = make_mesh(shape)
        layout = shardings(state(0), mesh)
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state(0), layout), layout

    _, layout = laid_out(written)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, jax.device_put(state(7), layout), {}, {})
    wanted, layout = laid_out(read)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(wanted).tree
    assert same(restored, state(7))
    assert restored.params["student"]["up/kernel"].sharding == layout.params["student"]["up/kernel"]
    if read == (2, 2, 2):
        axes = PartitionSpec("fsdp", "tensor")
        assert restored.params["student"]["up/kernel"].sharding == NamedSharding(make_mesh(read), axes)


def student(tree: TrainState) -> Variables:
    return Variables(tree.params["student"], tree.state["student"])


@pytest.mark.parametrize(("which", "step"), [("best", 10), ("last", 40), ("30", 30)])
def test_a_teacher_is_read_by_its_step(which, step, folder):
    values = load_variables(folder, which, abstract(student(state(0))))
    assert same(values, student(state(step)))


def test_a_step_that_is_not_there_is_named_with_those_that_are(folder):
    with pytest.raises(CheckpointError, match=r"there is no step '20' in .*; there are last, best, 10, 30, 40"):
        load_variables(folder, "20", abstract(student(state(0))))


def test_a_teacher_is_never_read_from_a_damaged_step(folder):
    for file in (folder / "steps" / "40" / "state").rglob("d/*"):
        runs.flip(file, file.stat().st_size // 2, 0x10)
    with pytest.raises(CheckpointError, match=f"the checkpoint of step 40 in {folder} is damaged"):
        load_variables(folder, "last", abstract(student(state(0))))


def test_a_teacher_of_another_model_names_the_arrays(folder):
    other = Variables({"up/kernel": jnp.zeros((8, 5))}, {})
    with pytest.raises(CheckpointError, match="belongs to another model") as error:
        load_variables(folder, "last", abstract(other))
    assert "params/student/up/bias [4] is surplus" in str(error.value)
    assert "state/student/norm/mean [8] is surplus" in str(error.value)


def test_moments_come_back_as_they_were(tmp_path):
    base = state(3)
    full = replace(base, opt_state=jax.tree.map(lambda x: x + jnp.asarray(3, x.dtype), base.opt_state))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, full, {}, {})
        checkpoints.wait()
        assert same(checkpoints.restore(abstract(full)).tree, full)


def test_a_failing_disk_sets_nothing_aside(folder, monkeypatch):
    def fail(file, *args, **options):
        if file.name == "40.json":
            raise OSError(errno.ESTALE, "Stale file handle")
        return original(file, *args, **options)

    original = Path.read_text
    monkeypatch.setattr(Path, "read_text", fail)
    with pytest.raises(OSError, match="Stale file handle"):
        reopened(folder)
    assert not (folder / "damaged").exists()


@pytest.mark.parametrize("which", ["²", "-1", "4_0", "x", ""])
def test_a_step_is_a_number(which, folder):
    with pytest.raises(CheckpointError, match="there is no step"):
        choose_step(folder, which)


def test_why_a_checkpoint_was_set_aside_stands_beside_it(folder):
    runs.damage(folder / "steps" / "40", "missing")
    said = reopened(folder)[2]
    assert (folder / "damaged" / "40-0.txt").read_text().splitlines()[0] in said[0]


def test_the_checksum_of_every_array_is_compared(folder):
    file = folder / "manifests" / "40.json"
    sealed = seal.read(file, {})
    for name, (*entry, checksum) in sealed["arrays"].items():
        other = f"{int(checksum, 16) ^ 1:016x}"
        wrong = {**sealed, "arrays": {**sealed["arrays"], name: [*entry, other]}}
        with Checkpoints(folder) as checkpoints:
            problems, *_ = checkpoints._read(40, wrong, flatten(abstract(state(0))))
        assert problems == [f"{name} differs from what was saved"]


def test_of_equally_good_checkpoints_the_newest_is_kept_and_is_the_best(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step, accuracy in {10: 0.5, 20: 0.5, 30: 0.1, 40: 0.1}.items():
            checkpoints.save(step, state(step), {}, {"accuracy": accuracy})
    assert list(manifests(tmp_path)) == [20, 30, 40] and choose_step(tmp_path, "best") == 20


def test_a_measured_checkpoint_is_better_than_one_that_was_not_measured(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step, metrics in {10: {"similarity": -0.2}, 20: {}}.items():
            checkpoints.save(step, state(step), {}, metrics)
    assert choose_step(tmp_path, "best") == 10
