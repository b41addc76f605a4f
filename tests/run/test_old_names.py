"""Check that code for commit 0e6ba41, with an older layout of modules, still works or is told what replaced it.

golden/modules_0e6ba41.txt lists the modules of that commit, and golden/config_0e6ba41.json is a record that it wrote.
`make same` resumes its workdirs and reads its caches.
"""

import importlib
import re
import subprocess
import sys

import pytest
import runs

from jaxdistill.core.registry import losses
from jaxdistill.run import config, config_files
from jaxdistill.run.old_names import ALIASES, successor

GOLDEN = runs.ROOT / "tests" / "golden"
MODULES = [line.partition(" ") for line in (GOLDEN / "modules_0e6ba41.txt").read_text().splitlines()]


@pytest.mark.parametrize(("name", "new"), [(name, new) for name, _, new in MODULES])
def test_a_module_is_there_or_its_successor_is_named(name, new):
    try:
        module = importlib.import_module(name)
        if not hasattr(module, "__file__"):  # a removed folder: its names say what replaced them
            module.anything  # noqa: B018
    except ModuleNotFoundError as error:
        (named,) = re.findall(rf"^{re.escape(name)} is (\S+) now", str(error))
        assert named == new
        assert importlib.import_module(named).__file__
    else:
        assert not new and (module.__file__ or name in ALIASES)


def test_an_invented_module_has_no_successor():
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'jaxdistill\.nowhere'"):
        importlib.import_module("jaxdistill.nowhere")
    assert not successor("jaxdistill.losses.nowhere")


def test_a_config_file_of_then_loads(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from jaxdistill import registry\n"
        "from jaxdistill.config import choose, differ, load, make\n"
        "from jaxdistill.registry import losses\n"
        "assert registry.losses is losses and load\n"
        "def get_config(name='a'):\n"
        "    return choose(name, {'a': differ(make(seed=3), steps=7)})\n"
    )
    loaded = config_files.load_config(f"{file}:a")
    assert (loaded.seed, loaded.steps) == (3, 7)
    assert importlib.import_module("jaxdistill.registry").losses is losses


def test_a_record_of_then_loads_with_a_note_about_the_renamed_key(capsys):
    loaded = config_files.load_config(str(GOLDEN / "config_0e6ba41.json"))
    assert loaded.teachers.resnet.placement == "submesh(devices=2)"
    assert "apart" not in loaded.teachers.resnet
    note = capsys.readouterr().err
    assert note == "note: teachers.resnet.apart was renamed to teachers.resnet.placement\n"
    assert config.make(**loaded.to_dict()) == loaded
    other = config.override(loaded, [("teachers.resnet.apart", "submesh(devices=1)")])
    assert other.teachers.resnet.placement == "submesh(devices=1)"


COMMANDS = ["cache", "data.graphs", "heads", "hub.legacy", "plan", "synthesize", "vocabulary"]


@pytest.mark.sampled("cache", "plan")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_then_exits_with_2_and_names_the_new_one(command):
    ran = subprocess.run(
        [sys.executable, "-m", f"jaxdistill.{command}", "--config", "x"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2, ran.stderr
    assert f"error: jaxdistill.{command} is {successor(f'jaxdistill.{command}')} now" in ran.stderr
    if "." not in command:
        assert f"the command is: jaxdistill {command}" in ran.stderr
