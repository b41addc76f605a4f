"""From a name in a config to records: any name of TensorFlow Datasets, or a data set that the user registered.

TensorFlow Datasets prepares and reads without TensorFlow, as long as files are ArrayRecord and nobody asks for a
`tf.data.Dataset`. It takes a second to import, so it is imported where it is used.
"""

import contextlib
import difflib
import functools
import hashlib
import importlib
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxdistill.core.errors import ConfigError, suggest
from jaxdistill.core.packages import FetchError
from jaxdistill.core.registry import datasets, parse, tokenizations
from jaxdistill.data.records import Records
from jaxdistill.data.text.token_cache import fingerprint, tokenised

SHIPPED = (  # the builders of digits.py, emoji.py, texts.py and corpora.py
    *("clothes", "mnist5k"),
    "emoji",
    *("newsgroups", "reuters", "spam", "vader"),
    "plain_english",
)
# Without TensorFlow, version 4.9.10 stops registering at the first group of builders that needs it; these come after.
LATE_GROUPS = ("structured", "summarization", "text", "text_simplification", "translate", "video", "vision_language")


def known(name: str, folder: str | Path, path: str = "data.name") -> None:
    """Checks a data set's name without network, so that a misspelt one fails before anything compiles.

    Raises:
        ConfigError: neither registered, nor shipped, nor prepared in the folder, nor known to TensorFlow Datasets.
    """
    base = _base(name)
    if base in datasets:
        parse(name, path)
        return
    ours = {*datasets, *SHIPPED, *_prepared(Path(folder).expanduser())}
    if base in ours:
        return
    theirs = _tfds(base).list_builders(with_community_datasets=False)
    if base not in theirs:
        near = [close for close in difflib.get_close_matches(base, theirs, n=1) if close not in ours]
        hint = f" TensorFlow Datasets has {near[0]!r}." if near else ""
        raise ConfigError(
            path, f"unknown data set {name!r}. {suggest(base, ours)}{hint} Any name of TensorFlow Datasets will do."
        )


def open_records(name: str, split: str, folder: str | Path, path: str, key: str, tokens: str = "") -> Records:
    """Opens one split of a data set, which is prepared in the folder if it is not there yet.

    Args:
        name: a name of TensorFlow Datasets (`mnist5k`, `cifar100`, `mnist:3.0.1`), or the spec string of a factory in
            `registry.datasets`, such as `my_data(size=3)`. It is called with `split=` and returns a source for
            `Records`, which may have an attribute `classes`.
        split: `train`, or a slice like `train[:80%]`.
        folder: where TensorFlow Datasets keeps prepared data.
        path: the config's section, for messages: a wrong name is reported at `<path>.name`,
        key: and a wrong split at `<path>.<key>`.
        tokens: the spec of a tokenization, for sets of text; empty: as they are.

    Raises:
        ConfigError: unknown name or split, preparation failed, or no such tokenizer or text.
    """
    folder = Path(folder).expanduser()
    if not tokens:
        return _plain(name, split, folder, path, key)
    how = tokenizations.build(tokens, "data.tokens")
    known(name, folder, f"{path}.name")
    read = functools.cache(lambda: _plain(name, split, folder, path, key))
    source = _contents(name, folder, read)
    return tokenised(how, f"{name} {split} {source}", read, folder, f"{name!r} ({split})")


def contents(name: str, split: str, folder: str | Path, path: str, key: str) -> str:
    """Tells what a split holds from what it held before it was prepared, or its code was changed, once more.

    Args and errors are those of `open_records`.
    """
    folder = Path(folder).expanduser()
    return _contents(name, folder, lambda: _plain(name, split, folder, path, key))


def _contents(name: str, folder: Path, read: Callable[[], Records]) -> str:
    if not version(name, folder):
        read()  # which prepares it, if it can be prepared
    return version(name, folder) or fingerprint(read())


