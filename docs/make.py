"""A page for every method, made from what its file says of itself.

python docs/make.py            writes docs/methods/*.md
python docs/make.py --check    says which pages are not what the files say, and exits with 1

A docstring of a module gives title, paper, formula and traps; its lines `When:`, `Config:` and `Checked:` are what a
page begins with; the docstring and signature of the factory are the arguments. Results are those of
`experiments/methods`.
"""

import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxdistill.build  # noqa: F401  (registers the parts)
from jaxdistill import registry

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "methods"
KINDS = {"losses": registry.losses, "fusion": registry.fusions, "steps": registry.steps}
WORDS = ("When", "Config", "Checked", "Experiment")
RESULTS = ROOT / "experiments" / "methods" / "results.json"


def parts() -> Iterator[tuple[str, str, Any]]:
    """Kind, name and factory of every part that ships."""
    for kind, known in KINDS.items():
        for name in known:
            if known[name].__module__.startswith("jaxdistill."):
                yield kind, name, known[name]


def said(factory: Any) -> tuple[str, str, dict[str, str]]:
    """Title, body and the marked lines of the module's docstring."""
    text = inspect.cleandoc(importlib.import_module(factory.__module__).__doc__ or "")
    marked = {
        word: found[1] for word in WORDS if (found := re.search(rf"^{word}: (.*(?:\n(?!\w+:|\n).*)*)", text, re.M))
    }
    for word in marked:
        text = re.sub(rf"^{word}: .*(?:\n(?!\w+:|\n).*)*\n?", "", text, flags=re.M)
    title, _, body = text.strip().partition("\n")
    return title, body.strip(), {word: " ".join(line.split()) for word, line in marked.items()}


def page(kind: str, name: str, factory: Any, results: dict[str, Any]) -> str:
    """The page of one part."""
    title, body, marked = said(factory)
    lines = [f"# {name}", "", title, ""]
    for word in WORDS:
        if word in marked:
            text = f"`{marked[word]}`" if word == "Config" else marked[word]
            lines += [f"**{word}.** {text}", ""]
    if name in results:
        lines += [f"**Result.** {results[name]}", ""]
    signature = str(inspect.signature(factory)).partition(" -> ")[0]
    lines += [body, "", "## Arguments", "", "```python", f"{name}{signature}", "```", ""]
    lines += ["```text", inspect.cleandoc(factory.__doc__ or ""), "```", ""]
    return "\n".join([*lines, f"Source: [`{_source(factory)}`](../../{_source(factory)})", ""])


def _source(factory: Any) -> str:
    return factory.__module__.replace(".", "/") + ".py"


def index() -> str:
    """The page that lists the pages."""
    lines = ["# Methods", "", "Made from the docstrings by `python docs/make.py`: change these.", ""]
    for kind in KINDS:
        lines += [f"## {kind}", "", "| name | what it is |", "|---|---|"]
        rows = [(name, said(factory)[0]) for found, name, factory in parts() if found == kind]
        lines += [f"| [{name}]({name}.md) | {title} |" for name, title in rows] + [""]
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """Every page by its file name."""
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    return {"README.md": index(), **{f"{name}.md": page(kind, name, f, results) for kind, name, f in parts()}}


def main() -> int:
    """Writes the pages, or compares them."""
    wanted = pages()
    if "--check" in sys.argv:
        have = {file.name: file.read_text() for file in PAGES.glob("*.md")}
        stale = sorted(name for name in {*wanted, *have} if wanted.get(name) != have.get(name))
        sys.stdout.write("".join(f"{name} is not what its file says; run python docs/make.py\n" for name in stale))
        return 1 if stale else 0
    PAGES.mkdir(parents=True, exist_ok=True)
    for file in PAGES.glob("*.md"):
        file.unlink()
    for name, text in wanted.items():
        (PAGES / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
