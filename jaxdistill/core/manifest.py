"""The manifest of a checkpoint: step, shapes and checksums of its arrays, metrics, and positions of the iterators."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill.core import bucket, seal
from jaxdistill.core.checksums import differing_arrays
from jaxdistill.core.errors import DamageError
from jaxdistill.core.notes import note, note_damage
from jaxdistill.core.tree import path_name
from jaxdistill.core.types import PyTree


class CheckpointError(DamageError):
    """The error for a checkpoint that is missing, damaged or of another model; the message says which one and why."""


RESULT = "result.json"  # beside the folder of checkpoints: results of the trained model, with its step

CheckpointManifest = dict[str, Any]


def flatten(tree: PyTree) -> dict[str, Any]:
    """Flatten a pytree to a dict by path, `{"params/student/head/kernel": array}`; PRNG keys become uint32 arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): _untyped(leaf) for path, leaf in leaves}


def unflatten(like: PyTree, flat: Mapping[str, Any]) -> PyTree:
    """Invert `flatten`: build a pytree with the structure of `like` from the arrays in `flat`.

    Where `like` has a PRNG key, the uint32 array becomes a PRNG key again.
    """

    def restored(path: Any, leaf: Any) -> Any:
        value = flat[path_name(path)]
        return jax.random.wrap_key_data(value) if _is_key(leaf) else value

    return jax.tree_util.tree_map_with_path(restored, like)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _untyped(leaf: Any) -> Any:
    """Convert a typed PRNG key to its uint32 array; return any other array unchanged."""
    if not _is_key(leaf):
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        data = jax.eval_shape(jax.random.key_data, leaf)
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)
    return jax.random.key_data(leaf)


