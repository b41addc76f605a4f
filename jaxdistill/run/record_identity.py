"""Detect that the records, tokenizers or teachers of a run have changed since it began: RUN/records.json."""

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax

from jaxdistill.core import seal
from jaxdistill.core.errors import ConfigError, DamageError, WeightsError
from jaxdistill.core.hub_files import checkpoint_path, fingerprint
from jaxdistill.core.notes import note
from jaxdistill.data.pipeline import TEST, Pipeline, Stream
from jaxdistill.models.pretrained import sources_of
from jaxdistill.run import workdir
from jaxdistill.teachers.cache_identity import teacher_hash
from jaxdistill.teachers.teacher import Teacher

FILE = "records.json"
WEIGHTS = "its weights or its config"


class Input(NamedTuple):
    """An input of a run as it is now, such as its records.

    path: config key that names it
    text: name of the input in messages
    hash: a hash of its content
    """

    path: str
    text: str
    hash: str


def check_inputs(folder: Path, data: Pipeline, teachers: Mapping[str, Teacher], student: str) -> None:
    """Check that the inputs of a resumed or repeated run are those with which it began, by hashes of their content.

    A new run writes the hashes to `FILE`. A damaged or missing file is written again, with a note. An earlier version
    wrote the hashes of records alone.

    Args:
        folder: folder of the run.
        data: data pipeline of the run.
        teachers: the teachers of the run, by name.
        student: spec string of the student, which may begin with the weights of a checkpoint.

    Raises:
        ConfigError: something has changed; what was measured before would stand beside what is measured now.
    """
    inputs = _inputs(data, teachers, student)
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


def _inputs(data: Pipeline, teachers: Mapping[str, Teacher], student: str) -> dict[str, Input]:
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
        inputs[f"teacher {name}"] = Input(teacher.path, WEIGHTS, _teacher_hash(teacher))
    inputs["student"] = Input("student.model", WEIGHTS, _hash_in_process_0(lambda: _starts(student)))
    return {key: each for key, each in inputs.items() if each.hash}


def _identity(data: Pipeline, stream: Stream) -> dict[str, str]:
    try:
        return data.identity(stream)
    except (ConfigError, DamageError):  # the raw records are gone, such as behind a cache of tokens
        return {}


def _teacher_hash(teacher: Teacher) -> str:
    """Return a hash of a teacher's weights before the run; empty: it has none, or they cannot be read."""
    return _hash_in_process_0(lambda: _starts(teacher.spec) if teacher.trained_here else teacher_hash(teacher))


def _starts(spec: str) -> str:
    """Return a text that tells the checkpoints apart that a model begins with; empty: it begins with random weights."""
    sources = sources_of(spec)
    files = [checkpoint_path(source) / "config.json" for source in sources]
    configs = [seal.sha256(file) for file in files if file.is_file()]
    return " ".join([*map(fingerprint, sources), *configs])


def _hash_in_process_0(identify: Callable[[], str]) -> str:
    """Return a hash of a text that only process 0 makes, since it reads weights, which may be large.

    Every process of the run must call this. The hash is empty if the text is empty, or cannot be made.
    """
    known = ""
    if jax.process_index() == 0:
        with contextlib.suppress(ConfigError, WeightsError, DamageError):
            text = identify()
            known = hashlib.sha256(text.encode()).hexdigest()[: workdir.NAME_DIGITS] if text else ""
    return workdir.agreed_name(known)
