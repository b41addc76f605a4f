"""Tests of a wrong config in a process of its own: the same message, and no slow import."""

import os
import subprocess
import sys

import pytest
import runs
from mistakes import MISTAKES


@pytest.mark.parametrize("mistake", ["an unknown key", "an unknown term", "a layer that does not exist"])
def test_a_process_of_its_own_says_the_same(mistake, tmp_path):
    changes, path, value, cure = MISTAKES[mistake]
    process = runs.spawn(tmp_path / "run", *(f"--config.{change}" for change in changes))
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err.startswith(f"error: {path}: ")
    assert err.count("\n") == 1
    assert value in err
    assert cure in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("change", "package"), [("stepss=3", "jax"), ("data.name=nonesuch", "scipy.stats")])
def test_a_mistake_imports_nothing_slow_that_it_does_not_need(change, package):
    """Check what is imported, as a mistake must be told within three seconds (scipy.stats alone takes 0.6)."""
    code = f"""
import sys
from jaxdistill.main import run
assert run(["--config", {str(runs.TINY)!r}, "--workdir", "none", "--config.{change}"]) == 2
sys.exit(int({package!r} in sys.modules))
"""
    environment = {**os.environ, "PYTHONPATH": str(runs.ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
