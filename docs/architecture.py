"""The picture of docs/architecture.md, drawn from the imports of the package.

python docs/architecture.py            writes docs/architecture.svg
python docs/architecture.py --check    exits with 1 if the picture is not what the imports say

A folder lies on the floor above all that it imports. Every arrow is an import, and points down; one that ran back up
would be red. The sentence of a folder is the first of its `__init__.py`.
"""

import ast
import sys
from collections import defaultdict
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE, PICTURE = ROOT / "jaxdistill", ROOT / "docs" / "architecture.svg"
WIDTH, BOX, HEIGHT, FLOOR = 1180, 260, 66, 112  # pixels: of the picture, of a box, of a box, from floor to floor
STYLE = """
text { font-family: system-ui, sans-serif; fill: #1b1f24 } .name { font: 600 15px system-ui, sans-serif }
.what { font-size: 11px; fill: #57606a } rect { fill: #f6f8fa; stroke: #8c959f }
path { fill: none; stroke: #0969da; stroke-opacity: .6 } .back { stroke: #cf222e; stroke-opacity: 1 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .what { fill: #9198a1 } rect { fill: #161b22; stroke: #484f58 } path { stroke: #58a6ff }
}
"""

HEAD = """<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0 L8 4 L0 8 z" style="fill: #0969da; stroke: none"/></marker></defs>"""


def rooms() -> dict[str, str]:
    """Folders and the command, with the first sentence of each."""
    homes = {path.parent.name: path for path in PACKAGE.glob("*/__init__.py")} | {"main": PACKAGE / "main.py"}
    sentences = {name: ast.get_docstring(ast.parse(path.read_text())) or "" for name, path in homes.items()}
    return {name: text.replace("\n", " ").partition(". ")[0].rstrip(".") for name, text in sorted(sentences.items())}


def arrows(names: set[str]) -> set[tuple[str, str]]:
    """Which room imports which."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        home = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxdistill"):
                modules = [node.module] if "." in node.module else [f"jaxdistill.{each.name}" for each in node.names]
                others = {module.split(".")[1] for module in modules}
                found |= {(home, other) for other in others & names if home in names and other != home}
    return found | {("main", "run")}  # which imports a command by its name


def floors(names: set[str], pairs: set[tuple[str, str]]) -> dict[str, int]:
    """The floor of each room, 0 at the bottom: one above the highest that it imports."""
    below = defaultdict(set)
    for home, other in pairs:
        below[home].add(other)
    found: dict[str, int] = {}
    while len(found) < len(names):
        ready = [name for name in sorted(names - found.keys()) if below[name] <= found.keys()]
        if not ready:  # a circle: its rooms share a floor, and the arrows show it
            ready = sorted(names - found.keys())
        found |= {
            name: 1 + max((found[other] for other in below[name] if other in found), default=-1) for name in ready
        }
    return found


def not_implied(pairs: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return the arrows without those that a chain of other arrows implies, which would run behind the boxes."""
    below = {name: {other for home, other in pairs if home == name} for name, _ in pairs}

    def reached(name: str, seen: frozenset[str] = frozenset()) -> set[str]:
        ways = below.get(name, set()) - seen
        return ways.union(*(reached(other, seen | ways) for other in ways))

    return {(home, other) for home, other in pairs if not any(other in reached(way) for way in below[home] - {other})}


def lines(text: str, width: int = 41) -> list[str]:
    """Break a sentence into two lines at most."""
    words, found = text.replace("`", "").split(), [""]
    for word in words:
        if len(found[-1]) + len(word) > width:
            found.append("")
        found[-1] = f"{found[-1]} {word}".strip()
    return found[:2] if len(found) < 3 else [found[0], f"{found[1][: width - 2]} …"]


def picture() -> str:
    """The picture as SVG."""
    sentences = rooms()
    pairs = arrows(set(sentences))
    level = floors(set(sentences), pairs)
    top = max(level.values())
    places = {}
    for floor in range(top + 1):
        row = [name for name in sorted(level) if level[name] == floor]
        step = WIDTH / len(row)
        for number, name in enumerate(row):
            places[name] = (step * (number + 0.5), 20 + (top - floor) * FLOOR)
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {40 + top * FLOOR + HEIGHT}" role="img">',
        "<title>The folders of jaxdistill, floor by floor; arrows are imports that no others imply</title>",
        f"<style>{STYLE}</style>",
        HEAD,
    ]
    for home, other in sorted(not_implied(pairs)):
        (x, y), (u, v) = places[home], places[other]
        kind = "" if level[home] > level[other] else ' class="back"'
        curve = f"M{x:.0f} {y + HEIGHT} C{x:.0f} {y + HEIGHT + 50} {u:.0f} {v - 50} {u:.0f} {v - 2}"
        drawn.append(f'<path{kind} marker-end="url(#head)" d="{curve}"/>')
    for name, (x, y) in sorted(places.items()):
        left = x - BOX / 2
        title = "main.py" if name == "main" else f"{name}/"
        drawn.append(f'<rect x="{left:.0f}" y="{y}" width="{BOX}" height="{HEIGHT}" rx="6"/>')
        drawn.append(f'<text class="name" x="{left + 10:.0f}" y="{y + 22}">{title}</text>')
        for number, line in enumerate(lines(sentences[name])):
            drawn.append(f'<text class="what" x="{left + 10:.0f}" y="{y + 40 + 15 * number}">{escape(line)}</text>')
    return "\n".join([*drawn, "</svg>", ""])


def main() -> int:
    """Writes the picture, or compares it."""
    if "--check" not in sys.argv:
        PICTURE.write_text(picture())
        return 0
    stale = not PICTURE.is_file() or PICTURE.read_text() != picture()
    sys.stdout.write("docs/architecture.svg is not what the imports say; run make docs\n" if stale else "")
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
