"""Checkpoints in a bucket instead of a folder of the run; a sealed file in that folder names their address.

    FOLDER/bucket.json      {"address": "gs://bucket/runs/topics-1f2e3d4c/student"}

What Orbax commits by a rename in a folder, it commits by an object in a bucket; `etils.epath` reads and writes the
small files there. Tried with Google Cloud Storage's interface (`gs://`), so no other kind of address is accepted.
"""

import re
import secrets
from pathlib import Path

from jaxdistill.core import seal
from jaxdistill.core.errors import ConfigError, one_line

POINTER = "bucket.json"
ADDRESS = re.compile(r"gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/[^\s]*)?")


def point(folder: Path, bucket: str) -> None:
    """Write the file that names where the checkpoints of a folder lie, unless there is one; no bucket: do nothing.

    Args:
        folder: the folder of the checkpoints, `WORKDIR/STAGE/checkpoints`.
        bucket: address that the runs share; each training gets a new place below it.
    """
    if bucket and not (folder / POINTER).exists():
        *_, workdir, stage = folder.absolute().parent.parts
        place = f"{bucket.rstrip('/')}/{workdir}-{secrets.token_hex(4)}/{stage}"
        seal.write(folder / POINTER, {"address": place})


def place(folder: Path) -> Path | seal.BucketPath:
    """Return where the checkpoints of a folder lie: in the bucket that its `bucket.json` names, or in the folder.

    Raises:
        DamageError: `bucket.json` is damaged.
    """
    try:
        return path(seal.read(folder / POINTER, {"address": str}, required=True)["address"])
    except FileNotFoundError:
        return folder.absolute()


def path(address: str) -> seal.BucketPath:
    """Return the path of an address in a bucket."""
    import fsspec.config
    from etils import epath

    # Orbax and other processes write there too: a list of files that is kept would be an old one.
    fsspec.config.conf.setdefault("gs", {})["use_listings_cache"] = False
    return epath.Path(address)


def check(address: str, option: str) -> None:
    """Check that a bucket can be written and read, by one small object.

    Args:
        address: address in the bucket.
        option: config key that names it, for the error message.

    Raises:
        ConfigError: it is no such address, or the bucket cannot be written and read.
    """
    if not ADDRESS.fullmatch(address):
        raise ConfigError(option, f"{address!r} is no address of a bucket; write 'gs://BUCKET/FOLDER'.")
    text = secrets.token_hex(8)
    probe = f"{address.rstrip('/')}/.checked-{text}"
    try:
        file = path(probe)
        file.write_text(text)
        found = file.read_text()
        file.unlink()
    except ImportError:
        cure = "pip install 'jaxdistill[buckets]', or leave it empty"
        raise ConfigError(option, f"{address!r} needs the package 'gcsfs'. {cure}.") from None
    except Exception as error:  # of a library of the network, or of the service, each in its own words
        cure = "Check its name, the rights (`gcloud auth application-default login`) and the network"
        problem = f"{type(error).__name__}: {one_line(error)[:200]}"
        raise ConfigError(option, f"{address!r} cannot be written and read ({problem}). {cure}.") from None
    if found != text:
        raise ConfigError(option, f"{address!r} gives back another text than was written; choose another place.")


def is_bucket_error(error: BaseException) -> bool:
    """Return True for an error of the libraries that reach a bucket."""
    return type(error).__module__.startswith(("aiohttp", "gcsfs", "google.auth", "google.api_core")) or "gs://" in str(
        error
    )
