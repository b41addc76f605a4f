"""Cuts a vocabulary to the texts of a config: fewer rows in the embedding, which is most of a small language model.

jaxdistill vocabulary --config configs/x.py --out FOLDER [--most 8000] [--config.a.b=value ...]

The tokens that the config's training texts use stay, with the special ones and the single characters. FOLDER gets a
tokenizer.json with new numbers, for `data.tokens`, and the list of what was kept, for `pretrained(..., keep=FOLDER)`
of the student and of its teachers alike.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from jaxdistill.compress.vocabulary import kept, used, write
from jaxdistill.core.errors import ConfigError
from jaxdistill.run.commands import cli
from jaxdistill.run.config import Config
from jaxdistill.run.resolve import resolve


def cut(config: Config, out: Path, most: int) -> str:
    """Writes the vocabulary of a config's training texts; returns what was done, in a sentence.

    Raises:
        ConfigError: the config names no tokenizer, or its data are not to be had.
    """
    data = resolve(config, jax.devices()).data
    how = data.tokenization
    if how is None:
        raise ConfigError("data.tokens", "is empty: there is no tokenizer whose vocabulary could be cut.")
    tokenizer, columns, size = json.loads(how.file.read_text(encoding="utf-8")), [], 0
    for stream in data.streams.values():
        records = data.open(stream)
        rows = records.take(np.arange(len(records)))
        columns.append(rows["input_ids"])
        size = records.vocabulary or 0
    try:
        ids = kept(tokenizer, used(columns, size), most)
    except ValueError as error:
        raise ConfigError("data.tokens", f"{error}.") from None
    write(out, tokenizer, ids, size)
    return f"{len(ids)} of {size} tokens are kept, in {out}"


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    words = cli.parser("vocabulary", __doc__)
    words.add_argument("--out", required=True, metavar="FOLDER", type=Path, help="for the cut vocabulary")
    words.add_argument("--most", default=0, metavar="N", type=int, help="how many tokens at most; 0: all that occur")

    def work(known: argparse.Namespace, config: Config) -> None:
        sys.stdout.write(cut(config, known.out, known.most) + "\n")

    return cli.answer(words, argv, work)
