"""Reduce a vocabulary to the tokens that the training texts use, which makes the embedding of a small model smaller.

jaxdistill vocabulary --config configs/x.py --out FOLDER [--most 8000] [--config.a.b=value ...]

The reduced vocabulary keeps the tokens that the config's training texts use, all special tokens and all single
characters. FOLDER gets a tokenizer.json with new token numbers, for `data.tokens`, and the list of the tokens that were
kept, for `pretrained(..., keep=FOLDER)` of the student and of its teachers.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from jaxdistill.compress.vocabulary import VOCABULARY_FILES, count_tokens, select_tokens, write
from jaxdistill.core.errors import ConfigError
from jaxdistill.models.hub.kept_tokens import VOCABULARY
from jaxdistill.run.commands import cli
from jaxdistill.run.config import Config
from jaxdistill.run.output_checks import check_no_other_files, check_writable
from jaxdistill.run.resolve import resolve


def reduce_vocabulary(config: Config, folder: Path, max_tokens: int) -> str:
    """Write a tokenizer with a smaller vocabulary, which keeps the tokens that occur in a config's training texts.

    Special tokens and single characters are kept too.

    Args:
        config: a complete config, with a tokenizer in the key `data.tokens`.
        folder: where tokenizer.json and the list of the kept tokens are written.
        max_tokens: largest number of tokens to keep, the most frequent first; 0 keeps all that occur.

    Returns:
        A sentence with the number of tokens that were kept.

    Raises:
        ConfigError: the config has no tokenizer, its data cannot be read, or the tokenizer cannot be reduced.
    """
    check_writable(folder, "--out")
    has_vocabulary = (folder / VOCABULARY).is_file()  # a folder without them has a tokenizer.json of another program
    check_no_other_files(folder, "--out", lambda name: has_vocabulary and name in VOCABULARY_FILES)
    data = resolve(config, jax.devices()).data
    tokenization = data.tokenization
    if tokenization is None:
        raise ConfigError("data.tokens", "is empty. Set it to the tokenizer whose vocabulary is to be reduced.")
    tokenizer, columns, size = json.loads(tokenization.file.read_text(encoding="utf-8")), [], 0
    for stream in data.streams.values():
        records = data.open(stream)
        rows = records.take(np.arange(len(records)))
        columns += [rows[field] for field in tokenization.own_fields]
        size = records.vocabulary or 0
    try:
        ids = select_tokens(tokenizer, count_tokens(columns, size), max_tokens)
    except ValueError as error:
        raise ConfigError("data.tokens", f"{error}.") from None
    write(folder, tokenizer, ids, size)
    return f"kept {len(ids)} of {size} tokens in {folder}"


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command `jaxdistill vocabulary`, which writes a smaller tokenizer, and return its exit code.

    Args:
        argv: arguments of the command; None means `sys.argv[1:]`.
    """
    parser = cli.parser("vocabulary", __doc__)
    parser.add_argument("--out", required=True, metavar="FOLDER", type=Path, help="folder for the reduced vocabulary")
    parser.add_argument("--most", default=0, metavar="N", type=int, help="keep at most N tokens; 0: all that occur")

    def work(options: argparse.Namespace, config: Config) -> None:
        sys.stdout.write(reduce_vocabulary(config, options.out, options.most) + "\n")

    return cli.run_command(parser, argv, work)
