"""Tests of all blocks of code in the guides: commands, options and configs are right, and whole guides run (slow)."""

import csv
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import runs
from corpora import WORDS, sentences, written
from PIL import Image

from jaxdistill import main

GUIDES = sorted((runs.ROOT / "docs" / "guides").glob("*.md"))
BLOCKS = [
    (file.stem, language, code)
    for file in GUIDES
    for language, code in re.findall(r"^```(\w*)\n(.*?)^```", file.read_text(), re.M | re.S)
]
FILES = {  # files that commands use; a block's docstring begins with its name
    name: code for _, language, code in BLOCKS if language == "python" for name in re.findall(r'^"""(\w+\.py):', code)
}
CONFIGS = [code for _, language, code in BLOCKS if language == "python" and "def get_config" in code]
COMMANDS = [
    (guide, line.removeprefix("jaxdistill "))
    for guide, language, code in BLOCKS
    if language == "sh"
    for line in re.sub(r" *\\\n *", " ", code).splitlines()  # a backslash continues a command in the next line
]
OF_ANOTHER_RUN = ("predict", "export", "cache", "vocabulary", "search")  # they read an earlier run or files
LARGE = "smollm2", "edge.py"  # commands with these names download 90 MB or take minutes


def checked(command: str) -> list[str]:
    """Split a command into words, changed so that a training is only checked."""
    words = shlex.split(command)
    if words[0] == "sweep":  # with --slurm it checks every arm and prints a script
        return [*words, "--slurm"]
    return [*words, "--check"] if words[0] == "train" and "--check" not in words else words


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Make a working folder with the files of the guides, two small CSV files, a tokenizer and the configs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXDISTILL_DATA", str(Path(runs.ROOT / ".pytest_cache" / "data").absolute()))
    for name, code in FILES.items():
        Path(name).write_text(code)
    Path("configs").symlink_to(runs.ROOT / "configs")
    draw = np.random.default_rng(0)
    with Path("news.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "topic"])
        table.writerows([" ".join(draw.choice(WORDS[5:], 6)), ("", "earn", "grain")[n % 3]] for n in range(90))
    with Path("sizes.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["height", "weight", "kind"])
        table.writerows([*draw.normal(n % 3, 1, 2), "abc"[n % 3]] for n in range(90))
    Path("pictures").mkdir()
    with Path("pictures.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "caption"])
        for n in range(60):
            Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(f"pictures/{n}.png")
            table.writerow([f"pictures/{n}.png", " ".join(draw.choice(WORDS[5:], 3))])
    (own,) = (code for guide, _, code in BLOCKS if guide == "own_csv" and "WordPiece" in code)
    exec(compile(own, "own_csv.md", "exec"), {})
    return tmp_path


def test_there_are_blocks_of_every_kind():
    assert {language for _, language, _ in BLOCKS} == {"", "python", "sh"} and len(CONFIGS) == 5
    assert {command.split()[0] for _, command in COMMANDS} <= set(main.COMMANDS)
    assert set(FILES) == {"mine.py", "pairs.py", "two.py"}


@pytest.mark.parametrize(("guide", "command"), COMMANDS, ids=[f"{guide}: {c[:60]}" for guide, c in COMMANDS])
def test_a_command_is_right(guide, command, here, capsys):
    words = checked(command)
    if words[0] in OF_ANOTHER_RUN or "--help" in words:
        words = [*[word for word in words if word != "--help"], "--help"]  # another test checks the options
    if "few_labels" in words:  # replaces its teacher, which would be downloaded
        words.append("--config.data.tokens=" + sentences(written(here, WORDS), 8))
        model = "bert(vocabulary={vocabulary}, width=8, depth=1, heads=2, ffn=8, classes={classes})"
        words.append(f"--config.teachers.minilm.model={model}")
    if any(name in command for name in LARGE) and "--help" not in words:
        pytest.skip("the slow test runs it")
    with runs.registries_as_found():
        try:
            code = main.run(words)
        except SystemExit as end:  # --help exits
            code = end.code
    assert code == 0, capsys.readouterr().err


@pytest.mark.parametrize("number", range(5))
def test_a_config_is_a_config(number, here):
    Path("block.py").write_text(CONFIGS[number])
    if "SMOLLM2" in CONFIGS[number]:
        pytest.skip("the slow test runs it")
    with runs.registries_as_found():
        assert main.run(["train", "--config", "block.py", "--workdir", "runs/block", "--check"]) == 0


def test_options_of_commands_that_need_another_run_exist(capsys):
    for _, command in COMMANDS:
        words = shlex.split(command)
        if words[0] in OF_ANOTHER_RUN:
            with pytest.raises(SystemExit):
                main.run([words[0], "--help"])
            said = capsys.readouterr().out
            for option in (word for word in words if word.startswith("--") and not word.startswith("--config.")):
                assert option.partition("=")[0] in said, option


def test_links_of_the_guides_lead_to_files():
    for file in GUIDES:
        prose = re.sub(r"(?ms)^```.*?^```", "", file.read_text())
        for target in re.findall(r"\]\(([^)#]+)\)", prose):
            if not target.startswith("http"):
                assert (file.parent / target).exists(), f"{file.name}: {target}"


@pytest.mark.slow
@pytest.mark.parametrize("guide", ["own_parts", "several_teachers"])
def test_a_guide_runs_whole(guide, here, capsys):
    with runs.registries_as_found():
        for name, command in COMMANDS:
            if name == guide:
                assert main.run(shlex.split(command)) == 0, capsys.readouterr().err


@pytest.mark.slow
def test_the_guide_of_own_data_runs_whole(here, capsys):
    (code,) = (code for guide, _, code in BLOCKS if guide == "own_csv" and "open_records" in code)
    exec(compile(code, "own_csv.md", "exec"), {})
    for name, command in COMMANDS:
        if name == "own_csv":
            assert main.run(shlex.split(command)) == 0, capsys.readouterr().err


@pytest.mark.slow
def test_a_config_for_people_from_trl_is_checked(here):
    (code,) = (code for code in CONFIGS if "SMOLLM2" in code)
    Path("block.py").write_text(code)
    assert main.run(["train", "--config", "block.py", "--workdir", "runs/block", "--check"]) == 0
