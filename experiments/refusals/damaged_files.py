"""Damage the files that a command line reads; a change is a function of the folder with them."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.refusals.command_lines import BASE, TEXT

Change = Callable[[Path], Any]
TABLES: dict[str, bytes | str] = {  # what is wrong with a file of texts
    "empty": "",
    "a heading alone": "words,kind\n",
    "no such column": "text,kind\na b,x\n",
    "one class": "words,kind\n" + 40 * "a b,x\n",
    "labels with a point": "words,kind\n" + "a b,0.5\nc,1.25\n" * 20,
    "a missing label": "words,kind\n" + "a b,x\nc d,\n" * 20,
    "a row that is too long": "words,kind\na b,x,y,z\n" + "a b,x\nc d,y\n" * 20,
    "a row that is too short": "words,kind\na b\n" + "a b,x\nc d,y\n" * 20,
    "two equal columns": "words,words,kind\na,b,x\n",
    "bytes of an image": bytes(range(256)) * 20,
    "another encoding": b"words,kind\n" + "gr\xfc\xdf dich,x\nc d,y\n".encode("latin-1") * 20,
    "an open quotation": 'words,kind\n"a b,x\nc d,y\n' * 20,
    "zero bytes": "words,kind\n" + "a\0b,x\nc d,y\n" * 20,
}
LINES: dict[str, str] = {  # of a file of JSON lines
    "no JSON": "words: a\n",
    "a list": "[1, 2]\n" * 40,
    "a text that is a number": '{"words": 3, "kind": "x"}\n' * 20 + '{"words": "a", "kind": "y"}\n' * 20,
    "a missing key": '{"words": "a b"}\n' * 20 + '{"words": "a", "kind": "y"}\n' * 20,
    "nested deeply": '{"words": ' + "[" * 5000 + "]" * 5000 + ', "kind": "x"}\n',
}


NONE = "made = make\n\n\ndef make(**sections):\n    return made(**sections | {'steps': None})\n"
OWN = """
import jax
from jaxdistill.losses.term import stateless
from jaxdistill.registry import losses


