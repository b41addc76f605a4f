"""Give the command line 371 bad inputs: python -m experiments.refusals [--home runs/refusals] [--only WORD]

Each runs in a process of its own, in a fresh copy of a folder with data, a tokenizer and a finished run. It must end
with exit code 2 or 4 and one line that begins with "error:", without a traceback, before anything is trained, within
3 s of processor time (5 s where a file of a run must be opened) and 1 GiB of memory. What is accepted, or refused
otherwise, is listed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from experiments.refusals.inputs import Input, inputs

MEMORY, LONGEST = 2**30, 60.0
CONFIG = """from jaxdistill import make


def get_config():
    return make(
        steps=4,
        batch_size=12,
        student={{"model": "mlp(widths=(8,), classes=3)"}},
        teachers={{"big": {{"model": "mlp(widths=(16,), classes=3)", "steps": 3}}}},
        objective={{"kd": {{}}, "cross_entropy": {{}}}},
        data={{"name": "table(path='{home}/images.npz', image='x', label='y')"}},
        evaluate={{"every": 4, "batch_size": 12, "layers": ()}},
        logging={{"tensorboard": False}},
        mesh={{"data": 1}},
    )
"""
TEXTS = """from jaxdistill import make


def get_config():
    return make(
        steps=4,
        batch_size=8,
        student={{"model": "bert(vocabulary={{vocabulary}}, width=8, depth=1, heads=2, ffn=8, classes=2)"}},
        objective={{"cross_entropy": {{}}}},
        data={{
            "name": "table(path='{home}/texts.csv', text='words', label='kind')",
            "tokens": "sentences(tokenizer='{home}', length=8)",
        }},
        evaluate={{"every": 4, "batch_size": 8, "layers": ()}},
        logging={{"tensorboard": False}},
        mesh={{"data": 1}},
    )
"""


def prepare(home: Path) -> None:
    """Write data, configs and a tokenizer, and train a small run."""
    draw = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = np.clip(80 * labels[:, None, None, None] + draw.normal(0, 60, (60, 8, 8, 1)), 0, 255).astype(np.uint8)
    np.savez(home / "images.npz", x=images, y=labels)
    rows = [f"{' '.join(draw.choice(list('abcd'), 3))},{'xy'[number % 2]}" for number in range(60)]
    (home / "texts.csv").write_text("words,kind\n" + "\n".join(rows) + "\n")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d"]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {w: n for n, w in enumerate(words)}, "unk_token": "[UNK]"},
    }
    (home / "tokenizer.json").write_text(json.dumps(tokenizer))
    (home / "config.py").write_text(CONFIG.format(home=home))
    (home / "texts.py").write_text(TEXTS.format(home=home))
    for name, folder in (("config.py", "run"), ("texts.py", "read")):
        command = [sys.executable, "-m", "jaxdistill.main", "train", "--config", str(home / name)]
        subprocess.run([*command, "--workdir", str(home / folder)], check=True, capture_output=True)


def tried(number: int, bad: Input, home: Path) -> dict[str, Any]:
    """Run one input, and return what came of it."""
    place = home.with_name(f"{home.name}-{number}")
    shutil.copytree(home, place, symlinks=True)
    for name in ("config.py", "texts.py"):  # they name the folder
        (place / name).write_text((place / name).read_text().replace(str(home), str(place)))
    if bad.change:
        bad.change(place)
    words = [word.replace("{home}", str(place)) for word in bad.words]
    before = sorted(str(file) for file in place.rglob("*"))
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "jaxdistill.main", *words],
            stdout=out,
            stderr=err,
            env={**os.environ, "JAXDISTILL_DATA": str(place / "prepared")},  # nothing was prepared before
        )
        status, usage, hung = None, None, False
        while status is None:
            pid, code, used = os.wait4(process.pid, os.WNOHANG)
            if pid:
                status, usage = os.waitstatus_to_exitcode(code), used
            elif time.monotonic() - start > LONGEST:
                process.kill()
                hung, (_, code, usage) = True, os.wait4(process.pid, 0)
                status = os.waitstatus_to_exitcode(code)
            else:
                time.sleep(0.02)
        process.returncode = status
        err.seek(0)
        text = err.read().decode(errors="replace")
    stray = [
        line
        for line in text.splitlines()
        if not line.startswith(("error:", "note:", "Read ", "Fetching ", "Preparing "))
    ]
    errors = [line for line in text.splitlines() if line.startswith("error:")]
    left = sorted(str(file) for file in place.rglob("*"))
    shutil.rmtree(place, ignore_errors=True)
    assert usage is not None
    return {
        "kind": bad.kind,
        "words": " ".join(word.replace(str(place), "HOME") for word in words),
        "code": status,
        "hung": hung,
        "traceback": "Traceback" in text,
        "error": errors[-1].replace(str(place), "HOME") if errors else text[-200:],
        "lines": len(errors),
        "seconds": usage.ru_utime + usage.ru_stime,
        "allowed": bad.seconds,
        "mebibytes": usage.ru_maxrss / 1024,
        "stray": stray,
        "trained": sorted(file.replace(str(place), "HOME") for file in {*left} - {*before} if "checkpoints" in file),
    }


def verdict(row: dict[str, Any]) -> str:
    """Return what is wrong with an answer; empty: nothing."""
    if row["hung"]:
        return "hung"
    if row["traceback"] or row["code"] == 70:
        return "traceback"
    if row["code"] == 0:
        return "accepted"
    if row["code"] not in (2, 4) or row["lines"] != 1:
        return f"exit code {row['code']}, {row['lines']} lines"
    if row["stray"]:
        return f"more lines ({row['stray'][0][:100]})"
    if row["trained"]:
        return f"trained ({row['trained'][0]})"
    if row["seconds"] > row["allowed"]:
        return f"slow: {row['seconds']:.1f} s"
    return f"memory: {row['mebibytes']:.0f} MiB" if row["mebibytes"] > MEMORY / 2**20 else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", default=Path("runs/refusals"), type=Path, help="folder for files and answers")
    parser.add_argument("--only", default="", help="inputs whose class or command line has this word")
    parser.add_argument("--workers", default=2, type=int, help="processes at once; default: 2")
    args = parser.parse_args()
    home = args.home.absolute() / "files"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    prepare(home)
    chosen = [bad for bad in inputs() if args.only in f"{bad.kind} {' '.join(bad.words)}"]
    with ThreadPoolExecutor(args.workers) as pool:
        rows = list(pool.map(lambda pair: tried(*pair, home), enumerate(chosen)))
    for row in rows:
        row["verdict"] = verdict(row)
    (args.home / "answers.json").write_text(json.dumps(rows, indent=1))
    bad_rows = [row for row in rows if row["verdict"]]
    for row in bad_rows:
        print(f"{row['verdict']}: {row['kind']}: {row['words']}\n    {row['error'][:300]}")
    seconds = np.array([row["seconds"] for row in rows])
    print(
        f"{len(rows)} inputs, {len(rows) - len(bad_rows)} refused as promised; processor time: median "
        f"{np.median(seconds):.2f} s, largest {seconds.max():.2f} s; largest memory "
        f"{max(row['mebibytes'] for row in rows):.0f} MiB"
    )
    return bool(bad_rows)


if __name__ == "__main__":
    sys.exit(main())