def array_entries(flat: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the shape and dtype of each array, as a dict `{name: [shape, dtype]}` for a checkpoint's manifest."""
    return {name: [list(x.shape), str(x.dtype)] for name, x in flat.items()}


def manifests(folder: Path) -> dict[int, CheckpointManifest]:
    """Read the manifests of all finished checkpoints in a folder, and return `{step number: manifest}`, oldest first.

    A manifest is a dict with the keys step, arrays (`{name: [shape, dtype, checksum]}`), metrics and data (positions of
    the data iterators). Manifests of earlier versions have the key files (`{name: [size, SHA-256]}`) instead of step,
    checksums and data. A damaged manifest is left out, with a note on stderr.
    """
    by_step, place = {}, bucket.checkpoints_path(folder)
    for file in (place / "manifests").glob("*.json"):
        try:
            if (place / "steps" / file.stem).is_dir():
                manifest = seal.read(file, {"arrays": dict[str, list], "metrics": dict})
                # a manifest that names another step was moved here
                is_own = manifest.get("step", int(file.stem)) == int(file.stem)
                if not (is_own and _is_well_formed(manifest)):
                    raise DamageError(f"{file} is damaged, or of another step")
                by_step[int(file.stem)] = manifest
        except (DamageError, FileNotFoundError, ValueError) as error:  # the step counts as never finished
            note_damage(error)
    return dict(sorted(by_step.items()))


def _is_well_formed(manifest: CheckpointManifest) -> bool:
    """Return True if all values in a manifest have the expected types."""
    least = 2 if "files" in manifest else 3  # of an earlier version: without checksums
    entries = all(len(entry) >= least and isinstance(entry[0], list) for entry in manifest["arrays"].values())
    metrics = all(value is None or isinstance(value, int | float) for value in manifest["metrics"].values())
    files = manifest.get("files", {})
    others = isinstance(files, dict) and all(isinstance(pair, list) and len(pair) == 2 for pair in files.values())
    kinds = isinstance(manifest.get("data", {}), dict) and isinstance(manifest.get("seconds", 0.0), int | float)
    return entries and metrics and others and kinds


def check_owner(folder: Path, manifest: CheckpointManifest, owner: str, run: str = "") -> None:
    """Require that a checkpoint belongs to a given model and run.

    Shapes are not enough to tell, because several models of one run may have the same shapes.

    Args:
        folder: folder of the checkpoints, for the message.
        manifest: manifest of the checkpoint. Those of earlier versions name no model, and pass.
        owner: name of the model, such as "student"; if it is empty, the model is not checked.
        run: random name of the run; if it is empty, the run is not checked.

    Raises:
        CheckpointError: the checkpoint belongs to another model or run.
    """
    if run and manifest.get("run", run) != run:
        cure = "Restore the folder from a copy, or start in another workdir"
        raise CheckpointError(f"{folder} has the checkpoints of another run. {cure}")
    written_for = manifest.get("owner", owner)
    if owner and written_for != owner:
        cure = "Restore the folder from a copy, or start in another workdir"
        raise CheckpointError(f"{folder} has the checkpoints of {written_for!r} and not of {owner!r}. {cure}")


def damaged_files(folder: Path, step: int, manifest: CheckpointManifest) -> list[str]:
    """Check the files of a checkpoint by a manifest of an earlier version; return a line of text per damaged file.

    Manifests of the current version have checksums of arrays, not of files, so the list is then empty.
    """
    lines, place = [], bucket.checkpoints_path(folder)
    for name, (size, digest) in manifest.get("files", {}).items():
        file = place / "steps" / str(step) / name
        if not file.is_file():
            lines.append(f"{file} is missing")
        elif file.stat().st_size != size or seal.sha256(file) != digest:
            lines.append(f"{file} has changed since it was written (checksum differs)")
    return lines


def damaged_arrays(manifest: CheckpointManifest, flat: Mapping[str, Any]) -> list[str]:
    """Return a list with a line of text for each restored array that does not match its checksum in the manifest."""
    if "files" in manifest:  # an earlier version
        return []
    saved = manifest["arrays"]
    wrong = differing_arrays(flat, {name: saved[name][2] for name in flat})
    return [f"{name} differs from what was saved" for name in wrong]


def mismatches(manifest: CheckpointManifest, abstract: PyTree) -> list[str]:
    """Compare the arrays of a checkpoint with those of the pytree `abstract`, without reading any.

    Returns:
        A list with a line of text for each array that is missing, surplus, or of another shape or dtype.
    """
    saved, needed = {name: entry[:2] for name, entry in manifest["arrays"].items()}, array_entries(flatten(abstract))
    lines = [f"{name} {needed[name][0]} is missing" for name in needed if name not in saved]
    lines += [f"{name} {saved[name][0]} is surplus" for name in saved if name not in needed]
    unlike = [name for name in needed if name in saved and saved[name] != needed[name]]
    return lines + [
        f"{name} is {saved[name][0]} {saved[name][1]}, needed {needed[name][0]} {needed[name][1]}" for name in unlike
    ]


def student_arrays(manifest: CheckpointManifest) -> dict[str, list[Any]]:
    """Return a manifest's entries for the student's params and state, `{array name: [shape, dtype, ...]}`."""
    roles = ("params/student/", "state/student/")
    return {name: entry for name, entry in manifest["arrays"].items() if name.startswith(roles)}


# metrics that rank models: the first that was measured is used
QUALITIES = ("accuracy", "image_text_r5", "agreement", "similarity")


def quality(metrics: Mapping[str, Any]) -> float | None:
    """Return the metric that ranks checkpoints, or None if the model was not evaluated.

    This is the first of these metrics that was measured: accuracy, R@5 of retrieval, or, for data without labels, the
    agreement or similarity with the teacher.
    """
    return next((metrics[name] for name in QUALITIES if name in metrics), None)


def choose_step(folder: Path, which: str) -> int:
    """Return the step number of a finished checkpoint: "last", "best" or a number (see `choose_checkpoint`)."""
    return choose_checkpoint(folder, which)[0]


def _last_begun(folder: Path) -> int:
    """Return the last step that has a checkpoint, manifest or result file, even an unfinished or damaged one.

    Return 0 if there is none.
    """
    place = bucket.checkpoints_path(folder)
    paths = (*(place / "steps").glob("*"), *(place / "manifests").glob("*.json"))
    steps = [int(path.stem) for path in paths if path.stem.isdecimal()]
    with contextlib.suppress(FileNotFoundError, DamageError):
        steps.append(seal.read(folder.parent / RESULT, {"step": int})["step"])
    return max(steps, default=0)


def choose_checkpoint(folder: Path, which: str) -> tuple[int, CheckpointManifest]:
    """Return the step number and the manifest of a finished checkpoint.

    Args:
        folder: the `checkpoints` folder of a training.
        which: "last"; "best", which is the one with the best metric (see `quality`), and among equals the newest; or a
            step number as text.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    finished = manifests(folder)
    if not finished:
        raise CheckpointError(f"there is no finished checkpoint in {folder}")
    if which == "last":
        step, last = max(finished), _last_begun(folder)
        if last > step:
            state = "missing, incomplete or damaged"
            note(f"{folder}: the checkpoint of step {last} is {state}; that of step {step} is used")
    elif which == "best":
        scores = {step: quality(manifest["metrics"]) for step, manifest in finished.items()}
        step = max(scores, key=lambda step: (float("-inf") if scores[step] is None else scores[step], step))
    elif which.isdecimal() and int(which) in finished:
        step = int(which)
    else:
        raise CheckpointError(
            f"there is no step {which!r} in {folder}; there are last, best, {', '.join(map(str, finished))}"
        )
    return step, finished[step]
