"""Tests of the command `sweep`: cluster scripts, single runs, divergence, changed parts of one's own, exit codes."""

import io
import re
import shlex
from pathlib import Path

import pytest
import runs
from rich.console import Console
from tiny_study import OWN, QUIET, ROW, TERMS, study

from jaxdistill import main
from jaxdistill.core.errors import BadStartError, ConfigError, NonFiniteError
from jaxdistill.core.manifest import CheckpointError
from jaxdistill.run.commands import sweep
from jaxdistill.run.study import expand
from jaxdistill.run.study import runs as runs_of


def test_the_script_of_a_cluster_runs_teachers_then_every_run_then_the_table(tmp_path):
    """Check the jobs that the script submits, by a fake `sbatch` that writes down its arguments."""
    asked = tmp_path / "asked"
    (tmp_path / "sbatch").write_text(f'#!/bin/bash\nprintf "%q " "$@" >> {asked}; echo >> {asked}; echo 7\n')
    (tmp_path / "sbatch").chmod(0o755)
    (tmp_path / "study.sh").write_text(sweep.slurm_script(study(), Path("runs/it's"), 2))
    command = ["bash", str(tmp_path / "study.sh"), "--time=1:00"]
    runs.subprocess.run(command, check=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True)
    jobs = [shlex.split(line) for line in asked.read_text().splitlines()]
    assert [job[-3:-2] for job in jobs] == [["--time=1:00"], ["--array=0-9"], ["--dependency=afterany:7"]]
    assert "--dependency=afterok:7" in jobs[1] and all(
        job[:3] == ["--parsable", "--job-name=tiny", "--time=1:00"] for job in jobs
    )
    plain = ["python", "-m", "experiments.tiny", "--workdir", "runs/it's", "--seeds", "2"]
    told = [shlex.split(job[-1]) for job in jobs]
    assert told == [[*plain, "--run", "teachers"], [*plain, "--run", "$SLURM_ARRAY_TASK_ID"], plain]


def test_the_script_of_the_command_sweep_says_what_the_command_said(tmp_path, monkeypatch, capsys):
    """Check that the arguments of a job, given to the command again, make the same study."""
    seen = []
    monkeypatch.setattr(sweep, "check_arms", seen.append)
    monkeypatch.chdir(tmp_path)
    words = ["--config", str(runs.TINY), "--axis", "objective.kd.term", "kd(temperature=2.0)", "reverse_kl()"]
    words += ["--workdir", "it's", "--seeds", "2", "--slurm", "--config.steps=8"]
    assert main.run(["sweep", *words]) == 0
    job = re.search(r"teachers=.* --wrap (.*)\)", capsys.readouterr().out)[1]
    python, module, name, *again = shlex.split(*shlex.split(job))
    assert [python, module, name] == ["python", "-m", "jaxdistill.main"]
    assert again[-2:] == ["--run", "teachers"]
    assert again[again.index("--seeds") + 1] == "2"
    assert main.run([*again[:-2], "--slurm"]) == 0
    assert seen[0] == seen[1] and len(expand(seen[0])) == 2
    assert seen[0].base.steps == 8


def test_one_run_is_told_by_its_number(tmp_path, monkeypatch):
    learnt = []
    monkeypatch.setattr(sweep, "train_teachers", lambda *words: {})
    monkeypatch.setattr(sweep, "run_one", lambda run, console: learnt.append((run.arm, run.seed)))
    read = lambda *words: sweep.parser("tiny", "").parse_args(["--workdir", str(tmp_path), "--seeds", "2", *words])
    sweep.execute(study(), read("--run", "6"))
    assert learnt == [(f"{TERMS[0]} | many", 1)]
    with pytest.raises(ConfigError, match="--run: '10' is not a run; choose 'teachers' or 0 to 9"):
        sweep.execute(study(), read("--run", "10"))


