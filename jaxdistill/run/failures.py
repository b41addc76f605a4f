"""Turn whatever a command raises into one line on stderr and an exit code. This is the only place that does so.

0    done, or stopped by a signal and saved
2    a mistake in the config, the command line, the data or the user's own code; no place, memory or package
3    the training diverged: the loss is not finite
4    a file of a run is damaged, and nothing can replace it
5    another process of a run with several processes died
70   a bug of jaxdistill, whose traceback is written to a file
"""

import contextlib
import errno
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxdistill.core.errors import (
    ConfigError,
    DamageError,
    NonFiniteError,
    Stopped,
    WeightsError,
    message_of,
    user_location,
)
from jaxdistill.core.packages import FetchError

BUG, LOST_PROCESS = 70, 5

# What the operating system says of a place that cannot be used; libraries in C++ put only the text into their errors.
PLACES = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the place is read-only",
    errno.EACCES: "the place may not be used by this user",
    errno.EPERM: "the place may not be used by this user",
    errno.EIO: "the disk does not answer",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EMFILE: "too many files are open",
    errno.ELOOP: "a link leads to itself",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EISDIR: "the path is a folder",
    errno.ESTALE: "the network disk does not answer",
}
PLACE_TEXTS = {os.strerror(number): reason for number, reason in PLACES.items()}

# Packages that an extra of jaxdistill brings
EXTRAS = {"transformers": "hf", "tokenizers": "hf", "gguf": "hf", "huggingface_hub": "hf", "wandb": "wandb"}


def run(work: Callable[[], int | None], debug: bool = False, folder: str = "") -> int:
    """Call the function of a command, and return an exit code; whatever the function raises becomes one line.

    Args:
        work: the function; it may return None for exit code 0.
        debug: print the traceback of an error too.
        folder: folder that the command writes to, which also gets the traceback of a bug; empty: a temporary folder.
    """
    try:
        return work() or 0
    except Stopped as stopped:
        _print(f"stopped: {stopped}. The same command resumes it.")
        return 0
    except BrokenPipeError:  # the reader of the output has gone, as in `jaxdistill ... | head`
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        _print("interrupted: what was not saved yet is lost. The same command resumes from the last checkpoint.")
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        code, text = explain(error)
        if code == BUG:
            text += f" The traceback is in {_write_traceback(folder)}; --debug prints it."
        _print(f"error: {text}")
        if _is_distributed():
            _leave(code)
        return code


def explain(error: Exception) -> tuple[int, str]:
    """Return the exit code and the one-line text for an exception.

    Args:
        error: the exception; errors of libraries are recognised by their causes too.
    """
    match error:
        case ConfigError() | WeightsError() | FetchError():
            return 2, _line(error)
        case NonFiniteError():
            return 3, _line(error)
        case DamageError():
            return 4, _line(error)
    if reason := _place(error):
        cure = "Free some space, or choose another place" if "full" in reason else "Choose another place"
        return 2, f"{reason} ({_line(error)}). {cure}; the same command then resumes."
    if _is_lost_process(error):
        cure = "The process that died prints the reason. Start all of them again: they resume from the last checkpoint"
        first = str(error).strip().partition("\n")[0][:200]
        return LOST_PROCESS, f"the processes of this run lost contact ({first}). {cure}."
    if any(isinstance(each, MemoryError) or "RESOURCE_EXHAUSTED" in str(each) for each in _chain(error)):
        cure = "Lower batch_size, raise accumulate, chunks or mesh.fsdp, or choose a smaller model"
        return 2, f"there is not enough memory ({_line(error)}). {cure}."
    if isinstance(error, ImportError) and (package := (error.name or "").partition(".")[0]) in EXTRAS:
        return 2, f"the package {package!r} is missing; pip install 'jaxdistill[{EXTRAS[package]}]'."
    if user_location(error):
        return 2, f"{type(error).__name__}: {message_of(error)}"
    kind = type(error).__name__
    return BUG, f"this is a bug of jaxdistill, please report it ({kind}: {_line(error) or 'no message'})."


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those that caused it, or during whose handling it was raised."""
    seen: BaseException | None = error
    for _ in range(20):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__ or seen.__context__


def _place(error: Exception) -> str:
    """Return what is wrong with a place on a disk, or an empty text if the error has another reason."""
    for each in _chain(error):
        if isinstance(each, OSError) and each.errno in PLACES:
            return PLACES[each.errno]
        for text, reason in PLACE_TEXTS.items():
            if f"{text}]" in str(each) or str(each).endswith(text):  # "... [No space left on device]" of TensorStore
                return reason
    return ""


def _is_distributed() -> bool:
    """Return True in a run with several processes, without starting JAX's backend."""
    if "jax" not in sys.modules:
        return False
    import jax

    return jax.distributed.is_initialized()


def _is_lost_process(error: Exception) -> bool:
    if not _is_distributed():
        return False
    import jax

    return isinstance(error, jax.errors.JaxRuntimeError) and not str(error).startswith("RESOURCE_EXHAUSTED")


def _line(error: BaseException) -> str:
    """Return the message of an error as one line of at most 2,000 characters."""
    return re.sub(r"\s+", " ", str(error)).strip()[:2000]


def _print(text: str) -> None:
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def _write_traceback(folder: str) -> Path:
    name = f"traceback-{os.getpid()}.txt"
    for place in (folder, tempfile.gettempdir()):
        with contextlib.suppress(OSError):
            if place and Path(place).is_dir():
                (Path(place) / name).write_text(f"{' '.join(sys.argv)}\n{traceback.format_exc()}")
                return Path(place) / name
    return Path(os.devnull)


def _leave(code: int) -> None:
    """End this process at once: an ordinary exit would wait for the other processes."""
    sys.stdout.flush()
    os._exit(code)
