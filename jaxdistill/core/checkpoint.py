"""Checkpoints: Orbax writes and reads them, a manifest of checksums beside each tells a good one from a damaged one.

    FOLDER/steps/<n>/           Orbax, asynchronous, committed by a rename
    FOLDER/manifests/<n>.json   written after that: sizes and SHA-256 of its files, shapes of its arrays, its metrics
    FOLDER/damaged/<n>-<k>      what was found damaged, with its manifest, for whoever wants to know why

Orbax alone restores a flipped bit silently. A step without a manifest was never finished, and is not used. Nothing is
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


def flatten(tree: PyTree) -> dict[str, jax.Array]:
    """A tree as `{"params/student/head/kernel": array}`; typed PRNG keys become their data."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): _raw(leaf) for path, leaf in leaves}


def unflatten(like: PyTree, flat: Mapping[str, jax.Array]) -> PyTree:
    """Inverse of `flatten`, with the structure of `like`."""

    def each(path, leaf):
        value = flat[path_name(path)]
        return jax.random.wrap_key_data(value) if _is_key(leaf) else value

    return jax.tree_util.tree_map_with_path(each, like)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _raw(leaf: Any) -> Any:
    if not _is_key(leaf):
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        data = jax.eval_shape(jax.random.key_data, leaf)
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)
    return jax.random.key_data(leaf)


