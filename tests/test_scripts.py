"""The scripts that take a run to a pod say exactly what they would do, and all start the same command."""

import os
import re
import shlex
import subprocess

import pytest
import runs
import yaml

from jaxdistill import main
from jaxdistill.config import changes, load, override

FOLDER = runs.ROOT / "tpu"
RUN = ("--config", "configs/quickstart.py", "--workdir", "/shared/run")
CHANGED = ("--", "--config.steps=7", "--config.objective.kd.term=kd(temperature=linear(start=8, end=2))")
SLICES = ("--topology", "v5p:4x4x4", "--slices", "3", "--zone", "us-east5-a")
GIVEN = {
    "queued.sh": (*SLICES, *RUN, *CHANGED),
    "gke.sh": (*SLICES, "--cluster", "pods", "--image", "registry/jaxdistill", *RUN, *CHANGED),
    "slurm.sh": ("--nodes", "4", "--gpus", "8", *RUN, *CHANGED),
}
COMMANDS = {
    "queued.sh": ("create", "launch", "watch", "resume", "delete"),
    "slurm.sh": ("launch", "watch", "resume", "delete"),
}
COMMANDS["gke.sh"] = COMMANDS["queued.sh"]
EVERY = [(script, command) for script in GIVEN for command in COMMANDS[script]]


def called(script: str, *words: str) -> subprocess.CompletedProcess:
    """A script's answer, where no tool of a cloud can be found."""
    return subprocess.run([FOLDER / script, *words], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})


def dry(script: str, command: str) -> str:
    answer = called(script, command, "--dry-run", *GIVEN[script])
    assert (answer.returncode, answer.stderr) == (0, "")
    return answer.stdout


@pytest.mark.parametrize(("script", "command"), EVERY)
def test_a_dry_run_prints_what_can_be_typed(script, command):
    printed = dry(script, command)
    plain = printed.partition("<<'YAML'")[0]
    assert plain.strip()
    for line in plain.splitlines():
        assert shlex.split(line)[0] in ("gcloud", "git", "kubectl", "sbatch", "squeue", "scancel", "mkdir", "bash")


def training(text: str) -> list[str]:
    """The words of the one command, taken out of whatever surrounds it, by a shell."""
    found = re.search(r"\S*python -m (jaxdistill\.main .*?\)'?) *(>>|&)", text)
    return shlex.split(found[1])


@pytest.mark.parametrize("script", GIVEN)
@pytest.mark.parametrize("command", ["launch", "resume"])
def test_every_process_runs_the_same_command(script, command):
    printed = dry(script, command)
    lines = printed.splitlines()
    if script != "gke.sh":  # a line is words for one shell, and one of them is a line for another
        lines = [word for line in lines for word in shlex.split(line)]
    started = [training(line) for line in lines if "-m jaxdistill.main" in line]
    assert len(started) == (3 if script == "queued.sh" else 1)  # on each slice by ssh; else the scheduler starts it
    for words in started:
        known, rest = main.parser().parse_known_args(words[1:])
        config = override(load(known.config), changes(rest))
        assert known.workdir == "/shared/run"
        assert (config.steps, config.distributed.coordinator) == (7, "auto")
        assert config.objective.kd.term == CHANGED[2].partition("=")[2]


def test_a_jobset_has_a_job_for_each_slice_and_a_pod_for_each_machine():
    manifest = yaml.safe_load(dry("gke.sh", "launch").partition("<<'YAML'")[2].rpartition("YAML")[0])
    (job,) = manifest["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert (job["replicas"], spec["parallelism"], spec["completions"]) == (3, 16, 16)
    (container,) = spec["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["volumeMounts"][0]["mountPath"] == "/shared/run"
    assert "@" not in re.sub(r"#.*", "", yaml.dump(manifest))


@pytest.mark.parametrize(("finished", "code", "expected"), [(True, 0, 0), (False, 0, 1), (False, 7, 1)])
def test_a_pod_that_was_told_to_stop_is_started_again(finished, code, expected, tmp_path):
    """A run that is stopped and saved ends with 0, which Kubernetes would take for the end."""
    manifest = yaml.safe_load(dry("gke.sh", "launch").partition("<<'YAML'")[2].rpartition("YAML")[0])
    script = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["args"][0]
    script = re.sub(r"\S*python -m jaxdistill\.main .* &", f"(exit {code}) &", script).replace(
        "/shared/run", str(tmp_path)
    )
    if finished:
        (tmp_path / "results.json").touch()
    assert subprocess.run(["bash", "-c", script]).returncode == expected


@pytest.mark.parametrize("script", GIVEN)
def test_a_script_explains_itself(script):
    for words in (("--help",), ()):
        answer = called(script, *words)
        assert answer.returncode == 0
        assert all(command in answer.stdout for command in (*COMMANDS[script], "--dry-run", "--workdir"))


@pytest.mark.parametrize(
    ("script", "words", "said"),
    [
        ("queued.sh", ("fly",), "unknown command fly"),
        ("queued.sh", ("launch", "--dry-run", "--zone", "z", "--config", "x.py"), "--workdir is missing"),
        ("queued.sh", ("create", "--zone", "z", "--topology", "v6e-16"), "write v6e:16x16"),
        ("queued.sh", ("create", "--zone", "z", "--topology", "v6e:4x4", "--slices", "0"), "--slices 0"),
        ("gke.sh", ("create", "--cluster", "c", "--zone", "z", "--topology", "v6e:1x1"), "machines have 4 chips"),
        ("slurm.sh", ("launch", "--gpu", "8"), "unknown option --gpu"),
        ("slurm.sh", ("launch", "--nodes"), "--nodes needs a value"),
    ],
)
def test_a_mistake_is_told_before_anything_is_done(script, words, said):
    answer = called(script, *words)
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: ") and said in answer.stderr and not answer.stdout


def test_the_scripts_can_be_run():
    assert {file.name for file in FOLDER.glob("*.sh") if os.access(file, os.X_OK)} == set(GIVEN)
