"""What the run-level tests share: how to start the tiny run, here or as a command of its own, and how to read what it left."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from jaxdistill import main
from jaxdistill.checkpoint import manifests
from jaxdistill.report.logs import Log, read_log

TINY = Path(__file__).with_name("tiny.py")
ROOT = TINY.parents[1]


def run(workdir: Path, *words: str, config: Path = TINY) -> int:
    """Runs the command line in this process; returns its exit code."""
    return main.run(["--config", str(config), "--workdir", str(workdir), *words])


def spawn(workdir: Path, *words: str, config: Path = TINY, devices: int = 1, **environment: str) -> subprocess.Popen:
    """Starts the command in a process of its own, on virtual devices of its own."""
    variables = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
        **environment,
    }
    command = [sys.executable, "-m", "jaxdistill.main", "--config", str(config), "--workdir", str(workdir), *words]
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def results(workdir: Path) -> dict[str, Any]:
    """`results.json`."""
    return json.loads((workdir / "results.json").read_text())


def log(stage: Path) -> Log:
    """A stage's log without what depends on the clock."""
    clock = ("time", "steps_per_second")
    lines = read_log(stage / "log.jsonl")
    return Log(*([{key: line[key] for key in line if key not in clock} for line in part] for part in lines))


def saved(stage: Path, step: int | None = None) -> dict[str, np.ndarray]:
    """Every array of a stage's checkpoint, by name: parameters, state, optimiser, key; the newest step if none is given."""
    import orbax.checkpoint as ocp

    folder = stage / "checkpoints"
    known = manifests(folder)
    step = max(known) if step is None else step
    wanted = dict.fromkeys(known[step]["arrays"], ocp.RestoreArgs(restore_type=np.ndarray))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        args = ocp.args.PyTreeRestore(restore_args=wanted)
        return reader.restore((folder / "steps" / str(step) / "state").absolute(), args=args)


def differences(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> list[str]:
    """The names whose arrays are not the same to the bit."""
    return [name for name in sorted(a.keys() | b.keys()) if name not in a or name not in b or _bits(a[name]) != _bits(b[name])]


def _bits(array: np.ndarray) -> tuple[Any, ...]:
    return array.dtype, array.shape, array.tobytes()
