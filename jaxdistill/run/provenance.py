"""Where a result comes from: code, versions, device, command."""

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
    """The commit of the code, with "+changes" where the work tree differs; "unknown" outside a repository."""

    def git(*words: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(("git", *words), cwd=here, capture_output=True, text=True, check=True).stdout.strip()

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
    """The command line, as it can be typed again."""
    words = sys.argv[1:]
    program = ["python", "-m", "jaxdistill.main"] if Path(sys.argv[0]).name == "main.py" else ["python", sys.argv[0]]
    return shlex.join([*program, *words])


def provenance(seed: int) -> dict[str, Any]:
    """All of it, as JSON."""
    device = jax.devices()[0]
    return {
        "git": git_hash(),
        "versions": {"python": platform.python_version(), **{package: _version(package) for package in PACKAGES}},
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "processes": jax.process_count(),
        "seed": seed,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": _command(),
    }
