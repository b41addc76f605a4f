"""Rules about the records of a run, from their descriptions alone."""

from pathlib import Path

import numpy as np

from jaxdistill.core.errors import ConfigError
from jaxdistill.data import datasets
from jaxdistill.data.image.processors import forms
from jaxdistill.data.splits import share_records
from jaxdistill.data.store import Manifest, StoreError, differences, read_manifest
from jaxdistill.run.views import DataView

SELECT, ORDER = "data.select", "data.order"
UNCHANGED = "Write it: jaxdistill cache --config ... with the same data, and data.augment=()"  # records as they are


def specs_are_known(view: DataView) -> None:
    """Data set, tokenization, selection, order and transforms are known; nothing is read or fetched yet."""
    datasets.known(view.data.name, view.data.folder)
    _ = view.data.tokenization, view.data.selection, view.data.ordering


def images_have_one_form(view: DataView) -> None:
    """Teachers trained here and further streams see images of the form in which the student sees them."""
    config = view.config
    trained = {name: entry for name, entry in config.teachers.items() if entry.steps and not entry.checkpoint}
    others = {f"teachers.{name}.augment": entry.augment for name, entry in trained.items()}
    others |= {f"streams.{name}.augment": entry.augment for name, entry in config.streams.items()}
    wanted = forms(config.data.augment)
    for path, augment in others.items():
        if forms(augment) != wanted:
            theirs, ours = (", ".join(each) or "as they are" for each in (forms(augment), wanted))
            cure = "What draws nothing must be the same in both"
            raise ConfigError(path, f"its images are {theirs}, those of data.augment {ours}. {cure}.")


def records_can_be_read(view: DataView) -> None:
    """Every split is there."""
    _ = view.data.descriptions, view.data.test_description


def test_records_have_labels(view: DataView) -> None:
    """The test records have labels."""
    if "label" not in view.data.test_description.fields:
        raise ConfigError(
            "data.name", f"the records of {view.data.name!r} have no field 'label', which accuracy needs."
        )


def test_records_look_alike(view: DataView) -> None:
    """The test records have the fields and shapes of the training records."""
    if view.data.descriptions["train"].fields != view.data.test_description.fields:
        data = view.config.data
        raise ConfigError("data.test", f"{data.test!r} differs from {data.train!r} in fields or shapes.")


def quiz_is_disjoint(view: DataView) -> None:
    """A quiz shares no record with what the student learns from or is evaluated on."""
    quiz = view.data.streams.get("quiz")
    if quiz is None:
        return
    size = lambda split: view.data.describe(quiz._replace(split=split)).records
    for key in ("train", "test"):
        if share_records(quiz.split, view.config.data[key], size):
            cure = "Choose others, such as data.train='train[:90%]' and streams.quiz.split='train[90%:]'"
            why = f"{quiz.split!r} has records of data.{key}={view.config.data[key]!r}"
            raise ConfigError("streams.quiz.split", f"{why}. {cure}.")


def order_is_possible(view: DataView) -> None:
    """Records are ordered by a field of whole numbers that they have."""
    order, described = view.data.ordering, view.data.descriptions["train"]
    if order is None:
        return
    shape, kind = described.fields.get(order.field, ((-1,), "O"))
    if shape or np.dtype(kind).kind not in "iu":
        known = ", ".join(name for name, (shape, kind) in described.fields.items() if not shape)
        raise ConfigError(ORDER, f"the records have no whole number {order.field!r}. Choose one of {known}.")
    if order.field == "label" and described.classes is not None:
        beyond = sorted({c for group in order.groups for c in group if not 0 <= c < described.classes})
        if beyond:
            why = f"no record has the class {beyond[0]}; there are {described.classes}, from 0"
            raise ConfigError(ORDER, f"{view.data.order!r}: {why}. Leave it out.")


def selection_is_possible(view: DataView) -> None:
    """Records are selected by caches of their own teachers, without augmentation, and by labels that they have."""
    selection = view.data.selection
    if selection is None:
        return
    manifests = [_manifest(folder) for folder in selection.caches]
    for folder, manifest in zip(selection.caches, manifests, strict=True):
        identity = manifest.about["identity"]
        if "draws" in identity:
            raise ConfigError(SELECT, f"{folder!r} holds rows of an augmented run, and no record's. {UNCHANGED}.")
        if "draws" in identity["kept"]:
            raise ConfigError(SELECT, f"{folder!r} holds draws, of which none tells how hard a record is. {UNCHANGED}.")
        if other := differences(identity["data"], view.data.identity(view.data.streams["train"])):
            raise ConfigError(SELECT, f"{folder!r} is of other data: {'; '.join(other)}. {UNCHANGED}.")
        if manifest.about["classes"] != manifests[0].about["classes"]:
            both = " and ".join(map(repr, (selection.caches[0], folder)))
            raise ConfigError(SELECT, f"the teachers of {both} have unlike classes. Choose others.")
    if selection.by == "loss" and "label" not in view.data.descriptions["train"].fields:
        raise ConfigError(SELECT, "by='loss' needs labels, and the records have none. Choose by='entropy'.")


def _manifest(folder: str) -> Manifest:
    try:
        return read_manifest(Path(folder).expanduser() / "train")
    except StoreError as error:
        raise ConfigError(SELECT, f"{error}. {UNCHANGED}.") from None
