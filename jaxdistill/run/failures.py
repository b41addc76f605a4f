"""Turn whatever the work of a command raises into one line on stderr and an exit code (`exit_codes.py`)."""

import contextlib
import errno
import logging
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxdistill.core.bucket import is_network_error
from jaxdistill.core.errors import (
    ConfigError,
    DamageError,
    NonFiniteError,
    Stopped,
    WeightsError,
    message_of,
    one_line,
    text_of,
    user_location,
)
from jaxdistill.core.packages import FetchError
from jaxdistill.run.exit_codes import BUG, DAMAGED, DIVERGED, INTERRUPTED, LOST_PROCESS, MISTAKE, NO_READER
from jaxdistill.run.own_parts import registered_by_others

# What the operating system says of a place that cannot be used, and the cure. Libraries in C++ put only the text of the
# operating system into their errors.
FREE, ELSEWHERE, AGAIN = "Free some space", "Choose another place", "Check the disk or the network"
PLACES = {
    errno.ENOSPC: ("the disk is full", FREE),
    errno.EDQUOT: ("the disk quota is used up", FREE),
    errno.EROFS: ("the place is read-only", ELSEWHERE),
    errno.EACCES: ("the place may not be used by this user", ELSEWHERE),
    errno.EPERM: ("the place may not be used by this user", ELSEWHERE),
    errno.ENAMETOOLONG: ("the name is too long", ELSEWHERE),
    errno.ELOOP: ("a link leads to itself", ELSEWHERE),
    errno.ENOTDIR: ("a part of the path is a file", ELSEWHERE),
    errno.EEXIST: ("a file stands where a folder is needed", ELSEWHERE),
    errno.EISDIR: ("a folder stands where a file is needed", "Move the folder away"),
    errno.EIO: ("the disk does not answer", AGAIN),
    errno.ESTALE: ("the network disk does not answer", AGAIN),
    errno.EMFILE: ("too many files are open", "Raise the limit by `ulimit -n`"),
}
PLACE_TEXTS = {os.strerror(number): place for number, place in PLACES.items()}

# Packages that an extra of jaxdistill brings
EXTRAS = {"transformers": "hf", "tokenizers": "hf", "gguf": "hf", "huggingface_hub": "hf", "wandb": "wandb"}

# Loggers whose warnings would fill a page
LIBRARIES = ("absl", "datasets", "gcsfs", "google", "huggingface_hub", "transformers")

VERBOSITIES = ("DATASETS_VERBOSITY", "HF_HUB_VERBOSITY", "TRANSFORMERS_VERBOSITY")

# Loggers to which Orbax and JAX write tracebacks of their threads and callbacks; the error is raised all the same
LOGS_OF_THREADS = ("absl", "asyncio", "gcsfs", "jax._src.callback")

# The status in the text of an error of TensorStore; DATA_LOSS is damage
STATUS = re.compile(
    r"\b(ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION|INTERNAL|INVALID_ARGUMENT|NOT_FOUND|OUT_OF_RANGE"
    r"|PERMISSION_DENIED|RESOURCE_EXHAUSTED|UNAUTHENTICATED|UNAVAILABLE|UNKNOWN)\b"
)


def run(work: Callable[[], int | None], debug: bool = False, folder: str = "", stopped: int = 0) -> int:
    """Call the function of a command, and return an exit code; print an exception as one line on stderr.

    Args:
        work: the function; it may return None for exit code 0.
        debug: print the traceback of an error too.
        folder: folder that the command writes to, which also gets the traceback of a bug; empty for a temporary folder.
        stopped: exit code of a command that was stopped by a signal after its state was saved.
    """
    for name in VERBOSITIES:  # read when the library is imported, which sets the level of its loggers
        os.environ.setdefault(name, "warning" if debug else "error")
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.NOTSET if debug else logging.ERROR)
    for name in LOGS_OF_THREADS:
        change = logging.getLogger(name).removeFilter if debug else logging.getLogger(name).addFilter
        change(_has_no_traceback)
    try:
        return work() or 0
    except Stopped as reason:
        _print(f"stopped: {reason}. The same command resumes it.")
        return stopped
    except BrokenPipeError as error:
        if _reads_stdout():
            return _report(error, debug, folder)
        return NO_READER  # as in `jaxdistill ... | head`
    except KeyboardInterrupt:
        _print("interrupted: what was not saved yet is lost.")
        return INTERRUPTED
    except SystemExit as error:
        if user_location(error):  # the user's own code ends Python in the middle of a run
            return _report(error, debug, folder)
        raise
    except BaseException as error:
        return _report(error, debug, folder)


def _has_no_traceback(record: logging.LogRecord) -> bool:
    return not record.exc_info


def _report(error: BaseException, debug: bool, folder: str) -> int:
    """Print an error in one line, and return its exit code; in a run with several processes, end this process."""
    if debug:
        traceback.print_exception(error)
    known = _explain_known(error)
    code, text = known or _explain_unknown(error)
    if known is None:
        text += f" The traceback is in {_write_traceback(error, folder)}; --debug prints it."
    _print(f"error: {text}")
    if _is_distributed():
        _leave(code)
    return code


