"""Data sets of texts that a teacher generated: prompts, parsing of answers, and files.

    FOLDER/manifest.json        the teacher, the prompt, the settings and the number of answers
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
    r"""A prompt for a teacher that generates examples, and the format of an example.

    The `text` of an example consists of the part of the prompt after `{text}` and of the teacher's answer. With the
    prompt "{text}\nQuestion:", every example begins with "Question:".

    template: the prompt; `{text}` is replaced by a real text
    form: a regular expression that the whole text of an example must match; its named groups become further fields
    until: a text that ends an answer, such as a blank line; empty: the whole answer is used
    """

    template: str
    form: str = r"(?s).*\S.*"
    until: str = ""

    def prompt(self, text: str) -> str:
        """Return the prompt, with `text` in the place of `{text}`."""
        return self.template.replace(PLACEHOLDER, text)

    def record(self, answer: str) -> dict[str, str] | None:
        """Make an example `{field: text}` from an answer of the teacher; None if the text does not match `form`."""
        answer = answer.partition(self.until)[0] if self.until else answer
        text = (self.template.rpartition(PLACEHOLDER)[2] + answer).strip()
        match = re.fullmatch(self.form, text)
        return None if match is None else {"text": text} | {k: v.strip() for k, v in match.groupdict("").items()}


def parts(rows: int, size: int) -> list[tuple[int, range]]:
    """Divide the answers of a teacher into parts, each generated and written together: (part number, range of answers).

    Args:
        rows: number of answers in the data set.
        size: answers per part.
    """
    return [(number, range(first, min(first + size, rows))) for number, first in enumerate(range(0, rows, size))]


def write_manifest(folder: Path, about: Mapping[str, Any]) -> None:
    """Create the folder of a generated data set with its manifest.json, or check that the existing file is the same.

    Args:
        folder: folder of the data set.
        about: content of the file: teacher, prompt and settings of the generation.

    Raises:
        ValueError: the existing file has another content.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file, content = folder / "manifest.json", json.dumps(about, indent=1)
    if file.is_file() and file.read_text() != content:
        old, new = json.loads(file.read_text()), json.loads(content)
        changed = ", ".join(key for key in sorted({*old, *about}) if old.get(key) != new.get(key))
        raise ValueError(f"{folder} was written with other settings ({changed}); remove it, or choose another folder")
    _write_atomically(file, content)


def write_part(folder: Path, number: int, records: Iterable[Mapping[str, str]]) -> None:
    """Write one part (file) of a generated data set; an interrupted call leaves no incomplete file.

    Args:
        folder: folder of the data set.
        number: number of the part.
        records: the examples of the part, `{field: text}` each.
    """
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    _write_atomically(_part_file(folder, number), "".join(lines))


def missing_parts(folder: Path, rows: int, size: int) -> list[tuple[int, range]]:
    """List the parts (files) of a generated data set that are not written yet, each as (part number, range of answers).

    Args:
        folder: folder of the data set.
        rows: number of answers in the whole data set.
        size: answers per part.
    """
    return [(number, part) for number, part in parts(rows, size) if not _part_file(folder, number).is_file()]


def write_test(folder: Path, texts: Sequence[str]) -> None:
    """Write real texts as the test split of a generated data set."""
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
    """Load a data set that `jaxdistill synthesize` wrote: texts of a teacher in `train`, real texts in `test`.

    Args:
        folder: the folder of the data set.
        split: `train` or `test`.

    Raises:
        ValueError: the data set does not exist, or is not finished.
        KeyError: there is no such split.
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
