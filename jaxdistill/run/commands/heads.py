"""Which attention heads of a teacher matter, and the term that teaches the most important of them.

jaxdistill heads --config configs/x.py [--teacher NAME] [--top 8] [--records 512] [--config.a.b=value ...]

The importance of a head is the gradient of a mask over it, on training records without augmentation: measured once,
on the teacher, before a student is trained. The term that is printed goes into the config as it is.
"""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jaxdistill.core.errors import ConfigError
from jaxdistill.data.pipeline import Pipeline
from jaxdistill.data.stream import Batch, Batches
from jaxdistill.evaluation.interpret.head_importance import head_importance, top_heads
from jaxdistill.models.abstract import abstract_outputs
from jaxdistill.models.hub.check import check_pretrained
from jaxdistill.run.commands import cli
from jaxdistill.run.config import Config
from jaxdistill.run.resolve import resolve
from jaxdistill.teachers.load import load

ROWS = 32  # of a batch: whatever, since every row stands for itself


def importance(config: Config, name: str, records: int) -> np.ndarray:
    """The importance of every head of a teacher, `[layers, heads]`, on so many training records.

    Raises:
        ConfigError: for whatever is wrong with the config, the data or the teacher.
    """
    resolved = resolve(config, jax.devices())
    teacher, data = resolved.live_teacher(name, alone=True), resolved.data
    if lack := resolved.entries[name].lacks("gradients"):
        raise ConfigError(f"{teacher.path}.{lack[0]}", f"heads are weighed by gradients, and {lack[1]}. Leave it out.")
    path, shapes = f"{teacher.path}.model", data.shapes["train"]
    outputs, _ = abstract_outputs(teacher.network, path, shapes)
    if data.classes not in (None, outputs.logits.shape[-1]):
        raise ConfigError(path, f"has {outputs.logits.shape[-1]} classes, and the data {data.classes}.")
    check_pretrained(teacher.network, path, shapes, complete=not teacher.checkpoint)
    values = load(teacher, shapes)
    try:
        return head_importance(teacher.network, values, _batches(data, records))
    except ValueError as error:
        raise ConfigError(path, f"{error}.") from None


def _batches(data: Pipeline, count: int) -> Iterator[Batch]:
    """The first records of the run, in its own order, each once; transforms that draw are left out."""
    stream = data.streams["train"]
    fixed, records = [each for each in stream.transforms if each.draws == 0], data.open(stream)
    batches = Batches(records, batch_size=ROWS, seed=data.seed, transforms=fixed, rows=slice(None))
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
    words = cli.parser("heads", __doc__)
    words.add_argument("--teacher", default="", metavar="NAME", help="which teacher; else the first one")
    words.add_argument("--top", default=8, metavar="N", type=int, help="how many heads the term names")
    words.add_argument("--records", default=512, metavar="N", type=int, help="on how many records they are measured")
    console = console or Console()

    def work(known: argparse.Namespace, config: Config) -> None:
        if known.top < 1 or known.records < 1:
            raise ConfigError("--top", "and --records are at least 1.")
        name = known.teacher or next(iter(config.teachers), "")
        found = importance(config, name, known.records)
        console.print(shown(found))
        console.print(_spec(config, name, top_heads(found, known.top)), highlight=False, soft_wrap=True)

    return cli.answer(words, argv, work)


def _spec(config: Config, name: str, heads: Any) -> str:
    number = list(config.teachers).index(name)
    which = f", teacher={number}" if number else ""
    return f'objective.heads.term = "heads({heads}{which})"'
