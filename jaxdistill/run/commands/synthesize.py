r"""Generate training text with a teacher: running text, or pairs of question and answer.

jaxdistill synthesize --config configs/x.py --teacher NAME --out FOLDER --ask TEMPLATE [--rows 1000] ...

    --ask "The"                                                       texts that begin with "The"
    --ask "{text}"                                                    continuations of the texts of data.train
    --ask "{text}\nQuestion:" --form "Question:(?P<question>.+)\nAnswer:(?P<answer>.+)" --until "\n\n"

The teacher is a language model of the config that generates text (a decoder), with the tokenizer of data.tokens. Use
the result as a data set: --config.data.name="synthetic(folder='FOLDER')". Its test split holds the real texts of
data.test. The same command resumes an interrupted one and writes the same texts, because each row has its own seed.
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
from jaxdistill.data.text.synthesis import PLACEHOLDER, PromptTemplate
from jaxdistill.data.text.tokens import texts_of
from jaxdistill.models.abstract import abstract_outputs
from jaxdistill.models.build import build_model
from jaxdistill.models.generate import generate
from jaxdistill.run.commands import cli
from jaxdistill.run.config import Config
from jaxdistill.run.output_checks import check_no_other_files, check_writable
from jaxdistill.run.resolve import resolve
from jaxdistill.teachers.cache_identity import weights_hash
from jaxdistill.teachers.load import load
from jaxdistill.teachers.teacher import Teacher


class Settings(NamedTuple):
    """The settings with which a teacher generates texts, as answers to prompts.

    teacher: name of the teacher in the config
    rows: number of answers to generate; answers that do not match the regular expression `--form` are then discarded
    part: number of answers that are generated as one batch, and written to one file
    length: largest number of tokens of a prompt; if a prompt is longer, the end of the real text inside it is cut off
    steps: largest number of tokens of an answer
    temperature: temperature of sampling; 0 takes the most likely token
    top_p: sample from the smallest set of most likely tokens whose total probability is at least this number
    stop: a token that ends an answer, such as `<|endoftext|>`; empty if no token does
    field: name of the text field in the examples of the data set, whose texts are inserted into the prompts
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


HELP = {
    "rows": "number of answers; those that do not match --form are discarded",
    "part": "number of answers in a batch, and in a file",
    "length": "largest number of tokens of a prompt; a longer real text is cut at its end",
    "steps": "largest number of tokens of an answer",
    "temperature": "temperature of sampling; 0 takes the most likely token",
    "top_p": "sample from the most likely tokens that have this probability together",
    "stop": "token that ends an answer, such as <|endoftext|>; empty: none",
    "field": "field of the records with the real texts",
}


def synthesize(config: Config, out: Path, template: PromptTemplate, settings: Settings, console: Console) -> None:
    """Generate texts with a teacher of a config, and write them to a folder as a data set.

    If the folder holds a part of the same data set, only the missing texts are generated.

    Args:
        config: a complete config, from `jaxdistill.make` or `jaxdistill.load_config`.
        out: folder of the new data set.
        template: the prompt, and the regular expression that turns an answer of the teacher into an example.
        settings: settings of text generation.
        console: where progress is printed.

    Raises:
        ConfigError: the config or the settings are wrong, or the data or the teacher cannot be used.
    """
    check_writable(out, "--out")
    check_no_other_files(out, "--out", synthesis.is_file_of_set)
    _check(config, template, settings)
    resolved = resolve(config, jax.devices())
    data, teacher = resolved.data, resolved.live_teacher(settings.teacher, alone=True)
    tokenizer = tokenizers.load(_tokenizer(data, teacher))
    stop = (tokenizers.token_id(tokenizer, settings.stop),) if settings.stop else ()
    prompt_texts, test_texts = _prompt_texts(data, template, settings), _texts(data, data.test, settings.field)
    generate_answers = _compiled_generator(teacher, settings, stop)
    about = {
        "ask": template._asdict(),
        **settings._asdict(),
        "seed": config.seed,
        "weights": weights_hash(teacher),
        "data": data.identity(data.streams["train"]),
    }
    try:
        synthesis.write_generation_settings(out, about)
    except ValueError as error:
        raise ConfigError("--out", f"{error}.") from None
    synthesis.write_test(out, test_texts)
    for number, part in synthesis.missing_parts(out, settings.rows, settings.part):
        rows = [*part] + [part[-1]] * (settings.part - len(part))  # one shape for all parts, so that all compile once
        texts = [prompt_texts[row % len(prompt_texts)] for row in rows]
        prompts = [_encoded_prompt(tokenizer, template, text, settings.length) for text in texts]
        answers = generate_answers(prompts, jax.random.fold_in(jax.random.key(config.seed), number))[: len(part)]
        parsed = [template.record(text) for text in tokenizer.decode_batch(answers)]
        records = [record for record in parsed if record is not None]
        synthesis.write_part(out, number, records)
        console.print(f"rows {part.start} to {part.stop - 1}: {len(records)} match --form")


def _check(config: Config, template: PromptTemplate, settings: Settings) -> None:
    if settings.teacher not in config.teachers:
        cure = suggest(settings.teacher, config.teachers)
        raise ConfigError("--teacher", f"the config has no teacher {settings.teacher!r}. {cure}")
    if not config.data.tokens:
        raise ConfigError(
            "data.tokens", "is empty. Set it to the teacher's tokenizer: documents(tokenizer=..., length=...)."
        )
    if min(settings.rows, settings.part, settings.length) < 1:
        numbers = f"{settings.rows} rows, --part {settings.part}, --length {settings.length}"
        raise ConfigError("--rows", f"{numbers}; each must be 1 or more.")
    try:
        re.compile(template.form)
    except re.error as error:
        raise ConfigError("--form", f"{template.form!r} is not a regular expression ({error}); correct it.") from None


