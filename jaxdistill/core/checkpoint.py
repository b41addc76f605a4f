"""Checkpoints of train states: Orbax writes and reads them, and a manifest of checksums beside each detects damage.

    FOLDER/steps/<n>/           the checkpoint of step n; Orbax writes it asynchronously and commits it by a rename
    FOLDER/manifests/<n>.json   written after the commit: sizes and SHA-256 of the files, shapes of the arrays, metrics
    FOLDER/damaged/<n>-<k>      a damaged or unfinished checkpoint with its manifest, kept for inspection

Orbax alone restores a flipped bit silently. A checkpoint without a manifest was never finished and is not used. Nothing
is ever unpickled.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill.core.tree import path_name
from jaxdistill.core.types import PyTree, Variables


class CheckpointError(RuntimeError):
    """The error for a checkpoint that is missing, damaged or of another model; the message says which one and why."""


Manifest = dict[str, Any]


def flatten(tree: PyTree) -> dict[str, Any]:
    """Flatten a pytree to a dict by key path, `{"params/student/head/kernel": array}`; PRNG keys become uint32 data."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): _untyped(leaf) for path, leaf in leaves}


def unflatten(like: PyTree, flat: Mapping[str, Any]) -> PyTree:
    """Invert `flatten`: build a tree like `like` from the arrays in `flat`; uint32 data become PRNG keys again."""

    def restored(path, leaf):
        value = flat[path_name(path)]
        return jax.random.wrap_key_data(value) if _is_key(leaf) else value

    return jax.tree_util.tree_map_with_path(restored, like)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _untyped(leaf: Any) -> Any:
    """Return the data of a typed PRNG key, and any other array as it is."""
    if not _is_key(leaf):
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        data = jax.eval_shape(jax.random.key_data, leaf)
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)
    return jax.random.key_data(leaf)


