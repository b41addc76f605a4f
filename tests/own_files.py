"""A user's files in every format that the data set `table` reads, for tests of damaged files."""

import io
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from jaxdistill.core.types import Variables
from jaxdistill.data.datasets import open_records
from jaxdistill.export.model_folder import About, Extras, read_about, read_arrays, write

ROWS = [{"text": f"text {n}", "label": ("a", "b")[n % 2]} for n in range(12)]
TEXTS = "text='text', label='label'"


def write_csv(folder: Path) -> Path:
    lines = ["text,label", *(f'"{row["text"]}",{row["label"]}' for row in ROWS)]
    (folder / "own.csv").write_text("\n".join(lines) + "\n")
    return folder / "own.csv"


def write_lines(folder: Path) -> Path:
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder / "own.jsonl"


def write_parquet(folder: Path) -> Path:
    parquet.write_table(pa.Table.from_pylist(ROWS), folder / "own.parquet")
    return folder / "own.parquet"


def write_npz(folder: Path) -> Path:
    np.savez(folder / "own.npz", x=np.arange(24.0).reshape(12, 2), y=np.arange(12) % 2)
    return folder / "own.npz"


def write_image(folder: Path) -> Path:
    for name in ("a", "b"):
        (folder / "own" / name).mkdir(parents=True)
        for number in range(3):
            buffer = io.BytesIO()
            Image.fromarray(np.full((4, 4, 3), 40 * number, np.uint8)).save(buffer, "PNG")
            (folder / "own" / name / f"{number}.png").write_bytes(buffer.getvalue())
    return folder / "own" / "a" / "0.png"


def read_table(path: Path, columns: str = TEXTS, home: Path | None = None) -> object:
    """Read all records of a file; the data set keeps a copy in the folder `prepared`, by default beside the file."""
    comma = ", " if columns else ""
    spec = f"table(path={str(path)!r}{comma}{columns})"
    records = open_records(spec, "train", (home or path.parent) / "prepared", "data", "train")
    return {name: x.tolist() for name, x in records.take(np.arange(len(records))).items()}


def write_store(folder: Path) -> Path:
    """Write and read a CSV file; return the copy that the data set keeps of it."""
    read_table(write_csv(folder))
    (file,) = folder.glob("prepared/tables/*/train.arrow")
    return file


def read_store(file: Path) -> object:
    """Read the CSV file again, whose kept copy may be damaged by now."""
    return read_table(file.parents[3] / "own.csv")


def write_store_manifest(folder: Path) -> Path:
    return write_store(folder).with_name("table.json")


def write_model(folder: Path, values: Variables | None = None) -> Path:
    about = About(
        model="mlp(widths=(4,), classes=2)",
        options={},
        dtype="float32",
        inputs={"image": ((2,), "float32")},
        tokens="",
        texts=[],
        transforms=[],
        task="image-classification",
        class_names=["a", "b"],
        batch_size=4,
        columns={},
        channels=3,
        embeds=False,
        hub_layout=False,
        in_transformers=False,
        parts={},
    )
    values = values or Variables({"head/kernel": jnp.arange(8, dtype=jnp.float32).reshape(4, 2)}, {})
    write(folder / "hub", about, Extras("", {}), values, "# A card\n")
    return folder / "hub" / "model.safetensors"


def read_model(file: Path) -> object:
    arrays = read_arrays(file.parent, Variables({"head/kernel": np.zeros((4, 2), np.float32)}, {}))
    return read_about(file.parent), {name: x.tolist() for name, x in arrays.params.items()}
