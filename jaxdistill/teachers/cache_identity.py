"""Identify what the stored outputs of a teacher depend on: weights, architecture, data, and the kept outputs."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdistill.core import seal
from jaxdistill.core.errors import ConfigError, DamageError
from jaxdistill.core.hub_files import checkpoint_path, fingerprint
from jaxdistill.core.manifest import CheckpointError, choose_checkpoint, student_arrays
from jaxdistill.data.pipeline import TEST, Pipeline
from jaxdistill.data.store import StoreError, StoreManifest, read_manifest
from jaxdistill.models.hub.kept_tokens import VOCABULARY
from jaxdistill.models.hub.source import POOLING_FILE
from jaxdistill.models.pretrained import sources_of, vocabularies_of
from jaxdistill.teachers.codec import Encoding
from jaxdistill.teachers.load import checkpoint_error
from jaxdistill.teachers.teacher import Teacher, checkpoint_of

KEY = "cache"
WRITE = "Write it: jaxdistill cache --config ... (the same config)"


def stream_encoding(encoding: Encoding, stream: str) -> Encoding:
    """Return the storage format (`Encoding`) of a teacher's outputs on one stream (a named source of batches).

    For the test examples, all logits are stored instead of the largest ones or sampled classes. The probability of
    classes that are not stored would be spread evenly, which makes evaluation inaccurate: with the 128 largest of 7,312
    logits, SmolLM2's loss on the Bible would be 3.35 instead of 3.21 nats a token.

    Args:
        encoding: the format in the config.
        stream: name of the stream, or `TEST` for the test examples.
    """
    return encoding._replace(top=0, draws=0) if stream == TEST else encoding


def read_description(folder: Path) -> StoreManifest:
    """Read the description file (manifest) of cached teacher outputs, and check the types of its entries.

    Args:
        folder: subfolder of a cache, which holds the outputs of one stream (a named source of batches).

    Raises:
        StoreError: the folder has no description file.
        DamageError: the description file is damaged.
    """
    manifest = read_manifest(folder)
    for key, kind in {"identity": dict, "cost": dict, "classes": int, "states": int}.items():
        if not isinstance(manifest.about.get(key), kind):
            raise DamageError(f"{folder / 'manifest.json'} is damaged ({key!r} is missing or of another type)")
    return manifest


def identity(teacher: Teacher, encoding: Encoding, data: Pipeline, name: str) -> dict[str, Any]:
    """Return the identity of a teacher's cached outputs on a stream (a named source of batches): all they depend on.

    The identity is a dict of JSON values, such as a hash of the teacher's weights and the augmentation. It is saved
    with the outputs. A run refuses cached outputs whose saved identity differs from the one that it computes.

    Args:
        teacher: the teacher that runs its network.
        encoding: the storage format in the config.
        data: the run's data pipeline.
        name: name of the stream, or `TEST` for the test examples.

    Raises:
        ConfigError: the teacher has neither a checkpoint nor pretrained weights, or its weights cannot be read.
    """
    encoding, stream = stream_encoding(encoding, name), data.with_test[name]
    network = {key: list(x) if isinstance(x, tuple) else x for key, x in teacher.options.items()}
    settings: dict[str, Any] = {"features": True} if encoding.features else {}
    if encoding.draws:
        settings = {"draws": encoding.draws, "temperature": encoding.temperature}
    identity_fields = {
        "teacher": {
            "model": teacher.spec,
            "weights": weights_hash(teacher),
            "dtype": teacher.dtype,
            **network,
            **_architecture(teacher),
        },
        "data": data.identity(stream),
        "augmentation": list(stream.augment),
        "kept": {
            "dtype": encoding.dtype,
            "top": encoding.top,
            "layers": list(encoding.layers),
            **settings,
        },
    }
    if stream.is_random:
        selected = _selected(data) if name == "train" else {}
        identity_fields["draws"] = {"seed": data.seed, "batch_size": stream.batch_size, **selected}
    return identity_fields


def _selected(data: Pipeline) -> dict[str, Any]:
    """Return a dict that identifies which training records are used, and in which order.

    It has the spec string of the selection, the identities of the caches that the selection reads, and the spec string
    of the order. It is empty if all records are used in shuffled order.
    """
    order = {"order": data.order} if data.order else {}
    if data.selection is None:
        return order
    try:
        folders = (Path(cache).expanduser() / "train" for cache in data.selection.caches)
        identities = [read_description(folder).about["identity"] for folder in folders]
    except StoreError as error:
        raise ConfigError("data.select", f"{error}. {WRITE}.") from None
    return {"select": data.select, "asked": identities, **order}


def drop_unrecorded(wanted: dict[str, Any], written: Mapping[str, Any]) -> dict[str, Any]:
    """Remove from a cache identity the entries that an earlier version of jaxdistill did not record.

    Caches of earlier versions can then be compared, and used. An identity is a dict of all that cached teacher outputs
    depend on; see `identity`.

    Args:
        wanted: the identity of the outputs that a run needs.
        written: the identity that is saved with the stored outputs; its missing entries are removed from `wanted`.
    """
    later = {"teacher": ("architecture", "pooling"), "data": ("transforms",)}
    return wanted | {
        part: {key: x for key, x in wanted[part].items() if key not in names or key in written.get(part, {})}
        for part, names in later.items()
    }


def teacher_hash(teacher: Teacher) -> str:
    """Return a hash of a teacher's weights, and after a space that of its config.json if its model is pretrained."""
    return f"{weights_hash(teacher)} {_architecture(teacher).get('architecture', '')}".strip()


