"""Tests of damaged files that are rewritten or ignored: a note names each one, and a missing file gets no note."""

from pathlib import Path

import pytest
import runs
from ml_collections import ConfigDict

from jaxdistill.core import manifest, seal
from jaxdistill.core.notes import note
from jaxdistill.data import store
from jaxdistill.data.text import synthesis
from jaxdistill.run import cutting, search, study, workdir

TEACHER = {"identity": {"teacher": "its model and checkpoint"}}
ROWS = store.StoreManifest(4, 2, {"logits": ((3,), "float32")}, TEACHER)


def write_store(folder: Path) -> Path:
    store.write_manifest(folder, ROWS)
    return folder / "manifest.json"


def write_settings(folder: Path) -> Path:
    synthesis.write_generation_settings(folder, {"rows": 1, "part": 1})
    return folder / "manifest.json"


def write_part(folder: Path) -> Path:
    synthesis.write_part(folder, 0, [{"text": "one"}])
    return folder / "00000.jsonl"


def write_checkpoint_manifest(folder: Path) -> Path:
    (folder / "steps" / "10").mkdir(parents=True)
    seal.write(folder / "manifests" / "10.json", {"step": 10, "arrays": {}, "metrics": {}})
    return folder / "manifests" / "10.json"


def write_json(name: str, content: dict):
    def written(folder: Path) -> Path:
        seal.write(folder / name, content)
        return folder / name

    return written


def read_beside_config(folder: Path) -> None:
    seal.write(folder / "config.json", {"config": {}})
    workdir.saved_record(folder)


RESULTS = {"config": {}, "rows": [], "seconds": {}, "provenance": {}, "runs": {}}
UNITS = {name: {} if kind is dict else [] for name, kind in cutting.TYPES.items() if kind in (dict, list)}
READERS = {
    "manifest of a checkpoint": (write_checkpoint_manifest, manifest.manifests),
    "description of a store": (write_store, lambda folder: store.write_manifest(folder, ROWS)),
    "settings of generated texts": (write_settings, write_settings),
    "part of generated texts": (write_part, lambda folder: synthesis.missing_parts(folder, 1, 1)),
    "results of a run": (write_json("results.json", RESULTS), read_beside_config),
    "results of an arm": (
        write_json("results.json", RESULTS),
        lambda folder: study.finished_results(ConfigDict(), folder),
    ),
    "table of a search": (write_json("table.json", {}), lambda folder: search._read(folder / "table.json")),
    "units of a cut": (write_json(cutting.FILE, UNITS), cutting.sentence),
    "units that are chosen again": (
        write_json(cutting.FILE, UNITS),
        lambda folder: cutting._read(folder / cutting.FILE, {}, lambda scores: None),
    ),
}


@pytest.mark.parametrize("kind", READERS)
def test_what_is_damaged_is_named_and_what_is_missing_is_not(kind, tmp_path, capsys):
    write, read = READERS[kind]
    file = write(tmp_path)
    runs.flip(file, 3)  # a byte of the first key
    read(tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"note: {file} ")
    for part in tmp_path.rglob(f"{file.stem}.*"):  # the seal of a data file has the same stem
        part.unlink()
    read(tmp_path)
    assert capsys.readouterr().err == ""


def test_a_note_is_printed_once(capsys):
    for _ in range(2):
        note("the moon is full")
    assert capsys.readouterr().err == "note: the moon is full\n"