def _tokenizer(data: Pipeline, teacher: Teacher) -> Path:
    """Return the path of the teacher's tokenizer.json."""
    tokenization = data.tokenization
    assert tokenization is not None  # checked in `_check`
    return tokenization.others.get(teacher.prefix, tokenization.file)


def _texts(data: Pipeline, stream: Stream, field: str) -> list[str]:
    records = data.open(stream, tokens=False)
    return texts_of(records.take(np.arange(len(records))), field)


def _prompt_texts(data: Pipeline, template: PromptTemplate, settings: Settings) -> list[str]:
    """Return the list of training texts that replace `{text}` in the prompt; `[""]` if the prompt has no `{text}`."""
    return _texts(data, data.streams["train"], settings.field) if PLACEHOLDER in template.template else [""]


def _encoded_prompt(tokenizer: Any, template: PromptTemplate, text: str, length: int) -> list[int]:
    """Insert a real text into a prompt template, and return the token numbers of the prompt, at most `length`.

    Args:
        tokenizer: a Hugging Face tokenizer.
        template: the prompt with a place for the text.
        text: the real text; its end is cut off if the prompt would have more than `length` tokens.
        length: largest number of tokens.

    Raises:
        ConfigError: the prompt has no tokens, or even without the text it has too many.
    """
    encode = functools.partial(tokenizer.encode, add_special_tokens=False)
    ids = encode(template.prompt(text)).ids
    if len(ids) > length:
        ends = [0, *(end for _, end in encode(text).offsets)]
        ends = ends[: max(len(ends) - (len(ids) - length), 1)]
        while ends and len(ids) > length:  # where it is cut, its end and the template may have other tokens
            ids = encode(template.prompt(text[: ends.pop()])).ids
    if not 0 < len(ids) <= length:
        raise ConfigError(
            "--ask", f"{template.template!r} has {len(ids)} tokens; it must have 1 to {length} (--length)."
        )
    return ids


def _compiled_generator(teacher: Teacher, settings: Settings, stop: tuple[int, ...]) -> Callable[..., list[list[int]]]:
    """Build a function that generates a teacher's answers to a batch of prompts; it is compiled at its first call.

    Args:
        teacher: a teacher that runs its network.
        settings: settings of text generation.
        stop: numbers of the tokens that end an answer; empty if no token does.

    Returns:
        `(prompts, PRNG key) -> answers`; a prompt and an answer are lists of token numbers.

    Raises:
        ConfigError: the teacher cannot generate text, or not so many tokens, or has no weights.
    """
    path = f"{teacher.path}.model"
    model = build_model(teacher.spec, path, teacher.dtype)  # without the options of teachers.NAME
    ids = jax.ShapeDtypeStruct((settings.part, settings.length), np.int32)
    _, shapes = abstract_outputs(model, path, {"input_ids": ids})
    sampling: dict[str, Any] = {
        "steps": settings.steps,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "stop": stop,
    }
    sampler = functools.partial(generate, model, **sampling)
    lengths, key = jax.ShapeDtypeStruct((settings.part,), np.int32), jax.eval_shape(lambda: jax.random.key(0))
    try:
        jax.eval_shape(sampler, shapes.params, ids, lengths, key)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(path, f"cannot generate text with these settings: {error}.") from None
    variables: Variables = load(teacher.replaced(network=model), {"input_ids": ids})
    compiled = jax.jit(sampler)

    def generate_answers(prompts: list[list[int]], key: jax.Array) -> list[list[int]]:
        padded = np.zeros((settings.part, settings.length), np.int32)
        for row, prompt in enumerate(prompts):
            padded[row, : len(prompt)] = prompt
        with jax.set_mesh(teacher.mesh):
            answers = jax.device_get(compiled(variables.params, padded, np.array([*map(len, prompts)], np.int32), key))
        rows = zip(answers.tokens.tolist(), answers.lengths.tolist(), strict=True)
        return [[token for token in tokens[:count] if token not in stop] for tokens, count in rows]

    return generate_answers


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command `jaxdistill synthesize`, which generates a data set with a teacher, and return its exit code.

    Args:
        argv: arguments of the command; None means `sys.argv[1:]`.
    """
    parser = cli.parser("synthesize", __doc__)
    parser.add_argument("--out", required=True, metavar="FOLDER", type=Path, help="folder for the data set")
    parser.add_argument("--teacher", required=True, metavar="NAME", help="name of a teacher that generates text")
    escaped: Any = lambda text: text.replace("\\n", "\n")  # a line break is hard to type in a shell
    parser.add_argument(
        "--ask", required=True, metavar="TEMPLATE", type=escaped, help="the prompt; {text} stands for a real text"
    )
    parser.add_argument(
        "--form",
        default=PromptTemplate("").form,
        metavar="REGEX",
        help="regex of a record; named groups become fields",
    )
    parser.add_argument("--until", default="", metavar="TEXT", type=escaped, help="text that ends an answer")
    for name, default in Settings("")._asdict().items():
        if name != "teacher":
            option, text = f"--{name.replace('_', '-')}", f"{HELP[name]}; default {default!r}"
            parser.add_argument(option, default=default, type=type(default), metavar="X", help=text)

    def work(options: argparse.Namespace, config: Config) -> None:
        settings = Settings(**{name: getattr(options, name) for name in Settings._fields})
        synthesize(config, options.out, PromptTemplate(options.ask, options.form, options.until), settings, Console())

    return cli.run_command(parser, argv, work)
