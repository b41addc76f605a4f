"""Three hundred bad inputs: a command line for each, after a change of the files that it reads.

`{home}` in a word stands for the folder with the files that `__main__.py` writes; a change is a function of it.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdistill.run.schema import SCHEMA, Key, OpenSection

Change = Callable[[Path], Any]
BASE = ("train", "--config", "{home}/config.py", "--workdir", "{home}/new")
SEARCH = ("search", "--config", "{home}/config.py", "--workdir", "{home}/s")
TEXT = ("train", "--config", "{home}/texts.py", "--workdir", "{home}/new")
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


SPECS = (
    "objective.kd.term=kd(temperature=0)",
    "objective.kd.term=kd(temperature=-1)",
    "objective.kd.term=kd(temperature='hot')",
    "objective.kd.term=kd(temperatur=1)",
    "objective.kd.term=kd(temperature=cosine(start=-1))",
    "objective.kd.term=kd(temperature=1e-40)",
    "objective.kd.term=kd(4.0, 5.0)",
    "objective.kd.term=kd(temperature=kd())",
    "objective.kd.term=kd(temperature=(1, 2))",
    "objective.kd.term=__import__('os').system('true')",
    "objective.kd.term=kd(**{'temperature': 1})",
    "objective.kd.term=kd(temperature=1, temperature=2)",
    "objective.kd.term=lambda: 1",
    "objective.kd.term=ｋｄ(",
    "objective.kd.term=👍()",
    "objective.kd.term=hidden(layers='middle')",
    "objective.kd.term=hidden(layers=((9, 9),))",
    "objective.kd.term=minilm()",
    "objective.kd.term=tinybert()",
    "objective.kd.term=hard(loss=kd(), share=0.0)",
    "objective.kd.term=hard(loss=nonesuch(), share=0.5)",
    "objective.kd.term=graph(edges='gone.json')",
    "objective.kd.term=dkd(alpha=None)",
    "student.model=mlp(widths=(), classes=3)",
    "student.model=mlp(widths=(0,), classes=3)",
    "student.model=mlp(widths=(-4,), classes=3)",
    "student.model=mlp(widths=(99999999999,), classes=3)",
    "student.model=mlp(widths=(2000000000, 2000000000), classes=3)",
    "student.model=mlp(widths=(8,), classes=-1)",
    "student.model=mlp(widths=(8,), classes=3, dropout=1.5)",
    "student.model=mlp(classes=3)",
    "student.model=mlp(widths=8, classes=3)",
    "student.model=resnet(widths=(4,), blocks=0, classes=3)",
    "student.model=resnet(widths=(4,), blocks=5000, classes=3)",
    "student.model=vit(patch=3, width=8, depth=1, heads=2, classes=3)",
    "student.model=vit(patch=4, width=9, depth=1, heads=2, classes=3)",
    "student.model=bert(vocabulary=9, width=8, depth=1, heads=2, ffn=8, classes=3)",
    "student.model=decoder(vocabulary=9, width=8, depth=1, heads=2, kv_heads=1, head_size=4, ffn=8)",
    "student.model=dcn(categories=9, width=2, classes=3)",
    "student.model=clip()",
    "student.model=pretrained('gone')",
    "student.model=pretrained('')",
    "student.model=cut(teacher='nobody')",
    "student.model=cut(teacher='big', heads=0.5)",
    "student.model=cut(teacher='big', neurons=0.0)",
    "student.model=cut(teacher='big', neurons=1000)",
    "student.model=cut(teacher='big', source='x')",
    "student.quantized=aware(weights=3)",
    "student.quantized=aware(weights=8, block=7)",
    "student.quantized=aware(start=1.0)",
    "student.quantized=aware(skip='(')",
    "student.quantized=aware(weights=0, inputs=0)",
    "student.masks=sparse()",
    "student.masks=sparse(share=2.0)",
    "student.masks=sparse(keep=3, of=7)",
    "student.masks=sparse(share=0.5, only='nothing')",
    "fusion=average(weights=(1, 2))",
    "fusion=average(weights=(-1.0,))",
    "fusion=gate(inputs='images')",
    "fusion=confidence(power='high')",
    "step=meta()",
    "step=routing()",
    "step=on_policy(prompt=0)",
    "step=ewc(weight=-1)",
    "step=mgda(terms=('kd', 'kd'))",
    "step=gradnorm(layer='nothing')",
    "optimizer=adamw(b1=1.0)",
    "optimizer=adamw(lr=0.1)",
    "optimizer=sgd(momentum=-1)",
    "optimizer=adam()",
    "rate=cosine(start=-1)",
    "rate=cosine(start=1, warmup=2.0)",
    "rate=-0.1",
    "rate=nan",
    "rate=inf",
    "objective.kd.weight=-1",
    "objective.kd.weight=1e300",
    "data.augment=('shift(pixels=-1)',)",
    "data.augment=('crop(size=99)',)",
    "data.augment=('mixup(alpha=0)',)",
    "data.select=random(share=0.0)",
    "data.select=random(share=2.0)",
    "data.order=tasks(groups=((0, 9),), steps=1)",
    "data.tokens=sentences(tokenizer='gone', length=8)",
    "data.train=train[50%:10%]",
    "data.train=train[:0]",
    "data.test=train",
    "data.name=table(path='{home}/images.npz', image='x', label='nothing')",
    "data.name=table(path='{home}/images.npz', image='nothing', label='y')",
    "data.name=table(path='{home}/images.npz')",
    "data.name=table(path='{home}/gone.npz', image='x', label='y')",
    "data.name=table(path='{home}', image='x', label='y')",
    "teachers.big.placement=submesh(devices=0)",
    "teachers.big.placement=submesh(devices=99)",
    "teachers.big.cache=outputs(folder='gone')",
    "teachers.big.classes=(0, 1)",
    "teachers.big.classes=(0, 1, 9)",
    "mesh.data=64",
    "mesh.tensor=7",
    "batch_size=1000000000",
    "evaluate.batch_size=2000000000",
    "evaluate.layers=((9, 9),)",
    "accumulate=7",
    "chunks=3",
    "exports.phone.to=onyx",
    "exports.phone.to=onnx(int8='fast')",
    "exports.phone.to=gguf",
    "exports.phone.device=ethos_u65()",
    "exports.phone.device=cpu(threads=999)",
    "exports.phone.device=cpu(megabytes=0.0001)",
    "exports.phone.threads=999",
    "distributed.coordinator=nowhere",
    "distributed.process=3",
    "steps=3000000000",
    "seed=-1",
    "stepss=3",
    "optimiser=adamw()",
    "teachers.big.modell=mlp()",
    "objective=kd",
    "steps.every=3",
)

COMMANDS = (
    ("nonesuch",),
    ("train",),
    ("train", "--config", "{home}/gone.py", "--workdir", "{home}/new"),
    ("train", "--config", "{home}/images.npz", "--workdir", "{home}/new"),
    ("train", "--config", "{home}", "--workdir", "{home}/new"),
    ("train", "--preset", "nonesuch", "--workdir", "{home}/new"),
    ("train", "--config", "{home}/config.py", "--preset", "text", "--workdir", "{home}/new"),
    ("train", "--config", "{home}/config.py", "--workdir", "/proc/nowhere"),
    ("train", "--config", "{home}/config.py", "--workdir", "gs://bucket/run"),
    ("compare", "{home}/run", "--out", "s3://bucket/page"),
    ("train", "--config", "{home}/config.py", "--workdir", "{home}/images.npz"),
    ("train", "--config", "{home}/config.py", "--workdir", "{home}/run"),
    ("train", "--config", "{home}/config.py:nonesuch", "--workdir", "{home}/new"),
    ("predict", "{home}/gone", "--input", "{home}/images.npz", "--output", "{home}/out.csv"),
    ("predict", "{home}/run", "--input", "{home}/gone.npz", "--output", "{home}/out.csv"),
    ("predict", "{home}/run", "--input", "{home}/images.npz", "--output", "{home}/out.xyz"),
    ("predict", "{home}/run", "--input", "{home}/images.npz", "--output", "/proc/out.csv"),
    ("predict", "{home}/run", "--input", "{home}/texts.csv", "--output", "{home}/out.csv"),
    ("predict", "{home}/run", "--input", "{home}/images.npz", "--output", "{home}/out.csv", "--model", "nobody"),
    ("predict", "{home}/run", "--input", "{home}/images.npz", "--output", "{home}/out.csv", "--image", "nothing"),
    ("export", "{home}/gone", "--to", "onnx"),
    ("export", "{home}/run", "--to", "onyx"),
    ("export", "{home}/run", "--to", "onnx", "--model", "nobody"),
    ("export", "{home}/run", "--to", "onnx", "--threads", "0"),
    ("export", "{home}/run", "--to", "onnx", "--records", "-3"),
    ("export", "{home}/run", "--to", "onnx", "--runtime", "java"),
    ("export", "{home}/run", "--to", "onnx", "--device", "toaster()"),
    ("export", "{home}/run", "--to", "gguf(kind='Q9')"),
    ("compare", "{home}/gone", "--out", "{home}/page"),
    ("compare", "{home}/run", "{home}/run", "--out", "{home}/page"),
    ("compare", "{home}/run", "--out", "/proc/page"),
    ("compare", "{home}/run", "--out", "{home}/page", "--model", "nobody"),
    ("list", "nonesuch"),
    ("list", "losses", "kdd"),
    ("cache", "--config", "{home}/config.py"),
    ("cache", "--config", "{home}/config.py", "--config.teachers.big.cache=outputs()"),
    ("plan", "--config", "{home}/config.py", "--topology", "v9:2x2"),
    ("plan", "--config", "{home}/config.py", "--topology", "v5e:zero"),
    ("plan", "--config", "{home}/config.py", "--topology", "cpu:0"),
    ("plan", "--config", "{home}/config.py", "--topology", "cpu:8", "--slices", "0"),
    ("sweep", "--config", "{home}/config.py", "--workdir", "{home}/s", "--axis", "stepss", "1", "2"),
    ("sweep", "--config", "{home}/config.py", "--workdir", "{home}/s", "--axis", "steps", "1", "1"),
    ("sweep", "--config", "{home}/config.py", "--workdir", "{home}/s", "--axis", "seed", "1", "2"),
    ("sweep", "--config", "{home}/config.py", "--workdir", "{home}/s", "--axis", "steps", "1", "--seeds", "0"),
    ("sweep", "--config", "{home}/config.py", "--workdir", "{home}/s", "--axis", "steps", "1", "--run", "9"),
    ("heads", "--config", "{home}/config.py"),
    ("heads", "--config", "{home}/config.py", "--teacher", "nobody"),
    ("synthesize", "--config", "{home}/config.py", "--out", "{home}/made"),
    ("vocabulary", "--config", "{home}/config.py", "--out", "{home}/words"),
    (
        "search",
        "--config",
        "{home}/config.py",
        "--workdir",
        "{home}/s",
        "--budget",
        "speed=1",
        "--axis",
        "widths",
        "(8,)",
    ),
    (
        "search",
        "--config",
        "{home}/config.py",
        "--workdir",
        "{home}/s",
        "--budget",
        "megabytes=1",
        "--axis",
        "depth",
        "1",
    ),
    (
        "search",
        "--config",
        "{home}/config.py",
        "--workdir",
        "{home}/s",
        "--budget",
        "megabytes=1",
        "--axis",
        "bits",
        "4",
    ),
)

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


def json_with(path: str, **values: Any) -> Change:
    def change(home: Path) -> None:
        content = json.loads((home / path).read_text())
        (home / path).write_text(json.dumps({**content, **values}))

    return change


PREDICT = ("predict", "{home}/run", "--input", "{home}/images.npz", "--output", "{home}/out.csv")
EXPORT = ("export", "{home}/run", "--to", "onnx")
AGAIN = ("train", "--config", "{home}/run/config.json", "--workdir", "{home}/new")
TAUGHT = (*BASE, "--config.teachers.big.checkpoint={home}/run", "--config.teachers.big.steps=0")
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
    ("checkpoint of other widths", (*TAUGHT, "--config.teachers.big.model=mlp(widths=(17,), classes=3)"), None),
    ("checkpoint of a step that is not there", (*BASE, "--config.teachers.big.checkpoint={home}/run@77"), None),
    ("Python that fails", BASE, written("config.py", "def get_config():\n    return 1 / 0\n")),
    ("Python that exits", BASE, written("config.py", "raise SystemExit(0)\n")),
    ("Python of bytes", BASE, written("config.py", bytes(range(200)))),
    ("Python without get_config", BASE, written("config.py", "x = 1\n")),
    ("tokenizer of a list", TEXT, written("tokenizer.json", "[]")),
    ("tokenizer cut short", TEXT, cut_short("tokenizer.json")),
    ("tokenizer missing", TEXT, removed("tokenizer.json")),
    ("texts without an end", (*TEXT, "--config.data.tokens=sentences(tokenizer='{home}', length=0)"), None),
)


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
