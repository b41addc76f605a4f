"""Detect that the records, tokenizers or teachers of a run have changed since it began: RUN/records.json."""

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax

from jaxdistill.core import seal
from jaxdistill.core.errors import ConfigError, DamageError
from jaxdistill.core.notes import note
from jaxdistill.data.pipeline import TEST, Pipeline, Stream
from jaxdistill.run import workdir
from jaxdistill.teachers.cache_identity import teacher_hash
from jaxdistill.teachers.teacher import Teacher

FILE = "records.json"


class Input(NamedTuple):
    """An input of a run as it is now, such as its records.

    path: config key that names it
    text: name of the input in messages
    hash: a hash of its content
    """

    path: str
    text: str
    hash: str


def check_inputs(folder: Path, data: Pipeline, teachers: Mapping[str, Teacher]) -> None:
    """Check that the inputs of a resumed or repeated run are those with which it began, by hashes of their content.

    A new run writes the hashes to `FILE`. A damaged or missing file is written again, with a note. An earlier version
    wrote the hashes of records alone.

    Args:
        folder: folder of the run.
        data: data pipeline of the run.
        teachers: the teachers of the run, by name.

    Raises:
        ConfigError: something has changed; what was measured before would stand beside what is measured now.
    """
    inputs = _inputs(data, teachers)
    try:
        known = seal.read(folder / FILE, {"contents": dict})["contents"]
    except (FileNotFoundError, DamageError) as error:
        known = {}
        if any(folder.glob("**/checkpoints/manifests/*.json")):
            state = "is missing" if isinstance(error, FileNotFoundError) else "is damaged"
            note(f"{folder / FILE} {state}: it cannot be checked whether the run began with these records")
    changed = [each for key, each in inputs.items() if known.get(key, each.hash) != each.hash]
    if changed:
        texts = dict.fromkeys(each.text for each in changed if each.path == changed[0].path)
        problem = f"{' and '.join(texts)} changed since the run in {str(folder)!r} began"
        raise ConfigError(changed[0].path, f"{problem}. Restore the files, or choose another --workdir.")
    hashes = {key: each.hash for key, each in inputs.items()}
    if jax.process_index() == 0 and known != {**known, **hashes}:
        seal.write(folder / FILE, {"contents": {**known, **hashes}})


def _inputs(data: Pipeline, teachers: Mapping[str, Teacher]) -> dict[str, Input]:
    """Return the inputs of a run, by their keys in `FILE`, as far as they can be read."""
    inputs = {}
    for name, stream in {**data.streams, TEST: data.test}.items():
        identity = _identity(data, stream)
        inputs[name] = Input("data.name", f"{data.name!r}: the records of {name}", identity.get("contents", ""))
        tokenizer = f"{data.tokens!r}: the tokenizer"
        inputs[f"tokenizer of {name}"] = Input("data.tokens", tokenizer, identity.get("words", ""))
        augment = f"a file that the transforms of {name} read"
        inputs[f"transforms of {name}"] = Input("data.augment", augment, identity.get("transforms", ""))
    for name, teacher in teachers.items():
        inputs[f"teacher {name}"] = Input(teacher.path, "its weights or its config", _teacher_hash(teacher))
    return {key: each for key, each in inputs.items() if each.hash}


def _identity(data: Pipeline, stream: Stream) -> dict[str, str]:
    try:
        return data.identity(stream)
    except (ConfigError, DamageError):  # the raw records are gone, such as behind a cache of tokens
        return {}


def _teacher_hash(teacher: Teacher) -> str:
    """Return a hash of a teacher that existed before the run; empty: the run trains it, or it cannot be read.

    Process 0 alone reads the weights, which may be large; every process of the run must call this.
    """
    if teacher.trained_here:
        return ""
    known = ""
    if jax.process_index() == 0:
        with contextlib.suppress(ConfigError, DamageError):
            known = hashlib.sha256(teacher_hash(teacher).encode()).hexdigest()[: workdir.NAME_DIGITS]
    return workdir.agreed_name(known)
