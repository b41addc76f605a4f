"""Checkpoints: Orbax writes and reads them, a manifest of checksums beside each tells a good one from a damaged one.

    FOLDER/steps/<n>/            Orbax, asynchronous, committed by a rename
    FOLDER/manifests/<n>.json    sizes and SHA-256 of its files, shapes of its arrays, its metrics; written after the
    commit FOLDER/damaged/<n>-<k>/      what was found damaged, kept for whoever wants to know why

Orbax alone restores a flipped bit silently. A step without a manifest was never finished, and is not used. Nothing is
ever unpickled.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill.parallel.sharding import path_name
from jaxdistill.types import PyTree, Variables


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


def manifests(folder: Path) -> dict[int, Manifest]:
    """The manifests of all finished steps, oldest first; needs no Orbax."""
    found = {}
    for file in (folder / "manifests").glob("*.json"):
        try:
            if (folder / "steps" / file.stem).is_dir():
                found[int(file.stem)] = json.loads(file.read_text())
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
        self._pending: tuple[int, dict[str, list[Any]], Mapping[str, float]] | None = None
        if jax.process_index() == 0:
            self._set_aside(report)
        _barrier("checkpoints are checked")
        policies = [keep.LatestN(2)]
        if best:
            policies.append(keep.BestN(get_metric_fn=lambda m: m[best], n=1, keep_checkpoints_without_metrics=False))
        self._manager = ocp.CheckpointManager(
            self.folder / "steps",
            options=ocp.CheckpointManagerOptions(
                preservation_policy=keep.AnyPreservationPolicy(policies),
                best_fn=(lambda metrics: metrics[best]) if best else None,
                cleanup_tmp_directories=True,
                async_options=ocp.options.AsyncOptions(post_finalization_callback=self._commit),
            ),
        )

    def _set_aside(self, report) -> None:
        """Moves damaged steps away and removes unfinished ones, so that they are neither restored nor in the way."""
        known = manifests(self.folder)
        for step in sorted(
            (int(p.name) for p in (self.folder / "steps").glob("[0-9]*") if p.name.isdigit()), reverse=True
        ):
            path = self.folder / "steps" / str(step)
            wrong = problems(self.folder, step, known[step]) if step in known else None
            if wrong is None:
                shutil.rmtree(path)
            elif wrong:
                report(f"checkpoint of step {step} is damaged and set aside: {'; '.join(wrong)}")
                (self.folder / "damaged").mkdir(exist_ok=True)
                number = sum(1 for _ in (self.folder / "damaged").glob(f"{step}-*"))
                path.rename(self.folder / "damaged" / f"{step}-{number}")
                (self.folder / "manifests" / f"{step}.json").unlink()
        self._forget_deleted()

    def _commit(self) -> None:
        """Runs in Orbax's thread when a step is committed: vouches for its files."""
        if jax.process_index() != 0 or self._pending is None:
            return
        step, arrays, metrics = self._pending
        root = self.folder / "steps" / str(step)
        files = {str(file.relative_to(root)): _digest(file) for file in sorted(root.rglob("*")) if file.is_file()}
        write_json(
            self.folder / "manifests" / f"{step}.json", {"files": files, "arrays": arrays, "metrics": dict(metrics)}
        )
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
            metrics: of the evaluation at this step.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        flat = flatten(tree)
        self._pending = step, _describe(flat), metrics
        args = self._ocp.args
        items = args.Composite(state=args.PyTreeSave(flat), data=args.JsonSave(dict(data)))
        self._manager.save(step, args=items, metrics=dict(metrics), force=True)

    def latest(self) -> int | None:
        """The newest good step; None before the first.

        Raises:
            CheckpointError: if there were checkpoints, and every one is damaged.
        """
        step = self._manager.latest_step()
        if step is None and (self.folder / "damaged").exists():
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
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and frees Orbax's threads."""
        self.wait()
        self._manager.close()


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