def test_a_run_that_diverges_is_left_out_and_a_bad_start_is_a_mistake(tmp_path, monkeypatch):
    small = study(axes={"objective.kd.term": TERMS}, baseline=TERMS[0], further={})
    first, second = runs_of(small, tmp_path, 1, {})
    ended = {first.folder: NonFiniteError("the loss is NaN at step 3"), second.folder: None}

    def run(config, folder, source):
        if ended[folder] is not None:
            raise ended[folder]
        return [ROW]

    monkeypatch.setattr(sweep, "run_or_resume", run)
    said = io.StringIO()
    sweep.run_all([first, second], Console(file=said, width=40))
    assert f"{first.arm}, seed 0: left out, the loss is NaN at step 3\n" in said.getvalue()
    assert f"{second.arm}, seed 0: 50.00 %\n" in said.getvalue()
    monkeypatch.setattr(sweep, "train_teachers", lambda *words: {})
    ended[first.folder] = BadStartError("objective.kd.term", "is NaN before the first update.")
    said, pages = io.StringIO(), []
    monkeypatch.setattr(sweep.pages, "write", lambda workdir: pages.append(workdir) or [])
    with pytest.raises(BadStartError):
        sweep.run_study(small, tmp_path, 1, Console(file=said, width=40))
    assert f"{second.arm}, seed 0: 50.00 %\n" in said.getvalue(), "the other arms go on"
    assert pages == [tmp_path], "and have their page"
    ended = {first.folder: NonFiniteError("x"), second.folder: NonFiniteError("the loss is infinite")}
    with pytest.raises(NonFiniteError, match="every run diverged, and nothing can be compared"):
        sweep.run_study(small, tmp_path, 1, QUIET)


def test_a_study_does_not_mix_runs_of_two_versions_of_a_loss(tmp_path, capsys):
    """Check that `sweep` stops, like `train`, if a loss of one's own has changed: a table would mix two versions."""
    (tmp_path / "mine.py").write_text(OWN)
    words = ["sweep", "--config", str(tmp_path / "mine.py"), "--axis", "rate", "0.1", "0.01", "--seeds", "1"]
    words += ["--workdir", str(tmp_path / "study"), "--config.steps=2"]
    with runs.registries_as_found():
        assert main.run([*words, "--run", "0"]) == 0
    (copy,) = (tmp_path / "study").rglob("mine.py")
    assert copy.read_text() == OWN
    (tmp_path / "mine.py").write_text(OWN.replace("0.1", "0.2"))
    capsys.readouterr()
    with runs.registries_as_found():
        assert main.run(words) == 2
    assert "registers loss mine, and was changed since the run in" in capsys.readouterr().err


def test_the_number_of_seeds_and_the_folder_are_those_that_were_asked_for(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(sweep, "check_arms", lambda study: None)
    monkeypatch.setattr(sweep, "run_study", lambda study, workdir, seeds, console: asked.append((workdir, seeds)))
    sweep.execute(study(), sweep.parser("tiny", "").parse_args(["--workdir", str(tmp_path), "--seeds", "2"]))
    assert asked == [(tmp_path, 2)]


@pytest.mark.parametrize(("error", "code"), [(ConfigError("a.b", "x"), 2), (CheckpointError("x"), 4)])
def test_an_error_of_a_study_has_its_exit_code(error, code):
    def fails():
        raise error

    assert sweep.guarded(fails) == code


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--axis", "steps", "2", "2"], "--axis steps: '2' is given twice; arms must differ"),
        (["--axis", "steps", "2", "--axis", "steps", "3"], "--axis steps: 'steps' is given twice"),
        (["--axis", "steps"], "--axis steps: has no values. Give them after the key"),
        (["--axis", "seed", "1", "2"], "--axis seed: each arm is run with seeds 0, 1, ...; use --seeds"),
        (["--axis", "steps", "2", "--config.steps=9"], "--axis steps: --config.steps sets the same key"),
        (["--axis", "steps", "2", "--seeds", "0"], "--seeds: 0 seeds; give 1 to 10000"),
        (["--axis", "steps", "2", "--seeds", "1000000000"], "--seeds: 1000000000 seeds"),
        (["--axis", "steps", "2", "--slurm", "--run", "1"], "--run: one run is executed, and --slurm prints"),
        (["--axis", "data.train", "train", "trainn"], "data.train: 'blobs' has no split 'trainn'"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused_before_anything_is_trained(words, said, tmp_path, capsys):
    with runs.registries_as_found():
        assert main.run(["sweep", "--config", str(runs.TINY), "--workdir", str(tmp_path / "study"), *words]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.rglob("checkpoints"))
