"""A page for every method, made from what its file says of itself.

python docs/make.py            writes docs/methods/*.md, and the numbers of parts in README.md
python docs/make.py --check    says which pages and numbers of README.md are not what the files say; exits with 1

A docstring of a module gives title, paper, formula and traps; its lines `When:`, `Config:`, `Mean:`, `Checked:`,
`Experiment:` and `No paper:` (with the reason) are what a page begins with; the docstring and signature of the
factory are the arguments. Results are those that `experiments/methods` wrote.
"""

import importlib
import inspect
import json
import re
import statistics
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxdistill.run.parts  # noqa: F401  (registers the parts)
from jaxdistill.core import registry

ROOT = Path(__file__).parents[1]
PAGES, README = ROOT / "docs" / "methods", ROOT / "README.md"
KINDS = {
    "losses": registry.losses,
    "fusion": registry.fusions,
    "steps": registry.steps,
    "compress": {name: each[name] for each in (registry.quantizers, registry.cuts, registry.masks) for name in each},
}
WORDS = ("When", "Config", "No paper", "Mean", "Checked", "Experiment")
PASSED = ("student", "teachers", "objective", "optimizer")  # to a step, by the other keys of the config
RESULTS = ROOT / "experiments" / "methods" / "results.json"

MARKED = rf"^{{}}: (.*(?:\n(?!(?:{'|'.join(WORDS)}):|\n).*)*)\n?"
# A `Checked:` line that compares with values of published code. A restatement of its formulas is another kind of check.
PUBLISHED = re.compile(r"(?<!formulas of the )published (?:code|blocks)|Knowledge-Distillation-Zoo")
ASSIGNED = re.compile(r"([a-z]\w*(?:\.\w+)*) = (?:\"([^\"]*)\"|([\d.]+\d))")
LINK = re.compile(r"(?<![/\w.-])((?:[\w-]+\.)+(?:org|com|net|cc|space|html)/[\w./-]*[\w/])")

INDEX = """# Methods

Made by `make docs` from the docstrings: change these. A config line `a.b = value` is `--config.a.b=value` on the
command line, and `make(a={"b": value})` in a file.
"""


def parts() -> Iterator[tuple[str, str, Any]]:
    """Kind, name and factory of every part that ships."""
    for kind, known in KINDS.items():
        for name in known:
            if known[name].__module__.startswith("jaxdistill."):
                yield kind, name, known[name]


def said(factory: Any) -> tuple[str, str, dict[str, str]]:
    """Title, body and the marked lines of the module's docstring."""
    text = inspect.cleandoc(importlib.import_module(factory.__module__).__doc__ or "")
    found = {word: re.search(MARKED.format(word), text, re.M) for word in WORDS}
    for word in WORDS:
        text = re.sub(MARKED.format(word), "", text, flags=re.M)
    title, _, body = text.strip().partition("\n")
    return title, body.strip("\n"), {word: " ".join(line[1].split()) for word, line in found.items() if line}


def assignments(config: str) -> list[tuple[str, str]]:
    """The (path, value) pairs of a `Config:` line, as the command line takes them."""
    return [(path, text or number) for path, text, number in ASSIGNED.findall(config)]


def page(kind: str, name: str, factory: Any, results: dict[str, list[float]]) -> str:
    """The page of one part."""
    title, body, marked = said(factory)
    lines = [f"# {name}", "", title, ""]
    for word in WORDS:
        if word in marked:
            text = ASSIGNED.sub(r"`\g<0>`", marked[word]) if word == "Config" else _sentence(marked[word])
            lines += [textwrap.fill(f"**{word}.** {text}", 120, break_long_words=False, break_on_hyphens=False), ""]
    if any(arm.endswith(f"/{name}") for arm in results):
        lines += [f"**Result.** {_result(name, results)}", ""]
    body = re.sub(r"(?m)^(?! {4})(.+)\n(?= {4})", r"\1\n\n", body)  # else Markdown takes a block for a paragraph
    body = re.sub(r"(?m)^(?! {4}).+", lambda line: LINK.sub(r"<https://\1>", line[0]), body)  # not inside blocks
    lines += [body, "", "## Arguments", "", "```python", _signature(name, factory), "```", ""]
    lines += ["```text", inspect.cleandoc(factory.__doc__ or ""), "```", ""]
    return "\n".join([*lines, f"Source: [`{_source(factory)}`](../../{_source(factory)})", ""])


