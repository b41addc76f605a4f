"""Checkpoints of train states: Orbax writes and reads them, and a sealed manifest beside each detects damage.

    FOLDER/steps/<n>/           the checkpoint of step n; Orbax writes it asynchronously and commits it by a rename
    FOLDER/manifests/<n>.json   written after the commit: step, shapes and checksums of the arrays, metrics, positions
    FOLDER/damaged/<n>-<k>      a damaged or unfinished checkpoint with its manifest, and why, kept for inspection

All of this may lie in a bucket instead, see `bucket.py`.

Orbax alone restores a flipped bit silently. The checksums are those of the arrays in memory (`checksums.py`): they are
computed before an array is written and after it is read, so no file is read a second time. A checkpoint without a
manifest was never finished and is not used. Nothing is ever unpickled.
"""

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxdistill.core import bucket, seal
from jaxdistill.core.checksums import array_checksums
from jaxdistill.core.manifest import (
    CheckpointError,
    CheckpointManifest,
    array_entries,
    check_owner,
    choose_checkpoint,
    damaged_arrays,
    damaged_files,
    flatten,
    manifests,
    mismatches,
    quality,
    student_arrays,
    unflatten,
)
from jaxdistill.core.orbax_reads import attempt, restore_args, silence_abandoned_work
from jaxdistill.core.types import PyTree, Variables


class _LatestAndBest:
    """The preservation policy for Orbax: keep the last two checkpoints, and the best by the metrics in the manifests.

    Args:
        metrics: metrics of each step, by step number; the caller adds those of new steps.
    """

    def __init__(self, metrics: Mapping[int, Mapping[str, float]]):
        self._metrics = metrics

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Return a list of bools for the checkpoints, oldest first: True for each checkpoint to keep."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept, scores = set(steps[-2:]), {step: quality(self._metrics.get(step, {})) for step in steps}
        measured = [step for step in steps if scores[step] is not None]  # a step may be saved before its evaluation
        if measured:
            kept.add(max(measured, key=lambda step: (scores[step], step)))
        return [step in kept for step in steps]


class Restored(NamedTuple):
    """The contents of a checkpoint that was read: step, train state, and positions of the data iterators.

    step: the step number
    tree: the train state
    data: the positions of the data iterators, by stream (named source of batches)
    seconds: the training time up to this checkpoint, with the time before any interruption
    """

    step: int
    tree: PyTree
    data: dict[str, Any]
    seconds: float


