"""Tests of the wheel, used outside the repository with a user's own model, data set, loss and step."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import runs

import jaxdistill

PARTS = '''
"""A user's own parts, in the module of a config."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxdistill import Outputs, Step, Term, from_nnx, make
from jaxdistill.registry import datasets, losses, models, steps


class Network(nnx.Module):
    """It has never heard of jaxdistill: features in, logits out, running statistics and dropout inside."""

    def __init__(self, width, *, rngs):
        self.first, self.second = nnx.Linear(5, width, rngs=rngs), nnx.Linear(width, 3, rngs=rngs)
        self.norm, self.dropout = nnx.BatchNorm(width, rngs=rngs), nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.first(x)))
        return self.second(self.dropout(x)), x


@models.register
def network(width: int):
    def call(module, batch, train, key):
        (module.train if train else module.eval)()
        logits, hidden = module(batch["features"])
        return Outputs(logits=logits, hidden_states=(hidden,))

    return from_nnx(lambda rngs, batch: Network(width, rngs=rngs), call)


class Records(list):
    classes = 3


@datasets.register
def flowers(split: str, noise: float = 0.5):
    draw = np.random.default_rng({"train": 0, "test": 1}[split])
    labels = draw.integers(0, 3, 96)
    features = np.eye(3, 5)[labels] + draw.normal(0, noise, (96, 5))
    return Records({"features": x.astype(np.float32), "label": y} for x, y in zip(features, labels))


@losses.register
def margin(least: float = 1.0):
    """How far the logit of the label falls short of being `least` above the others."""

    def apply(params, state, signals, *, key):
        logits, labels = signals.student.logits, signals.batch["label"]
        own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
        return jnp.maximum(0.0, logits - own + least).sum(-1) - least, state

    return Term(lambda key, signals: ({}, {}), apply)


@steps.register
def repeated(student, teachers, objective, optimizer, times: int = 3):
    """Every batch is learnt from several times."""
    once = steps["offline"](student, teachers, objective, optimizer)

    def update(train_state, frozen, batch):
        for _ in range(times):
            train_state, metrics = once.update(train_state, frozen, batch)
        return train_state, metrics

    return Step(once.init, update, once.streams)


def get_config():
    return make(
        steps=30,
        batch_size=16,
        student={"model": "network(width=4)"},
        teachers={"wide": {"model": "network(width=16)", "steps": 30}},
        objective={"kd": {"term": "kd(temperature=2.0)"}, "margin": {"term": "margin(least=0.5)", "weight": 0.1}},
        step="repeated(times=2)",
        rate=0.01,
        data={"name": "flowers(noise=0.3)"},
        evaluate={"every": 15, "batch_size": 48},
        mesh={"data": 1},
    )
'''

SCRIPT = """
import json
import jaxdistill
import parts

result = jaxdistill.distill(parts.get_config(), "from_python")
sizes = {name: sorted(values.params) for name, values in result.variables.items()}
print(json.dumps({"file": jaxdistill.__file__, "rows": result.rows, "sizes": sizes, "workdir": str(result.workdir)}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel without the network."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(runs.ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def elsewhere(wheel, tmp_path_factory) -> Path:
    """Return a folder outside the repository with the unpacked wheel and the user's files."""
    folder = tmp_path_factory.mktemp("elsewhere")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
    (folder / "parts.py").write_text(PARTS)
    (folder / "script.py").write_text(SCRIPT)
    return folder


def python(elsewhere: Path, *words: str) -> str:
    """Run Python in this folder, with the unpacked wheel first on its path, and return what it printed."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(elsewhere / "installed"),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(elsewhere / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_package_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = next(name for name in names if name.endswith("METADATA"))
        entries = next(name for name in names if name.endswith("entry_points.txt"))
        assert f"Version: {jaxdistill.__version__}\n" in archive.read(metadata).decode()
        assert "jaxdistill = jaxdistill.main:main" in archive.read(entries).decode()
    assert "jaxdistill/py.typed" in names
    assert "jaxdistill/losses/logits/kd.py" in names
    information = f"jaxdistill-{jaxdistill.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"jaxdistill", information}
    assert f"{information}/licenses/LICENSE" in names


def test_the_library_knows_its_version_and_costs_nothing_to_import(elsewhere):
    code = "import sys, jaxdistill; print(jaxdistill.__version__, 'jax' in sys.modules, jaxdistill.__file__)"
    version, jax, file = python(elsewhere, "-c", code).split()
    assert (version, jax) == (jaxdistill.__version__, "False")
    assert Path(file) == elsewhere / "installed" / "jaxdistill" / "__init__.py"


def test_a_user_brings_model_data_loss_and_step_by_command(elsewhere):
    python(elsewhere, "-m", "jaxdistill.main", "--config", "parts.py", "--workdir", "by_command")
    results = runs.results(elsewhere / "by_command")
    assert [row["name"] for row in results["rows"]] == ["teacher wide", "student", "control"]
    assert all(row["accuracy"] > 0.5 for row in results["rows"])
    assert "terms/margin" in runs.log(elsewhere / "by_command" / "student").train[-1]
    assert (elsewhere / "by_command" / "report.html").is_file()


@pytest.mark.slow
def test_a_user_brings_model_data_loss_and_step_from_python(elsewhere):
    said = json.loads(python(elsewhere, "script.py").splitlines()[-1])
    assert Path(said["file"]).is_relative_to(elsewhere)
    assert [row["name"] for row in said["rows"]] == ["teacher wide", "student", "control"]
    assert said["sizes"]["student"] == [
        "first/bias",
        "first/kernel",
        "norm/bias",
        "norm/scale",
        "second/bias",
        "second/kernel",
    ]
    assert said["workdir"] == "from_python"
    by_command = elsewhere / "by_command"
    if by_command.is_dir():  # the other test has run: expect its numbers
        clock = {"latency_ms": 0, "latency_range": []}
        assert [row | clock for row in said["rows"]] == [row | clock for row in runs.results(by_command)["rows"]]
