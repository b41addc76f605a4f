"""Kill and damage the study of recipes: does it end with the same bits? python -m experiments.recipes.disturbed

Runs `python -m experiments.recipes` for one seed in two folders. One is left alone. The other is killed (SIGKILL, with
all its threads) at three random moments. While it is dead after the second kill, one bit of the newest checkpoint is
flipped; if its training had ended, the results are removed, so that the checkpoint is read again. After the third, one
bit of a cache shard is flipped. Each start goes on with what it finds. In the end all arrays of all final checkpoints,
all cache shards, the vocabularies and the table must be the same.

A stopped command goes on; what is finished is not run again. Remove --home to start over.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.same.arrays import differences, saved

ROOT = Path(__file__).parents[2]
TIMED = {"latency_ms", "latency_range", "seconds"}  # of a row: they differ between two runs of one program


def start(folder: Path, words: list[str]) -> subprocess.Popen:
    """Start the study in a folder of its own, as the leader of a process group; its output goes to log.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "experiments.recipes", "--seeds", "1", *words]
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(folder: Path, words: list[str]) -> float:
    """Run the study to its end and return its seconds."""
    begin = time.monotonic()
    if start(folder, words).wait() != 0:
        raise SystemExit(f"{folder}/log.txt says why the study failed")
    return time.monotonic() - begin


def flip(file: Path, draw: random.Random) -> str:
    """Flip one bit of a file, at a random place; returns the file and the place."""
    content = bytearray(file.read_bytes())
    place = draw.randrange(len(content))
    content[place] ^= 1 << draw.randrange(8)
    file.write_bytes(content)
    return f"{file}, byte {place} of {len(content)}"


def newest_checkpoint(folder: Path) -> Path:
    """Return the largest file of the checkpoint that was finished last: most of the bits are there."""
    steps = max(folder.rglob("checkpoints/manifests/*.json"), key=lambda file: file.stat().st_mtime)
    files = (steps.parents[1] / "steps" / steps.stem).rglob("*")
    return max((file for file in files if file.is_file()), key=lambda file: file.stat().st_size)


def unfinished(file: Path) -> str:
    """Remove the results of a stage, so that its damaged checkpoint is read again; returns what was removed."""
    stage = next(parent for parent in file.parents if parent.name == "checkpoints").parent
    results = [each for each in (stage / "result.json", stage.parent / "results.json") if each.is_file()]
    for each in results:
        each.unlink()
    return "".join(f"; removed {each}" for each in results)


def shards(folder: Path) -> list[Path]:
    """Return the shards of all teacher caches."""
    return sorted(folder.glob("runs/topics/cache*/*/*.array_record"))


def disturb(folder: Path, words: list[str], seconds: float, seed: int) -> None:
    """Kill the study three times, damage what it left, and let it end.

    Args:
        folder: its folder.
        words: arguments of the study.
        seconds: how long the undisturbed study took; the moments are drawn from this time.
        seed: of the moments and of the flipped bits.
    """
    draw, killed = random.Random(seed), folder / "killed.json"
    events: list[str] = json.loads(killed.read_text()) if killed.is_file() else []
    moments = sorted(draw.uniform(0.1, 0.9) * seconds for _ in range(3))
    for number, lasting in enumerate(np.diff([0.0, *moments])):
        if number < len(events):
            continue
        process = start(folder, words)
        try:
            process.wait(lasting)
            raise SystemExit(f"{folder}: the study ended after {number} kills; draw other moments with --seed")
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        event = f"killed after {lasting:.0f} s"
        if number == 1:
            file = newest_checkpoint(folder)
            event += f"; flipped {flip(file, draw)}{unfinished(file)}"
        if number == 2:
            event += f"; flipped {flip(draw.choice(shards(folder)), draw)}"
        print(event, flush=True)
        events.append(event)
        killed.write_text(json.dumps(events, indent=1))
    finish(folder, words)


def left(folder: Path) -> dict[str, np.ndarray]:
    """Return all that the study left by name: arrays of final checkpoints, and digests of shards and tables."""
    found = {}
    for checkpoints in sorted(folder.rglob("checkpoints")):
        stage = checkpoints.parent
        found |= {f"{stage.relative_to(folder)}/{name}": array for name, array in saved(checkpoints).items()}
    for file in [*shards(folder), *sorted(folder.rglob("vocabulary.json")), *sorted(folder.rglob("hub/*.safetensors"))]:
        digest = hashlib.sha256(file.read_bytes()).digest()
        found[str(file.relative_to(folder))] = np.frombuffer(digest, np.uint8)
    results = json.loads((folder / "runs/topics/results.json").read_text())
    for word, rows in {**results["runs"], "teacher": [results["teacher"]]}.items():
        text = json.dumps(without_times(rows), sort_keys=True)
        found[f"table/{word}"] = np.frombuffer(text.encode(), np.uint8)
    return found


def without_times(value: Any) -> Any:
    """Return a row of the table without what was timed."""
    if isinstance(value, list):
        return [without_times(item) for item in value]
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMED}
    return value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", default=Path("runs/disturbed"), type=Path, help="both studies are written here")
    parser.add_argument("--seed", default=0, type=int, help="of the moments and of the flipped bits")
    parser.add_argument("--only", default="", help="comma-separated presets; empty: all")
    parser.add_argument("--every", default=50, type=int, help="steps between the checkpoints of the disturbed study")
    args = parser.parse_args()
    words = ["--only", args.only] if args.only else []
    whole, damaged, timing = args.home / "undisturbed", args.home / "disturbed", args.home / "seconds.json"

    if not timing.is_file():
        timing.write_text(json.dumps(finish(whole, words)))
    seconds = json.loads(timing.read_text())
    print(f"undisturbed: {seconds:.0f} s", flush=True)
    disturb(damaged, [*words, "--every", str(args.every)], seconds, args.seed)
    lines = differences(left(whole), left(damaged))
    print("\n".join(lines) or f"the same: {len(left(whole))} arrays, shards and tables")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
