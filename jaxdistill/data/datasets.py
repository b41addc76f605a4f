"""Open a data set by the name in a config: any name of TensorFlow Datasets, or a data set that the user registered.

TensorFlow Datasets can prepare and read data without TensorFlow, as long as the files are ArrayRecord and nobody
requests a `tf.data.Dataset`. Importing TensorFlow Datasets takes a second, so it is imported on first use.
"""

import contextlib
import difflib
import functools
import hashlib
import importlib
import inspect
import io
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxdistill.core import seal
from jaxdistill.core.errors import ConfigError, DamageError, one_line, suggest
from jaxdistill.core.notes import note
from jaxdistill.core.packages import FetchError
from jaxdistill.core.registry import datasets, tokenizations
from jaxdistill.core.spec import parse
from jaxdistill.data.builders import BUILDERS
from jaxdistill.data.checks import CheckedStack
from jaxdistill.data.records import Records
from jaxdistill.data.splits import SplitError
from jaxdistill.data.text.token_cache import fingerprint, tokenise

# Without TensorFlow, version 4.9.10 stops registering builders at the first group that needs it. These groups follow.
LATE_GROUPS = ("structured", "summarization", "text", "text_simplification", "translate", "video", "vision_language")


def check_name(name: str, folder: str | Path, path: str = "data.name") -> None:
    """Check without network that the name of a data set is known, so that a misspelt name fails before compilation.

    Args:
        name: the name, which may have a configuration, a version or arguments, such as `glue/sst2`.
        folder: folder in which TensorFlow Datasets keeps prepared data sets.
        path: key of the name in the config, for the error message.

    Raises:
        ConfigError: the name is neither in `registry.datasets`, nor shipped with this library, nor prepared in the
            folder, nor known to TensorFlow Datasets.
    """
    base = _base(name)
    if base in datasets:
        parse(name, path)
        return
    local_names = {*datasets, *BUILDERS, *_prepared_names(Path(folder).expanduser())}
    if base in local_names and "(" in name:
        raise ConfigError(path, f"{name!r}: this data set takes no arguments. Write {base!r}.")
    if base in local_names:
        return
    tfds_names = _tfds(base).list_builders(with_community_datasets=False)
    if base not in tfds_names:
        near = [close for close in difflib.get_close_matches(base, tfds_names, n=1) if close not in local_names]
        hint = f" TensorFlow Datasets has {near[0]!r}." if near else ""
        if "/" in name:
            hint += f" A name of the Hugging Face hub is given as table(path={name!r}, ...)."
        cure = f"{suggest(base, local_names)}{hint} Any name of TensorFlow Datasets is allowed."
        raise ConfigError(path, f"unknown data set {name!r}. {cure}")


def open_records(name: str, split: str, folder: str | Path, path: str, key: str, tokens: str = "") -> Records:
    """Open the examples (records) of one split; if necessary, download and prepare the data set first.

    Args:
        name: a name of TensorFlow Datasets (`mnist5k`, `cifar100`, `mnist:3.0.1`), or a data set in `registry.datasets`
            with arguments, such as `my_data(size=3)`. The function registered there is called with the arguments and
            `split=`. It returns a sequence of examples, which are dicts; an attribute `classes` of the sequence, if it
            exists, is the number of classes.
        split: a split such as `train`, or a slice like `train[:80%]`.
        folder: folder in which TensorFlow Datasets keeps prepared data sets.
        path: section of the config that names the data set, such as `data`. An error in the name is reported at the key
            `<path>.name`.
        key: key of the split in this section. An error in the split is reported at the key `<path>.<key>`.
        tokens: spec string of the tokenization, such as `documents(tokenizer='FOLDER', length=128)`; if it is empty,
            texts are not tokenised.

    Raises:
        ConfigError: the name, split, tokenizer or text field does not exist, or preparation failed.
    """
    folder = Path(folder).expanduser()
    if not tokens:
        return _open_untokenised(name, split, folder, path, key)
    tokenization = tokenizations.build(tokens, "data.tokens")
    check_name(name, folder, f"{path}.name")
    open_plain = functools.cache(lambda: _open_untokenised(name, split, folder, path, key))
    source = _content_hash(name, folder, open_plain)
    return tokenise(tokenization, f"{name} {split} {source}", open_plain, folder, f"{name!r} ({split})")


