"""The site: guides, methods, studies and reference, as static pages that can be searched without a network.

python docs/site/build.py [--out build/site]        what `make site` runs; needs the extra site

The pages are the Markdown files of the repository, and three that are made from the code: config keys, commands and
model families. A link to a file that is no page of the site becomes the name of the file.
"""

import argparse
import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import notebooks  # beside this file

ROOT, HERE = Path(__file__).parents[2], Path(__file__).parent
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:|#|<)([^)#\s]+)(#[^)\s]*)?\)")
IMAGE = re.compile(r"!\[([^\]]*)\]\((?!https?:)([^)\s]+)\)")


def pages() -> dict[str, Path | str]:
    """Return the pages of the site: path in the site -> file of the repository, or text."""
    found: dict[str, Path | str] = {
        "index.md": HERE / "index.md",
        "readme.md": ROOT / "README.md",
        "architecture.md": ROOT / "docs" / "architecture.md",
        "contributing.md": ROOT / "CONTRIBUTING.md",
        "changelog.md": ROOT / "CHANGELOG.md",
        "studies/index.md": ROOT / "experiments" / "README.md",
        "reference/metrics.md": ROOT / "docs" / "metrics.md",
    }
    for kind, place in (("guides", ROOT / "docs" / "guides"), ("methods", ROOT / "docs" / "methods")):
        for file in sorted(place.glob("*.md")):
            found[f"{kind}/{'index' if file.stem == 'README' else file.stem}.md"] = file
    for file in sorted((ROOT / "experiments").glob("*/README.md")):
        found[f"studies/{file.parent.name}.md"] = file
    return found | {f"reference/{name}.md": make() for name, make in MADE.items()}


def config_keys() -> str:
    """Return the page of all config keys, from the schema."""
    from jaxdistill.run.config import iter_keys

    lines = ["# Config keys", "", "In a file `make(a={'b': value})`, on the command line `--config.a.b=value`.", ""]
    section = None
    for path, default, doc in iter_keys():
        head = path.rpartition(".")[0]
        if head != section:
            section = head
            lines += ["", f"## {head or 'The run'}", ""]
        if default:
            lines += [f"`{path}`, default `{default}`", f": {doc}", ""]
        else:
            lines += [f"`{path}`", f": {doc}", ""]
    return "\n".join(lines)


def commands() -> str:
    """Return the page of all commands, with what `--help` prints; the keys of a config have a page of their own."""
    from jaxdistill import main

    lines = ["# Commands", ""]
    for name, purpose in main.COMMANDS.items():
        out = io.StringIO()
        wide = mock.patch.dict(os.environ, COLUMNS="100")
        with wide, contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            main.run([name, "--help"])
        text = out.getvalue().partition("\nall config keys")[0].rstrip()
        lines += [f"## jaxdistill {name}", "", f"{purpose[0].upper()}{purpose[1:]}.", "", "```text", text, "```", ""]
    return "\n".join(lines)


def model_families() -> str:
    """Return the page of the model families, from the registry."""
    import jaxdistill.models  # noqa: F401  (importing registers the families)
    from jaxdistill.compress.axes import CUTTABLE
    from jaxdistill.core import registry
    from jaxdistill.models.hub.family import OWN_PREFIX, families

    lines = ["# Model families", "", "`jaxdistill list models NAME` prints the arguments of each.", ""]
    lines += ["| factory | what it is | reads and writes checkpoints of | can be cut |", "|---|---|---|---|"]
    for name in sorted(registry.models):
        doc = (registry.models[name].__doc__ or "").strip().partition("\n")[0]
        known = families[name].model_types if name in families else ()
        types = ", ".join(f"`{each}`" for each in known if not each.startswith(OWN_PREFIX))
        lines.append(f"| `{name}` | {doc} | {types} | {'yes' if name in CUTTABLE else ''} |")
    lines += [
        "",
        "Loading, training and quantising work for all of them; a format that cannot hold a model refuses it in one",
        "line. Every family with checkpoints has the outputs, hidden states and gradients of transformers or timm,",
        "to 1e-5 and 1e-4, on small seeded weights.",
    ]
    return "\n".join([*lines, ""])


