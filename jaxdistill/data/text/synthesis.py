"""Data sets of texts that a teacher generated: prompts, parsing of answers, and files.

    FOLDER/manifest.json        the teacher, the prompt, the settings and the number of records
    FOLDER/<number>.jsonl       a part of the records; renamed into place when complete, so that writing can be resumed
    FOLDER/test.jsonl           real texts, on which students of the synthetic texts are evaluated

Kim and Rush, Sequence-level knowledge distillation, 2016 (arxiv.org/abs/1606.07947): the student learns from texts
that the teacher generates. West et al., Symbolic knowledge distillation, 2022 (arxiv.org/abs/2110.07178): the teacher
generates from a prompt alone, and a critic filters its texts; here, a regular expression filters them.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxdistill.core.registry import datasets

PLACEHOLDER = "{text}"


class PromptTemplate(NamedTuple):
    r"""A prompt for a teacher, and the format of the records in its answers.

    template: the prompt; `{text}` is replaced by a real text. The `text` of a record is the part of the prompt after
        `{text}`, followed by the answer: for "{text}\nQuestion:", it begins with "Question:"
    form: a regular expression that the whole text of a record must match; its named groups become fields
    until: a text that ends an answer, such as a blank line; empty: the answer ends with its last token
    """

    template: str
    form: str = r"(?s).*\S.*"
    until: str = ""

    def prompt(self, text: str) -> str:
        """Return the prompt for a real text."""
        return self.template.replace(PLACEHOLDER, text)

    def record(self, answer: str) -> dict[str, str] | None:
        """Parse an answer into a record; None if it does not match `form`."""
        answer = answer.partition(self.until)[0] if self.until else answer
        text = (self.template.rpartition(PLACEHOLDER)[2] + answer).strip()
        match = re.fullmatch(self.form, text)
        return None if match is None else {"text": text} | {k: v.strip() for k, v in match.groupdict("").items()}


def parts(rows: int, size: int) -> list[tuple[int, range]]:
    """Divide `rows` records into parts of `size`: (number, its rows)."""
    return [(number, range(first, min(first + size, rows))) for number, first in enumerate(range(0, rows, size))]


def write_manifest(folder: Path, about: Mapping[str, Any]) -> None:
    """Create a data set folder, or check that an existing one has the same manifest.

    Raises:
        ValueError: the existing folder has another manifest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file, content = folder / "manifest.json", json.dumps(about, indent=1)
    if file.is_file() and file.read_text() != content:
        old, new = json.loads(file.read_text()), json.loads(content)
        changed = ", ".join(key for key in sorted({*old, *about}) if old.get(key) != new.get(key))
        raise ValueError(f"{folder} was written with other settings ({changed}); remove it, or choose another folder")
    _write_atomically(file, content)


def write_part(folder: Path, number: int, records: Iterable[Mapping[str, str]]) -> None:
    """Write one part atomically: an interrupted write leaves no part."""
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    _write_atomically(_part_file(folder, number), "".join(lines))


def missing_parts(folder: Path, rows: int, size: int) -> list[tuple[int, range]]:
    """Return the parts that are not written yet."""
    return [(number, part) for number, part in parts(rows, size) if not _part_file(folder, number).is_file()]


def write_test(folder: Path, texts: Sequence[str]) -> None:
    """Write the real texts of the test split."""
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    _write_atomically(folder / "test.jsonl", "".join(lines))


def _part_file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.jsonl"


def _write_atomically(file: Path, content: str) -> None:
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(content, encoding="utf-8")
    temporary.replace(file)


@datasets.register
def synthetic(folder: str, split: str) -> list[dict[str, str]]:
    """Load a data set that `jaxdistill synthesize` wrote: `train` by the teacher, `test` with real texts.

    Args:
        folder: the folder of the data set.
        split: `train` or `test`.

    Raises:
        ValueError: the data set does not exist, or is not finished.
        KeyError: no such split.
    """
    path = Path(folder).expanduser()
    try:
        about = json.loads((path / "manifest.json").read_text())
    except FileNotFoundError:
        raise ValueError(f"{folder!r} holds no manifest.json; write it with jaxdistill synthesize") from None
    missing, every = missing_parts(path, about["rows"], about["part"]), parts(about["rows"], about["part"])
    if missing:
        done = f"{len(every) - len(missing)} of {len(every)} parts"
        raise ValueError(f"{folder!r} is not finished: {done} are written; run the same command again to resume")
    files = {"train": [_part_file(path, number) for number, _ in every], "test": [path / "test.jsonl"]}[split]
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").split("\n") if line]
