"""The arrays of checkpoints, read by Orbax alone, and how those of two runs differ."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np


def saved(folder: Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint in a folder `checkpoints`, by name."""
    import orbax.checkpoint as ocp

    manifests = {int(file.stem): file for file in (folder / "manifests").glob("*.json")}
    newest = max(manifests)
    names = json.loads(manifests[newest].read_text())["arrays"]
    arguments = ocp.args.PyTreeRestore(restore_args=dict.fromkeys(names, ocp.RestoreArgs(restore_type=np.ndarray)))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        found = reader.restore((folder / "steps" / str(newest) / "state").absolute(), args=arguments)
    return {f"{newest}/{name}": array for name, array in found.items()}


def differences(base: Mapping[str, np.ndarray], here: Mapping[str, np.ndarray]) -> list[str]:
    """Names of arrays that only one of the two has, or whose bits differ."""
    lines = [f"{name} is missing" for name in sorted(base.keys() - here.keys())]
    lines += [f"{name} is new" for name in sorted(here.keys() - base.keys())]
    for name in sorted(base.keys() & here.keys()):
        old, new = base[name], here[name]
        if (old.dtype, old.shape, old.tobytes()) != (new.dtype, new.shape, new.tobytes()):
            far = ""
            if old.shape == new.shape and old.dtype.kind == "f":
                far = f" by {np.abs(np.float64(old) - np.float64(new)).max():.2g}"
            lines.append(f"{name} differs{far}")
    return lines
