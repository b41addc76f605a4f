"""Check that any error of a command becomes one line and an exit code, and that a bug of ours keeps its traceback."""

import errno
import functools
import logging
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import runs

import jaxdistill.main
from jaxdistill.core.errors import BadStartError, ConfigError, DamageError, NonFiniteError, Stopped, WeightsError
from jaxdistill.core.packages import FetchError
from jaxdistill.run import failures
from jaxdistill.run.commands import cli
from jaxdistill.run.exit_codes import DIVERGED, MISTAKE


def told(error: BaseException, capsys, **options) -> tuple[int, str]:
    """Return the exit code and stderr of a command that raises this error."""

    def work():
        raise error

    code = failures.run(work, **options)
    return code, capsys.readouterr().err


FULL = OSError(errno.ENOSPC, "No space left on device", "runs/x/log.jsonl")
LATER = ValueError(
    "RESOURCE_EXHAUSTED: Error writing: Failed to write 9 bytes: No space left on device [os_error_code='28']"
)
TENSORSTORE = ValueError('RESOURCE_EXHAUSTED: Error writing local file "x" [OS error 28: No space left on device]')


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("a.b", "is wrong."), 2, "error: a.b: is wrong."),
        (WeightsError("x has no y"), 2, "error: x has no y"),
        (FetchError("no network"), 2, "error: no network"),
        (NonFiniteError("student: kd is nan at step 3"), 3, "error: student: kd is nan at step 3"),
        (DamageError("x has changed"), 4, "error: x has changed"),
        (Stopped("saved at step 3"), 0, "stopped: saved at step 3. The same command resumes it."),
        (KeyboardInterrupt(), 130, "interrupted: what was not saved yet is lost."),
        (BrokenPipeError(), 2, "error: BrokenPipeError"),
        (FULL, 2, "error: the disk is full ([Errno 28] No space left on device: 'runs/x/log.jsonl'). Free some space"),
        (TENSORSTORE, 2, "error: the disk is full (RESOURCE_EXHAUSTED: Error writing local file"),
        (LATER, 2, "error: the disk is full (RESOURCE_EXHAUSTED: Error writing"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), 2, "error: the place is read-only"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "error: the place may not be used by this user"),
        (MemoryError("Unable to allocate 7 TiB"), 2, "error: there is not enough memory (Unable to allocate 7 TiB)."),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes"),
            2,
            "error: there is not enough memory (RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes). Lower",
        ),
        (
            ModuleNotFoundError("No module", name="transformers.x"),
            2,
            "the package 'transformers' is missing; pip install",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_an_error_is_one_line_with_its_exit_code(error, code, said, capsys):
    found, text = told(error, capsys)
    assert found == code and said in text
    assert text.count("\n") == bool(text) and "Traceback" not in text


def test_a_cause_is_recognised_below_another_error(capsys):
    error = RuntimeError("saving failed")
    error.__cause__ = FULL
    cure = "Free some space; the same command then goes on."
    assert told(error, capsys) == (2, f"error: the disk is full (saving failed). {cure}\n")


def test_an_error_during_the_handling_of_another_has_its_reason(capsys):
    def raised(cut: bool):
        try:
            raise FULL
        except OSError:
            if cut:
                raise RuntimeError("saving failed") from None
            raise RuntimeError("saving failed")  # noqa: B904  (that is what is tested)

    for cut, is_known in ((False, True), (True, False)):
        with pytest.raises(RuntimeError) as error:
            raised(cut)
        assert (failures._explain_known(error.value) or (0, ""))[1].startswith("the disk is full") == is_known


def test_a_stopped_part_of_a_study_has_its_own_exit_code(capsys):
    def work():
        raise Stopped("saved at step 3")

    assert failures.run(work, stopped=75) == 75


def ours():
    """Raise an error in our own code, as a bug would."""
    failures.explain(None, None)  # type: ignore[call-arg]


def test_a_bug_of_ours_says_so_and_where_its_traceback_lies(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(failures, "registered_by_others", list)
    monkeypatch.setattr(failures, "user_location", lambda error: "")
    assert failures.run(ours, folder=str(tmp_path)) == 70
    said = capsys.readouterr().err
    (file,) = tmp_path.glob("traceback-*.txt")
    assert said.startswith("error: this is a bug of jaxdistill, please report it (TypeError: ")
    assert said.endswith(f" The traceback is in {file}; --debug prints it.\n") and said.count("\n") == 1
    assert "in ours" in file.read_text() and "TypeError" in file.read_text()
    assert failures.run(ours, debug=True, folder=str(tmp_path / "none")) == 70
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_beside_own_parts_an_unknown_error_names_them_first(monkeypatch):
    monkeypatch.setattr(failures, "registered_by_others", lambda: ["loss mine (config_x)"])
    code, said = failures.explain(TypeError("bad"))
    cure = "Check what your own code takes and returns: loss mine (config_x); if it is right, this is a bug, report it."
    assert (code, said) == (2, f"TypeError: bad. {cure}")


def test_a_mistake_in_code_of_the_users_names_file_and_line(capsys):
    code, said = told(ZeroDivisionError("division by zero"), capsys)
    assert code == 2 and said.startswith("error: ZeroDivisionError: division by zero (test_failures.py, line ")


OWN = """
import numpy as np
import jax.numpy as jnp
from jaxdistill import make
from jaxdistill.registry import datasets, losses
from jaxdistill.losses.term import stateless

class Rows:
    classes = 4
    def __len__(self):
        return 64
    def __getitem__(self, i):
        if i == 40 and {reading}:
            raise OSError("row 40 is gone")
        return {{"image": np.zeros((8, 8, 1), np.float32), "label": i % 4}}

@datasets.register
def rows(split):
    return Rows()

@losses.register
def mine():
    def values(signals):
        if {losing}:
            raise RuntimeError("no such thing")
        return jnp.square(signals.student.logits).sum(-1)
    return stateless(values)

def get_config():
    return make(steps=2, batch_size=8, data={{"name": "rows"}}, objective={{"mine": {{}}}}, control=False,
        student={{"model": "mlp(widths=(4,), classes=4)"}})
"""


@pytest.mark.parametrize(("what", "line", "kind"), [("reading", 14, "OSError"), ("losing", 25, "RuntimeError")])
def test_own_data_and_own_losses_that_fail_are_named(what, line, kind, tmp_path, capsys):
    file = tmp_path / "own.py"
    file.write_text(OWN.format(**{"reading": False, "losing": False} | {what: True}))
    with runs.registries_as_found():
        assert runs.run(tmp_path / "run", source=file) == 2
    said = capsys.readouterr().err
    assert said.endswith(f"(own.py, line {line})\n") and kind in said and "Traceback" not in said


def test_a_start_that_is_not_finite_is_a_mistake_and_no_divergence():
    assert failures.explain(BadStartError("objective.kd", "is nan at step 1"))[0] == MISTAKE
    assert failures.explain(NonFiniteError("kd is nan at step 9"))[0] == DIVERGED


def test_the_command_knows_debug(capsys, monkeypatch):
    monkeypatch.setattr(cli, "load_config", lambda *_: ours())
    parser = cli.parser("train", "", "")
    assert cli.run_command(parser, ["--config", "x.py", "--debug"], lambda options, config: 0) in (2, 70)
    assert "Traceback" in capsys.readouterr().err


def test_the_reader_of_the_output_may_go(tmp_path):
    """Check that a closed pipe gives no traceback, as in `jaxdistill train --help | head -1`."""
    command = [sys.executable, "-m", "jaxdistill.main", "train", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_that_may_not_be_written_is_refused_before_any_work(tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert runs.run(tmp_path / "run") == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [("train", "--config", str(runs.ROOT / "configs" / "quickstart.py"), "--workdir"), ("compare", "run", "--out")],
)
def test_a_bucket_is_no_folder(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert jaxdistill.main.run([*words, "gs://bucket/run"]) == 2
    message = capsys.readouterr().err
    assert "'gs:/bucket/run' is an address of a bucket. Give a folder of a file system that all machines" in message
    assert message.count("\n") == 1 and not (tmp_path / "gs:").exists()


def test_a_full_disk_is_named(tmp_path, capsys):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    assert runs.run(tmp_path / "run") == 0
    capsys.readouterr()
    log = tmp_path / "run" / "student" / "log.jsonl"
    log.unlink()
    log.symlink_to("/dev/full")
    (tmp_path / "run" / "student" / "result.json").unlink()
    assert runs.run(tmp_path / "run", "--config.steps=60", "--config.control=False") == 2
    said = capsys.readouterr().err
    assert "--workdir: " in said or "the disk is full" in said


@pytest.mark.parametrize("debug", [False, True])
def test_tracebacks_of_threads_are_printed_for_debugging_alone(debug, caplog):
    def work():
        try:
            raise ValueError("in a thread of Orbax")
        except ValueError:
            logging.getLogger("absl").exception("a thread has failed")
        logging.getLogger("absl").error("without a traceback")

    assert failures.run(work, debug=debug) == 0
    assert [record.getMessage() for record in caplog.records] == ["a thread has failed"] * debug + [
        "without a traceback"
    ]


def test_own_code_that_ends_python_is_a_mistake_but_an_end_of_the_command_line_is_none(capsys, tmp_path):
    (tmp_path / "mine.py").write_text("\ndef work():\n    raise SystemExit(0)\n")
    sys.path.insert(0, str(tmp_path))
    try:
        import mine
    finally:
        sys.path.remove(str(tmp_path))
    assert failures.run(mine.work) == 2
    assert capsys.readouterr().err == "error: SystemExit: 0 (mine.py, line 3)\n"
    with pytest.raises(SystemExit):
        failures.run(functools.partial(cli.parser("x", "").parse_args, ["--nonesuch"]))


def test_an_error_that_cannot_say_what_it_is_is_explained():
    class Silent(Exception):
        def __str__(self):
            raise RuntimeError

    assert failures._explain_known(Silent()) is None
    assert "no message" in failures.explain(Silent())[1]


def test_an_argument_that_is_not_utf_8_is_refused(capsys):
    assert jaxdistill.main.run(["train", "--config.title=bad\udcff"]) == 2
    assert capsys.readouterr().err == "error: the argument '--config.title=bad\\udcff' is not UTF-8. Write it again.\n"


def test_a_text_of_a_config_is_unicode():
    with pytest.raises(ConfigError, match="is not text that UTF-8 can express"):
        jaxdistill.make(title="bad\ud800")


def test_a_place_that_must_change_is_no_matter_of_repeating():
    assert failures.explain(OSError(errno.EROFS, "Read-only file system"))[1].endswith("Choose another place.")
    assert failures.explain(OSError(errno.ENOSPC, "No space left"))[1].endswith("; the same command then goes on.")