def _plain(name: str, split: str, folder: Path, path: str, key: str) -> Records:
    """The records as the data set gives them."""
    named = f"{path}.name"
    known(name, folder, named)
    if _base(name) in datasets:
        source = _registered(name, split, path, key)
        return Records(source, getattr(source, "classes", None))
    builder = _prepare(name, folder, named)
    try:
        source = builder.as_data_source(split)
    except ValueError:
        cure = f"{suggest(split, builder.info.splits)} A slice is written train[:80%], and may not be empty."
        raise ConfigError(f"{path}.{key}", f"{split!r} is no split of {name!r}. {cure}") from None
    features = builder.info.features
    return Records(source, getattr(features["label"], "num_classes", None) if "label" in features else None)


def _registered(name: str, split: str, section: str, key: str) -> Any:
    """The source that a user's factory makes."""
    path = f"{section}.name"
    spec = parse(name, path)
    try:
        source = datasets.build(spec._replace(kwargs={**spec.kwargs, "split": split}), path)
    except KeyError as error:  # what a dict of splits says
        raise ConfigError(f"{section}.{key}", f"{name!r} has no split {split!r} (KeyError: {error}).") from error
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise ConfigError(path, f"{name!r} made a {type(source).__name__}; return a list, or what has len() and [i].")
    if len(source) == 0 or not isinstance(source[0], Mapping):
        raise ConfigError(path, f"{name!r} made no records for split {split!r}; a record is a dict of arrays.")
    return source


def _builder(name: str, folder: Path, path: str) -> Any:
    try:
        return _tfds(_base(name)).builder(name, data_dir=str(folder), file_format="array_record")
    except Exception as error:  # asserts and lookups of foreign code: version, configuration, another file format
        why = re.sub(r'^Failed to construct .*?}": ', "", _one_line(error))
        cure = "Correct its version or configuration, or choose another data.folder."
        raise ConfigError(path, f"{name!r} cannot be opened in {folder} ({why}). {cure}") from error


def _prepare(name: str, folder: Path, path: str) -> Any:
    """The builder of a name, with its files in place."""
    builder = _builder(name, folder, path)
    if builder.is_prepared():
        return builder
    sys.stderr.write(f"Preparing {name!r} in {folder}; this happens once.\n")
    try:
        builder.download_and_prepare()
    except FileExistsError:  # another process was faster
        return _builder(name, folder, path)
    except FetchError as error:
        raise ConfigError(path, f"{name!r} cannot be prepared: {error}.") from None
    except Exception as error:  # foreign code: downloads, parsers, a TensorFlow that is not there
        why = f"{type(error).__name__}: {_one_line(error)[:300]}"
        build = f"tfds build {name} --file_format=array_record"
        cure = f"Where there are internet and TensorFlow, run `{build}`, and copy what it wrote into {folder}."
        raise ConfigError(path, f"{name!r} cannot be prepared ({why}). {cure}") from error
    return builder


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def version(name: str, folder: Path) -> str:
    """What tells the prepared files of a name from others; empty if it is registered, or not prepared."""
    if _base(name) in datasets:
        return ""
    notes = sorted((folder / name.partition(":")[0]).glob("**/dataset_info.json"))
    return hashlib.sha256(b"".join(note.read_bytes() for note in notes)).hexdigest() if notes else ""


def _prepared(folder: Path) -> set[str]:
    """Names that the folder holds, as `name/version/dataset_info.json` or `name/config/version/dataset_info.json`."""
    found = (file for depth in ("*/*", "*/*/*") for file in folder.glob(f"{depth}/dataset_info.json"))
    return {file.relative_to(folder).parts[0] for file in found}


def _tfds(base: str) -> ModuleType:
    """TensorFlow Datasets, with the builder of a name registered if there is one."""
    import tensorflow_datasets as tfds

    from jaxdistill.data.builders import (
        emoji,  # noqa: F401  (importing registers the builders that we ship)
    )

    if base not in SHIPPED:
        for group in LATE_GROUPS:
            with contextlib.suppress(ImportError):
                importlib.import_module(f"tensorflow_datasets.{group}")
    return tfds


def _base(name: str) -> str:
    """`my_data` of my_data(size=3), `glue` of glue/sst2, `mnist` of mnist:3.0.1."""
    return re.split(r"[(/:]", name)[0].strip()