def _architecture(teacher: Teacher) -> dict[str, str]:
    """Return hashes of a pretrained teacher's config.json and token pooling file; an empty dict for other teachers."""
    folders = [checkpoint_path(source) for source in sources_of(teacher.spec, f"{teacher.path}.model")]
    folders = [folder for folder in folders if (folder / "config.json").is_file()]
    pooling = [folder / POOLING_FILE for folder in folders if (folder / POOLING_FILE).is_file()]
    configs = [seal.sha256(folder / "config.json") for folder in folders]
    return {"architecture": " ".join(configs), "pooling": " ".join(map(seal.sha256, pooling))} if configs else {}


def weights_hash(teacher: Teacher) -> str:
    """Return a SHA-256 hash of a teacher's weights, as text; a reduced vocabulary adds the hash of its token list.

    Args:
        teacher: a teacher with a checkpoint or pretrained weights.

    Raises:
        ConfigError: the teacher has neither a checkpoint nor pretrained weights, or its weights cannot be read.
    """
    if teacher.checkpoint:
        try:
            folder, which = checkpoint_of(teacher.checkpoint)
            _, manifest = choose_checkpoint(folder, which)
        except (CheckpointError, ValueError, OSError) as error:
            raise checkpoint_error(teacher.path, teacher.checkpoint, error) from None
        # an earlier version has checksums of files, and none of arrays
        content = manifest.get("files", student_arrays(manifest))
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path = f"{teacher.path}.model"
    sources = sources_of(teacher.spec, path)
    if not sources or teacher.steps:
        cure = "Train it in a separate run, and set its checkpoint to RUN (its student) or RUN/teachers/NAME"
        raise ConfigError(f"{teacher.path}.{KEY}", f"its weights do not exist before the run. {cure}.")
    try:
        words = [Path(folder).expanduser() / VOCABULARY for folder in vocabularies_of(teacher.spec, path)]
        return " ".join(map(fingerprint, sources)) + "".join(map(seal.sha256, words))
    except (ValueError, OSError) as error:
        cure = "Name a checkpoint that exists, and as keep= a folder that `jaxdistill vocabulary` wrote"
        raise ConfigError(path, f"{error}. {cure}.") from None
