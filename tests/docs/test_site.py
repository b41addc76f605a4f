"""Tests of the site: all pages are listed, links lead to files, notebooks run, and Sphinx gives no warning."""

import importlib.util
import json
import re
import subprocess
import sys

import pytest
import runs

FOLDER = runs.ROOT / "docs" / "site"
sys.path.append(str(FOLDER))  # as Python does for the folder of a program
SPEC = importlib.util.spec_from_file_location("site_build", FOLDER / "build.py")
site = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(site)


def test_every_link_of_a_page_leads_to_a_page_or_picture(tmp_path):
    site.write_sources(tmp_path)
    pages = list(tmp_path.rglob("*.md"))
    assert len(pages) > 100
    for page in pages:
        prose = re.sub(r"(?ms)^```.*?^```", "", page.read_text())
        for target in re.findall(r"\]\((?!https?:|#|<)([^)#\s]+)", prose):
            assert (page.parent / target).exists(), f"{page.relative_to(tmp_path)}: {target}"


def test_every_page_is_in_the_navigation(tmp_path):
    site.write_sources(tmp_path)
    listed = set()
    for page in tmp_path.rglob("*.md"):
        for block in re.findall(r"(?ms)^```\{toctree\}\n(.*?)^```", page.read_text()):
            names = [re.sub(r".*<(.*)>", r"\1", line) for line in block.splitlines() if line and line[0] != ":"]
            listed |= {(page.parent / f"{name}.md").resolve() for name in names}
    every = {page.resolve() for page in tmp_path.rglob("*.md")}
    assert every - listed == {(tmp_path / "index.md").resolve()} and not listed - every


def test_pages_of_keys_commands_and_families_name_them_all():
    from jaxdistill import main
    from jaxdistill.models.hub.family import families

    keys, commands, models = (site.MADE[name]() for name in ("config", "commands", "families"))
    assert "`objective.NAME.weight`, default `'1.0'`" in keys and "`data.name`" in keys
    assert all(f"## jaxdistill {name}\n" in commands for name in main.COMMANDS)
    assert all(f"| `{name}` |" in models for name in families)


def test_code_is_not_taken_for_links(tmp_path):
    text = 'see [that](../../README.md)\n```python\nx["a"](../b)\n```\n'
    found = site._linked(
        text, runs.ROOT / "docs" / "guides", "guides/x.md", {runs.ROOT / "README.md": "readme.md"}, tmp_path
    )
    assert found == 'see [that](../readme.md)\n```python\nx["a"](../b)\n```\n'


@pytest.mark.parametrize("name", site.notebooks.NOTEBOOKS)
def test_a_notebook_has_the_text_and_the_code_of_its_guide(name, tmp_path):
    site.notebooks.write_notebooks(tmp_path)
    cells = json.loads((tmp_path / f"{name}.ipynb").read_text())["cells"]
    guide = (runs.ROOT / "docs" / "guides" / f"{name}.md").read_text()
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", guide, re.M | re.S):
        said = re.sub(r"(?m)^jaxdistill ", "!{python} -m jaxdistill ", block) if language == "sh" else block
        assert said.rstrip() in code
    literal = {
        "own_csv": "!{python} -m jaxdistill export runs/news --to onnx",
        "own_parts": '%%writefile mine.py\n"""mine',
    }
    assert literal[name] in code and code.count("jaxdistill train") == guide.count("jaxdistill train")
    prose = re.sub(r"(?ms)^```.*?^```", "", guide)
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert all(heading in text for heading in re.findall(r"^#+ .*", prose, re.M))
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert not re.search(r"\]\((?!https?:|#)", text)


@pytest.mark.slow
def test_a_notebook_runs(tmp_path):
    client, formats = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    site.notebooks.write_notebooks(tmp_path)
    book = formats.read(tmp_path / "own_parts.ipynb", as_version=4)
    formats.validate(book)
    client.NotebookClient(book, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "runs" / "compared" / "study.html").is_file()


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("furo")
    pytest.importorskip("myst_parser")
    command = [sys.executable, "docs/site/build.py", "--out", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=runs.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site" / "search.html").is_file() and list(site.broken_links(tmp_path / "site")) == []