MADE: dict[str, Callable[[], str]] = {"config": config_keys, "commands": commands, "families": model_families}


def write_sources(folder: Path) -> None:
    """Write the pages into a folder, with links between them, and the images that they show."""
    known = pages()
    places = {file.resolve(): page for page, file in known.items() if isinstance(file, Path)}
    for page, content in known.items():
        text = content.read_text() if isinstance(content, Path) else content
        origin = content.parent if isinstance(content, Path) else ROOT
        target = folder / page
        target.parent.mkdir(parents=True, exist_ok=True)
        text = _linked(text, origin, page, places, folder)
        if page.startswith("guides/") and Path(page).stem in notebooks.NOTEBOOKS:
            text += (
                f"\n## As a notebook\n\n{{download}}`{Path(page).stem}.ipynb` has the same text and the same code.\n"
            )
        target.write_text(_with_toctree(text, page, known))
    notebooks.write_notebooks(folder / "guides")
    shutil.copytree(HERE / "_static", folder / "_static")
    shutil.copy(HERE / "conf.py", folder)


def _linked(text: str, origin: Path, page: str, places: dict[Path, str], folder: Path) -> str:
    """Return a text whose links lead to pages of the site, and whose images lie in it."""

    def link(match: re.Match[str]) -> str:
        label, target, anchor = match[1], match[2], match[3] or ""
        file = (origin / target).resolve()
        other = places.get(file) or places.get(file / "README.md")
        if other is None:
            name = str(file.relative_to(ROOT)) if file.is_relative_to(ROOT) else target
            return f"`{name}`" if label.strip("`") in (name, target, Path(target).name) else f"{label} (`{name}`)"
        return f"[{label}]({os.path.relpath(other, Path(page).parent)}{anchor})"

    def image(match: re.Match[str]) -> str:
        file = (origin / match[2]).resolve()
        copy = folder / "_images" / str(file.relative_to(ROOT)).replace("/", "-")
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(file, copy)
        return f"![{match[1]}]({os.path.relpath(copy, (folder / page).parent)})"

    parts = re.split(r"(^```.*?^```)", text, flags=re.M | re.S)  # blocks of code stay as they are
    return "".join(part if part.startswith("```") else IMAGE.sub(image, LINK.sub(link, part)) for part in parts)


def _with_toctree(text: str, page: str, known: dict[str, Path | str]) -> str:
    """Return the index page of methods or studies with a list of the pages below it, for the navigation."""
    if page not in ("methods/index.md", "studies/index.md"):
        return text
    folder = page.partition("/")[0]
    below = [Path(each).stem for each in known if each.startswith(f"{folder}/") and each != page]
    return "\n".join([text, "```{toctree}", ":hidden:", *below, "```", ""])


def broken_links(site: Path) -> Iterator[str]:
    """Yield each link of a built page that leads to no file of the site."""
    for page in site.rglob("*.html"):
        for target in re.findall(r'(?:href|src)="([^"#?]+)', page.read_text()):
            if not re.match(r"(?:https?|mailto|data|javascript):", target) and not (page.parent / target).exists():
                yield f"{page.relative_to(site)}: {target}"


def main() -> int:
    """Build the site; return 1 if Sphinx warns or a link is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=ROOT / "build" / "site", type=Path, help="folder to write; %(default)s")
    out = parser.parse_args().out
    from sphinx.cmd.build import build_main

    if out.exists() and not (out / ".buildinfo").is_file():  # which Sphinx writes
        sys.stderr.write(f"error: --out: {str(out)!r} holds no earlier site. Choose another folder.\n")
        return 2
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as temporary:
        sources, built = Path(temporary, "sources"), Path(temporary, "site")
        sources.mkdir()
        write_sources(sources)
        code = build_main(["-W", "--keep-going", "-q", "-b", "html", str(sources), str(built)])
        shutil.rmtree(out, ignore_errors=True)
        built.rename(out)
    broken = sorted(set(broken_links(out)))
    sys.stdout.write("".join(f"broken link: {line}\n" for line in broken))
    sys.stdout.write(f"{sum(1 for _ in out.rglob('*.html'))} pages; open {out / 'index.html'}\n")
    return int(bool(code or broken))


if __name__ == "__main__":
    sys.exit(main())
