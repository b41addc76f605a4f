"""Which attention heads of a teacher matter, and the term that teaches the most important of them.

python -m jaxdistill.heads --config configs/x.py [--teacher NAME] [--top 8] [--records 512] [--config.a.b=value ...]

The importance of a head is the gradient of a mask over it, on training records without augmentation: measured once,
on the teacher, before a student is trained. The term that is printed goes into the config as it is.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jaxdistill import build, commands, fits, sources, teachers
from jaxdistill.data.datasets import open_records
from jaxdistill.data.describe import describe
from jaxdistill.data.stream import Batch, Batches
from jaxdistill.errors import ConfigError, suggest
from jaxdistill.models.importance import head_importance, top_heads
from jaxdistill.parallel.mesh import make_mesh

ROWS = 32  # of a batch: whatever, since every row stands for itself


def importance(config: ConfigDict, name: str, records: int) -> np.ndarray:
    """The importance of every head of a teacher, `[layers, heads]`, on so many training records.

    Raises:
        ConfigError: for whatever is wrong with the config, the data or the teacher.
    """
    if name not in config.teachers:
        raise ConfigError("teachers", f"there is no teacher {name!r}. {suggest(name, config.teachers)}")
    if config.teachers[name].quantized:
        raise ConfigError(f"teachers.{name}.quantized", "8 bits have no gradient to weigh heads by. Leave it out.")
    sources.check_data(config)
    folder, data, path = sources.data_folder(config), config.data, f"teachers.{name}.model"
    train = describe(data.name, data.train, folder, "data", "train", data.tokens)
    shapes = sources.batch_shapes(config, {"train": train})["train"]
    model = build.teacher(config, name)
    said, variables = fits.outputs(model, path, shapes)
    if train.classes not in (None, said.logits.shape[-1]):
        raise ConfigError(path, f"has {said.logits.shape[-1]} classes, and the data {train.classes}.")
    fits.check_pretrained(model, path, shapes, complete=not config.teachers[name].checkpoint)
    values = teachers.load(config, name, model, variables, make_mesh((1, 1, 1)))
    try:
        return head_importance(model, values, _batches(config, records))
    except ValueError as error:
        raise ConfigError(path, f"{error}.") from None


def _batches(config: ConfigDict, count: int) -> Iterator[Batch]:
    """The first records of the run, in its own order, each once; transforms that draw are left out."""
    data, fixed = config.data, [each for each in sources.transforms(config)["train"] if each.draws == 0]
    records = open_records(data.name, data.train, sources.data_folder(config), "data", "train", data.tokens)
    batches = Batches(records, batch_size=ROWS, seed=config.seed, transforms=fixed, rows=slice(None))
    count = min(count, len(records))
    for first in range(0, count, ROWS):
        batch = batches[first // ROWS]
        counts = first + np.arange(ROWS) < count
        yield batch | {"mask": batch["mask"] * counts.reshape(-1, *[1] * (batch["mask"].ndim - 1))}


def shown(found: np.ndarray) -> Table:
    """A row for each layer, a column for each head."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), collapse_padding=True)
    for title in ("layer", *map(str, range(found.shape[1]))):
        table.add_column(title, justify="right", no_wrap=True)
    for layer, row in enumerate(found, 1):
        table.add_row(str(layer), *(f"{x:.2f}" for x in row))
    return table


def run(argv: Sequence[str] | None = None, console: Console | None = None) -> int:
    """Runs the command line; returns the exit code."""
    words = commands.parser("heads", __doc__)
    words.add_argument("--teacher", default="", metavar="NAME", help="which teacher; else the first one")
    words.add_argument("--top", default=8, metavar="N", type=int, help="how many heads the term names")
    words.add_argument("--records", default=512, metavar="N", type=int, help="on how many records they are measured")
    console = console or Console()

    def work(known: argparse.Namespace, config: ConfigDict) -> None:
        if known.top < 1 or known.records < 1:
            raise ConfigError("--top", "and --records are at least 1.")
        name = known.teacher or next(iter(config.teachers), "")
        found = importance(config, name, known.records)
        console.print(shown(found))
        console.print(_spec(config, name, top_heads(found, known.top)), highlight=False, soft_wrap=True)

    return commands.answer(words, argv, work)


def _spec(config: ConfigDict, name: str, heads: Any) -> str:
    number = list(config.teachers).index(name)
    which = f", teacher={number}" if number else ""
    return f'objective.heads.term = "heads({heads}{which})"'


if __name__ == "__main__":
    sys.exit(run())