def _describe(flat: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return `{name: [shape, dtype]}` of some arrays, in the format of a manifest."""
    return {name: [list(x.shape), str(x.dtype)] for name, x in flat.items()}


def _digest(file: Path) -> list[Any]:
    """Return `[size in bytes, SHA-256]` of a file."""
    with file.open("rb") as stream:
        return [file.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest()]


def write_json(file: Path, content: Any) -> None:
    """Write a JSON file atomically: a reader sees the complete old or new file, even if the process dies."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    with temporary.open("w") as stream:
        json.dump(content, stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


def _seal(manifest: Manifest) -> str:
    """Compute the checksum of a manifest's content, which is stored in the manifest under `seal`."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _read_manifest(file: Path) -> Manifest:
    """Read a manifest; raise ValueError if it is damaged."""
    manifest = json.loads(file.read_text())
    if manifest.pop("seal", None) != _seal(manifest):
        raise ValueError("checksum differs")
    return manifest


def manifests(folder: Path) -> dict[int, Manifest]:
    """Read `{step: manifest}` of all finished checkpoints, oldest first: file checksums, array shapes and metrics."""
    by_step = {}
    for file in (folder / "manifests").glob("*.json"):
        try:
            if (folder / "steps" / file.stem).is_dir():
                by_step[int(file.stem)] = _read_manifest(file)
        except ValueError:
            continue  # a step with a damaged manifest counts as never finished
    return dict(sorted(by_step.items()))


def damaged_files(folder: Path, step: int, manifest: Manifest) -> list[str]:
    """Return a line of text for each file that is missing, or differs in size or checksum from the manifest."""
    lines = []
    for name, (size, digest) in manifest["files"].items():
        file = folder / "steps" / str(step) / name
        if not file.is_file():
            lines.append(f"{file} is missing")
        elif file.stat().st_size != size:
            lines.append(f"{file} has {file.stat().st_size} bytes instead of {size}")
        elif _digest(file)[1] != digest:
            lines.append(f"{file} has changed since it was written (checksum differs)")
    return lines


def mismatches(manifest: Manifest, abstract: PyTree) -> list[str]:
    """Compare the arrays of a checkpoint with the tree `abstract`: return a line per other name, shape or dtype."""
    saved, needed = manifest["arrays"], _describe(flatten(abstract))
    lines = [f"{name} {needed[name][0]} is missing" for name in needed if name not in saved]
    lines += [f"{name} {saved[name][0]} is surplus" for name in saved if name not in needed]
    unlike = [name for name in needed if name in saved and saved[name] != needed[name]]
    return lines + [
        f"{name} is {saved[name][0]} {saved[name][1]}, needed {needed[name][0]} {needed[name][1]}" for name in unlike
    ]


class Checkpoints:
    """The checkpoints of one training: writes, checks and restores them, and keeps the last two and the best.

    Args:
        folder: the folder of the checkpoints; created if missing.
        best: name of the metric whose greatest value marks the best checkpoint; None: keep only the last two.
        report: function that receives a line of text for each damaged or unfinished checkpoint found at the start.
    """

    def __init__(self, folder: Path, best: str | None = None, report=print):
        import orbax.checkpoint as ocp  # imported late: a wrong config must fail within three seconds
        from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

        self.folder, self._ocp = folder.absolute(), ocp
        self._manifest_thread, self._last_manifest = ThreadPoolExecutor(1, "manifest"), Future[None]()
        self._last_manifest.set_result(None)
        if jax.process_index() == 0:
            self._set_aside(report)
        _barrier("checkpoints are checked")
        policies = [keep.LatestN(2)]
        score = lambda metrics: metrics.get(best, float("-inf"))  # a step saved before its evaluation has none
        if best:
            policies.append(keep.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False))
        self._manager = ocp.CheckpointManager(
            self.folder / "steps",
            options=ocp.CheckpointManagerOptions(
                preservation_policy=keep.AnyPreservationPolicy(policies),
                best_fn=score if best else None,
                cleanup_tmp_directories=True,
            ),
        )

    def _set_aside(self, report) -> None:
        """Move damaged and unfinished checkpoints away, so that they are neither restored nor block a new save."""
        finished = manifests(self.folder)
        steps = (int(path.name) for path in (self.folder / "steps").glob("*") if path.name.isdigit())
        for step in sorted(steps, reverse=True):
            manifest = self.folder / "manifests" / f"{step}.json"
            if step in finished:
                lines = damaged_files(self.folder, step, finished[step])
            else:
                reason = "is damaged" if manifest.is_file() else "is missing: the save was never finished"
                lines = [f"{manifest} {reason}"]
            if not lines:
                continue
            report(f"checkpoint of step {step} is set aside: {'; '.join(lines)}")
            damaged = self.folder / "damaged"
            damaged.mkdir(exist_ok=True)
            aside = damaged / f"{step}-{sum(path.is_dir() for path in damaged.glob(f'{step}-*'))}"
            if manifest.is_file():
                manifest.rename(aside.with_suffix(".json"))
            (self.folder / "steps" / str(step)).rename(aside)
        self._delete_stale_manifests()

    def _write_manifest(self, step: int, arrays: dict[str, list[Any]], metrics: Mapping[str, float]) -> None:
        """Write a step's manifest after Orbax has committed it; in a thread, as Orbax's callback comes BEFORE that."""
        self._manager.wait_until_finished()
        if jax.process_index() != 0:
            return
        root = self.folder / "steps" / str(step)
        files = {str(file.relative_to(root)): _digest(file) for file in sorted(root.rglob("*")) if file.is_file()}
        manifest = {"files": files, "arrays": arrays, "metrics": dict(metrics)}
        write_json(self.folder / "manifests" / f"{step}.json", {**manifest, "seal": _seal(manifest)})
        self._delete_stale_manifests()

    def _delete_stale_manifests(self) -> None:
        """Delete the manifests of steps that Orbax has deleted."""
        for file in (self.folder / "manifests").glob("*.json"):
            if not (self.folder / "steps" / file.stem).exists():
                file.unlink(missing_ok=True)

    def save(self, step: int, tree: PyTree, data: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Save a checkpoint in the background; the arrays may be donated as soon as this returns.

        Args:
            step: the step number; if it is saved already, nothing happens.
            tree: the train state, with arrays of any sharding.
            data: the positions of the data iterators, as JSON values.
            metrics: evaluation results at this step, by name; a checkpoint without metrics never counts as the best.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        flat = flatten(tree)
        args = self._ocp.args
        items = args.Composite(state=args.PyTreeSave(flat), data=args.JsonSave(dict(data)))
        self._manager.save(step, args=items, metrics=dict(metrics), force=True)
        self._last_manifest = self._manifest_thread.submit(self._write_manifest, step, _describe(flat), metrics)

    def latest(self) -> int | None:
        """Return the step number of the newest checkpoint; None if there is none yet.

        Raises:
            CheckpointError: there were checkpoints, and all of them are damaged.
        """
        step = self._manager.latest_step()
        if step is None and any((self.folder / "damaged").glob("*.json")):  # unfinished saves have no manifest
            cure = "restore it from a copy, or start in another workdir"
            raise CheckpointError(f"{self.folder}: every checkpoint is damaged, none is left to resume from; {cure}")
        return step

    def restore(self, step: int, abstract: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """Read a checkpoint; return the train state and the positions of the data iterators, as given to `save`.

        Args:
            step: the step number.
            abstract: the train state as `jax.ShapeDtypeStruct`; its shardings, on any mesh, are those of the result.

        Raises:
            CheckpointError: the saved arrays have other names, shapes or dtypes than `abstract`.
        """
        differences = mismatches(manifests(self.folder)[step], abstract)
        if differences:
            raise CheckpointError(
                f"{self.folder}, step {step}: the checkpoint of another model: {'; '.join(differences[:8])}"
            )
        args = self._ocp.args
        state = args.PyTreeRestore(item=(flat := flatten(abstract)), restore_args=_restore_args(self._ocp, flat))
        items = self._manager.restore(step, args=args.Composite(state=state, data=args.JsonRestore()))
        return unflatten(abstract, items.state), items.data

    def wait(self) -> None:
        """Wait until the last `save` is complete on disk, with its manifest (the file of checksums)."""
        self._last_manifest.result()

    def close(self) -> None:
        """Wait until the last `save` is complete on disk, then stop the background threads."""
        self.wait()
        self._manager.close()
        self._manifest_thread.shutdown()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


def _restore_args(ocp: Any, flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return Orbax's arguments to restore arrays with the shardings and dtypes of `flat`; by default on one device."""
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return {name: ocp.ArrayRestoreArgs(sharding=x.sharding or default, dtype=x.dtype) for name, x in flat.items()}


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def choose_step(folder: Path, which: str) -> int:
    """Return the step number of the finished checkpoint `which`: "last", "best" (by accuracy, then newest) or a number.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    finished = manifests(folder)
    if not finished:
        raise CheckpointError(f"there is no finished checkpoint in {folder}")
    if which == "last":
        return max(finished)
    if which == "best":
        return max(finished, key=lambda step: (finished[step]["metrics"].get("accuracy", float("-inf")), step))
    if not which.isdigit() or int(which) not in finished:
        raise CheckpointError(
            f"there is no step {which!r} in {folder}; there are last, best, {', '.join(map(str, finished))}"
        )
    return int(which)


def check_variables(folder: Path, which: str, abstract: Variables) -> int:
    """Check that `load_variables` with the same arguments will succeed, and return the step number of the checkpoint.

    Raises:
        CheckpointError: the checkpoint does not exist, is damaged, or has other arrays than `abstract`.
    """
    step = choose_step(folder, which)
    manifest = manifests(folder)[step]
    damage = damaged_files(folder, step, manifest)
    if damage:
        raise CheckpointError(f"the checkpoint of step {step} is damaged: {'; '.join(damage)}")
    roles = ("params/student/", "state/student/")
    arrays = {name: x for name, x in manifest["arrays"].items() if name.startswith(roles)}
    differences = mismatches({"arrays": arrays}, _as_student(abstract))
    if differences:
        raise CheckpointError(f"the checkpoint belongs to another model: {'; '.join(differences[:4])}")
    return step


def _as_student(variables: Variables) -> dict[str, Any]:
    """Return a model's variables as the student in the tree of a train state."""
    return {"params": {"student": variables.params}, "state": {"student": variables.state}}


def load_variables(folder: Path, which: str, abstract: Variables) -> Variables:
    """Load the student's parameters and state from a checkpoint, to evaluate the student or to use it as a teacher.

    Args:
        folder: the `checkpoints` folder of an earlier training.
        which: "last", "best" or a step number.
        abstract: the model's variables as `jax.ShapeDtypeStruct`, with the shardings to load them with.

    Raises:
        CheckpointError: the checkpoint does not exist, is damaged, or has other arrays than `abstract`.
    """
    import orbax.checkpoint as ocp

    step = check_variables(folder, which, abstract)
    flat = flatten(_as_student(abstract))
    restore = ocp.args.PyTreeRestore(item=flat, restore_args=_restore_args(ocp, flat), partial_restore=True)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        restored = reader.restore((folder / "steps" / str(step) / "state").absolute(), args=restore)
    tree = unflatten(_as_student(abstract), restored)
    return Variables(tree["params"]["student"], tree["state"]["student"])
