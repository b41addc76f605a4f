"""Does this commit train as another one does? make same BASE=COMMIT

Checks out BASE under runs/same, with an environment of its own, runs every case of `cases.py` there and here through
the command line, and compares every array of the final checkpoints by name, to the bit. What BASE left is kept, so that
a further comparison runs this commit alone. A run that BASE began is also continued here, and its cache is read here.
"""

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from experiments.same.arrays import differences, saved
from experiments.same.cases import CASES, Case

ROOT = Path(__file__).parents[2]
CONFIG = Path(__file__).with_name("cases.py")
STAGES = ("teachers/*/checkpoints", "student/checkpoints", "control/checkpoints")  # a teacher that learns has none
RENAMES: tuple[tuple[str, str], ...] = ()  # (pattern in the base's name of an array, what it is called here)
MODULES = {"cache": "jaxdistill.cache"}  # commands that were modules of their own, by name


def base_tree(commit: str, folder: Path) -> Path:
    """A worktree of the commit with its environment, made once."""
    tree = folder / "tree"
    if not tree.is_dir():
        subprocess.run(["git", "worktree", "prune"], cwd=ROOT, check=True)
        subprocess.run(["git", "worktree", "add", "--detach", str(tree), commit], cwd=ROOT, check=True)
    subprocess.run(["make", "install"], cwd=tree, check=True)
    return tree


def command(tree: Path, name: str) -> list[str]:
    """The words that start a command of a tree."""
    own = MODULES.get(name)
    if own and (tree / Path(*own.split(".")).with_suffix(".py")).is_file():
        return ["-m", own]
    return ["-m", "jaxdistill.main", *([] if name == "train" else [name])]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start(tree: Path, place: Path, words: Sequence[str], devices: int) -> subprocess.Popen:
    """Starts a command of a tree in a folder, on virtual devices."""
    variables = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(tree),
    }
    place.mkdir(parents=True, exist_ok=True)
    python = tree / ".venv" / "bin" / "python"
    pipe = subprocess.PIPE
    return subprocess.Popen([str(python), *words], cwd=place, env=variables, stdout=pipe, stderr=pipe, text=True)


def finish(processes: Sequence[subprocess.Popen]) -> None:
    """Waits for processes that must succeed.

    Raises:
        RuntimeError: one failed; with what it wrote.
    """
    for process in processes:
        out, err = process.communicate(timeout=900)
        if process.returncode:
            raise RuntimeError(f"{' '.join(map(str, process.args))}: exit code {process.returncode}\n{out}\n{err}")


def run(tree: Path, name: str, case: Case, place: Path, *more: str) -> None:
    """One case, from its first command to its end."""
    config = ["--config", f"{CONFIG}:{name}"]
    for first in case.first:
        finish([start(tree, place, [*command(tree, first), *config], case.devices)])
    words = [*command(tree, "train"), *config, "--workdir", ".", *more]
    if case.processes == 1:
        finish([start(tree, place, words, case.devices)])
        return
    address = f"--config.distributed.coordinator=localhost:{free_port()}"
    words += [address, f"--config.distributed.processes={case.processes}"]
    numbered = (f"--config.distributed.process={number}" for number in range(case.processes))
    finish([start(tree, place, [*words, number], case.devices) for number in numbered])


def arrays(place: Path, rename: Callable[[str], str] = str) -> Iterator[tuple[str, np.ndarray]]:
    """Every array that a case left in its checkpoints, and the content of its cache by the sums of the shards."""
    for stage in (folder for pattern in STAGES for folder in sorted(place.glob(pattern))):
        for name, array in saved(stage).items():
            yield rename(f"{stage.parent.relative_to(place)}/{name}"), array
    for seal in sorted(place.glob("cache/*/[0-9]*.json")):
        digest = bytes.fromhex(json.loads(seal.read_text())["sha256"])
        yield str(seal.relative_to(place)), np.frombuffer(digest, np.uint8)


def renamed(name: str) -> str:
    """What an array of the base is called here."""
    for pattern, new in RENAMES:
        name = re.sub(pattern, new, name)
    return name


def compared(name: str, case: Case, tree: Path, folder: Path) -> list[str]:
    """Runs a case here, and in the base if it has not been run there; what differs."""
    base, here = folder / "base" / name, folder / "here" / name
    shutil.rmtree(here, ignore_errors=True)
    if case.split:  # the base's first half, continued by either
        half = folder / "base" / f"{name}-half"
        if not half.is_dir():
            run(tree, name, case, half, "--config.steps=15")
        shutil.copytree(half, here)
        if not (base / "results.json").is_file():
            shutil.rmtree(base, ignore_errors=True)
            shutil.copytree(half, base)
            run(tree, name, case, base)
        run(ROOT, name, case, here)
    else:
        if not (base / "results.json").is_file():
            run(tree, name, case, base)
        run(ROOT, name, case, here)
    found = differences(dict(arrays(base, renamed)), dict(arrays(here)))
    if case.first and not found:  # the base's cache, read here, beside the base's teachers, which it names
        inherited = folder / "inherited"
        shutil.rmtree(inherited, ignore_errors=True)
        shutil.copytree(base / "cache", inherited / name / "cache")
        for other in folder.glob("base/*"):
            if other.name != name:
                (inherited / other.name).symlink_to(other)
        run(ROOT, name, case._replace(first=()), inherited / name)
        found = differences(dict(arrays(base, renamed)), dict(arrays(inherited / name)))
    return found


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--base", required=True, metavar="COMMIT", help="the commit to compare with")
    words.add_argument("--only", nargs="+", metavar="CASE", help=f"some of: {', '.join(CASES)}")
    words.add_argument("--folder", default="runs/same", type=Path, metavar="DIR", help="for all of it; %(default)s")
    known = words.parse_args()
    if unknown := sorted(set(known.only or ()) - set(CASES)):
        words.error(f"unknown case {unknown[0]!r}; there are {', '.join(CASES)}")
    resolve = ["git", "rev-parse", "--verify", "--short", f"{known.base}^{{commit}}"]
    commit = subprocess.run(resolve, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    folder = (known.folder / commit).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    tree, wrong = base_tree(commit, folder), 0
    chosen = known.only or list(CASES)
    for number, name in enumerate(chosen, 1):
        began = time.perf_counter()
        try:
            found = compared(name, CASES[name], tree, folder)
        except RuntimeError as error:
            found = [str(error)]
        wrong += bool(found)
        seconds = time.perf_counter() - began
        print(
            f"{number:>3} of {len(chosen)}  {name:<16}{'differs' if found else 'same':<8}{seconds:6.1f} s", flush=True
        )
        for line in found[:8]:
            print(f"      {line}", flush=True)
    print(f"{len(chosen) - wrong} of {len(chosen)} cases give the same bits as {commit}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
