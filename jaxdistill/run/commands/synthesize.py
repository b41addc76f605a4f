r"""Has a teacher write text, for a student to learn from: running text, or pairs of question and answer.

jaxdistill synthesize --config configs/x.py --teacher NAME --out FOLDER --ask TEMPLATE [--rows 1000] ...

    --ask "The"                                                       text that begins alike
    --ask "{text}"                                                    real texts of data.train, gone on with
    --ask "{text}\nQuestion:" --form "Question:(?P<question>.+)\nAnswer:(?P<answer>.+)" --until "\n\n"

The teacher is a decoder of the config, with its tokens (data.tokens). FOLDER becomes a data set:
--config.data.name="synthetic(folder='FOLDER')", whose test split are real texts, those of data.test. The same command
goes on where it was stopped, and writes the same: row r of part n draws with a key of its own.
"""

import argparse
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from jaxdistill.core.errors import ConfigError, suggest
from jaxdistill.core.types import Variables
from jaxdistill.data.pipeline import Pipeline, Stream
from jaxdistill.data.text import synthesis
from jaxdistill.data.text import tokenizer as tokenizers
from jaxdistill.data.text.synthesis import GIVEN, Ask
from jaxdistill.data.text.tokens import texts_of
from jaxdistill.models.abstract import abstract_outputs
from jaxdistill.models.build import build_model
from jaxdistill.models.generate import generate
from jaxdistill.run.commands import cli
from jaxdistill.run.config import Config
from jaxdistill.run.resolve import resolve
from jaxdistill.teachers.cache import weights
from jaxdistill.teachers.load import load
from jaxdistill.teachers.teacher import Teacher


class Settings(NamedTuple):
    """How many records are asked for, and how they are drawn.

    teacher: its name in the config
    rows: answers; those of another form are left out
    part: answers at once, and in a file
    length: tokens of a prompt at most; a longer text is cut at its end
    steps: tokens of an answer at most
    temperature, top_p: see `generate`
    stop: a token that ends an answer, such as `<|endoftext|>`; empty: none
    field: of the real texts
    """

    teacher: str
    rows: int = 1000
    part: int = 16
    length: int = 256
    steps: int = 128
    temperature: float = 1.0
    top_p: float = 0.95
    stop: str = ""
    field: str = "text"


def synthesize(config: Config, out: Path, ask: Ask, how: Settings, console: Console) -> None:
    """Writes what a config's teacher says.

    Raises:
        ConfigError: for whatever is wrong with config, data, teacher or settings, before anything compiles.
    """
    _check(config, ask, how)
    resolved = resolve(config, jax.devices())
    data, teacher = resolved.data, resolved.live_teacher(how.teacher, alone=True)
    tokenizer = tokenizers.load(_tokenizer(data, teacher))
    stop = (tokenizers.number(tokenizer, how.stop),) if how.stop else ()
    given, real = _real(data, ask, how), _texts(data, data.test, how.field)
    said = _writer(teacher, how, stop)
    about = {
        "ask": ask._asdict(),
        **how._asdict(),
        "seed": config.seed,
        "weights": weights(teacher),
        "data": data.identity(data.streams["train"]),
    }
    try:
        synthesis.begin(out, about)
    except ValueError as error:
        raise ConfigError("--out", f"{error}.") from None
    synthesis.write_test(out, real)
    for number, part in synthesis.missing(out, how.rows, how.part):
        rows = [*part] + [part[-1]] * (how.part - len(part))  # all parts of one shape: compiled once
        prompts = [_encoded(tokenizer, ask, given[row % len(given)], how.length) for row in rows]
        answers = said(prompts, jax.random.fold_in(jax.random.key(config.seed), number))[: len(part)]
        found = [ask.record(text) for text in tokenizer.decode_batch(answers)]
        records = [record for record in found if record is not None]
        synthesis.write(out, number, records)
        console.print(f"rows {part.start} to {part.stop - 1}: {len(records)} of the form that was asked for")


def _check(config: Config, ask: Ask, how: Settings) -> None:
    if how.teacher not in config.teachers:
        cure = suggest(how.teacher, config.teachers)
        raise ConfigError("--teacher", f"the config has no teacher {how.teacher!r}. {cure}")
    if not config.data.tokens:
        raise ConfigError("data.tokens", "is empty: there is no tokenizer. Set documents(tokenizer=..., length=...).")
    if min(how.rows, how.part, how.length) < 1:
        given = f"{how.rows} rows, parts of {how.part}, prompts of {how.length} tokens"
        raise ConfigError("--rows", f"{given}; give 1 or more of each.")
    try:
        re.compile(ask.form)
    except re.error as error:
        raise ConfigError("--form", f"{ask.form!r} is no regular expression ({error}); correct it.") from None


