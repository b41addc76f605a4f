"""Rank the attention heads of a teacher by importance, and print a loss term that distils the most important ones.

jaxdistill heads --config configs/x.py [--teacher NAME] [--top 8] [--records 512] [--config.a.b=value ...]

The importance of a head is the gradient of the teacher's loss with respect to a mask over the head, on training records
without augmentation. Run this once, before training a student, and copy the printed line into the config.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jaxdistill.core.errors import ConfigError
from jaxdistill.evaluation.interpret.head_importance import head_importance, top_heads
from jaxdistill.models.abstract import abstract_outputs
from jaxdistill.models.hub.check import check_pretrained
from jaxdistill.run.commands import cli
from jaxdistill.run.config import Config
from jaxdistill.run.resolve import resolve
from jaxdistill.run.samples import samples
from jaxdistill.teachers.load import load


def importance(config: Config, name: str, records: int) -> np.ndarray:
    """Compute the importance of every attention head of a teacher, `[layers, heads]`, from 0 to 1.

    A factor m multiplies the output of each head. With the cross-entropy L of an example, the importance of the head is
    `mean over examples of abs(dL/dm)` at m = 1. It is divided by the L2 norm over the heads of the layer. Finally, all
    values x are normalised to `(x - min(x)) / (max(x) - min(x))`.

    Args:
        config: a complete config, from `jaxdistill.make` or `jaxdistill.load_config`.
        name: name of the teacher in the config.
        records: number of training examples to average over.

    Raises:
        ConfigError: the config is wrong, or the data or the teacher cannot be used.
    """
    resolved = resolve(config, jax.devices())
    teacher, data = resolved.live_teacher(name, alone=True), resolved.data
    if lack := resolved.teacher_configs[name].lacks("gradients"):
        raise ConfigError(f"{teacher.path}.{lack[0]}", f"head importance needs gradients, and {lack[1]}. Leave it out.")
    path, shapes = f"{teacher.path}.model", data.shapes["train"]
    outputs, _ = abstract_outputs(teacher.network, path, shapes)
    if data.classes not in (None, outputs.logits.shape[-1]):
        raise ConfigError(path, f"has {outputs.logits.shape[-1]} classes, but the data have {data.classes}.")
    check_pretrained(teacher.network, path, shapes, complete=not teacher.checkpoint)
    values = load(teacher, shapes)
    try:
        return head_importance(teacher.network, values, samples(data, records))
    except ValueError as error:
        raise ConfigError(path, f"{error}.") from None


def importance_table(scores: np.ndarray) -> Table:
    """Format the importance of attention heads as a table for the console: a row per layer, a column per head.

    Args:
        scores: importance of the heads, `[layers, heads]`.
    """
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), collapse_padding=True)
    for title in ("layer", *map(str, range(scores.shape[1]))):
        table.add_column(title, justify="right", no_wrap=True)
    for layer, row in enumerate(scores, 1):
        table.add_row(str(layer), *(f"{x:.2f}" for x in row))
    return table


def run(argv: Sequence[str] | None = None, console: Console | None = None) -> int:
    """Run the command `jaxdistill heads`, which ranks a teacher's attention heads, and return its exit code.

    Args:
        argv: arguments of the command; None means `sys.argv[1:]`.
        console: where the table is printed; None means standard output.
    """
    parser = cli.parser("heads", __doc__)
    parser.add_argument("--teacher", default="", metavar="NAME", help="name of the teacher; default: the first")
    parser.add_argument("--top", default=8, metavar="N", type=int, help="number of heads in the printed term; 8")
    parser.add_argument("--records", default=512, metavar="N", type=int, help="number of training records; 512")
    console = console or Console()

    def work(options: argparse.Namespace, config: Config) -> None:
        for option, number in (("--top", options.top), ("--records", options.records)):
            if number < 1:
                raise ConfigError(option, f"{number}: give 1 or more.")
        name = options.teacher or next(iter(config.teachers), "")
        scores = importance(config, name, options.records)
        console.print(importance_table(scores))
        console.print(_term_line(config, name, top_heads(scores, options.top)), highlight=False, soft_wrap=True)

    return cli.run_command(parser, argv, work)


def _term_line(config: Config, name: str, heads: Any) -> str:
    number = list(config.teachers).index(name)
    teacher = f", teacher={number}" if number else ""
    return f'objective.heads.term = "heads({heads}{teacher})"'
