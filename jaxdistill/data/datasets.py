"""From a name in a config to records: any name of TensorFlow Datasets, or a data set that the user registered.

TensorFlow Datasets prepares and reads without TensorFlow, as long as files are ArrayRecord and nobody asks for a
`tf.data.Dataset`. It takes a second to import, so it is imported where it is used.
"""

import difflib
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxdistill.data.fetch import FetchError
from jaxdistill.data.records import Records
from jaxdistill.errors import ConfigError, suggest
from jaxdistill.registry import datasets, parse

SHIPPED = ("clothes", "mnist5k")  # the builders of digits.py


def default_folder() -> Path:
    """Where prepared data lies unless a config says otherwise: `$JAXDISTILL_DATA`, or a folder in the user's cache."""
    return Path(os.environ.get("JAXDISTILL_DATA") or Path.home() / ".cache" / "jaxdistill" / "data")


def known(name: str, folder: str | Path, path: str = "data.name") -> None:
    """Checks a data set's name without network, so that a misspelt one fails before anything compiles.

    Raises:
        ConfigError: neither registered, nor shipped, nor prepared in the folder, nor known to TensorFlow Datasets.
    """
    base = re.split(r"[(/:]", name)[0].strip()  # of my_data(size=3), glue/sst2, mnist:3.0.1
    if base in datasets:
        parse(name, path)
        return
    ours = {*datasets, *SHIPPED, *_prepared(Path(folder).expanduser())}
    if base in ours:
        return
    theirs = _tfds().list_builders(with_community_datasets=False)
    if base not in theirs:
        near = [close for close in difflib.get_close_matches(base, theirs, n=1) if close not in ours]
        hint = f" TensorFlow Datasets has {near[0]!r}." if near else ""
        raise ConfigError(path, f"unknown data set {name!r}. {suggest(base, ours)}{hint}")


def open_records(name: str, split: str, folder: str | Path, path: str, key: str) -> Records:
    """Opens one split of a data set, which is prepared in the folder if it is not there yet.

    Args:
        name: a name of TensorFlow Datasets (`mnist5k`, `cifar100`, `mnist:3.0.1`), or the spec string of a factory in
            `registry.datasets`, such as `my_data(size=3)`. It is called with `split=` and returns a source for
            `Records`, which may have an attribute `classes`.
        split: `train`, or a slice like `train[:80%]`.
        folder: where TensorFlow Datasets keeps prepared data.
        path: the config's section, for messages: a wrong name is reported at `<path>.name`,
        key: and a wrong split at `<path>.<key>`.

    Raises:
        ConfigError: unknown name or split, or preparation failed.
    """
    folder, named = Path(folder).expanduser(), f"{path}.name"
    known(name, folder, named)
    if name.partition("(")[0].strip() in datasets:
        source = _registered(name, split, named)
        return Records(source, getattr(source, "classes", None))
    builder = _prepare(name, folder, named)
    try:
        source = builder.as_data_source(split)
    except ValueError:
        cure = f"{suggest(split, builder.info.splits)} A slice is written train[:80%], and may not be empty."
        raise ConfigError(f"{path}.{key}", f"{split!r} is no split of {name!r}. {cure}") from None
    label = builder.info.features.get("label")
    return Records(source, getattr(label, "num_classes", None))


def _registered(name: str, split: str, path: str) -> Any:
    """The source that a user's factory makes."""
    spec = parse(name, path)
    source = datasets.build(spec._replace(kwargs={**spec.kwargs, "split": split}), path)
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise ConfigError(path, f"{name!r} made a {type(source).__name__}; return a list, or what has len() and [i].")
    if len(source) == 0 or not isinstance(source[0], Mapping):
        raise ConfigError(path, f"{name!r} made no records for split {split!r}; a record is a dict of arrays.")
    return source


def _prepare(name: str, folder: Path, path: str) -> Any:
    """The builder of a name, with its files in place."""
    tfds = _tfds()
    try:
        builder = tfds.builder(name, data_dir=folder, file_format="array_record")
        if not builder.is_prepared():
            sys.stderr.write(f"Preparing {name!r} in {folder}; this happens once.\n")
            builder.download_and_prepare()
        return builder
    except FileExistsError:  # another process was faster
        return tfds.builder(name, data_dir=folder, file_format="array_record")
    except FetchError as error:
        raise ConfigError(path, f"{name!r} cannot be prepared: {error}.") from None
    except Exception as error:  # foreign code: downloads, parsers, asserts, a TensorFlow that is not there
        why = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        build = f"tfds build {name} --file_format=array_record"
        cure = f"Where there are internet and TensorFlow, run `{build}`, and copy what it wrote into {folder}."
        raise ConfigError(path, f"{name!r} cannot be prepared ({why}). {cure}") from error


def _prepared(folder: Path) -> set[str]:
    """Names that the folder holds, as `name/version/dataset_info.json` or `name/config/version/dataset_info.json`."""
    found = (file for depth in ("*/*", "*/*/*") for file in folder.glob(f"{depth}/dataset_info.json"))
    return {file.relative_to(folder).parts[0] for file in found}


def _tfds() -> ModuleType:
    """TensorFlow Datasets, with the builders that we ship registered."""
    import tensorflow_datasets as tfds

    from jaxdistill.data import digits  # noqa: F401  (importing registers them)

    return tfds