def _tokenizer(data: Pipeline, teacher: Teacher) -> Path:
    """The tokenizer that the teacher reads."""
    how = data.tokenization
    assert how is not None  # as was checked
    return how.others.get(teacher.prefix, how.file)


def _texts(data: Pipeline, stream: Stream, field: str) -> list[str]:
    records = data.open(stream, tokens=False)
    return texts_of(records.take(np.arange(len(records))), field)


def _real(data: Pipeline, ask: Ask, how: Settings) -> list[str]:
    """What `{text}` stands for, row by row."""
    return _texts(data, data.streams["train"], how.field) if GIVEN in ask.template else [""]


def _encoded(tokenizer: Any, ask: Ask, given: str, length: int) -> list[int]:
    """The tokens of a prompt, whose real text is cut so that it fits."""
    encode = functools.partial(tokenizer.encode, add_special_tokens=False)
    over = len(encode(ask.prompt(given)).ids) - length
    if over > 0:
        kept = encode(given).offsets[: -over or None]
        given = given[: kept[-1][1]] if kept else ""
    ids = encode(ask.prompt(given)).ids
    if not 0 < len(ids) <= length:
        raise ConfigError("--ask", f"{ask.template!r} makes {len(ids)} tokens; it needs 1 to {length} (--length).")
    return ids


def _writer(teacher: Teacher, how: Settings, stop: tuple[int, ...]) -> Callable[..., list[list[int]]]:
    """`(prompts, key) -> the tokens of the answers`, compiled when it is first called.

    Raises:
        ConfigError: the teacher writes no text, or not so much, or its weights are not there.
    """
    path = f"{teacher.path}.model"
    model = build_model(teacher.spec, path, teacher.dtype)  # without its options: it writes, and is not compared
    ids = jax.ShapeDtypeStruct((how.part, how.length), np.int32)
    _, shapes = abstract_outputs(model, path, {"input_ids": ids})
    draw: dict[str, Any] = {"steps": how.steps, "temperature": how.temperature, "top_p": how.top_p, "stop": stop}
    written = functools.partial(generate, model, **draw)
    lengths, key = jax.ShapeDtypeStruct((how.part,), np.int32), jax.eval_shape(lambda: jax.random.key(0))
    try:
        jax.eval_shape(written, shapes.params, ids, lengths, key)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(path, f"writes no text so: {error}.") from None
    variables: Variables = load(teacher.replaced(network=model), {"input_ids": ids})
    compiled = jax.jit(written)

    def said(prompts: list[list[int]], key: jax.Array) -> list[list[int]]:
        filled = np.zeros((how.part, how.length), np.int32)
        for row, prompt in enumerate(prompts):
            filled[row, : len(prompt)] = prompt
        with jax.set_mesh(teacher.mesh):
            found = jax.device_get(compiled(variables.params, filled, np.array([*map(len, prompts)], np.int32), key))
        rows = zip(found.tokens.tolist(), found.lengths.tolist(), strict=True)
        return [[token for token in tokens[:count] if token not in stop] for tokens, count in rows]

    return said


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    words = cli.parser("synthesize", __doc__)
    words.add_argument("--out", required=True, metavar="FOLDER", type=Path, help="for the records")
    words.add_argument("--teacher", required=True, metavar="NAME", help="of the config, a decoder")
    escaped: Any = lambda text: text.replace("\\n", "\n")  # what a shell cannot easily say
    words.add_argument("--ask", required=True, metavar="TEMPLATE", type=escaped, help="the prompt; {text}: a real text")
    words.add_argument("--form", default=Ask("").form, metavar="REGEX", help="of a record; named groups become fields")
    words.add_argument("--until", default="", metavar="TEXT", type=escaped, help="where an answer ends")
    for name, default in Settings("")._asdict().items():
        if name != "teacher":
            option = f"--{name.replace('_', '-')}"
            words.add_argument(option, default=default, type=type(default), metavar="X", help=f"default {default!r}")

    def work(known: argparse.Namespace, config: Config) -> None:
        how = Settings(**{name: getattr(known, name) for name in Settings._fields})
        synthesize(config, known.out, Ask(known.ask, known.form, known.until), how, Console())

    return cli.answer(words, argv, work)
