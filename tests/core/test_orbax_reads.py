"""Tests of reads of checkpoints: damaged files are told apart from a failing machine or network."""

import errno

import pytest

from jaxdistill.core import orbax_reads


def test_a_failing_network_is_no_damage():
    error = type("HttpError", (Exception,), {"__module__": "gcsfs.retry"})("503")

    def fail():
        raise error

    with pytest.raises(type(error)):
        orbax_reads.attempt(fail)


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "x"), MemoryError(), ValueError("UNAVAILABLE: x"), ValueError("UNAUTHENTICATED")]
)
def test_what_is_the_machines_fault_is_raised(error):
    with pytest.raises(type(error)):
        orbax_reads.attempt(lambda: (_ for _ in ()).throw(error))


@pytest.mark.parametrize("error", [FileNotFoundError("x"), ValueError("DATA_LOSS: x"), KeyError("x")])
def test_what_is_the_files_fault_is_told(error):
    problems, result = orbax_reads.attempt(lambda: (_ for _ in ()).throw(error))
    assert result is None and len(problems) == 1 and problems[0].startswith("it cannot be read (")
