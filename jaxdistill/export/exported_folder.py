"""Describe an exported file in its folder: `export.json` for programs, `README.md` for people."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxdistill.core import seal
from jaxdistill.export import model_folder

ABOUT = "export.json"


def write(folder: Path, class_names: Sequence[str], about: Mapping[str, Any]) -> None:
    """Write `export.json` and `README.md` beside an exported file, and seal the folder (write checksums of all files).

    Args:
        folder: the folder with the exported file.
        class_names: names of the model's classes, in order; empty if they have no names.
        about: how the file was made, what it reads, and what was measured; the content of `export.json`.
    """
    seal.write(folder / ABOUT, about)
    (folder / "README.md").write_text(_readme(class_names, about), encoding="utf-8")
    seal.seal_folder(folder)


def _readme(class_names: Sequence[str], about: Mapping[str, Any]) -> str:
    batch = "rows" if about["rows"] is None else "1"
    fields = [f"`{name}` {dtype} {[batch, *shape]}" for name, (shape, dtype) in about["inputs"].items()]
    reads = about["reads"] or ", ".join(fields)
    notes = "".join(f"\n- {note}" for note in about["notes"])
    classes = f" Classes: {', '.join(class_names)}." if class_names else ""
    return f"""# {about["model"]}, exported by `{about["format"]}`

`{about["file"]}` reads {reads}, and returns `{about["output"]}`.{classes} The preprocessing is described in
`{model_folder.ABOUT}` and in the files beside it.
{notes}

Run by {about["runtime"]} on {about["records"]:,} test records ({about["processor"]}, threads: {about["threads"]}):

```json
{json.dumps(about["measured"], indent=2)}
```
"""
