"""Record the provenance of a result: code, package versions, device and command."""

import datetime
import importlib.metadata
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("jaxdistill", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


def git_hash() -> str:
    """Return the git commit of this code, followed by "+changes" if files have uncommitted changes.

    Return "unknown" outside a git repository.
    """

    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(
            ("git", *arguments), cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _command() -> str:
    """Return the command line of this process, quoted for a shell."""
    programs = {"main.py": ["python", "-m", "jaxdistill.main"], "jaxdistill": ["jaxdistill"]}
    program = programs.get(Path(sys.argv[0]).name, ["python", sys.argv[0]])
    return " ".join(map(_quoted, [*program, *sys.argv[1:]]))


def _quoted(word: str) -> str:
    """Return a word quoted for a shell, in double quotes where that is easier to read."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


def provenance(seed: int) -> dict[str, Any]:
    """Return the provenance of a run's results as a dict: commit, versions, devices, seed, date and command line.

    Args:
        seed: random seed of the run, to be recorded.
    """
    device = jax.devices()[0]
    kind = processor() if device.platform == "cpu" else device.device_kind
    return {
        "git": git_hash(),
        "versions": {"python": platform.python_version(), **{package: _version(package) for package in PACKAGES}},
        "device": f"{jax.device_count()} x {kind} ({device.platform})",
        "processes": jax.process_count(),
        "seed": seed,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": _command(),
    }


def processor() -> str:
    """Return the model name of this machine's processor (CPU)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
