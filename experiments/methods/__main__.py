"""What does each method teach? python -m experiments.methods [--workdir DIR] [--seeds 3] [--only NAME ...]

Every method of configs/methods.py, beside the same student on labels alone and on soft targets. A teacher is trained
once for each pair of networks; for each seed all methods begin with the same student and see the same batches. A run
that was stopped goes on. Writes results.json here, from which docs/make.py tells each page its result.
"""

import argparse
import importlib.util
import json
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from jaxdistill.run.config import differ
from jaxdistill.run.study import ran

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"


def configs():
    """The repository's configs/methods.py."""
    spec = importlib.util.spec_from_file_location("methods", HERE.parents[1] / "configs" / "methods.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arms(methods) -> dict[str, tuple[str, object]]:
    """(pair of networks, config) by `pair/name`: of each pair the control and soft targets, then what reads it."""
    found = {}
    for pair in methods.PAIRS:
        found[f"{pair}/control"] = differ(methods.beside_labels(pair, {}), teachers={})
        found[f"{pair}/kd"] = methods.beside_labels(pair, {"kd": {"term": "kd(temperature=4.0)"}}, labels=0.1)
        for name, method in methods.METHODS.items():
            if method.pair == pair:
                found[f"{pair}/{name}"] = methods.get_config(name)
    return found


def accuracy(config, of: str, workdir: Path) -> float:
    """A network's accuracy in % at its last step."""
    logging = {"tensorboard": False, "every": 100, "compilation_cache": str(workdir.parents[2] / "compiled")}
    rows = ran(differ(config, control=False, logging=logging), workdir)
    (found,) = (100 * row["accuracy"] for row in rows if row["name"].startswith(of))
    return round(found, 2)


def by_teacher(config, folder: Path):
    """The config with a teacher that is trained already, where it has one."""
    return differ(config, teachers={n: {**t, "checkpoint": str(folder)} for n, t in config.teachers.to_dict().items()})


def said(found: dict[str, list[float]], methods, console: Console) -> None:
    """The table, a section for each pair of networks."""
    table = Table("learns from labels and", "accuracy %", "over labels alone", "over kd")
    mean = lambda arm: np.mean(found[arm])
    for arm, values in found.items():
        pair, name = arm.split("/")
        if name == "teacher":
            table.add_section()
            table.add_row(f"({pair}: teacher)", f"{values[0]:.1f}", "", "")
            continue
        others = [f"{pair}/{other}" for other in ("control", "kd")]
        beside = [f"{mean(arm) - mean(o):+.1f}" if o in found and o != arm else "" for o in others]
        spread = f" +- {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
        table.add_row(f"{pair}: {name}", f"{mean(arm):.1f}{spread}", *beside)
    console.print(table)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--workdir", default="runs/methods", type=Path)
    words.add_argument("--seeds", default=3, type=int)
    words.add_argument("--only", nargs="*", help="pair/name, such as mlp/kd; their results are told and not written")
    known = words.parse_args()
    console, methods, found = Console(width=120), configs(), {}
    chosen = {arm: config for arm, config in arms(methods).items() if not known.only or arm in known.only}
    for seed in range(known.seeds):
        for arm, config in chosen.items():
            began = time.perf_counter()
            pair, _ = arm.split("/")
            teacher = known.workdir / pair / "teacher" / "0"
            if f"{pair}/teacher" not in found:  # trained as a run of the config would train it
                alone = differ(methods.beside_labels(pair, {}), steps=1)
                found[f"{pair}/teacher"] = [accuracy(alone, "teacher", teacher)]
            one = differ(by_teacher(config, teacher / "teachers" / "taught"), seed=seed)
            found.setdefault(arm, []).append(accuracy(one, "student", known.workdir / arm / str(seed)))
            console.print(f"{arm}, seed {seed}: {found[arm][-1]} % ({time.perf_counter() - began:.0f} s)")
    said(found, methods, console)
    if not known.only:
        RESULTS.write_text(json.dumps(found, indent=0) + "\n")


if __name__ == "__main__":
    main()