def content_hash(name: str, split: str, folder: str | Path, path: str, key: str) -> str:
    """Return a hash of the content of a data set, so that a cache computed from the data set can detect a change.

    For a data set of TensorFlow Datasets, the metadata files are hashed; the data set is prepared first if necessary.
    For a data set in `registry.datasets`, whose examples are made by a function, all examples of the split are hashed.

    Args:
        name: name of the data set, see `open_records`.
        split: split of the data set.
        folder: folder in which TensorFlow Datasets keeps prepared data sets.
        path, key: section and key of the split in the config, for error messages.

    Raises:
        ConfigError: the name or split does not exist, or preparation failed.
    """
    folder = Path(folder).expanduser()
    return _content_hash(name, folder, lambda: _open_untokenised(name, split, folder, path, key))


def _content_hash(name: str, folder: Path, open_plain: Callable[[], Records]) -> str:
    if not prepared_hash(name, folder):
        open_plain()  # prepares the data set, unless it is registered
    return prepared_hash(name, folder) or open_plain().fingerprint or fingerprint(open_plain())


def _open_untokenised(name: str, split: str, folder: Path, path: str, key: str) -> Records:
    """Open the records of a split with the original fields of the data set, without tokenising texts."""
    name_path = f"{path}.name"
    check_name(name, folder, name_path)
    if _base(name) in datasets:
        source = _registered_source(name, split, folder, path, key)
        records = _checked_records(source, source, name_path)
        records.check_repeatable(name_path)
        return records
    builder = _prepare(name, folder, name_path)
    try:
        source = builder.as_data_source(split)
        if len(source) == 0:  # len() raises a ValueError for a slice such as train[90%:80%]
            raise ValueError
    except ValueError:
        cure = f"{suggest(split, builder.info.splits)} A slice is written train[:80%], and may not be empty."
        raise ConfigError(f"{path}.{key}", f"{split!r} is not a split of {name!r}. {cure}") from None
    features = builder.info.features
    return _checked_records(source, dict(features.items()).get("label"), name_path)


def _checked_records(source: Any, labels: Any, path: str) -> Records:
    """Return records whose values are checked as they are read.

    Args:
        source: the sequence of records.
        labels: an object whose attribute `classes` or `num_classes` is the number of classes, and whose attribute
            `class_names` or `names` has the names of the classes; each may be missing.
        path: config key of the data set, for error messages.

    Raises:
        ConfigError: `classes` is no number of classes, or the records cannot be stacked, or a value is wrong.
    """
    classes = getattr(labels, "classes", getattr(labels, "num_classes", None))
    names = tuple(map(str, getattr(labels, "class_names", getattr(labels, "names", None)) or ()))
    if classes is not None and (not isinstance(classes, int) or isinstance(classes, bool) or classes < 1):
        raise ConfigError(path, f"the data set has classes={classes!r}; classes is a whole number, 1 or more.")
    if names and len(names) != (classes or len(names)):
        raise ConfigError(path, f"the data set has classes={classes}, and {len(names)} class_names.")
    classes, fingerprint = classes or len(names) or None, getattr(source, "fingerprint", "")
    sizes = getattr(source, "split_sizes", {})
    return Records(source, classes, None, CheckedStack(classes, path), names, fingerprint, sizes)


