"""Cuts a vocabulary to the texts of a config: fewer rows in the embedding, which is most of a small language model.

python -m jaxdistill.vocabulary --config configs/x.py --out FOLDER [--most 8000] [--config.a.b=value ...]

The tokens that the config's training texts use stay, with the special ones and the single characters. FOLDER gets a
tokenizer.json with new numbers, for `data.tokens`, and the list of what was kept, for `pretrained(..., keep=FOLDER)`
of the student and of its teachers alike.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxdistill import commands, sources
from jaxdistill.data.datasets import open_records
from jaxdistill.errors import ConfigError
from jaxdistill.hub.vocabulary import kept, used, write


def cut(config: ConfigDict, out: Path, most: int) -> str:
    """Writes the vocabulary of a config's training texts; returns what was done, in a sentence.

    Raises:
        ConfigError: the config names no tokenizer, or its data are not to be had.
    """
    how = sources.tokenization(config)
    if how is None:
        raise ConfigError("data.tokens", "is empty: there is no tokenizer whose vocabulary could be cut.")
    sources.check_data(config)
    name, folder = config.data.name, sources.data_folder(config)
    tokenizer, columns, size = json.loads(how.file.read_text(encoding="utf-8")), [], 0
    for split in sources.splits(config).values():
        records = open_records(name, split.text, folder, split.path, split.key, config.data.tokens)
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
    words = commands.parser("vocabulary", __doc__)
    words.add_argument("--out", required=True, metavar="FOLDER", type=Path, help="for the cut vocabulary")
    words.add_argument("--most", default=0, metavar="N", type=int, help="how many tokens at most; 0: all that occur")

    def work(known: argparse.Namespace, config: ConfigDict) -> None:
        sys.stdout.write(cut(config, known.out, known.most) + "\n")

    return commands.answer(words, argv, work)


if __name__ == "__main__":
    sys.exit(run())
