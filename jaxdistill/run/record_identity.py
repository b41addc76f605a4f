"""Detect that the records, tokenizers or teachers of a run have changed since it began: RUN/records.json."""

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxdistill.core import seal
from jaxdistill.core.errors import ConfigError, DamageError, WeightsError
from jaxdistill.core.hub_files import checkpoint_path, fingerprint
from jaxdistill.core.notes import note
from jaxdistill.core.spec import nested_specs, parse
from jaxdistill.data.pipeline import TEST, Pipeline, Stream
from jaxdistill.models.hub.kept_tokens import VOCABULARY
from jaxdistill.models.hub.source import POOLING_FILE
from jaxdistill.models.pretrained import sources_of
from jaxdistill.run import workdir
from jaxdistill.run.config import Config
from jaxdistill.teachers.cache_identity import teacher_hash
from jaxdistill.teachers.teacher import Teacher

FILE = "records.json"
WEIGHTS = "its weights or its config"


class Input(NamedTuple):
    """An input of a run, such as its data records or the weights of a teacher, with a hash of its present content.

    path: config key that names the input
    text: name of the input in messages
    hash: a hash of its content
    """

    path: str
    text: str
    hash: str


def check_inputs(folder: Path, data: Pipeline, teachers: Mapping[str, Teacher], config: Config) -> dict[Path, Any]:
    """Require that the inputs of a resumed or repeated run have not changed since the run began, by content hashes.

    The inputs are data records, tokenizers, weights, and files that specs name. A new run keeps the hashes in `FILE`
    (records.json). A damaged or missing file is written again, with a note if the run has checkpoints. An earlier
    version wrote the hashes of records alone.

    Args:
        folder: folder of the run.
        data: data pipeline of the run.
        teachers: the teachers of the run, by name.
        config: config of the run, whose specs may name checkpoints and files.

    Returns:
        `{path: content}` of the sealed (checksummed) JSON file, which the caller writes once all other checks have
        passed.

    Raises:
        ConfigError: an input has changed, so that earlier and new results could not be compared.
        DamageError: `FILE` belongs to another run.
    """
    try:
        content = seal.read(folder / FILE, {"contents": dict})
    except (FileNotFoundError, DamageError) as error:
        content = {"contents": {}}
        if any(folder.glob("**/checkpoints/manifests/*.json")):
            state = "is missing" if isinstance(error, FileNotFoundError) else "is damaged"
            note(f"{folder / FILE} {state}: it cannot be checked whether the run began with these records")
    workdir.require_one_run(folder, FILE, content)
    known, inputs = content["contents"], _inputs(data, teachers, config)  # a collective call: every process makes it
    changed = [each for key, each in inputs.items() if known.get(key, each.hash) != each.hash]
    if changed:
        texts = dict.fromkeys(each.text for each in changed if each.path == changed[0].path)
        problem = f"{' and '.join(texts)} changed since the run in {str(folder)!r} began"
        raise ConfigError(changed[0].path, f"{problem}. Restore the files, or choose another --workdir.")
    hashes = {key: each.hash for key, each in inputs.items()}
    return {folder / FILE: {"contents": {**known, **hashes}}}


def _inputs(data: Pipeline, teachers: Mapping[str, Teacher], config: Config) -> dict[str, Input]:
    """Return the inputs of a run, by their keys in `FILE`; inputs that cannot be read are left out."""
    inputs = {}
    for name, stream in {**data.streams, TEST: data.test}.items():
        identity = _identity(data, stream)
        inputs[name] = Input("data.name", f"{data.name!r}: the records of {name}", identity.get("contents", ""))
        tokenizer = f"{data.tokens!r}: the tokenizer"
        inputs[f"tokenizer of {name}"] = Input("data.tokens", tokenizer, identity.get("words", ""))
        augment = f"a file that the transforms of {name} read"
        inputs[f"transforms of {name}"] = Input("data.augment", augment, identity.get("transforms", ""))
    for name, teacher in teachers.items():
        inputs[f"teacher {name}"] = Input(teacher.path, WEIGHTS, _hash_in_process_0(_identify_weights, teacher))
    inputs["student"] = Input("student.model", WEIGHTS, _hash_in_process_0(_identify_checkpoints, config.student.model))
    specs = {"student.model": config.student.model} | {f"{each.path}.model": each.spec for each in teachers.values()}
    sections = {"objective": config.objective, "task": config.task}
    specs |= {"fusion": config.fusion, "step": config.step}
    specs |= {f"{key}.{name}.term": entry.term for key, terms in sections.items() for name, entry in terms.items()}
    for path, spec in specs.items():
        inputs[f"files of {path}"] = Input(path, "a file that it reads", _hash_in_process_0(_identify_files, spec))
    return {key: each for key, each in inputs.items() if each.hash}


def _identity(data: Pipeline, stream: Stream) -> dict[str, str]:
    try:
        return data.identity(stream)
    except (ConfigError, DamageError):  # the raw records are gone, such as behind a cache of tokens
        return {}


def _identify_weights(teacher: Teacher) -> str:
    """Return a text that identifies the weights of a teacher before the run, or '' if they are random."""
    is_known = teacher.checkpoint or sources_of(teacher.spec)
    return teacher_hash(teacher) if is_known and not teacher.trained_here else _identify_checkpoints(teacher.spec)


def _identify_checkpoints(spec: str) -> str:
    """Return a text that identifies the checkpoints that a model's spec string names, or '' if it names none."""
    sources = sources_of(spec)
    configs = [checkpoint_path(source) / "config.json" for source in sources]
    return " ".join([*map(fingerprint, sources), *(seal.sha256(file) for file in configs if file.is_file())])


def _identify_files(spec: str) -> str:
    """Return the hashes of the small files that a spec string names, such as a class graph, or '' if it names none."""
    folders = [checkpoint_path(source) for source in sources_of(spec)]
    files = [folder / POOLING_FILE for folder in folders]
    values = [value for each in nested_specs(parse(spec, "")) for value in (*each.args, *each.kwargs.values())]
    paths = [Path(value).expanduser() for value in values if isinstance(value, str) and value]
    files += [file for path in paths for file in (path, path / VOCABULARY)]
    return " ".join(seal.sha256(file) for file in files if file.is_file() and file.suffix != ".gguf")


def _hash_in_process_0(identify: Callable[[Any], str], subject: Any) -> str:
    """Compute a hash of `identify(subject)` in process 0, and return it in every process of the run.

    Every process must call this, but only process 0 reads the files. The hash is '' if `identify` returns '' or fails.
    """
    known = ""
    if jax.process_index() == 0:
        with contextlib.suppress(ConfigError, WeightsError, DamageError, OSError, ValueError, RuntimeError):
            text = identify(subject)
            known = hashlib.sha256(text.encode()).hexdigest()[: workdir.NAME_DIGITS] if text else ""
    return workdir.agreed_name(known)