def _reads_stdout() -> bool:
    """Return False if nobody reads the standard output any more."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        with contextlib.suppress(OSError):  # otherwise Python prints an error when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def explain(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the one-line text for an exception.

    Args:
        error: the exception; errors of libraries are recognised by their causes too.
    """
    return _explain_known(error) or _explain_unknown(error)


def _explain_known(error: BaseException) -> tuple[int, str] | None:
    """Return the exit code and the text for an exception whose reason is known; None if it may be a bug."""
    match error:
        case ConfigError() | WeightsError() | FetchError():
            return MISTAKE, _line(error)
        case NonFiniteError():
            return DIVERGED, _line(error)
        case DamageError():
            return DAMAGED, _line(error)
    if place := _place(error):
        reason, cure = place
        goes_on = "" if cure == ELSEWHERE else "; the same command then goes on"
        return MISTAKE, f"{reason} ({_line(error)[:300]}). {cure}{goes_on}."
    if _is_lost_process(error):
        cure = "The process that died prints the reason. Start all of them again: they resume from the last checkpoint"
        first = text_of(error).strip().partition("\n")[0][:200]
        return LOST_PROCESS, f"the processes of this run lost contact ({first}). {cure}."
    if unreached := next((each for each in _chain(error) if _is_of_bucket(each)), None):
        cure = "Check the network and the rights; the same command then goes on"
        return MISTAKE, f"the bucket does not answer ({_line(unreached)}). {cure}."
    if any(isinstance(each, MemoryError) or "RESOURCE_EXHAUSTED" in text_of(each) for each in _chain(error)):
        cure = "Lower batch_size, raise accumulate, chunks or mesh.fsdp, or choose a smaller model"
        return MISTAKE, f"there is not enough memory ({_line(error)}). {cure}."
    if isinstance(error, ImportError) and (package := (error.name or "").partition(".")[0]) in EXTRAS:
        return MISTAKE, f"the package {package!r} is missing; pip install 'jaxdistill[{EXTRAS[package]}]'."
    if "Could not determine home directory" in text_of(error):
        return MISTAKE, "a path begins with '~', and there is no such user or home folder; write the whole path."
    if user_location(error):
        if "Traceback (most recent call last)" in text_of(error):  # of a callback, in the text of the error
            return MISTAKE, f"{_line(error)}{user_location(error)}"
        has_text = bool(text_of(error).strip())  # else its message is the name of its type
        return MISTAKE, f"{type(error).__name__}: {message_of(error)}" if has_text else message_of(error)
    return None


def _explain_unknown(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the text for an exception that is probably a bug.

    The text blames the parts (losses, models, ...) that the user's own code registers, or jaxdistill if there are none.
    """
    what = f"{type(error).__name__}: {_line(error) or 'no message'}"
    if names := registered_by_others():
        cure = (
            f"Check what your own code takes and returns: {', '.join(names)}; if it is right, this is a bug, report it"
        )
        return MISTAKE, f"{what}. {cure}."
    return BUG, f"this is a bug of jaxdistill, please report it ({what})."


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those that caused it, or during whose handling it was raised."""
    seen: BaseException | None = error
    for _ in range(20):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def _place(error: BaseException) -> tuple[str, str] | None:
    """Return what is wrong with a place on a disk, and the cure; None if the error has another reason."""
    for each in _chain(error):
        if isinstance(each, OSError) and each.errno in PLACES:
            return PLACES[each.errno]
        message = text_of(each)
        for text, place in PLACE_TEXTS.items():
            if text in message:
                return place
    return None


def _is_of_bucket(error: BaseException) -> bool:
    """Return True for a network error, or an error of TensorStore in which a bucket (gs://) reports a failure."""
    return is_network_error(error) or ("gs://" in text_of(error) and bool(STATUS.search(text_of(error))))


def _is_distributed() -> bool:
    """Return True in a run with several processes, without starting JAX's backend."""
    if "jax" not in sys.modules:
        return False
    import jax

    return jax.distributed.is_initialized()


def _is_lost_process(error: BaseException) -> bool:
    if not _is_distributed():
        return False
    import jax

    return isinstance(error, jax.errors.JaxRuntimeError) and not text_of(error).startswith("RESOURCE_EXHAUSTED")


def _line(error: BaseException) -> str:
    lines = text_of(error).strip().splitlines()
    if any(line.startswith("Traceback (most recent call last)") or line.endswith("call last):") for line in lines):
        return lines[-1]  # the error in the callback, after the lines of its traceback
    return one_line(error)[:2000]


def _print(text: str) -> None:
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def _write_traceback(error: BaseException, folder: str) -> Path:
    name = f"traceback-{os.uname().nodename}-{os.getpid()}.txt"  # machines of a run share the folder
    for place in (folder, tempfile.gettempdir()):
        with contextlib.suppress(OSError):
            if place and Path(place).is_dir():
                text = "".join(traceback.format_exception(error))
                (Path(place) / name).write_text(
                    f"{' '.join(sys.argv)}\n{text}", encoding="utf-8", errors="backslashreplace"
                )
                return Path(place) / name
    return Path(os.devnull)


def _leave(code: int) -> None:
    """End this process at once: an ordinary exit would wait for the other processes."""
    sys.stdout.flush()
    os._exit(code)
