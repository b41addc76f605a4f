"""Tests of the scripts that start a run on a cluster: dry runs, equal commands for all processes, stops and resumes."""

import os
import re
import shlex
import subprocess
import time

import pytest
import runs
import yaml

from jaxdistill.run.commands import train
from jaxdistill.run.config import override, parse_changes
from jaxdistill.run.config_files import load_config

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


FAKE = r"""#!/bin/bash
echo "$*" | grep -oE "\b(delete|create|ssh)\b" | head -n 1 >> "$FOLDER/noted"
case $* in *describe*) ;; *) exit 0 ;; esac
now=$(head -n 1 "$FOLDER/states")
[ "$(wc -l < "$FOLDER/states")" -eq 0 ] || sed -i 1d "$FOLDER/states"
case $now in
    NONE) echo "ERROR: NOT_FOUND" >&2; exit 1 ;;
    EXPIRED_LOGIN) echo "ERROR: please log in" >&2; exit 1 ;;
    *) echo "$now" ;;
esac
"""


def called(script: str, *words: str) -> subprocess.CompletedProcess:
    """Run a script with a PATH that lacks the tools of all clouds, and return the completed process."""
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
    """Return the arguments of the training command in a text, split as by a shell."""
    found = re.search(r"\S*python -m (jaxdistill\.main .*?\)'?) *(>>|&)", text)
    return shlex.split(found[1])


@pytest.mark.parametrize("script", GIVEN)
@pytest.mark.parametrize("command", ["launch", "resume"])
def test_every_process_runs_the_same_command(script, command):
    printed = dry(script, command)
    lines = printed.splitlines()
    if script != "gke.sh":  # a command for another shell is one word of its line
        lines = [word for line in lines for word in shlex.split(line)]
    started = [training(line) for line in lines if "-m jaxdistill.main" in line]
    assert len(started) == (3 if script == "queued.sh" else 1)  # ssh starts each slice
    for words in started:
        known, rest = train.parser().parse_known_args(words[1:])
        config = override(load_config(known.config), parse_changes(rest))
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


def pods_script(instead: str, workdir) -> str:
    """Return the shell script that a pod runs, with another command in place of the training."""
    manifest = yaml.safe_load(dry("gke.sh", "launch").partition("<<'YAML'")[2].rpartition("YAML")[0])
    script = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["args"][0]
    replaced = re.sub(r"\S*python -m jaxdistill\.main .* &", lambda match: f"{instead} &", script)
    return replaced.replace("/shared/run", str(workdir))


@pytest.mark.parametrize(("finished", "code", "expected"), [(True, 0, 0), (False, 0, 1), (False, 7, 1), (False, 2, 2)])
def test_a_pod_that_was_stopped_is_started_again_and_one_with_a_mistake_is_not(finished, code, expected, tmp_path):
    """Check that a stopped run gives Kubernetes a failure to retry, although it ends with 0 like a finished one."""
    if finished:
        (tmp_path / "results.json").touch()
    assert subprocess.run(["bash", "-c", pods_script(f"(exit {code})", tmp_path)]).returncode == expected


def test_a_pod_that_is_told_to_stop_tells_its_run_and_waits_for_it(tmp_path):
    saving = (
        f"bash -c 'trap \"sleep 0.5; touch {tmp_path}/saved; exit 0\" TERM; touch {tmp_path}/begun; sleep 60 & wait'"
    )
    with subprocess.Popen(["bash", "-c", pods_script(saving, tmp_path)]) as pod:
        while not (tmp_path / "begun").exists():
            time.sleep(0.05)
        pod.terminate()
        assert pod.wait(30) == 1
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    ("states", "code", "done"),
    [
        (["ACTIVE"], 0, ["ssh"]),
        (["WAITING_FOR_RESOURCES", "ACTIVE"], 0, ["ssh"]),
        (["SUSPENDED", "ACTIVE"], 0, ["delete", "create", "ssh"]),
        (["NONE", "ACTIVE"], 0, ["create", "ssh"]),
        (["FAILED", "FAILED"], 2, ["delete", "create"]),
        (["EXPIRED_LOGIN"], 2, []),
    ],
)
def test_a_resume_takes_away_only_what_is_gone_already(states, code, done, tmp_path):
    """Check what is deleted and created, by a fake `gcloud` that reports the given states, the last one for ever."""
    (tmp_path / "states").write_text("\n".join(states))
    (tmp_path / "gcloud").write_text(FAKE)
    (tmp_path / "git").write_text("#!/bin/sh\n")
    for file in ("gcloud", "git"):
        (tmp_path / file).chmod(0o755)
    surroundings = {"PATH": f"{tmp_path}:/usr/bin:/bin", "POLL": "0", "FOLDER": str(tmp_path)}
    words = ("resume", *SLICES[:2], *SLICES[4:], *RUN)
    answer = subprocess.run([FOLDER / "queued.sh", *words], capture_output=True, text=True, env=surroundings)
    assert answer.returncode == code, answer.stderr
    noted = tmp_path / "noted"
    told = noted.read_text().split() if noted.exists() else []
    assert [word for word in dict.fromkeys(told) if word in ("delete", "create", "ssh")] == done


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
