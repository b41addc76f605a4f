"""Flipped bits: in any file that a run left, at any place, none changes a result in silence."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs

from jaxdistill.core.errors import ConfigError, DamageError
from jaxdistill.run.config_files import load_config

WORDS = ("--config.steps=20", "--config.teachers.big.steps=20", "--config.control=False")


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory):
    with runs.compilation_cache(tmp_path_factory.getbasetemp() / "programs"):
        yield


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """A run from a teacher's cache, with the cache and the teacher's run."""
    home = tmp_path_factory.mktemp("left")
    assert runs.run(home / "taught", *WORDS) == 0
    assert command("cache", home) == 0
    assert command("train", home) == 0
    return home


@pytest.fixture(scope="module")
def whole(left, tmp_path_factory):
    return Path(shutil.copytree(left, tmp_path_factory.mktemp("whole") / "left"))


def command(name: str, home: Path) -> int:
    from jaxdistill import main

    cached = f"--config.teachers.big.cache=outputs(folder='{home}/cache')"
    words = [*WORDS, f"--config.teachers.big.checkpoint={home}/taught/teachers/big", cached, "--config.data.augment=()"]
    workdir = ["--workdir", str(home / "run")] if name == "train" else []
    return main.run([name, "--config", str(runs.TINY), *words, *workdir])


def results(home: Path) -> dict[str, Any]:
    rows = [runs.without_latency(row) for row in runs.results(home / "run")["rows"]]
    # by Orbax, unchecked; a finished run does not read its moments, which are checked when it goes on
    saved = runs.saved(home / "run" / "student", without="opt_state/")
    return {"rows": rows} | {name: x.tobytes() for name, x in saved.items()}


def files(home: Path) -> list[Path]:
    """Every file that a run reads again; what it only writes (logs, pages) is left out.

    Their order is the same in every run: the names of some files of a checkpoint are drawn at random.
    """
    only_written = (".html", ".jsonl", ".svg", ".png")
    every = (f for f in home.rglob("*") if f.is_file() and f.stat().st_size and f.name != "lock")
    read = [f for f in every if f.suffix not in only_written and "events.out" not in f.name]
    place = lambda f: (f.parent, f.name if f.parent.name != "d" else "", f.stat().st_size, f.read_bytes())
    return [f.relative_to(home) for f in sorted(read, key=place)]


def flipped_is_harmless(home: Path, whole: Path, file: Path, draw: np.random.Generator) -> str:
    """Flips a bit, and runs the same commands again: the results are the same, or the command has refused.

    Args:
        home: where the run is; as found again at the end.
        whole: a copy of it.
        file: the file that changes, below `home`.
        draw: decides which bit.
    """
    wanted = results(whole)
    runs.flip(home / file, int(draw.integers((home / file).stat().st_size)), 1 << int(draw.integers(8)))
    try:
        codes = [command("cache", home)] if file.parts[0] == "cache" and draw.random() < 0.5 else []
        shutil.rmtree(home / "run" / "student" / "hub", ignore_errors=True)
        codes.append(command("train", home))
        assert set(codes) <= {0, 2, 4}, codes
        if codes[-1] == 0:
            assert results(home) == wanted, f"a flip in {file} has changed the result"
        return "refused" if codes[-1] else "same"
    finally:
        shutil.rmtree(home)
        shutil.copytree(whole, home)


@pytest.mark.slow
def test_a_flip_in_each_kind_of_file(left, whole, capsys):
    draw, kinds = np.random.default_rng(0), {}
    for file in files(left):  # one file of each kind
        kinds.setdefault((file.parts[0], file.suffix, file.parent.name if not file.suffix else ""), file)
    assert len(kinds) >= 12
    said = [flipped_is_harmless(left, whole, file, draw) for file in kinds.values()]
    assert said.count("same") > len(said) / 2  # most can be made again, or are there twice


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_thirty_flips_anywhere(seed, left, whole, capsys):
    draw = np.random.default_rng(seed)
    every = files(left)
    for _ in range(30):
        flipped_is_harmless(left, whole, every[int(draw.integers(len(every)))], draw)


@pytest.mark.slow
def test_flips_in_a_record_never_load_as_another_config(left, tmp_path):
    """Of the two readers of a record, the one that repeats a run."""
    draw, whole = np.random.default_rng(1), (left / "taught" / "config.json").read_bytes()
    config = load_config(str(left / "taught" / "config.json"), trust_source=True)
    shutil.copytree(left / "taught", tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    for _ in range(300):
        file.write_bytes(whole)
        runs.flip(file, int(draw.integers(len(whole))), 1 << int(draw.integers(8)))
        try:
            assert load_config(str(file)) == config
        except (ConfigError, DamageError):
            continue