class Checkpoints:
    """The checkpoint manager of one training: it saves, checks and restores, and keeps the last two and the best.

    Args:
        folder: the folder of the checkpoints; created if missing.
        report: function that receives a line of text for each damaged or unfinished checkpoint that is found.
        owner: name of the model that is trained, such as "student"; checkpoints of another model are refused.
        address: address of the bucket for new checkpoints; empty if they are kept in `folder`.
        run: random name of the run; checkpoints of another run are refused, unless the name is empty.
    """

    def __init__(
        self, folder: Path, report: Callable[[str], Any] = print, owner: str = "", address: str = "", run: str = ""
    ):
        import orbax.checkpoint as ocp  # imported late: a wrong config must fail within three seconds

        self.folder, self._ocp, self._report = folder.absolute(), ocp, report
        self._owner, self._run = owner, run
        if jax.process_index() == 0:
            bucket.point(folder, address)
        _barrier("the place of the checkpoints is known")
        if address:
            bucket.wait_for(folder)
        self._place = bucket.checkpoints_path(folder)
        if (self._place / "steps").exists() and not (self._place / "steps").is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self._place / "steps"))
        silence_abandoned_work()
        self._manifest_thread, self._last_manifest = ThreadPoolExecutor(1, "manifest"), Future[None]()
        self._last_manifest.set_result(None)
        if jax.process_index() == 0:
            self._set_unfinished_aside()
        _barrier("checkpoints are checked")
        self._metrics = {step: manifest["metrics"] for step, manifest in manifests(self.folder).items()}
        self._manager = ocp.CheckpointManager(
            self._place / "steps",
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_LatestAndBest(self._metrics), cleanup_tmp_directories=True
            ),
        )

    def _set_unfinished_aside(self) -> None:
        """Move checkpoints without a valid manifest to the folder `damaged`, so that they are not restored."""
        finished = manifests(self.folder)
        steps = (int(path.name) for path in (self._place / "steps").glob("*") if path.name.isdecimal())
        for step in sorted(steps, reverse=True):
            manifest = self._place / "manifests" / f"{step}.json"
            if step not in finished:
                reason = "is damaged" if manifest.is_file() else "is missing: the save was never finished"
                self._set_aside(step, [f"{manifest} {reason}"])
        self._delete_stale_manifests()

    def _set_aside(self, step: int, problems: Sequence[str]) -> None:
        """Move the checkpoint of a step, with its manifest, to the folder `damaged`, and report its problems."""
        rest = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        self._report(f"checkpoint of step {step} is set aside: {'; '.join(problems[:4])}{rest}")
        damaged, manifest = self._place / "damaged", self._place / "manifests" / f"{step}.json"
        damaged.mkdir(exist_ok=True)
        aside = damaged / f"{step}-{sum(path.is_dir() for path in damaged.glob(f'{step}-*'))}"
        seal.write_text(aside.with_suffix(".txt"), "\n".join([*problems, ""]))  # raises if the bucket does not answer
        if manifest.is_file():
            manifest.rename(aside.with_suffix(".json"))
        (self._place / "steps" / str(step)).rename(aside)

    def _write_manifest(self, step: int, manifest: CheckpointManifest) -> None:
        """Wait until Orbax has committed the checkpoint of a step, then write the manifest.

        This runs in a thread, because Orbax calls its callback before the commit.
        """
        self._manager.wait_until_finished()
        if jax.process_index() != 0:
            return
        seal.write(self._place / "manifests" / f"{step}.json", manifest)
        self._delete_stale_manifests()

    def _delete_stale_manifests(self) -> None:
        """Delete the manifests of steps that Orbax has deleted."""
        for file in (self._place / "manifests").glob("*.json"):
            if not (self._place / "steps" / file.stem).exists():
                file.unlink(missing_ok=True)

    def save(
        self,
        step: int,
        tree: PyTree,
        data: Mapping[str, Any],
        metrics: Mapping[str, float],
        seconds: float = 0.0,
    ) -> None:
        """Save a checkpoint in the background; the arrays may be donated as soon as this returns.

        Args:
            step: the step number; if it is saved already, nothing happens.
            tree: the train state, with arrays of any sharding.
            data: the positions of the data iterators, as JSON values.
            metrics: evaluation results at this step, by name; a checkpoint without metrics never counts as the best.
            seconds: the training time so far, with the time before any interruption.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        flat = flatten(tree)
        checksums, entries = array_checksums(flat), array_entries(flat)
        arrays = {name: [*entry, checksums[name]] for name, entry in entries.items()}
        self._metrics[step] = dict(metrics)
        self._manager.save(step, args=self._ocp.args.Composite(state=self._ocp.args.PyTreeSave(flat)), force=True)
        contents = {"arrays": arrays, "metrics": dict(metrics), "data": dict(data)}
        of_run = {"run": self._run} if self._run else {}
        manifest = {"step": step, "owner": self._owner, **of_run, "seconds": round(seconds, 3), **contents}
        self._last_manifest = self._manifest_thread.submit(self._write_manifest, step, manifest)

    def restore(self, abstract: PyTree) -> Restored | None:
        """Read the newest checkpoint that is not damaged; return None if there is none yet.

        Damaged checkpoints are set aside and reported.

        Args:
            abstract: the train state as `jax.ShapeDtypeStruct`; its shardings, on any mesh, are those of the result.

        Raises:
            CheckpointError: the saved arrays have other names, shapes or dtypes than `abstract`; or there were
                checkpoints, and all of them are damaged.
        """
        self.wait()
        while (step := self._manager.latest_step()) is not None:
            if (manifest := manifests(self.folder).get(step)) is None:  # on a network disk, not yet seen here
                problem = f"{self.folder}: process {jax.process_index()} sees no manifest of step {step}"
                raise CheckpointError(f"{problem}. Start the run again when all machines see the same files")
            check_owner(self.folder, manifest, self._owner, self._run)
            if differences := mismatches(manifest, abstract):
                problem = f"the checkpoint of another model: {'; '.join(differences[:8])}"
                raise CheckpointError(f"{self.folder}, step {step}: {problem}")
            problems = damaged_files(self.folder, step, manifest)
            if not problems:
                problems, flat, data = self._read(step, manifest, flatten(abstract))
            if not problems:
                return Restored(step, unflatten(abstract, flat), data, manifest.get("seconds", 0.0))
            if jax.process_index() == 0:
                self._set_aside(step, problems)
            _barrier(f"checkpoint of step {step} is set aside")
            self._manager.reload()
        if any((self._place / "damaged").glob("*.json")):  # unfinished saves have no manifest
            cure = "restore it from a copy, or start in another workdir"
            raise CheckpointError(f"{self.folder}: every checkpoint is damaged, none is left to resume from; {cure}")
        return None

    def _read(
        self, step: int, manifest: CheckpointManifest, flat: dict[str, Any]
    ) -> tuple[list[str], dict[str, Any], Any]:
        """Read a checkpoint: return its problems (list of texts), its arrays by name, and the iterators' positions."""
        args = self._ocp.args
        items = {"state": args.PyTreeRestore(item=flat, restore_args=restore_args(self._ocp, flat))}
        earlier = "data" not in manifest  # an earlier version kept the positions in the checkpoint
        if earlier:
            items["data"] = args.JsonRestore()
        problems, restored = attempt(lambda: self._manager.restore(step, args=args.Composite(**items)))
        if problems:
            return problems, {}, None
        positions = restored.data if earlier else manifest["data"]
        return damaged_arrays(manifest, restored.state), restored.state, positions

    def wait(self) -> None:
        """Wait until the last `save` is complete on disk, with its manifest (the file of checksums)."""
        self._last_manifest.result()

    def close(self) -> None:
        """Wait until the last `save` is complete on disk, then stop the background threads."""
        try:
            self.wait()
        finally:
            self._manager.close()
            self._manifest_thread.shutdown()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def check_variables(folder: Path, which: str, abstract: Variables, owner: str = "") -> tuple[int, CheckpointManifest]:
    """Require that a checkpoint exists and fits a model, without reading arrays; return its step number and manifest.

    Args:
        folder: the `checkpoints` folder of a training.
        which: "last", "best" or a step number.
        abstract: the model's variables as `jax.ShapeDtypeStruct`.
        owner: name of the model, such as "student"; if it is empty, the name is not checked.

    Raises:
        CheckpointError: the checkpoint does not exist, is of another model than `owner`, or has other arrays than
            `abstract`.
    """
    step, manifest = choose_checkpoint(folder, which)
    check_owner(folder, manifest, owner)
    differences = mismatches({"arrays": student_arrays(manifest)}, _as_student(abstract))
    if differences:
        raise CheckpointError(f"the checkpoint belongs to another model: {'; '.join(differences[:4])}")
    return step, manifest


