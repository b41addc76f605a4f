"""Text that a teacher wrote: how it is asked, what is read out of its answers, and the data set that they become.

    FOLDER/manifest.json        who was asked, how, and for how many records
    FOLDER/<number>.jsonl       a part of them, renamed into place when whole: what was cut short goes on there
    FOLDER/test.jsonl           real texts, which a student of the synthetic ones is judged on

Kim and Rush, Sequence-level knowledge distillation, 2016 (arxiv.org/abs/1606.07947): a student learns from what its
teacher writes. West et al., Symbolic knowledge distillation, 2022 (arxiv.org/abs/2110.07178): from a prompt alone, and
only what a critic lets pass; here, what has the form that was asked for.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxdistill.core.registry import datasets

GIVEN = "{text}"


class Ask(NamedTuple):
    r"""How a teacher is asked, and what is read out of its answer.

    template: the prompt; `{text}` stands for a real text. A record's `text` is what follows that, with the answer:
        of "{text}\nQuestion:", a question and whatever comes next
    form: a regular expression that a record's text must match as a whole; its named groups become fields
    until: where an answer ends, such as a blank line; empty: where its tokens do
    """

    template: str
    form: str = r"(?s).*\S.*"
    until: str = ""

    def prompt(self, given: str) -> str:
        """The prompt for a real text."""
        return self.template.replace(GIVEN, given)

    def record(self, answer: str) -> dict[str, str] | None:
        """The record of an answer; None where it has another form."""
        answer = answer.partition(self.until)[0] if self.until else answer
        text = (self.template.rpartition(GIVEN)[2] + answer).strip()
        found = re.fullmatch(self.form, text)
        return None if found is None else {"text": text} | {k: v.strip() for k, v in found.groupdict("").items()}


def parts(rows: int, size: int) -> list[tuple[int, range]]:
    """The parts of so many records: (number, which rows)."""
    return [(number, range(first, min(first + size, rows))) for number, first in enumerate(range(0, rows, size))]


def begin(folder: Path, about: Mapping[str, Any]) -> None:
    """Begins a folder, or goes on with one of the same manifest.

    Raises:
        ValueError: it was begun with another one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file, said = folder / "manifest.json", json.dumps(about, indent=1)
    if file.is_file() and file.read_text() != said:
        old = json.loads(file.read_text())
        changed = ", ".join(key for key in sorted({*old, *about}) if old.get(key) != json.loads(said).get(key))
        raise ValueError(f"{folder} was begun with other settings ({changed}); remove it, or choose another folder")
    _whole(file, said)


def write(folder: Path, number: int, records: Iterable[Mapping[str, str]]) -> None:
    """Writes a part: it is there whole, or not at all."""
    _whole(_part(folder, number), "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def missing(folder: Path, rows: int, size: int) -> list[tuple[int, range]]:
    """The parts that are not written yet."""
    return [(number, part) for number, part in parts(rows, size) if not _part(folder, number).is_file()]


def write_test(folder: Path, texts: Sequence[str]) -> None:
    """Writes the real texts."""
    _whole(folder / "test.jsonl", "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))


def _part(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.jsonl"


def _whole(file: Path, content: str) -> None:
    half = file.with_suffix(f".{os.getpid()}.tmp")
    half.write_text(content, encoding="utf-8")
    half.replace(file)


@datasets.register
def synthetic(folder: str, split: str) -> list[dict[str, str]]:
    """What `jaxdistill synthesize` wrote: `train` by the teacher, `test` of the real data.

    Args:
        folder: where it was written.
        split: `train` or `test`.

    Raises:
        ValueError: it is not there, or not finished.
        KeyError: no such split.
    """
    home = Path(folder).expanduser()
    try:
        about = json.loads((home / "manifest.json").read_text())
    except FileNotFoundError:
        raise ValueError(f"{folder!r} holds no manifest.json; write it: jaxdistill synthesize") from None
    left, every = missing(home, about["rows"], about["part"]), parts(about["rows"], about["part"])
    if left:
        done = f"{len(every) - len(left)} of {len(every)} parts"
        raise ValueError(f"{folder!r} is not finished: {done} are written; give the same command again")
    files = {"train": [_part(home, number) for number, _ in every], "test": [home / "test.jsonl"]}[split]
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").split("\n") if line]