def _registered_source(name: str, split: str, folder: Path, section: str, key: str) -> Any:
    """Call the factory of a registered data set, and check the source (the sequence of records) that it returns."""
    path = f"{section}.name"
    spec = parse(name, path)
    added: dict[str, Any] = {"split": split}
    if "folder" in inspect.signature(datasets[spec.name]).parameters:
        added["folder"] = folder
    keys = {"split": f"{section}.{key}", "folder": "data.folder"}
    for argument in added.keys() & spec.kwargs.keys():
        raise ConfigError(
            path, f"{name!r} sets {argument}, which is the key {keys[argument]}; leave it out of the name."
        )
    try:
        source = datasets.build(spec._replace(added=added), path)
    except SplitError as error:
        raise ConfigError(f"{section}.{key}", f"{split!r} is no split of {name!r}. {error.problem}") from None
    except KeyError as error:
        if error.args[:1] != (split,):
            raise  # a mistake in the factory: a split that does not exist raises a KeyError with its name
        raise ConfigError(f"{section}.{key}", f"{name!r} has no split {split!r} (KeyError: {error}).") from error
    if isinstance(source, Mapping) or not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        cure = "return a list, or an object with len() and [i]."
        raise ConfigError(path, f"{name!r} returned a {type(source).__name__}; {cure}")
    if len(source) == 0 or not isinstance(source[0], Mapping):
        raise ConfigError(path, f"{name!r} returned no records for split {split!r}; a record is a dict of arrays.")
    return source


def _builder(name: str, folder: Path, path: str) -> Any:
    try:
        return _tfds(_base(name)).builder(name, data_dir=str(folder), file_format="array_record")
    except Exception as error:  # assertions and lookups of foreign code: version, configuration, another file format
        reason = re.sub(r'^Failed to construct .*?}": ', "", one_line(error).rstrip("."))
        cure = "Correct its version or configuration, or choose another data.folder."
        raise ConfigError(path, f"{name!r} cannot be opened in {folder} ({reason}). {cure}") from error


def _prepare(name: str, folder: Path, path: str) -> Any:
    """Return the TensorFlow Datasets builder of a data set, after preparing its files if they are missing."""
    _check_sealed(name, folder)
    builder = _builder(name, folder, path)
    if builder.is_prepared():
        _seal_prepared(Path(builder.data_dir))
        return builder
    sys.stderr.write(f"Preparing {name!r} in {folder}; this happens once.\n")
    try:
        with _quiet(f"Preparing {name!r}"):
            builder.download_and_prepare()
    except FileExistsError:  # another process was faster
        return _builder(name, folder, path)
    except FetchError as error:
        raise ConfigError(path, f"{name!r} cannot be prepared: {error}.") from None
    except Exception as error:  # foreign code: downloads, parsers, a missing TensorFlow
        reason = f"{type(error).__name__}: {one_line(error).rstrip('.')[:300]}"
        command = f"tfds build {name} --file_format=array_record"
        cure = f"On a machine with internet and TensorFlow, run `{command}`, and copy its output into {folder}."
        raise ConfigError(path, f"{name!r} cannot be prepared ({reason}). {cure}") from error
    _seal_prepared(Path(builder.data_dir))
    return builder


def _check_sealed(name: str, folder: Path) -> None:
    """Compare the files of a prepared data set with its seal (the file with their checksums).

    A damaged data set of this library is removed, so that it is prepared again.

    Raises:
        DamageError: a file is missing or has changed, and the data set is not one of this library.
    """
    for file in (folder / name.partition("(")[0].partition(":")[0]).glob(f"**/{seal.FOLDER_SEAL}"):
        damage = _first_damage(file)
        if damage and _base(name) not in BUILDERS:  # a long download is not repeated unasked
            cure = f"remove {file.parent}, and the next run prepares {name!r} again"
            raise DamageError(f"{damage}; {cure}")
        if damage:
            note(f"{damage}; preparing {name!r} again")
            aside = file.parent.with_name(f"{file.parent.name}.damaged-{os.getpid()}")
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                file.parent.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)


