"""Write and read the head of a teacher whose features are cached: `head.safetensors`, with its seal beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdistill.core import seal
from jaxdistill.core.atomic import new_file
from jaxdistill.core.errors import DamageError
from jaxdistill.core.notes import note_damage
from jaxdistill.core.types import Array
from jaxdistill.data.store import StoreManifest
from jaxdistill.teachers.codec import Encoding, Head

FILE = "head.safetensors"


def describe_head(head: Head) -> dict[str, Any]:
    """Convert the description of a teacher's head (its last layer) to a dict of JSON values; inverse of `head_of`.

    The dict has shape and dtype of kernel and bias, and the constants `cap` and `tied`. It is saved in the manifest
    (description file) of cached outputs.
    """
    entry = lambda x: None if x is None else [list(x.shape), str(x.dtype)]
    return {"kernel": entry(head.kernel), "bias": entry(head.bias), "cap": head.cap, "tied": head.tied}


def head_of(manifest: StoreManifest, folder: Path) -> Head:
    """Read the description of a teacher's head (its last layer) from the manifest of cached outputs.

    The manifest (description file) has the dict that `describe_head` returned.

    Args:
        manifest: the manifest.
        folder: folder of the manifest, for error messages.

    Raises:
        DamageError: the manifest does not describe a head.
    """
    shape = lambda entry: jax.ShapeDtypeStruct(tuple(entry[0]), entry[1])
    try:
        about = manifest.about["head"]
        bias = about["bias"] and shape(about["bias"])
        return Head(shape(about["kernel"]), bias, float(about["cap"]), bool(about["tied"]))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        file = folder / "manifest.json"
        raise DamageError(f"{file} is damaged: 'head' is missing or of another type ({error})") from None


def write_head(encoding: Encoding, manifest: StoreManifest, arrays: Mapping[str, Array]) -> None:
    """Write the arrays of a teacher's head (its last layer) to the cache, as head.safetensors.

    They are stored in float32, which holds every value of bfloat16 and float16.

    Args:
        encoding: folder and storage format of the cache.
        manifest: description of the cached outputs; the identity of the teacher in it is saved beside the file.
        arrays: kernel and bias, by name.
    """
    from safetensors.numpy import save_file

    file = _file(encoding)
    with new_file(file) as draft:
        save_file({name: np.asarray(x, np.float32) for name, x in jax.device_get(dict(arrays)).items()}, draft)
    seal.seal_file(file, _owner(manifest))


def read_head(encoding: Encoding, manifest: StoreManifest) -> dict[str, np.ndarray]:
    """Read a teacher's head (its last layer) from the cache: `kernel` and, if it has one, `bias`, by name.

    The arrays are converted from float32 to the dtypes that the teacher computes with.

    Args:
        encoding: folder and storage format of the cache.
        manifest: description of the cached outputs, with the shapes and dtypes of the head.

    Raises:
        DamageError: the file is missing, has changed, or belongs to another teacher.
    """
    from safetensors.numpy import load_file

    file, head = _file(encoding), head_of(manifest, Path(encoding.folder).expanduser())
    cure = "The same `jaxdistill cache` command writes it again"
    try:
        seal.check_file(file, _owner(manifest))
    except FileNotFoundError:
        raise DamageError(f"{file} is missing. {cure}.") from None
    except DamageError as error:
        raise DamageError(f"{error}. {cure}.") from None
    arrays, wanted = load_file(file), {"kernel": head.kernel} | ({} if head.bias is None else {"bias": head.bias})
    if {name: x.shape for name, x in arrays.items()} != {name: x.shape for name, x in wanted.items()}:
        raise DamageError(f"{file} has other arrays than its manifest says. {cure}.")
    return {name: x.astype(wanted[name].dtype) for name, x in arrays.items()}


def is_written(encoding: Encoding, manifest: StoreManifest) -> bool:
    """Return whether the cache already holds the file of the teacher's head (its last layer), undamaged."""
    try:
        seal.check_file(_file(encoding), _owner(manifest))
    except (FileNotFoundError, DamageError) as error:
        note_damage(error)
        return False
    return True


def _file(encoding: Encoding) -> Path:
    return Path(encoding.folder).expanduser() / FILE


def _owner(manifest: StoreManifest) -> dict[str, Any]:
    return {"teacher": manifest.about["identity"]["teacher"]}
