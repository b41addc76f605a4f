"""Check that runs, caches and sweeps that are killed at random moments end with the same bits as without a kill."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import runs

SAME = runs.ROOT / "experiments" / "same" / "cases.py"
EVERY_FIVE = ("--config.evaluate.every=5", "--config.steps=30")


class Work(NamedTuple):
    """A command that is killed, the number of kills, and a function that reads what it left, by name."""

    words: tuple[str, ...]  # {folder} stands for the folder of the work, {taught} for a run with a trained teacher
    kills: int
    left: Callable[[Path], dict[str, Any]]


def trained(folder: Path) -> dict[str, Any]:
    """Return every array of the last checkpoints, and the rows of the results."""
    stages = [path.parent for path in sorted(folder.rglob("checkpoints")) if "damaged" not in path.parts]
    arrays = {f"{s.relative_to(folder)}/{n}": x.tobytes() for s in stages for n, x in runs.saved(s).items()}
    tables = sorted(folder.rglob("results.json"))
    rows = {
        str(f.relative_to(folder)): [runs.without_latency(r) for r in json.loads(f.read_text())["rows"]] for f in tables
    }
    return arrays | rows


def cached(folder: Path) -> dict[str, Any]:
    """Return the bytes of every shard of a cache."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*.array_record"))}


def studied(folder: Path) -> dict[str, Any]:
    """Return what a study measured, and what its runs left."""
    return {"runs": json.loads((folder / "study.json").read_text())["runs"]} | trained(folder)


def run_of(case: str, *words: str, kills: int = 2) -> Work:
    return Work(("train", "--config", f"{SAME}:{case}", *EVERY_FIVE, *words, "--workdir", "{folder}"), kills, trained)


WORKS = {
    "offline": run_of("taught", kills=3),
    "crd": run_of("taught", "--config.objective.crd.term=crd(records=250, negatives=32, width=8)"),
    "routing": run_of("routing"),
    "meta": run_of("meta"),
    "replay": run_of("replay", "--config.data.order=tasks(groups=((0, 1), (2, 3)), steps=15)"),
    "averaged": run_of("averaged"),
    "on_policy": run_of("on_policy"),
    "cache": Work(
        ("cache", "--config", f"{SAME}:taught", "--config.teachers.big.checkpoint={taught}/teachers/big",
         "--config.teachers.big.cache=outputs(folder='{folder}')", "--config.batch_size=8"), 3, cached,
    ),
    "sweep": Work(
        ("sweep", "--config", f"{SAME}:taught", *EVERY_FIVE, "--axis", "objective.kd.term", "kd(temperature=1.0)", "kd",
         "--seeds", "1", "--workdir", "{folder}"), 3, studied,
    ),
}  # fmt: skip


def start(work: Work, folder: Path, taught: Path) -> subprocess.Popen:
    words = [word.format(folder=folder, taught=taught) if "{" in word else word for word in work.words]
    variables = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(runs.ROOT)}
    command = [sys.executable, "-m", "jaxdistill.main", *words]
    pipe = subprocess.PIPE
    runs.processes.append(
        subprocess.Popen(command, cwd=folder.parent, env=variables, stdout=pipe, stderr=pipe, text=True)
    )
    return runs.processes[-1]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Return a folder with a run that trained a teacher; compiled programs are kept two levels above it."""
    place = tmp_path_factory.mktemp("kills") / "a" / "b"
    place.mkdir(parents=True)
    taught = place / "taught"
    runs.finish(start(WORKS["offline"], taught, taught))
    yield place
    runs.end_processes()


def test_twenty_kills_are_spread_over_all_works():
    assert sum(work.kills for work in WORKS.values()) >= 20


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKS)
def test_a_work_that_is_killed_at_random_moments_ends_the_same(name, home):
    work, draw = WORKS[name], random.Random(name)
    whole, folder, killed = home / f"{name}-whole", home / f"{name}-killed", 0
    begin = time.monotonic()
    runs.finish(start(work, whole, home / "taught"))
    duration = time.monotonic() - begin
    while killed < work.kills:
        process, begin = start(work, folder, home / "taught"), time.monotonic()
        try:
            process.communicate(timeout=duration * draw.uniform(0.3, 0.95))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            killed += 1
        else:  # it ended first: compiled programs make a start faster
            assert process.returncode == 0 and work.left(folder) == work.left(whole)
            duration = min(duration, time.monotonic() - begin)
            shutil.rmtree(folder)
        sys.stdout.write(f"{name}: {killed} kills\n")
    runs.finish(start(work, folder, home / "taught"))
    expected, found = work.left(whole), work.left(folder)
    assert expected and expected.keys() == found.keys()
    assert [key for key in expected if expected[key] != found[key]] == []


def test_what_is_compared_would_see_a_difference(tmp_path):
    (tmp_path / "0.array_record").write_bytes(np.zeros(3).tobytes())
    before = cached(tmp_path)
    runs.flip(tmp_path / "0.array_record", 1)
    assert cached(tmp_path) != before
