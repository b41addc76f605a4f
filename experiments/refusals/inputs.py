"""Three hundred bad inputs: a command line for each, after a change of the files that it reads.

`{home}` in a word stands for the folder with the files that `__main__.py` writes; a change is a function of it.
"""

from collections.abc import Iterator
from typing import NamedTuple

from experiments.refusals.command_lines import BASE, COMMANDS, SPECS, TEXT
from experiments.refusals.damaged_files import ARRAYS, FILES, LINES, TABLES, Change, written
from jaxdistill.run.schema import SCHEMA, Key, OpenSection

ENTRIES = {"teachers": "big", "objective": "kd", "task": "cross_entropy", "streams": "extra", "roles": "student"}
ENTRIES |= {"exports": "phone"}


class Input(NamedTuple):
    """A bad input.

    kind: its class
    words: the command line
    change: what is done to the files first; None: nothing
    seconds: processor time within which it must be refused: more where a checkpoint or a package must be opened
    """

    kind: str
    words: tuple[str, ...]
    change: Change | None = None
    seconds: float = 3.0


def config(kind: str, *changes: str, base: tuple[str, ...] = BASE, seconds: float = 3.0) -> Input:
    return Input(kind, (*base, *(f"--config.{change}" for change in changes)), None, seconds)


# Values that no key of a kind takes, by the end of the kind's description.
WRONG = {
    "text": (),
    "spec string": ("nonesuch(", "nonesuch()"),
    "number, or a schedule": ("fast", "cosine(start=one)"),
    "True or False": ("maybe",),
    "0 or more": ("-1", "2.5"),
    "1 or more, below": ("0", "many"),
    "or -1": ("0",),
    "0 to 1e30": ("-1.0", "1e40"),
    "tuple": ("7", "(None,)"),
}


def keys() -> Iterator[tuple[str, Key]]:
    """Yield every key of a config with its path."""
    for name, section in SCHEMA.items():
        if isinstance(section, Key):
            yield name, section
            continue
        entries, prefix = (
            (section.entry, f"{name}.{ENTRIES[name]}")
            if isinstance(section, OpenSection)
            else (
                section,
                name,
            )
        )
        for key, value in entries.items():
            yield f"{prefix}.{key}", value


def of_keys() -> Iterator[Input]:
    """Yield wrong values for every key, by what it takes; those that are free texts name things that do not exist."""
    free = {"data.name": "nonesuch", "data.train": "trian", "data.test": "tset", "teachers.big.checkpoint": "gone"}
    free |= {"objective.kd.stream": "nowhere", "task.cross_entropy.stream": "nowhere", "exports.phone.model": "big"}
    free |= {"exports.phone.runtime": "java", "teachers.big.reads": "nothing/", "data.folder": "/proc/none"}
    for path, key in keys():
        if path in free:
            yield config("value of a key", f"{path}={free[path]}")
            continue
        for words, values in WRONG.items():
            if words in key.kind.wanted and words != "text":
                for value in values:
                    yield config("value of a key", f"{path}={value}")
                break
        else:
            if " or " in key.kind.wanted and path != "distributed.coordinator":
                yield config("value of a key", f"{path}=nonesuch")


def inputs() -> list[Input]:
    """Return all bad inputs."""
    made = [*of_keys()]
    made += [config("spec or key", change) for change in SPECS]
    made += [Input("command line", words) for words in COMMANDS]
    made += [Input(f"CSV: {name}", TEXT, written("texts.csv", content)) for name, content in TABLES.items()]
    lines = (*TEXT, "--config.data.name=table(path='{home}/texts.jsonl', text='words', label='kind')")
    made += [Input(f"JSON lines: {name}", lines, written("texts.jsonl", content)) for name, content in LINES.items()]
    made += [Input(f"arrays: {name}", BASE, change) for name, change in ARRAYS.items()]
    made += [Input(f"file: {name}", words, change, 5.0) for name, words, change in FILES]
    return made