def _first_damage(file: Path) -> str:
    """Describe the first damaged file of a prepared data set, for a message; the text is empty if no file is damaged.

    Args:
        file: the seal of the data set (the file with the checksums).
    """
    try:
        sealed, files = seal.read(file, {"files": dict})["files"], _prepared_files(file.parent)
    except FileNotFoundError:  # another process has moved the data set away
        return ""
    except DamageError as error:
        return str(error)
    changed = next((name for name, content in sealed.items() if files.get(name) != content), None)
    if changed is None:
        return ""
    return f"{file.parent / changed} {'has changed since it was written' if changed in files else 'is missing'}"


def _seal_prepared(folder: Path) -> None:
    """Write the seal (checksums of the files) of a prepared data set, unless it exists or the folder is read-only."""
    if not (folder / seal.FOLDER_SEAL).exists():
        with contextlib.suppress(OSError):
            seal.write(folder / seal.FOLDER_SEAL, {"files": _prepared_files(folder)})


def _prepared_files(folder: Path) -> dict[str, str]:
    """Return a text that identifies the content of each file of a prepared data set, by file name.

    For a shard (file of records), it is the size and a hash of both ends of the file. This is enough to tell shards
    apart, because ArrayRecord itself stores and checks hashes of the records. For any other file, it is the SHA-256.
    """
    files = (file for file in folder.iterdir() if file.is_file() and file.name != seal.FOLDER_SEAL)
    return {file.name: _ends(file) if "array_record" in file.name else seal.sha256(file) for file in files}


def _ends(file: Path) -> str:
    """Return a text with the size of a file and a hash of its first and last 64 KiB."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        first = stream.read(2**16)
        stream.seek(max(0, size - 2**16))
        return f"{size} {hashlib.sha256(first + stream.read(2**16)).hexdigest()}"


def prepared_hash(name: str, folder: Path) -> str:
    """Return a hash of the metadata files of a prepared data set; empty if the data set is not prepared.

    A data set is prepared if TensorFlow Datasets has written it to `folder`. A data set in `registry.datasets` is never
    prepared, because a function makes its examples in every run.
    """
    if _base(name) in datasets:
        return ""
    files = sorted((folder / name.partition(":")[0]).glob("**/dataset_info.json"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest() if files else ""


def _prepared_names(folder: Path) -> set[str]:
    """Return the names of the data sets prepared in a folder, which has them as NAME/VERSION or NAME/CONFIG/VERSION."""
    files = (file for depth in ("*/*", "*/*/*") for file in folder.glob(f"{depth}/dataset_info.json"))
    return {file.relative_to(folder).parts[0] for file in files}


def _tfds(base: str) -> ModuleType:
    """Import and return TensorFlow Datasets, with the modules that register the builder of the data set `base`."""
    import tensorflow_datasets as tfds

    if base in BUILDERS:
        importlib.import_module(f"jaxdistill.data.builders.{BUILDERS[base]}")
    else:
        for group in LATE_GROUPS:
            with contextlib.suppress(ImportError):
                importlib.import_module(f"tensorflow_datasets.{group}")
    return tfds


def _base(name: str) -> str:
    """Return the bare name of a data set: `my_data` for my_data(size=3), `glue` for glue/sst2 or glue:2.0.0."""
    return re.split(r"[(/:]", name)[0].strip()


@contextlib.contextmanager
def _quiet(title: str) -> Iterator[None]:
    """Return a context manager that silences TensorFlow Datasets, and shows a spinner instead in a terminal.

    The progress bars and messages of the package would fill a page. Errors are raised all the same.

    Args:
        title: text beside the spinner, which says what is being done.
    """
    import tensorflow_datasets as tfds
    from rich.console import Console

    console = Console(stderr=True)
    sign = console.status(title) if console.is_terminal else contextlib.nullcontext()
    tfds.disable_progress_bar()
    try:
        with sign, contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
