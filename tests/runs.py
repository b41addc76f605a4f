"""Helpers of tests of whole runs: start the tiny run, here or in a process of its own, and read its files."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from ml_collections import ConfigDict

import jaxdistill.run.parts  # noqa: F401  (registers the library's parts; `registries_as_found` removes later ones)
from jaxdistill import main
from jaxdistill.core import bucket, registry
from jaxdistill.core.manifest import manifests
from jaxdistill.evaluation.report.logs import Log, read_logs
from jaxdistill.run.config_files import load_config

processes: list[subprocess.Popen] = []  # all processes that `spawn` has started
compilations: list[str] = []  # the names of all programs that XLA has compiled in this process
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **about: (
        compilations.append(about["fun_name"]) if event == "/jax/core/compile/backend_compile_duration" else None
    )
)

TINY = Path(__file__).with_name("tiny.py")
ROOT = TINY.parents[1]


STAGES = ("teachers/big", "student", "control")
SLOWLY = (  # each batch takes 20 ms or more, so that a signal arrives at the moment that it is meant for
    "--config.data.augment=('shift(pixels=1)', 'pause(seconds=0.02)')",
    "--config.teachers.big.augment=('pause(seconds=0.02)',)",
)


@contextmanager
def compilation_cache(folder: Path) -> Iterator[None]:
    """Keep compiled programs for further runs, here and in processes started here, whose time is mostly compilation."""
    settings = {"jax_compilation_cache_dir": str(folder), "jax_persistent_cache_min_compile_time_secs": 0}
    before = {name: getattr(jax.config, name) for name in settings}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name.upper(), str(value))
            jax.config.update(name, value)
        reset_cache()  # else JAX remembers that it had none
        yield
        for name, value in before.items():
            jax.config.update(name, value)
        reset_cache()


@contextmanager
def registries_as_found() -> Iterator[None]:
    """Remove what config files register, since error messages list all parts and must not depend on earlier tests."""
    kinds = [kind for kind in vars(registry).values() if isinstance(kind, registry.Registry)]
    before = [dict(kind.factories) for kind in kinds]
    yield
    for kind, factories in zip(kinds, before, strict=True):
        ours = {name: make for name, make in kind.factories.items() if make.__module__.startswith("jaxdistill.")}
        kind.factories.clear()
        kind.factories.update(ours | factories)  # modules of the library, imported in between, register only once


def run(workdir: Path, *words: str, source: Path = TINY) -> int:
    """Run `jaxdistill` with these arguments in this process; return its exit code."""
    return main.run(["--config", str(source), "--workdir", str(workdir), *words])


def spawn(workdir: Path, *words: str, source: Path = TINY, devices: int = 1, package: Path = ROOT) -> subprocess.Popen:
    """Start `jaxdistill` in a process with its own virtual devices, with the code of the folder `package`."""
    variables = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(package),
    }
    command = [sys.executable, "-m", "jaxdistill.main", "--config", str(source), "--workdir", str(workdir), *words]
    pipe = subprocess.PIPE
    processes.append(subprocess.Popen(command, cwd=package, env=variables, stdout=pipe, stderr=pipe, text=True))
    return processes[-1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def together(workdir: Path, *words: str, count: int = 2) -> list[subprocess.Popen]:
    """Start the processes of one distributed run, with two devices each."""
    place = f"--config.distributed.coordinator=localhost:{free_port()}", f"--config.distributed.processes={count}"
    numbers = [f"--config.distributed.process={number}" for number in range(count)]
    return [spawn(workdir, *words, *place, number, devices=2) for number in numbers]


def finish(process: subprocess.Popen, timeout: float = 240) -> tuple[str, str]:
    """Wait for a process, require that it succeeds, and return its stdout and stderr."""
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err
    return out, err


def meet(process: subprocess.Popen, moment: Callable[[], bool], timeout: float = 240, pause: float = 0.001) -> None:
    """Wait until `moment()` is true; require that the process is still running until then."""
    end = time.monotonic() + timeout
    while not moment():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(pause)


def assert_same_end(workdir: Path, reference: Path) -> None:
    """Require that the newest checkpoints of all stages of two runs are the same to the bit."""
    for stage in STAGES:
        assert differences(saved(workdir / stage), saved(reference / stage)) == [], stage


def end_processes() -> None:
    """Kill all processes that a failed test has left running."""
    for process in processes:
        process.kill()
        process.communicate()
    processes.clear()


def load() -> ConfigDict:
    """Load the config of the tiny run."""
    return load_config(str(TINY))


def damage(step: Path, how: str, file: Path | None = None) -> Path:
    """Damage a file or all arrays of a checkpoint by "flipped bits", "truncated" or "missing"; return the last file."""
    if file is None:  # all files, since some of them hold nothing that is read
        return [damage(step, how, each) for each in step.rglob("*") if each.is_file() and each.parent.name == "d"][-1]
    content = bytearray(file.read_bytes())
    if how == "missing":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(content[: len(content) // 2])
    else:
        for place in range(0, len(content), 16):
            content[place] ^= 1
        file.write_bytes(content)
    return file


def flip(file: Path, place: int, bits: int = 1) -> None:
    """Flip bits of one byte of a file."""
    content = bytearray(file.read_bytes())
    content[place] ^= bits
    file.write_bytes(content)


def results(workdir: Path) -> dict[str, Any]:
    """Read the `results.json` of a run."""
    return json.loads((workdir / "results.json").read_text())


def rows(workdir: Path) -> dict[str, dict]:
    return {row["name"]: row for row in results(workdir)["rows"]}


def without_latency(row: dict) -> dict:
    return {name: value for name, value in row.items() if not name.startswith("latency_")}


def log(stage: Path) -> Log:
    """Read the log of a stage without the values that depend on the clock."""
    clock = ("time", "steps_per_second")
    workdir = stage.parents[1] if stage.parent.name == "teachers" else stage.parent
    name = f"teacher {stage.name}" if stage.parent.name == "teachers" else stage.name
    lines = read_logs(workdir)[name]
    return Log(*([{key: line[key] for key in line if key not in clock} for line in part] for part in lines))


def saved(stage: Path, step: int | None = None, without: str = "-") -> dict[str, np.ndarray]:
    """Read the arrays of a stage's checkpoint, by default of the newest one: parameters, state, optimiser and key.

    Arrays whose names begin with `without` are not read.
    """
    import orbax.checkpoint as ocp

    folder = stage / "checkpoints"
    known = manifests(folder)
    step = max(known) if step is None else step
    names = [name for name in known[step]["arrays"] if not name.startswith(without)]
    wanted = dict.fromkeys(names, ocp.RestoreArgs(restore_type=np.ndarray))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        args = ocp.args.PyTreeRestore(item=dict.fromkeys(names, 0), restore_args=wanted, partial_restore=True)
        return reader.restore(bucket.checkpoints_path(folder) / "steps" / str(step) / "state", args=args)


def differences(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> list[str]:
    """Return the names of arrays that are not the same to the bit."""
    return [
        name
        for name in sorted(a.keys() | b.keys())
        if name not in a or name not in b or _bits(a[name]) != _bits(b[name])
    ]


def _bits(array: np.ndarray) -> tuple[Any, ...]:
    return array.dtype, array.shape, array.tobytes()
