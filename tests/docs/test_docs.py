"""Check that pages of methods, numbers of the README and the picture of the folders agree with the code."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import examples
import pytest
from terms import build_loss

from jaxdistill.core import registry
from jaxdistill.core.spec import Spec, parse
from jaxdistill.run.config import make, override

ROOT = Path(__file__).parents[2]


def script(name):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DOCS, ARCHITECTURE = script("make"), script("architecture")
KINDS = {
    "student.quantized": registry.quantizers,
    "student.masks": registry.masks,
    "student.model": registry.cuts,
}
PARTS = {f"{kind}/{name}": (kind, name, factory) for kind, name, factory in DOCS.parts()}


def test_the_pages_are_what_the_files_say(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["make.py", "--check"])
    assert DOCS.main() == 0, capsys.readouterr().out


def test_a_page_that_is_stale_missing_or_of_no_part_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(DOCS, "PAGES", tmp_path)
    monkeypatch.setattr(DOCS, "README", tmp_path / "README.txt")
    number = DOCS.counts()["losses"]
    DOCS.README.write_text((ROOT / "README.md").read_text().replace(f"{number} losses", "3 losses"))
    monkeypatch.setattr("sys.argv", ["make.py"])
    assert DOCS.main() == 0
    assert DOCS.README.read_text() == (ROOT / "README.md").read_text()
    (tmp_path / "kd.md").write_text("another text")
    (tmp_path / "dkd.md").unlink()
    (tmp_path / "gone.md").write_text("a page of nothing")
    monkeypatch.setattr("sys.argv", ["make.py", "--check"])
    assert DOCS.main() == 1
    named = re.findall(r"methods/(\w+)\.md is not", capsys.readouterr().out)
    assert named == ["dkd", "gone", "kd"]


def test_a_number_of_the_readme_that_is_wrong_or_missing_is_named(tmp_path, monkeypatch, capsys):
    text = (ROOT / "README.md").read_text()
    number = DOCS.counts()["losses"]
    assert f"**{number} losses**" in text
    monkeypatch.setattr(DOCS, "README", tmp_path / "README.md")
    monkeypatch.setattr("sys.argv", ["make.py", "--check"])
    wrong = text.replace(f"{number} losses", f"1{number} losses").replace("training algorithms", "steps")
    DOCS.README.write_text(wrong)
    assert DOCS.main() == 1
    named = re.findall(r"README\.md should say '\d+ (.+)'", capsys.readouterr().out)
    assert named == ["losses", "training algorithms"]


@pytest.mark.parametrize(
    ("checked", "published"),
    [
        ("against published code (TRL), in value and gradient", True),
        ("value and gradient equal those of Knowledge-Distillation-Zoo", True),
        ("against the formulas of the published code in float64 numpy", False),
        ("against the formula in plain float64 numpy (no code was published)", False),
        ("against the published reduction, restated in float64", False),
    ],
)
def test_only_a_comparison_with_the_published_code_itself_counts_as_one(checked, published):
    assert bool(DOCS.PUBLISHED.search(checked)) == published


def test_the_picture_is_what_the_imports_say_and_cuts_no_sentence(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["architecture.py", "--check"])
    assert ARCHITECTURE.main() == 0, capsys.readouterr().out
    assert "…" not in ARCHITECTURE.picture()


@pytest.mark.parametrize("part", PARTS)
def test_every_part_names_its_paper_when_to_use_it_and_how_it_was_checked(part):
    title, body, marked = DOCS.said(PARTS[part][2])
    paper = re.search(r"\b(19|20)\d\d\b", title + body) and re.search(r"\w\.(org|com|cc|space)\b", title + body)
    assert paper or "No paper" in marked, "a year and an address, or a line `No paper: ...` that says why there is none"
    assert {"When", "Config", "Checked"} <= set(marked)


@pytest.mark.parametrize("part", PARTS)
def test_every_config_line_is_one(part):
    _, name, factory = PARTS[part]
    assigned = DOCS.assignments(DOCS.said(factory)[2]["Config"])
    ours = [
        (path, text)
        for path, text in assigned
        if re.fullmatch(r"objective\.\w+\.(term|weight)|fusion|step|student\.(quantized|masks|model)", path)
    ]
    override(make(), ours)  # refuses paths and kinds of values that the schema does not have
    named = set()
    for path, text in ours:
        if path.endswith(".weight"):
            continue
        spec = parse(text, path)
        named.add(spec.name)
        if spec.name in registry.models:
            continue
        if path.endswith(".term"):
            build_loss(text.replace("'FOLDER/edges.json'", "((0, 1),)"))
        elif path == "fusion":
            registry.fusions.build(spec, path)
        elif path.startswith("student"):
            KINDS[path].build(spec, path)
        else:
            given = dict.fromkeys(("student", "teachers", "objective", "optimizer"), ())
            registry.steps.bind(Spec(spec.name, (), spec.kwargs, given), path, examples.TIMED)
    assert name in named, "the line shows another part"


STUDIES = sorted(path.parent for path in (ROOT / "experiments").glob("*/__init__.py"))


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_a_study_has_a_readme_and_one_row_of_the_list(study):
    listed = (ROOT / "experiments" / "README.md").read_text().splitlines()
    assert sum(line.startswith(f"| [{study.name}](") for line in listed) == 1
    assert (study / "README.md").is_file()


@pytest.mark.parametrize("part", PARTS)
def test_what_a_page_refers_to_is_there(part):
    named = re.findall(r"\b((?:experiments|tests|configs|jaxdistill)/[\w/]+(?:\.py)?)", DOCS.page(*PARTS[part], {}))
    missing = {path for path in named if not ((ROOT / path).exists() or (ROOT / f"{path}.py").exists())}
    assert not missing


def test_a_picture_that_is_stale_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(ARCHITECTURE, "PICTURE", tmp_path / "stale.svg")
    ARCHITECTURE.PICTURE.write_text("another picture")
    monkeypatch.setattr("sys.argv", ["architecture.py", "--check"])
    assert ARCHITECTURE.main() == 1


def test_a_sample_is_fast_and_the_rest_is_slow():
    """Check that of a test with the mark `sampled`, exactly the cases whose ids match a pattern are fast."""
    collected = {
        speed: subprocess.run(
            [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", speed, "tests/run/test_old_names.py"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=True,
        ).stdout
        for speed in ("slow", "not slow")
    }
    chosen = {speed: set(re.findall(r"names_the_new_one\[(.+)\]", text)) for speed, text in collected.items()}
    assert chosen["not slow"] == {"cache", "plan"}
    assert chosen["slow"] == {"data.graphs", "heads", "hub.legacy", "synthesize", "vocabulary"}