def _describe(flat: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {name: [list(x.shape), str(x.dtype)] for name, x in flat.items()}


def _digest(file: Path) -> list[Any]:
    with file.open("rb") as stream:
        return [file.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest()]


def write_json(file: Path, content: Any) -> None:
    """Writes JSON so that a reader sees all of it or nothing, whenever the process dies."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    with temporary.open("w") as stream:
        json.dump(content, stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


def _seal(manifest: Manifest) -> str:
    """The checksum that a manifest carries of itself."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _read_manifest(file: Path) -> Manifest:
    manifest = json.loads(file.read_text())
    if manifest.pop("seal", None) != _seal(manifest):
        raise ValueError("checksum differs")
    return manifest


def manifests(folder: Path) -> dict[int, Manifest]:
    """The manifests of all finished steps, oldest first; needs no Orbax."""
    found = {}
    for file in (folder / "manifests").glob("*.json"):
        try:
            if (folder / "steps" / file.stem).is_dir():
                found[int(file.stem)] = _read_manifest(file)
        except ValueError:
            continue  # a damaged manifest vouches for nothing: its step counts as never finished
    return dict(sorted(found.items()))


def problems(folder: Path, step: int, manifest: Manifest) -> list[str]:
    """What is wrong with a step's files: missing, truncated, changed. Empty if nothing is."""
    found = []
    for name, (size, digest) in manifest["files"].items():
        file = folder / "steps" / str(step) / name
        if not file.is_file():
            found.append(f"{file} is missing")
        elif file.stat().st_size != size:
            found.append(f"{file} has {file.stat().st_size} bytes instead of {size}")
        elif _digest(file)[1] != digest:
            found.append(f"{file} has changed since it was written (checksum differs)")
    return found


def mismatches(manifest: Manifest, abstract: PyTree) -> list[str]:
    """How a checkpoint's arrays differ from a model's: missing, surplus and misshapen names."""
    have, want = manifest["arrays"], _describe(flatten(abstract))
    lines = [f"{name} {want[name][0]} is missing" for name in want if name not in have]
    lines += [f"{name} {have[name][0]} is surplus" for name in have if name not in want]
    both = [name for name in want if name in have and have[name] != want[name]]
    return lines + [
        f"{name} is {have[name][0]} {have[name][1]}, needed {want[name][0]} {want[name][1]}" for name in both
    ]


class Checkpoints:
    """The checkpoints of one run: the last two and the best.

    Args:
        folder: where they are; created.
        best: name of the metric whose greatest value is kept, or None.
        report: called with one line about each damaged step.
    """

    def __init__(self, folder: Path, best: str | None = None, report=print):
        import orbax.checkpoint as ocp  # imported late: a wrong config must fail within three seconds
        from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

        self.folder, self._ocp = folder.absolute(), ocp
        self._vouching, self._vouched = ThreadPoolExecutor(1, "manifest"), Future[None]()
        self._vouched.set_result(None)
        if jax.process_index() == 0:
            self._set_aside(report)
        _barrier("checkpoints are checked")
        policies = [keep.LatestN(2)]
        score = lambda metrics: metrics.get(best, float("-inf"))  # stopped before its evaluation, a step has none
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
        """Moves away what is damaged or was never finished, so that it is neither restored nor in the way."""
        known = manifests(self.folder)
        found = (int(path.name) for path in (self.folder / "steps").glob("*") if path.name.isdigit())
        for step in sorted(found, reverse=True):
            manifest = self.folder / "manifests" / f"{step}.json"
            if step in known:
                wrong = problems(self.folder, step, known[step])
            else:
                why = "is damaged" if manifest.is_file() else "is missing: the save was never finished"
                wrong = [f"{manifest} {why}"]
            if not wrong:
                continue
            report(f"checkpoint of step {step} is set aside: {'; '.join(wrong)}")
            damaged = self.folder / "damaged"
            damaged.mkdir(exist_ok=True)
            aside = damaged / f"{step}-{sum(path.is_dir() for path in damaged.glob(f'{step}-*'))}"
            if manifest.is_file():
                manifest.rename(aside.with_suffix(".json"))
            (self.folder / "steps" / str(step)).rename(aside)
        self._forget_deleted()

    def _vouch(self, step: int, arrays: dict[str, list[Any]], metrics: Mapping[str, float]) -> None:
        """Vouches for a step once Orbax has committed it, in a thread: Orbax's own callback comes BEFORE the rename."""
        self._manager.wait_until_finished()
        if jax.process_index() != 0:
            return
        root = self.folder / "steps" / str(step)
        files = {str(file.relative_to(root)): _digest(file) for file in sorted(root.rglob("*")) if file.is_file()}
        manifest = {"files": files, "arrays": arrays, "metrics": dict(metrics)}
        write_json(self.folder / "manifests" / f"{step}.json", {**manifest, "seal": _seal(manifest)})
        self._forget_deleted()

    def _forget_deleted(self) -> None:
        """Removes the manifests of steps that Orbax has deleted since."""
        for file in (self.folder / "manifests").glob("*.json"):
            if not (self.folder / "steps" / file.stem).exists():
                file.unlink(missing_ok=True)

    def save(self, step: int, tree: PyTree, data: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Saves a step in the background; the tree may be donated as soon as this returns.

        Args:
            step: its number; saving it twice does nothing.
            tree: arrays of any sharding.
            data: the position of the data, as JSON.
            metrics: of the evaluation at this step; empty if there was none, and then it is never the best.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        flat = flatten(tree)
        args = self._ocp.args
        items = args.Composite(state=args.PyTreeSave(flat), data=args.JsonSave(dict(data)))
        self._manager.save(step, args=items, metrics=dict(metrics), force=True)
        self._vouched = self._vouching.submit(self._vouch, step, _describe(flat), metrics)

    def latest(self) -> int | None:
        """The newest good step; None before the first.

        Raises:
            CheckpointError: if there were checkpoints, and every one is damaged.
        """
        step = self._manager.latest_step()
        if step is None and any((self.folder / "damaged").glob("*.json")):  # others were never finished
            cure = "restore it from a copy, or start in another workdir"
            raise CheckpointError(f"{self.folder}: every checkpoint is damaged, none is left to resume from; {cure}")
        return step

    def restore(self, step: int, abstract: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """A step's tree, laid out as `abstract` says (also where another mesh wrote it), and the position of its data.

        Raises:
            CheckpointError: if its arrays are not those of `abstract`.
        """
        wrong = mismatches(manifests(self.folder)[step], abstract)
        if wrong:
            raise CheckpointError(
                f"{self.folder}, step {step}: the checkpoint of another model: {'; '.join(wrong[:8])}"
            )
        args = self._ocp.args
        wanted = args.PyTreeRestore(item=(flat := flatten(abstract)), restore_args=_restore_args(self._ocp, flat))
        items = self._manager.restore(step, args=args.Composite(state=wanted, data=args.JsonRestore()))
        return unflatten(abstract, items.state), items.data

    def wait(self) -> None:
        """Until the save under way is committed and vouched for."""
        self._vouched.result()

    def close(self) -> None:
        """Waits for the last save and frees the threads."""
        self.wait()
        self._manager.close()
        self._vouching.shutdown()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


def _restore_args(ocp: Any, flat: Mapping[str, Any]) -> dict[str, Any]:
    """Where each array shall lie; on the default device if the abstract array does not say."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return {name: ocp.ArrayRestoreArgs(sharding=x.sharding or here, dtype=x.dtype) for name, x in flat.items()}


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def choose_step(folder: Path, which: str) -> int:
    """The finished step that "last", "best" (greatest accuracy, the newest of equals) or a number names.

    Raises:
        CheckpointError: if there is none.
    """
    known = manifests(folder)
    if not known:
        raise CheckpointError(f"there is no finished checkpoint in {folder}")
    if which == "last":
        return max(known)
    if which == "best":
        return max(known, key=lambda step: (known[step]["metrics"].get("accuracy", float("-inf")), step))
    if not which.isdigit() or int(which) not in known:
        raise CheckpointError(
            f"there is no step {which!r} in {folder}; there are last, best, {', '.join(map(str, known))}"
        )
    return int(which)


def check_variables(folder: Path, which: str, abstract: Variables) -> int:
    """The step that `load_variables` would read, checked for damage and against a model, without reading an array.

    Raises:
        CheckpointError: if there is none, its files are damaged, or it belongs to another model.
    """
    step = choose_step(folder, which)
    manifest = manifests(folder)[step]
    wrong = problems(folder, step, manifest)
    if wrong:
        raise CheckpointError(f"the checkpoint of step {step} is damaged: {'; '.join(wrong)}")
    roles = ("params/student/", "state/student/")
    arrays = {name: x for name, x in manifest["arrays"].items() if name.startswith(roles)}
    wrong = mismatches({"arrays": arrays}, _as_student(abstract))
    if wrong:
        raise CheckpointError(f"the checkpoint belongs to another model: {'; '.join(wrong[:4])}")
    return step


def _as_student(variables: Variables) -> dict[str, Any]:
    return {"params": {"student": variables.params}, "state": {"student": variables.state}}


def load_variables(folder: Path, which: str, abstract: Variables) -> Variables:
    """The student of an earlier run, to be evaluated, or to be the teacher of another run.

    Args:
        folder: a run's `checkpoints` folder.
        which: "last", "best" or a step.
        abstract: its model's variables as `jax.ShapeDtypeStruct`, whose shardings say where they shall lie.

    Raises:
        CheckpointError: as `check_variables`.
    """
    import orbax.checkpoint as ocp

    step = check_variables(folder, which, abstract)
    flat = flatten(_as_student(abstract))
    wanted = ocp.args.PyTreeRestore(item=flat, restore_args=_restore_args(ocp, flat), partial_restore=True)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        restored = reader.restore((folder / "steps" / str(step) / "state").absolute(), args=wanted)
    tree = unflatten(_as_student(abstract), restored)
    return Variables(tree["params"]["student"], tree["state"]["student"])
