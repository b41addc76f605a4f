"""Checkpoints: Orbax writes and reads them, and a manifest of checksums beside each detects damage.

    FOLDER/steps/<n>/           Orbax, asynchronous, committed by a rename
    FOLDER/manifests/<n>.json   written after the commit: sizes and SHA-256 of the files, shapes of the arrays, metrics
    FOLDER/damaged/<n>-<k>      a damaged step with its manifest, kept for inspection

Orbax alone restores a flipped bit silently. A step without a manifest was never finished and is not used. Nothing is
ever unpickled.
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
    """A checkpoint that cannot be used; the message names the file and what is wrong with it."""


Manifest = dict[str, Any]


def flatten(tree: PyTree) -> dict[str, Any]:
    """Flatten a tree to `{"params/student/head/kernel": array}`; typed PRNG keys become their data."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): _untyped(leaf) for path, leaf in leaves}


def unflatten(like: PyTree, flat: Mapping[str, Any]) -> PyTree:
    """Invert `flatten`, with the structure of `like`."""

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
    """Return `{name: [shape, dtype]}`, as a manifest holds it."""
    return {name: [list(x.shape), str(x.dtype)] for name, x in flat.items()}


def _digest(file: Path) -> list[Any]:
    """Return `[size in bytes, SHA-256]` of a file."""
    with file.open("rb") as stream:
        return [file.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest()]


def write_json(file: Path, content: Any) -> None:
    """Write JSON atomically: a reader sees all of it or nothing, even if the process dies."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    with temporary.open("w") as stream:
        json.dump(content, stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


def _seal(manifest: Manifest) -> str:
    """Return the checksum that a manifest stores of its own content."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _read_manifest(file: Path) -> Manifest:
    """Read a manifest; raise ValueError if it is damaged."""
    manifest = json.loads(file.read_text())
    if manifest.pop("seal", None) != _seal(manifest):
        raise ValueError("checksum differs")
    return manifest


def manifests(folder: Path) -> dict[int, Manifest]:
    """Read the manifests of all finished steps, oldest first; does not import Orbax."""
    by_step = {}
    for file in (folder / "manifests").glob("*.json"):
        try:
            if (folder / "steps" / file.stem).is_dir():
                by_step[int(file.stem)] = _read_manifest(file)
        except ValueError:
            continue  # a step with a damaged manifest counts as never finished
    return dict(sorted(by_step.items()))


def problems(folder: Path, step: int, manifest: Manifest) -> list[str]:
    """List the files of a step that are missing, truncated or changed; empty if the step is intact."""
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
    """List the arrays in which a checkpoint differs from a model: missing, surplus, or with another shape or dtype."""
    saved, needed = manifest["arrays"], _describe(flatten(abstract))
    lines = [f"{name} {needed[name][0]} is missing" for name in needed if name not in saved]
    lines += [f"{name} {saved[name][0]} is surplus" for name in saved if name not in needed]
    unlike = [name for name in needed if name in saved and saved[name] != needed[name]]
    return lines + [
        f"{name} is {saved[name][0]} {saved[name][1]}, needed {needed[name][0]} {needed[name][1]}" for name in unlike
    ]


class Checkpoints:
    """The checkpoints of one run: the last two and the best.

    Args:
        folder: the folder of the checkpoints; created if missing.
        best: the metric whose greatest value marks the best step, or None.
        report: called with one line for each damaged step.
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
        """Move damaged and unfinished steps away, so that they are neither restored nor block a new save."""
        finished = manifests(self.folder)
        steps = (int(path.name) for path in (self.folder / "steps").glob("*") if path.name.isdigit())
        for step in sorted(steps, reverse=True):
            manifest = self.folder / "manifests" / f"{step}.json"
            if step in finished:
                lines = problems(self.folder, step, finished[step])
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
        """Write the manifest once Orbax has committed the step; in a thread, as Orbax calls back BEFORE the rename."""
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
        """Save a step in the background; the tree may be donated as soon as this returns.

        Args:
            step: the step number; a second save of it does nothing.
            tree: arrays of any sharding.
            data: the position in the data, as JSON.
            metrics: of the evaluation at this step; empty without evaluation: the step is then never the best.
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
        """Return the newest intact step; None before the first.

        Raises:
            CheckpointError: there were checkpoints, and every one is damaged.
        """
        step = self._manager.latest_step()
        if step is None and any((self.folder / "damaged").glob("*.json")):  # unfinished saves have no manifest
            cure = "restore it from a copy, or start in another workdir"
            raise CheckpointError(f"{self.folder}: every checkpoint is damaged, none is left to resume from; {cure}")
        return step

    def restore(self, step: int, abstract: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """Return a step's tree with the shardings of `abstract`, whatever mesh wrote it, and the position in the data.

        Raises:
            CheckpointError: the arrays are not those of `abstract`.
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
        """Wait until the last save is committed and its manifest is written."""
        self._last_manifest.result()

    def close(self) -> None:
        """Wait for the last save and free the threads."""
        self.wait()
        self._manager.close()
        self._manifest_thread.shutdown()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


def _restore_args(ocp: Any, flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sharding and dtype to restore each array with; the default device if an array has no sharding."""
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return {name: ocp.ArrayRestoreArgs(sharding=x.sharding or default, dtype=x.dtype) for name, x in flat.items()}


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def choose_step(folder: Path, which: str) -> int:
    """Return the finished step named by "last", "best" (greatest accuracy, the newest of equals) or a number.

    Raises:
        CheckpointError: there is no such step.
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
    """Return the step that `load_variables` would read, after checks for damage and for another model; reads no array.

    Raises:
        CheckpointError: there is no such step, its files are damaged, or it belongs to another model.
    """
    step = choose_step(folder, which)
    manifest = manifests(folder)[step]
    damage = problems(folder, step, manifest)
    if damage:
        raise CheckpointError(f"the checkpoint of step {step} is damaged: {'; '.join(damage)}")
    roles = ("params/student/", "state/student/")
    arrays = {name: x for name, x in manifest["arrays"].items() if name.startswith(roles)}
    differences = mismatches({"arrays": arrays}, _as_student(abstract))
    if differences:
        raise CheckpointError(f"the checkpoint belongs to another model: {'; '.join(differences[:4])}")
    return step


def _as_student(variables: Variables) -> dict[str, Any]:
    """Return variables in the tree of a train state, as its student."""
    return {"params": {"student": variables.params}, "state": {"student": variables.state}}


def load_variables(folder: Path, which: str, abstract: Variables) -> Variables:
    """Load the student of an earlier run, to evaluate it or to use it as a teacher.

    Args:
        folder: a run's `checkpoints` folder.
        which: "last", "best" or a step.
        abstract: the model's variables as `jax.ShapeDtypeStruct`, with the shardings to load them with.

    Raises:
        CheckpointError: see `check_variables`.
    """
    import orbax.checkpoint as ocp

    step = check_variables(folder, which, abstract)
    flat = flatten(_as_student(abstract))
    restore = ocp.args.PyTreeRestore(item=flat, restore_args=_restore_args(ocp, flat), partial_restore=True)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        restored = reader.restore((folder / "steps" / str(step) / "state").absolute(), args=restore)
    tree = unflatten(_as_student(abstract), restored)
    return Variables(tree["params"]["student"], tree["state"]["student"])
