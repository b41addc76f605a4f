"""Helpers that write small files in every format that the data set `table` reads, and open them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from jaxdistill.core.errors import ConfigError
from jaxdistill.data.datasets import open_records
from jaxdistill.data.records import Records

WORDS = ("good", "bad", "fair")
RECORDS = [{"text": f'say "{number}",\nand more', "kind": WORDS[number % 3], "n": number} for number in range(60)]


def opened(spec: str, split: str = "train") -> Records:
    return open_records(spec, split, "prepared", "data", "train")


def everything(records: Records) -> dict[str, np.ndarray]:
    return records.take(np.arange(len(records)))


def refusal(spec: str, split: str = "train") -> ConfigError:
    with pytest.raises(ConfigError) as error:
        opened(spec, split)
    assert "\n" not in error.value.message
    return error.value


def write_csv(file: Path, rows: list[dict[str, Any]] = RECORDS, delimiter: str = ",", encoding: str = "utf-8") -> None:
    quoted = lambda value: '"' + str(value).replace('"', '""') + '"'
    lines = [delimiter.join(rows[0]), *(delimiter.join(map(quoted, row.values())) for row in rows)]
    file.write_text("\n".join(lines) + "\n", encoding=encoding)


def write_lines(file: Path) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in RECORDS))


def write_parquet(file: Path) -> None:
    parquet.write_table(pa.Table.from_pylist(RECORDS), file, row_group_size=7)


SPEC = "table(path='a.csv', text='text', label='kind')"

FORMATS = {
    "reviews.csv": write_csv,
    "reviews.tsv": lambda file: write_csv(file, delimiter="\t"),
    "reviews.jsonl": write_lines,
    "reviews.parquet": write_parquet,
}


def write_images(folder: Path, sizes: tuple[int, ...] = (8,)) -> None:
    for shade, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for number in range(10):
            size = sizes[number % len(sizes)]
            Image.fromarray(np.full((size, size, 3), 100 * shade + number, np.uint8)).save(
                folder / name / f"{number}.png"
            )
