"""Rules about the data of a run, checked on descriptions of the records (fields, shapes, number) alone."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.spec import parse
from jaxdistill.data import datasets
from jaxdistill.data.describe import describe_split
from jaxdistill.data.image.processors import preprocessing_specs
from jaxdistill.data.pipeline import TEST
from jaxdistill.data.splits import share_records
from jaxdistill.data.store import StoreError, StoreManifest, differences
from jaxdistill.run.config import Config
from jaxdistill.run.views import DataView
from jaxdistill.teachers.cache_identity import read_description

SELECT, ORDER = "data.select", "data.order"
WRITE_CACHE = "Write it: jaxdistill cache --config ... with the same data, and data.augment=()"


def specs_are_known(view: DataView) -> None:
    """Require that the data set, the tokenizer, the selection and the order that the config names exist and are valid.

    Nothing is downloaded.
    """
    datasets.check_name(view.data.name, view.data.folder)
    _ = view.data.tokenization, view.data.selection, view.data.ordering


def streams_have_their_own_names(view: DataView) -> None:
    """Require that no extra stream (named source of batches) has the name of the training or of the test records."""
    for name in sorted({"train", TEST} & set(view.config.streams)):
        problem = f"{name!r} is the name of the records of data.{name}"
        raise ConfigError(f"streams.{name}", f"{problem}. Set data.{name}, or give the stream another name.")


def images_are_preprocessed_alike(view: DataView) -> None:
    """Require that all training batches of the run get the same preprocessing of images, such as `resize(size=224)`.

    Batches of teachers that this run trains, and of additional data streams (named sources of batches), must have the
    preprocessing of the student's batches.
    """
    wanted = preprocessing_specs(view.config.data.augment)
    for path, augment in _other_transforms(view.config).items():
        if preprocessing_specs(augment) != wanted:
            theirs, ours = (", ".join(each) or "nothing" for each in (preprocessing_specs(augment), wanted))
            cure = "Use the same transforms without randomness in both"
            raise ConfigError(path, f"preprocesses images by {theirs}, but data.augment by {ours}. {cure}.")


def _other_transforms(config: Config) -> Mapping[str, tuple[str, ...]]:
    """Return the transforms of additional streams, and of the teachers that this run trains, by config key."""
    trained = {name: entry for name, entry in config.teachers.items() if entry.steps and not entry.checkpoint}
    transforms = {f"teachers.{name}.augment": entry.augment for name, entry in trained.items()}
    return transforms | {f"streams.{name}.augment": entry.augment for name, entry in config.streams.items()}


def records_can_be_read(view: DataView) -> None:
    """Require that every training and test split of the config exists and can be opened."""
    _ = view.data.descriptions, view.data.test_description


def labels_have_one_class_for_each_prediction(view: DataView) -> None:
    """Require that each record has one class number as its label, or a text one class number for each token."""
    for name, description in {**view.data.descriptions, "test": view.data.test_description}.items():
        shape, _ = description.fields.get("label", ((), ""))
        tokens = [description.fields[field][0] for field in ("input_ids", "mask") if field in description.fields]
        if shape and shape not in tokens:
            problem = f"a label of the split {name!r} has the shape {list(shape)}, so it is not one class number"
            cure = "Give one class number, and probabilities of classes in the field 'label_probs'"
            raise ConfigError("data.name", f"{problem}. {cure}.")


def test_records_match_training_records(view: DataView) -> None:
    """Require that the test records (examples) have the fields and shapes of the training records.

    Training records may lack labels, because a student can learn from its teacher alone.
    """
    train, test = dict(view.data.descriptions["train"].fields), dict(view.data.test_description.fields)
    if "label" not in train:
        test.pop("label", None)
    name, other = view.config.data.train, view.config.data.test
    classes, tested = view.data.descriptions["train"].classes, view.data.test_description.classes
    # fewer classes may mean that not every class was drawn
    if classes is not None and tested is not None and tested > classes:
        problem = f"the records of {name!r} have {classes} classes, those of {other!r} have {tested}"
        raise ConfigError("data.test", f"{problem}; choose records that are alike.")
    names, of_test = view.data.descriptions["train"].class_names, view.data.test_description.class_names
    if unlike := [pair for pair in zip(names, of_test, strict=False) if pair[0] != pair[1]]:
        problem = f"a class is {unlike[0][0]!r} in {name!r}, and {unlike[0][1]!r} in {other!r}"
        raise ConfigError("data.test", f"{problem}; give both splits the same names of classes.")
    for field in sorted(train.keys() | test.keys()):
        if field not in train or field not in test:
            one, without = (name, other) if field in train else (other, name)
            raise ConfigError(
                "data.test", f"the records of {one!r} have the field {field!r}, those of {without!r} not."
            )
        (shape, dtype), (other_shape, other_dtype) = train[field], test[field]
        same = all(size == other or -1 in (size, other) for size, other in zip(shape, other_shape, strict=False))
        if dtype != other_dtype or len(shape) != len(other_shape) or not same:  # -1: images of several sizes
            difference = f"{list(shape)} {dtype} in {name!r}, and {list(other_shape)} {other_dtype} in {other!r}"
            raise ConfigError("data.test", f"{field!r} is {difference}; choose records that are alike.")


def mixed_labels_have_the_classes(view: DataView) -> None:
    """Require that the transforms that mix labels (`mixup`, `cutmix`) have the number of classes of the data.

    Records with the field `label_probs` are not checked, because these transforms then check that field themselves.
    """
    description = view.data.descriptions["train"]
    if description.classes is None or "label_probs" in description.fields:
        return
    transforms = {"data.augment": view.config.data.augment, **_other_transforms(view.config)}
    for path, spec in ((path, spec) for path, specs in transforms.items() for spec in specs):
        if parse(spec, path).name not in ("mixup", "cutmix"):
            continue
        classes = registry.transforms.bind(spec, path)[1].arguments["classes"]
        if classes != description.classes:
            problem = f"{spec!r} mixes labels of {classes} classes, but the data have {description.classes}"
            raise ConfigError(path, f"{problem}; set classes={description.classes}.")


MANY_ROWS, MANY_COPIES = 2**16, 64  # for smaller data, a batch with repeated records may be intended


def batches_hold_few_copies(view: DataView) -> None:
    """Require that no huge batch repeats a few records many times, which would take minutes to read and add nothing."""
    counts = {
        "batch_size": (view.config.batch_size, view.data.count_training_records()),
        "evaluate.batch_size": (view.config.evaluate.batch_size, view.data.test_description.records),
    }
    for path, (rows, records) in counts.items():
        if rows > MANY_ROWS and rows > MANY_COPIES * records:
            problem = f"a batch of {rows} rows would hold each of the {records} records {rows // records} times"
            raise ConfigError(path, f"{problem}. Lower it to {records} or less.")


def _count_records(view: DataView) -> Callable[[str], int]:
    """Return a function that counts the records of a whole split, given its name.

    The records are those of the data set, before texts are packed into rows of tokens, because slices count these.
    """
    data = view.data
    return lambda split: describe_split(data.name, split, data.folder, data.test.path, data.test.key).records


def test_records_are_not_trained_on(view: DataView) -> None:
    """Require that the test split shares no example with the training split or with an additional stream.

    A stream is a named source of batches. The stream `quiz` is left to `quiz_is_disjoint`.
    """
    data = view.config.data
    for name, stream in view.data.streams.items():
        has_own_rule = name == "quiz" or (name == "train" and stream.split == data.train)
        if not has_own_rule and share_records(data.test, stream.split, _count_records(view)):
            cure = f"Choose other records, such as streams.{name}.split='train[:90%]' and data.test='train[90%:]'"
            problem = f"{stream.split!r} shares records with data.test={data.test!r}"
            raise ConfigError(f"streams.{name}.split", f"{problem}. {cure}.")
    if share_records(data.test, data.train, _count_records(view)):
        cure = "Choose other records, such as data.train='train[:90%]' and data.test='train[90%:]'"
        raise ConfigError("data.test", f"{data.test!r} shares records with data.train={data.train!r}. {cure}.")


def quiz_is_disjoint(view: DataView) -> None:
    """Require that the data stream `quiz`, if the config has it, shares no example with the training and test splits.

    The quiz is a second source of labelled batches, on which some training algorithms measure the student.
    """
    quiz = view.data.streams.get("quiz")
    if quiz is None:
        return
    for key in ("train", "test"):
        if share_records(quiz.split, view.config.data[key], _count_records(view)):
            cure = "Choose other records, such as data.train='train[:90%]' and streams.quiz.split='train[90%:]'"
            problem = f"{quiz.split!r} shares records with data.{key}={view.config.data[key]!r}"
            raise ConfigError("streams.quiz.split", f"{problem}. {cure}.")


def order_is_possible(view: DataView) -> None:
    """Require that the training records can be put into the order that the config key `data.order` describes.

    The records are ordered by a field, such as the label, which must hold one integer per record. If the field is the
    label, the classes that the order names must exist.
    """
    order, description = view.data.ordering, view.data.descriptions["train"]
    if order is None:
        return
    shape, dtype = description.fields.get(order.field, ((-1,), "O"))
    if shape or np.dtype(dtype).kind not in "iu":
        known = ", ".join(name for name, (shape, _) in description.fields.items() if not shape)
        raise ConfigError(ORDER, f"the records have no integer field {order.field!r}. Choose one of {known}.")
    if order.field == "label" and description.classes is not None:
        unknown = sorted({c for group in order.groups for c in group if not 0 <= c < description.classes})
        if unknown:
            problem = f"no record has the class {unknown[0]}; there are {description.classes}, from 0"
            raise ConfigError(ORDER, f"{view.data.order!r}: {problem}. Leave this class out.")


def selection_is_possible(view: DataView) -> None:
    """Require that training records can be selected by hardness, if the config key `data.select` asks for it.

    Hardness, such as the entropy of the teachers' prediction, is computed from cached teacher outputs. The caches must
    exist, belong to the same records without augmentation, hold logits (not sampled classes), and agree in the number
    of classes. For the hardness 'loss', the records must have labels.
    """
    selection = view.data.selection
    if selection is None:
        return
    manifests = [_manifest(folder) for folder in selection.caches]
    for folder, manifest in zip(selection.caches, manifests, strict=True):
        identity = manifest.about["identity"]
        if "draws" in identity:
            raise ConfigError(SELECT, f"{folder!r} is a cache of augmented batches, not of records. {WRITE_CACHE}.")
        if not manifest.about["classes"]:
            raise ConfigError(SELECT, f"{folder!r} holds embeddings of two towers, not logits. Use data.select=''.")
        if "features" in identity["kept"]:
            raise ConfigError(SELECT, f"{folder!r} holds features, not logits. {WRITE_CACHE}.")
        if "draws" in identity["kept"]:
            raise ConfigError(SELECT, f"{folder!r} holds draws, which do not say how hard a record is. {WRITE_CACHE}.")
        if other := differences(identity["data"], view.data.identity(view.data.streams["train"])):
            raise ConfigError(SELECT, f"{folder!r} is a cache of other data: {'; '.join(other)}. {WRITE_CACHE}.")
        if manifest.about["classes"] != manifests[0].about["classes"]:
            both = " and ".join(map(repr, (selection.caches[0], folder)))
            raise ConfigError(SELECT, f"the teachers of {both} have different numbers of classes. Choose other caches.")
    if selection.by == "loss" and "label" not in view.data.descriptions["train"].fields:
        raise ConfigError(SELECT, "by='loss' needs labels, and the records have none. Choose by='entropy'.")


def _manifest(folder: str) -> StoreManifest:
    try:
        return read_description(Path(folder).expanduser() / "train")
    except StoreError as error:
        raise ConfigError(SELECT, f"{error}. {WRITE_CACHE}.") from None
