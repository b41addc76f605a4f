"""Checkpoints in a bucket instead of a folder of the run; a sealed file in that folder names their address.

    FOLDER/bucket.json      {"address": "gs://bucket/runs/topics-1f2e3d4c/student"}

In a folder Orbax commits a checkpoint by a rename; in a bucket, by writing one object. `etils.epath` reads and writes
the small files there. A copy of a workdir has the address, too: resume only one of them, since two runs that continue
from one address overwrite each other's checkpoints. Tried with Google Cloud Storage's interface (`gs://`), so no other
kind of address is accepted.
"""

import importlib.util
import os
import re
import secrets
import socket
import time
import urllib.parse
from pathlib import Path

from jaxdistill.core import seal
from jaxdistill.core.errors import ConfigError, one_line

POINTER = "bucket.json"
ADDRESS = re.compile(r"gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/[\w./-]*)?", re.ASCII)
WAIT = 90.0  # seconds until all machines that share a disk see a new file; NFS remembers for 60 that it was not there


def point(folder: Path, bucket: str) -> None:
    """Write `bucket.json` with the address of a training's checkpoints, unless it exists or `bucket` is empty.

    Args:
        folder: the folder of the checkpoints, `WORKDIR/STAGE/checkpoints`.
        bucket: address in a bucket that all runs share; each training gets a new folder with a random name below it.
    """
    if not bucket or (folder / POINTER).exists():
        return
    stage = folder.absolute().parent
    workdir = next((parent for parent in stage.parents if (parent / "config.json").is_file()), stage.parent)
    names = [f"{workdir.name}-{secrets.token_hex(4)}", *stage.relative_to(workdir).parts]
    place = "/".join([bucket.rstrip("/"), *(re.sub(r"[^A-Za-z0-9._-]", "_", name) for name in names)])
    seal.write(folder / POINTER, {"address": place})


def wait_for(folder: Path) -> None:
    """Wait until this process sees the file `bucket.json` that process 0 has written on a shared disk.

    Raises:
        ConfigError: the file does not appear within 90 seconds, so the processes do not share the disk.
    """
    end = time.monotonic() + WAIT
    while not (folder / POINTER).exists():
        if time.monotonic() > end:
            problem = f"{folder / POINTER} was written by process 0, and does not appear in another process"
            raise ConfigError("--workdir", f"{problem}. Name a folder that all processes share.")
        time.sleep(1)


def checkpoints_path(folder: Path) -> Path | seal.BucketPath:
    """Return the path of a training's checkpoints: the bucket address in `bucket.json`, or the folder if it has none.

    Raises:
        DamageError: `bucket.json` is damaged.
    """
    try:
        return path(seal.read(folder / POINTER, {"address": str}, required=True)["address"])
    except (FileNotFoundError, NotADirectoryError):
        return folder.absolute()


def path(address: str) -> seal.BucketPath:
    """Return the path object (`etils.epath.Path`) for a bucket address, such as "gs://bucket/runs".

    Raises:
        ConfigError: the package gcsfs is not installed.
    """
    if importlib.util.find_spec("gcsfs") is None:
        cure = "pip install 'jaxdistill[buckets]'"
        raise ConfigError("checkpoints.bucket", f"{address!r} needs the package 'gcsfs'; {cure}.")
    os.environ["EPATH_USE_TF"] = "false"  # the errors of TensorFlow's own client are not known here
    import fsspec.config
    from etils import epath

    # Orbax and other processes write there too: a list of files that is kept would be an old one.
    fsspec.config.conf.setdefault("gs", {})["use_listings_cache"] = False
    return epath.Path(address)


def require_writable(address: str, option: str) -> None:
    """Require that a bucket can be written and read: write a small object, read it, and delete it.

    Args:
        address: address in the bucket, `gs://BUCKET/FOLDER`.
        option: config key with the address, for the error message.

    Raises:
        ConfigError: the address has another form, or the bucket cannot be written and read.
    """
    if not ADDRESS.fullmatch(address):
        raise ConfigError(option, f"{address!r} is not a bucket address; write 'gs://BUCKET/FOLDER'.")
    _require_server(address, option)
    text = secrets.token_hex(8)
    probe = f"{address.rstrip('/')}/.checked-{text}"
    try:
        file = path(probe)
        file.write_text(text)
        echo = file.read_text()
        file.unlink()
    except ConfigError:
        raise
    except Exception as error:  # messages of network libraries and services differ, so any error counts
        cure = "Check its name, the rights (`gcloud auth application-default login`) and the network"
        problem = f"{type(error).__name__}: {one_line(error)[:200]}"
        raise ConfigError(option, f"{address!r} cannot be written and read ({problem}). {cure}.") from None
    if echo != text:
        raise ConfigError(option, f"{address!r} returns other bytes than were written; choose another place.")


def _require_server(address: str, option: str) -> None:
    """Raise a ConfigError if the storage server cannot be reached; gcsfs itself would retry for a minute."""
    text = os.environ.get("STORAGE_EMULATOR_HOST") or "https://storage.googleapis.com"
    server = urllib.parse.urlsplit(text if "://" in text else f"http://{text}")
    host, port = server.hostname or "", server.port or (443 if server.scheme == "https" else 80)
    try:
        socket.create_connection((host, port), timeout=10).close()
    except OSError as error:
        raise ConfigError(option, f"{address!r}: {host} cannot be reached ({error}). Check the network.") from None


def is_network_error(error: BaseException) -> bool:
    """Return True if an error comes from a library that accesses buckets: the network failed, or access was denied."""
    return type(error).__module__.startswith(("aiohttp", "gcsfs", "google.auth", "google.api_core", "requests"))
