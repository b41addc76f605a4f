"""Do the fast tests notice bugs that are planted one at a time?

    python -m experiments.mutants --map           run the fast tests once, and record which test runs which line
    python -m experiments.mutants --map tests/x.py     the same for new tests alone
    python -m experiments.mutants --count 200     plant 200 bugs, run the tests of each, and print who survives

The bugs are drawn by a fixed seed: two in every loss, fusion and step, the rest from all numerics. A bug is killed if a
test fails; one that only keeps a module from being imported is replaced by another, and one that is known to change
nothing is not run. First the smallest tests run that execute the changed line, then more of them, then all tests of
their files. Results are kept in the workdir: an interrupted run goes on.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

import jaxdistill.fusion
import jaxdistill.losses
import jaxdistill.steps  # noqa: F401  (importing registers the parts)
from experiments.mutants.mutate import Mutant, mutants
from jaxdistill.core import registry

ROOT = Path(__file__).parents[2]
SEED = int("7712d3ea", 16)  # the first digits of the first commit of the issue that asked for this
KINDS = {"loss": registry.losses, "fusion": registry.fusions, "step": registry.steps}
NUMERICS = ("core/*.py", "core/chunked/*.py", "losses/**/*.py", "fusion/*.py", "steps/*.py", "evaluation/*.py",
            "data/stream.py", "data/selection.py", "data/order.py", "compress/*.py", "teachers/codec.py",
            "teachers/sparse_logits.py", "parallel/*.py")  # fmt: skip
NOT_NUMERICS = ("__init__", "errors", "interfaces", "packages", "hub_files", "registry", "checkpoint", "orbax_reads",
                "types")  # fmt: skip
EQUIVALENT = Path(__file__).with_name("equivalent.json")  # mutants that change nothing, with the reason
AT_FIRST, THEN, LIMIT = 10, 80, 600  # tests of a changed line that run first, and then; seconds


def parts() -> dict[str, str]:
    """The file of each registered loss, fusion and step: "loss kd" -> "jaxdistill/losses/logits/kd.py"."""
    return {
        f"{kind} {name}": f"{known[name].__module__.replace('.', '/')}.py"
        for kind, known in KINDS.items()
        for name in known
        if known[name].__module__.startswith("jaxdistill.")
    }


def drawn(count: int) -> list[Mutant]:
    """Mutants in the order in which they are tried: two of every part, then others; more than needed, as spares."""
    draw, by_part = random.Random(SEED), parts()
    files = sorted(
        str(path.relative_to(ROOT))
        for pattern in NUMERICS
        for path in (ROOT / "jaxdistill").glob(pattern)
        if path.stem not in NOT_NUMERICS
    )
    every = {file: list(mutants(ROOT, file)) for file in {*files, *by_part.values()}}
    for part, file in by_part.items():
        if not every[file]:
            raise SystemExit(f"{part} has no mutant: {file}")
    chosen: dict[str, Mutant] = {}
    for part in sorted(by_part):
        of_part = [m for m in every[by_part[part]] if m.key not in chosen]
        chosen |= {m.key: m for m in draw.sample(of_part, min(2, len(of_part)))}
    rest = [m for of_file in every.values() for m in of_file if m.key not in chosen]
    rank = lambda m: hashlib.sha256(f"{SEED} {m.key}".encode()).digest()  # so that an edit changes the draw of its file
    chosen |= {m.key: m for m in sorted(rest, key=rank)[:count]}
    return list(chosen.values())


def record_map(workdir: Path, tests: Iterable[str]) -> None:
    """Run the fast tests with coverage, and keep which test runs which line; of some files, add it to what is known."""
    workdir.mkdir(parents=True, exist_ok=True)
    options = ("-m", "not slow", "-q", "-n", "2", "--dist", "loadfile", *tests)
    options += ("--cov=jaxdistill", "--cov-context=test", "--cov-report=", *(["--cov-append"] if tests else []))
    environment = {**os.environ, "COVERAGE_FILE": str(workdir / "coverage")}
    subprocess.run((sys.executable, "-m", "pytest", *options), cwd=ROOT, env=environment, check=False)


def tests_by_line(workdir: Path) -> dict[str, dict[int, list[str]]]:
    """`{file: {line: tests}}`, the tests that run the fewest lines of the package first."""
    from coverage import CoverageData

    data = CoverageData(str(workdir / "coverage"))
    data.read()
    found: dict[str, dict[int, set[str]]] = {}
    for file in filter(lambda name: Path(name).is_relative_to(ROOT), data.measured_files()):
        contexts_of = data.contexts_by_lineno(file).items()
        by_line = {n: {c.rpartition("|")[0] for c in contexts} - {""} for n, contexts in contexts_of}
        found[str(Path(file).relative_to(ROOT))] = {n: tests for n, tests in by_line.items() if tests}
    known = collected()
    found = {file: {n: tests & known for n, tests in by_line.items()} for file, by_line in found.items()}
    size = Counter(test for by_line in found.values() for tests in by_line.values() for test in tests)
    rank = lambda test: (size[test], test)
    return {file: {n: sorted(tests, key=rank) for n, tests in by_line.items()} for file, by_line in found.items()}


def collected() -> set[str]:
    """Return the names of all fast tests as they are now; a test that was renamed since the map was made is unknown."""
    command = (sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "not slow")
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return {line.strip() for line in lines if "::" in line}


def chosen_tests(mutant: Mutant, by_line: Mapping[str, Mapping[int, list[str]]]) -> list[list[str]]:
    """Return what runs in turn: a few tests of the changed line, more of them from all their files, these files whole.

    A line whose result is kept runs in one test of many only, so files that import the module by name are added.
    """
    of_file = by_line.get(mutant.file, {})
    tests = of_file.get(mutant.line) or sorted({test for tests in of_file.values() for test in tests})
    by_test_file = defaultdict(list)
    for test in tests:
        by_test_file[test.partition("::")[0]].append(test)
    share = max(1, THEN // max(1, len(by_test_file)))
    of_every_file = {test for of_one in by_test_file.values() for test in of_one[:share]}
    more = [test for test in tests if test in of_every_file][:THEN]
    imports = re.compile(rf"\bimport .*\b{Path(mutant.file).stem}\b|\b{Path(mutant.file).stem} import ")
    every = ROOT.glob("tests/**/test_*.py")
    naming = {str(path.relative_to(ROOT)) for path in every if imports.search(path.read_text())}
    return [tests[:AT_FIRST], more, sorted({*by_test_file, *naming})] if tests else []


def run_tests(place: Path, tests: Iterable[str]) -> tuple[str, str]:
    """Run tests in a copy of the repository with a bug, and return the outcome and the line that says why."""
    command = (sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "--no-header", "--tb=short", *tests)
    environment = {**os.environ, "PYTHONPATH": str(place)}
    try:
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return "timed out", f"more than {LIMIT} s"
    reasons = re.findall(r"^E   +(.*)", done.stdout, re.M)
    reason = reasons[0] if reasons else done.stdout.strip().rpartition("\n")[2]
    if done.returncode in (0, 5):
        return "survived", ""
    if done.returncode == 1:
        return "killed", reason[:160]
    return "not importable", reason[:160]


def judged(mutant: Mutant, place: Path, by_line: Mapping[str, Mapping[int, list[str]]]) -> dict[str, Any]:
    """Plant a bug in a copy of the repository, run its tests, and take it out again."""
    about = {name: getattr(mutant, name) for name in ("key", "file", "line", "operator", "before", "after")}
    if reason := equivalent_mutants().get(line_of(about)):
        return {**about, "outcome": "equivalent", "reason": reason, "seconds": 0.0}
    start, file = time.perf_counter(), place / mutant.file
    whole = file.read_text()
    outcome, reason = "not run by any test", ""
    try:
        file.write_text(mutant.source)
        for tests in chosen_tests(mutant, by_line):
            outcome, reason = run_tests(place, tests)
            if outcome != "survived":
                break
    finally:
        file.write_text(whole)
    return {**about, "outcome": outcome, "reason": reason, "seconds": round(time.perf_counter() - start, 1)}


def copies(workdir: Path, count: int) -> Iterator[Path]:
    """Copies of the tracked files, with the programs that XLA has compiled for the tests so far."""
    names = subprocess.run(("git", "ls-files"), cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for number in range(count):
        place = workdir / f"copy-{number}"
        for name in filter(None, names):
            if (ROOT / name).is_file():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, place / name)
        if not (place / ".pytest_cache").exists() and (ROOT / ".pytest_cache").exists():
            (place / ".pytest_cache").symlink_to(ROOT / ".pytest_cache")
        yield place


def run(workdir: Path, count: int, workers: int, again: bool) -> list[dict[str, Any]]:
    """Judge mutants until `count` of them could be imported; return their results."""
    file = workdir / "results.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    known = {result["key"]: result for result in map(json.loads, lines)}
    if again:
        reasons = equivalent_mutants()
        known = {k: r for k, r in known.items() if r["outcome"] == "killed" or line_of(r) in reasons}
    by_line, places = tests_by_line(workdir), Queue[Path]()
    for place in copies(workdir, workers):
        places.put(place)

    def work(mutant: Mutant) -> dict[str, Any]:
        if mutant.key in known:
            return known[mutant.key]
        place = places.get()
        try:
            result = judged(mutant, place, by_line)
        finally:
            places.put(place)
        with file.open("a") as out:
            out.write(json.dumps(result) + "\n")
        place_of = f"{mutant.file}:{mutant.line}"
        print(f"{result['outcome']:<15} {result['seconds']:>6} s  {place_of}  {mutant.after[:70]}", flush=True)
        return result

    candidates, good = iter(drawn(count)), []
    with ThreadPoolExecutor(workers) as pool:
        while len(good) < count:
            batch = [m for m, _ in zip(candidates, range(count - len(good)), strict=False)]
            if not batch:
                break
            good += [result for result in pool.map(work, batch) if result["outcome"] != "not importable"]
    return good


def line_of(result: Mapping[str, Any]) -> str:
    """How a mutant is named in the list of those that change nothing."""
    return f"{result['file']}: {result['before']} -> {result['after']}"


def equivalent_mutants() -> dict[str, str]:
    """Mutants that change nothing, each with the reason."""
    return dict(json.loads(EQUIVALENT.read_text()))


def report(results: list[dict[str, Any]]) -> None:
    """Print how many died, of each part too, and who survived."""
    reasons = equivalent_mutants()
    equivalent = [r for r in results if r["outcome"] != "killed" and line_of(r) in reasons]
    alive = [r for r in results if r["outcome"] != "killed" and line_of(r) not in reasons]
    files = Counter(result["file"] for result in results)
    print("mutants of each part:", ", ".join(f"{part} {files[file]}" for part, file in sorted(parts().items())))
    judged_count = len(results) - len(equivalent)
    share = 100 * (judged_count - len(alive)) / max(1, judged_count)
    print(f"{len(results)} mutants, {len(equivalent)} equivalent; of the others {share:.1f} % died")
    dead = [result["reason"] for result in results if result["outcome"] == "killed"]
    kinds = Counter(re.split(r"[:( ]", reason, maxsplit=1)[0] for reason in dead)
    print("killed by:", ", ".join(f"{kind or 'assert'} {n}" for kind, n in kinds.most_common()))
    for result in alive:
        print(f"{result['outcome']}: {result['file']}:{result['line']}\n    {result['before']}\n    {result['after']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default=ROOT / "runs" / "mutants", type=Path)
    parser.add_argument("--map", nargs="*", metavar="FILE", help="record which test runs which line; minutes, or of "
                        "these files alone")  # fmt: skip
    parser.add_argument("--count", default=200, type=int, help="number of mutants")
    parser.add_argument("--workers", default=2, type=int)
    parser.add_argument("--again", action="store_true", help="judge again what did not die; after tests were added")
    args = parser.parse_args()
    if args.map is not None or not (args.workdir / "coverage").is_file():
        record_map(args.workdir, args.map or ())
    if args.map is None:
        report(run(args.workdir, args.count, args.workers, args.again))


if __name__ == "__main__":
    main()