@losses.register
def own():
    return stateless("""


OWN_PART = """
from jaxdistill.registry import {kind}


@{kind}.register
def own(student=None, teachers=(), objective=None, optimizer=None):
"""
BARE_LOGITS = "    made = models['mlp']((8,), 3)\n    return made._replace(apply=lambda p, s, b, **more: b['image'])\n"
BARE_STATE = """    once = steps['offline'](student, teachers, objective, optimizer)
    return once._replace(update=lambda *arguments: once.update(*arguments)[0])
"""


def piped(path: str) -> Change:
    def change(home: Path) -> None:
        (home / path).unlink()
        os.mkfifo(home / path)

    return change


def appended(name: str, text: str) -> Change:
    """Return the change that adds lines to the end of a file."""
    return lambda home: (home / name).write_text((home / name).read_text() + text)


def arrays(**fields: Any) -> Change:
    """Return the change that writes other arrays of images and labels."""
    plain = {"x": np.zeros((60, 8, 8, 1), np.uint8), "y": np.arange(60) % 3}

    def change(home: Path) -> None:
        np.savez(home / "images.npz", **{name: x for name, x in {**plain, **fields}.items() if x is not None})

    return change


ARRAYS = {  # whole numbers of any size are names of classes
    "labels of a half": arrays(y=np.arange(60) % 3 + 0.5),
    "labels that are vectors": arrays(y=np.zeros((60, 2))),
    "labels that are no numbers": arrays(y=np.full(60, np.nan)),
    "fewer labels": arrays(y=np.arange(50) % 3),
    "pixels that are no numbers": arrays(x=np.full((60, 8, 8, 1), np.nan, np.float32)),
    "infinite pixels": arrays(x=np.full((60, 8, 8, 1), np.inf, np.float32)),
    "complex pixels": arrays(x=np.zeros((60, 8, 8, 1), np.complex64)),
    "no pixels": arrays(x=np.zeros((60, 0, 0, 1), np.uint8)),
    "no records": arrays(x=np.zeros((0, 8, 8, 1), np.uint8), y=np.zeros(0, int)),
    "objects": arrays(x=np.array([object()] * 60)),
    "no labels": arrays(y=None),
    "pixels of 16 bits with a sign": arrays(x=np.full((60, 8, 8, 1), -5, np.int16)),
    "pixels of 64 bits": arrays(x=np.full((60, 8, 8, 1), 300)),
    "pixels whose squares overflow": arrays(x=np.full((60, 8, 8, 1), 1e25, np.float32)),
}


def cut_short(path: str, share: float = 0.5) -> Change:
    def change(home: Path) -> None:
        file = home / path
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * share)])

    return change


def written(path: str, content: str | bytes) -> Change:
    def change(home: Path) -> None:
        (home / path).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def flipped(path: str) -> Change:
    def change(home: Path) -> None:
        content = bytearray((home / path).read_bytes())
        content[len(content) // 2] ^= 8
        (home / path).write_bytes(content)

    return change


def removed(path: str) -> Change:
    def change(home: Path) -> None:
        place = home / path
        shutil.rmtree(place) if place.is_dir() else place.unlink()

    return change


def linked(path: str) -> Change:
    def change(home: Path) -> None:
        (home / path).unlink()
        os.symlink("/nowhere", home / path)

    return change


def copied(source: str, target: str) -> Change:
    def change(home: Path) -> None:
        if (home / source).is_dir():
            shutil.rmtree(home / target)
            shutil.copytree(home / source, home / target)
        else:
            shutil.copy(home / source, home / target)

    return change


def json_with(path: str, **values: Any) -> Change:
    def change(home: Path) -> None:
        content = json.loads((home / path).read_text())
        (home / path).write_text(json.dumps({**content, **values}))

    return change


PREDICT = ("predict", "{home}/run", "--input", "{home}/images.npz", "--output", "{home}/out.csv")
EXPORT = ("export", "{home}/run", "--to", "onnx")
AGAIN = ("train", "--config", "{home}/run/config.json", "--workdir", "{home}/new")
TAUGHT = (*BASE, "--config.teachers.big.checkpoint={home}/run", "--config.teachers.big.steps=0")
PIPES = (
    ("config.json", PREDICT),
    ("results.json", ("compare", "{home}/run", "{home}/read", "--out", "{home}/page")),
    ("student/hub/jaxdistill.json", PREDICT),
)
HUB, WEIGHTS = "run/student/hub", "run/student/hub/model.safetensors"
FILES = (
    *(
        (f"weights {name}", PREDICT, change)
        for name, change in (
            ("cut short", cut_short(WEIGHTS)),
            ("empty", written(WEIGHTS, b"")),
            ("with a flipped bit", flipped(WEIGHTS)),
            ("missing", removed(WEIGHTS)),
            ("that lead nowhere", linked(WEIGHTS)),
            ("of noise", written(WEIGHTS, os.urandom(4096))),
            ("of a pickle", written(WEIGHTS, b"\x80\x04\x95K\x00\x00\x00\x00\x00\x00\x00")),
        )
    ),
    *(
        (f"description {name}", PREDICT, change)
        for name, change in (
            ("cut short", cut_short(f"{HUB}/jaxdistill.json")),
            ("with a flipped bit", flipped(f"{HUB}/jaxdistill.json")),
            ("missing", removed(f"{HUB}/jaxdistill.json")),
            ("of a list", written(f"{HUB}/jaxdistill.json", "[]")),
        )
    ),
    *(
        (f"results {name}", EXPORT, change)
        for name, change in (
            ("cut short", cut_short("run/results.json")),
            ("without rows", json_with("run/results.json", rows=[])),
            ("missing", removed("run/results.json")),
            ("of a number", written("run/results.json", "7")),
        )
    ),
    *(
        (f"record {name}", AGAIN, change)
        for name, change in (
            ("cut short", cut_short("run/config.json")),
            ("with another seed", json_with("run/config.json", config={"seed": 9})),
            ("of a list", written("run/config.json", "[1]")),
            ("nested deeply", written("run/config.json", "[" * 20000 + "]" * 20000)),
            ("with a source elsewhere", json_with("run/config.json", source="../evil.py")),
        )
    ),
    *(
        (f"checkpoint {name}", TAUGHT, change)
        for name, change in (
            ("missing", removed("run/student")),
            ("without manifests", removed("run/student/checkpoints/manifests")),
            ("without steps", removed("run/student/checkpoints/steps")),
        )
    ),
    *(
        (f"{name} of another run", words, copied(f"read/{path}", f"run/{path}"))
        for name, path, words in (
            ("results", "results.json", ("compare", "{home}/run", "{home}/read", "--out", "{home}/page")),
            ("results, trained again,", "results.json", (*BASE[:-1], "{home}/run")),
            ("record", "config.json", (*BASE[:-1], "{home}/run")),
            ("model", "student/hub", PREDICT),
        )
    ),
    *((f"a pipe in place of {name}", words, piped(f"run/{name}")) for name, words in PIPES),
    (
        "hashes of the records of another run",
        (*BASE[:-1], "{home}/run"),
        copied("read/records.json", "run/records.json"),
    ),
    ("checkpoints of the control", TAUGHT, copied("run/control/checkpoints", "run/student/checkpoints")),
    ("checkpoint of other widths", (*TAUGHT, "--config.teachers.big.model=mlp(widths=(17,), classes=3)"), None),
    ("checkpoint of a step that is not there", (*BASE, "--config.teachers.big.checkpoint={home}/run@77"), None),
    ("Python that fails", BASE, written("config.py", "def get_config():\n    return 1 / 0\n")),
    ("Python that exits", BASE, written("config.py", "raise SystemExit(0)\n")),
    ("Python of bytes", BASE, written("config.py", bytes(range(200)))),
    ("Python of a coroutine", BASE, written("config.py", "async def get_config():\n    return 1\n")),
    ("Python in UTF-16", BASE, written("config.py", "x = 1\n".encode("utf-16"))),
    (
        "Python with None",
        BASE,
        appended("config.py", NONE),
    ),
    *(
        (f"graph {name}", (*BASE, "--config.objective.kd.term=graph('{home}/g.json')"), written("g.json", content))
        for name, content in (
            ("with an infinite node", '{"names": ["a"], "edges": [[Infinity, 1, 1]]}'),
            ("with half a node", '{"names": ["a"], "edges": [[0.5, 1, 1]]}'),
            ("nested deeply", "[" * 100_000),
        )
    ),
    *(
        (f"own loss that {name}", (*BASE, "--config.objective.own.weight=1"), appended("config.py", OWN + values))
        for name, values in (
            ("compares", "lambda s: (s.student.logits > 0).any(-1))\n"),
            ("counts", "lambda s: (s.student.logits > 0).sum(-1))\n"),
            ("stops the gradient", "lambda s: jax.lax.stop_gradient(s.student.logits).sum(-1))\n"),
            ("is complex", "lambda s: s.student.logits.sum(-1) * 1j)\n"),
            ("returns a matrix", "lambda s: s.student.logits)\n"),
            ("returns a mask of numbers", "lambda s: (s.student.logits.sum(-1), s.teacher.logits.sum(-1)))\n"),
            ("fails in its own way", "lambda s: (_ for _ in ()).throw(RuntimeError()))\n"),
            ("needs a text", "lambda s: s.student.logits.sum(-1))._replace(needs='teacher')\n"),
        )
    ),
    *(
        (f"own {kind} that {name}", (*BASE, f"--config.{change}"), appended("config.py", text))
        for kind, name, change, text in (
            (
                "loss",
                "is a function",
                "objective.own.weight=1",
                OWN.replace("return stateless(", "return (") + "len)\n",
            ),
            ("model", "is a number", "student.model=own()", OWN_PART.format(kind="models") + "    return 3\n"),
            ("model", "returns logits alone", "student.model=own()", OWN_PART.format(kind="models") + BARE_LOGITS),
            ("step", "returns its state alone", "step=own()", OWN_PART.format(kind="steps") + BARE_STATE),
            ("step", "is a dict", "step=own()", OWN_PART.format(kind="steps") + "    return {}\n"),
        )
    ),
    ("Python without get_config", BASE, written("config.py", "x = 1\n")),
    ("tokenizer of a list", TEXT, written("tokenizer.json", "[]")),
    ("tokenizer cut short", TEXT, cut_short("tokenizer.json")),
    ("tokenizer missing", TEXT, removed("tokenizer.json")),
    ("texts without an end", (*TEXT, "--config.data.tokens=sentences(tokenizer='{home}', length=0)"), None),
)