def _signature(name: str, factory: Any) -> str:
    """The arguments that a config can give, one a line, with types by their last name."""
    given = [x for x in inspect.signature(factory).parameters.values() if x.name not in PASSED]
    texts = [re.sub(r"\b(?:[A-Za-z_]\w*\.)+(?=\w)", "", str(parameter)) for parameter in given]
    line = f"{name}({', '.join(texts)})"
    return line if len(line) <= 100 else "\n".join([f"{name}(", *(f"    {text}," for text in texts), ")"])


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _result(name: str, results: dict[str, list[float]]) -> str:
    spread = lambda values: f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    say = lambda arm: f"{statistics.mean(results[arm]):.1f}{spread(results[arm])} %"
    arm = next(arm for arm in results if arm.endswith(f"/{name}"))  # of kd, the first
    pair, seeds = arm.partition("/")[0], len(results[arm])
    control = f"the same student on labels alone {say(f'{pair}/control')}"
    return f"{say(arm)} over {seeds} seed{'s' * (seeds > 1)}, {control} ([table](../../experiments/methods/README.md))."


def _source(factory: Any) -> str:
    return factory.__module__.replace(".", "/") + ".py"


def index() -> str:
    """The page that lists the pages."""
    lines = [INDEX]
    for kind in KINDS:
        lines += [f"## {kind}", "", "| name | what it is |", "|---|---|"]
        rows = [(name, said(factory)[0]) for found, name, factory in parts() if found == kind]
        lines += [f"| [{name}]({name}.md) | {title} |" for name, title in rows] + [""]
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """Every page by its file name."""
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    return {"README.md": index(), **{f"{name}.md": page(kind, name, f, results) for kind, name, f in parts()}}


def counts() -> dict[str, int]:
    """The numbers of parts that README.md says, by the words that follow each number there."""
    number = Counter(kind for kind, _, _ in parts())
    checks = [said(factory)[2].get("Checked", "") for kind, _, factory in parts() if kind == "losses"]
    published = sum(bool(PUBLISHED.search(check)) for check in checks)
    return {
        "losses": number["losses"],
        "checked against published code": published,
        "by hand, in float64 or against exact cases": number["losses"] - published,
        "ways to fuse several teachers": number["fusion"],
        "training algorithms": number["steps"],
    }


def missing_numbers(readme: str) -> list[str]:
    """The numbers with their words, such as "7 ways to fuse several teachers", that a text should say and does not."""
    phrases, text = [f"{number} {words}" for words, number in counts().items()], " ".join(readme.split())
    return [phrase for phrase in phrases if not re.search(rf"\b{re.escape(phrase)}\b", text)]


def with_numbers(readme: str) -> str:
    """Return the README with the numbers of `counts` before their words."""
    for words, number in counts().items():
        readme = re.sub(rf"\d+(?=\s+{r'\s+'.join(map(re.escape, words.split()))}\b)", str(number), readme)
    return readme


def main() -> int:
    """Write the pages and the README's numbers, or compare them with `--check`."""
    wanted = pages()
    if "--check" in sys.argv:
        have = {file.name: file.read_text() for file in PAGES.glob("*.md")}
        stale = sorted(name for name in {*wanted, *have} if wanted.get(name) != have.get(name))
        sys.stdout.write("".join(f"docs/methods/{name} is not what its file says; run make docs\n" for name in stale))
        missing = missing_numbers(README.read_text())
        sys.stdout.write("".join(f"README.md should say {phrase!r}\n" for phrase in missing))
        return int(bool(stale or missing))
    PAGES.mkdir(parents=True, exist_ok=True)
    for file in PAGES.glob("*.md"):
        file.unlink()
    for name, text in wanted.items():
        (PAGES / name).write_text(text)
    README.write_text(with_numbers(README.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
