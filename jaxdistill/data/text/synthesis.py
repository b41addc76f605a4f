"""Data sets of texts that a teacher generated: prompts, parsing of answers, and files.

    FOLDER/manifest.json        the teacher, the prompt, the settings and the number of answers
    FOLDER/<number>.jsonl       a part of the records; renamed into place when complete, so that writing can be resumed
    FOLDER/test.jsonl           real texts, on which students of the synthetic texts are evaluated
    FOLDER/<name>.json          the seal of the file <name>.jsonl, with its checksum

Kim and Rush, Sequence-level knowledge distillation, 2016 (arxiv.org/abs/1606.07947): the student learns from texts
that the teacher generates. West et al., Symbolic knowledge distillation, 2022 (arxiv.org/abs/2110.07178): the teacher
generates from a prompt alone, and a critic filters its texts; here, a regular expression filters them.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxdistill.core import seal
from jaxdistill.core.errors import DamageError
from jaxdistill.core.notes import note_damage
from jaxdistill.core.registry import datasets

PLACEHOLDER = "{text}"


class PromptTemplate(NamedTuple):
    r"""A prompt for a teacher that generates examples, and the format of an example.

    The `text` of an example consists of the part of the prompt after `{text}` and of the teacher's answer. With the
    prompt "{text}\nQuestion:", every example begins with "Question:".

    template: the prompt; `{text}` is replaced by a real text
    form: a regular expression that the whole text of an example must match; its named groups become further fields
    until: a text that ends an answer, such as a blank line; if it is empty, the whole answer is used
    """

    template: str
    form: str = r"(?s).*\S.*"
    until: str = ""

    def prompt(self, text: str) -> str:
        """Return the prompt, with `text` in the place of `{text}`."""
        return self.template.replace(PLACEHOLDER, text)

    def record(self, answer: str) -> dict[str, str] | None:
        """Convert an answer of the teacher to an example, a dict `{field: text}`.

        Return None if the text of the example does not match the regular expression `form`.
        """
        answer = answer.partition(self.until)[0] if self.until else answer
        text = (self.template.rpartition(PLACEHOLDER)[2] + answer).strip()
        match = re.fullmatch(self.form, text)
        return None if match is None else {"text": text} | {k: v.strip() for k, v in match.groupdict("").items()}


MOST_PARTS = 2**20  # files of one data set


def parts(rows: int, size: int) -> list[tuple[int, range]]:
    """Divide the answers of a teacher into parts, and return a list of pairs (part number, range of answer numbers).

    The answers of a part are generated together and written to one file.

    Args:
        rows: number of answers in the data set.
        size: answers per part.
    """
    return [(number, range(first, min(first + size, rows))) for number, first in enumerate(range(0, rows, size))]


def write_generation_settings(folder: Path, about: Mapping[str, Any]) -> None:
    """Write the manifest.json of a generated data set, or check that the existing file has the same content.

    The folder is created if it is missing, and a damaged file is written again.

    Args:
        folder: folder of the data set.
        about: content of the file: teacher, prompt and settings of the generation.

    Raises:
        ValueError: the existing file has another content.
    """
    file, new = folder / "manifest.json", json.loads(json.dumps(dict(about)))
    try:
        old = seal.read(file, {})
    except (FileNotFoundError, DamageError) as error:
        note_damage(error)
        seal.write(file, new)
        return
    if changed := [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]:
        settings = f"other settings ({', '.join(changed)})"
        raise ValueError(f"{folder} was written with {settings}; remove it, or choose another folder")


def is_file_of_set(name: str) -> bool:
    """Return True if a file name, such as `00003.jsonl`, is one that a generated data set may contain."""
    return re.fullmatch(r"(manifest|test|\d{5,})\.jsonl?", name) is not None


def write_part(folder: Path, number: int, records: Iterable[Mapping[str, str]]) -> None:
    """Write one part (file) of a generated data set; an interrupted call leaves no incomplete file.

    Args:
        folder: folder of the data set.
        number: number of the part.
        records: the examples of the part, `{field: text}` each.
    """
    _write_records(_part_file(folder, number), records)


def missing_parts(folder: Path, rows: int, size: int) -> list[tuple[int, range]]:
    """List the parts (files) of a generated data set that are missing or damaged.

    Args:
        folder: folder of the data set.
        rows: number of answers in the whole data set.
        size: answers per part.

    Returns:
        A list of pairs (part number, range of answer numbers).
    """
    return [(number, part) for number, part in parts(rows, size) if not _is_good(_part_file(folder, number))]


def write_test(folder: Path, texts: Sequence[str]) -> None:
    """Write real texts as the test split of a generated data set."""
    _write_records(folder / "test.jsonl", ({"text": text} for text in texts))


def _part_file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.jsonl"


def _write_records(file: Path, records: Iterable[Mapping[str, str]]) -> None:
    seal.write_text(file, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    seal.seal_file(file, _identity(file))


def _identity(file: Path) -> dict[str, str]:
    """Return a dict that identifies a file of a data set in its seal: the file's name and a hash of the settings."""
    settings = file.with_name("manifest.json")
    return {"part": file.stem} | ({"settings": seal.sha256(settings)} if settings.is_file() else {})


def _is_good(file: Path) -> bool:
    try:
        seal.check_file(file, _identity(file))
    except FileNotFoundError:  # an earlier version wrote no seals
        return file.is_file() and not seal.is_sealed(file.with_name("manifest.json"))
    except DamageError as error:
        note_damage(error)
        return False
    return True


@datasets.register
def synthetic(folder: str, split: str) -> list[dict[str, str]]:
    """Load a split of a data set of generated texts that the command `jaxdistill synthesize` wrote.

    The split `train` has texts that a teacher generated, and the split `test` has real texts.

    Args:
        folder: the folder of the data set.
        split: `train` or `test`.

    Raises:
        ValueError: the data set does not exist, or is not finished.
        DamageError: the manifest.json or the test split of the data set is damaged.
        KeyError: there is no such split.
    """
    path, cure = Path(folder).expanduser(), "the same `jaxdistill synthesize` command writes it again"
    try:
        about = seal.read(path / "manifest.json", {"rows": int, "part": int})
        if not (about["part"] >= 1 and 0 <= about["rows"] <= about["part"] * MOST_PARTS):
            raise DamageError(f"{path / 'manifest.json'} is damaged ({about['rows']} rows by {about['part']})")
    except FileNotFoundError:
        raise ValueError(f"{folder!r} holds no manifest.json; write it with jaxdistill synthesize") from None
    except DamageError as error:
        raise DamageError(f"{error}; {cure}") from None
    missing, every = missing_parts(path, about["rows"], about["part"]), parts(about["rows"], about["part"])
    if missing:
        done = f"{len(every) - len(missing)} of {len(every)} parts"
        raise ValueError(f"{folder!r} is not finished or damaged: {done} are complete; {cure}")
    files = {"train": [_part_file(path, number) for number, _ in every], "test": [path / "test.jsonl"]}[split]
    if not _is_good(path / "test.jsonl"):
        raise DamageError(f"{path / 'test.jsonl'} is missing or damaged; {cure}")
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").split("\n") if line]