def _as_student(variables: Variables) -> dict[str, Any]:
    """Return a model's variables in the form of a train state, with the model as its student."""
    return {"params": {"student": variables.params}, "state": {"student": variables.state}}


def load_variables(folder: Path, which: str, abstract: Variables, owner: str = "") -> Variables:
    """Load the student's parameters and state from a checkpoint, to evaluate the student or use it as a teacher.

    Args:
        folder: the `checkpoints` folder of an earlier training.
        which: "last", "best" or a step number.
        abstract: the model's variables as `jax.ShapeDtypeStruct`, with the shardings to load them with.
        owner: name of the model, such as "student"; if it is empty, the name is not checked.

    Raises:
        CheckpointError: the checkpoint does not exist, is damaged, is of another model, or has other arrays than
            `abstract`.
    """
    import orbax.checkpoint as ocp

    step, manifest = check_variables(folder, which, abstract, owner)
    flat = flatten(_as_student(abstract))
    restore = ocp.args.PyTreeRestore(item=flat, restore_args=restore_args(ocp, flat), partial_restore=True)
    problems = damaged_files(folder, step, manifest)
    if not problems:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            state = bucket.checkpoints_path(folder) / "steps" / str(step) / "state"
            problems, restored = attempt(lambda: reader.restore(state, args=restore))
        problems = problems or damaged_arrays(manifest, restored)
    if problems:
        raise CheckpointError(f"the checkpoint of step {step} in {folder} is damaged: {'; '.join(problems[:4])}")
    tree = unflatten(_as_student(abstract), restored)
    return Variables(tree["params"]["student"], tree["state"]["student"])
