"""The schema of a config: every key with its default, kind and meaning, in one place.

Imports no JAX, so that a mistake shows at once.
"""

import ast
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """A kind of value.

    accepts: whether a value is of the kind
    wanted: completes "... is not {wanted}."
    text: whether the command line's text is the value; else it is read as a literal
    """

    accepts: Callable[[Any], bool]
    wanted: str
    text: bool = False

    def read(self, text: str) -> Any:
        """The value of a text on the command line.

        Raises:
            ValueError: it is no literal.
        """
        if self.text:
            return text
        try:
            return ast.literal_eval({"true": "True", "false": "False"}.get(text.lower(), text))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # all that a literal can do
            raise ValueError(text) from None


class Key(NamedTuple):
    """One key: its default, the kind of its value, and what it means."""

    default: Any
    kind: Kind
    doc: str


class Open(NamedTuple):
    """A section whose entries the user names; each entry follows `entry`."""

    entry: dict[str, Key]
    default: dict[str, dict[str, Any]]
    doc: str


def _of(*types: type) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, types) and not (isinstance(v, bool) and bool not in types)


def _one_of(*names: str, empty: bool = False) -> Kind:
    wanted = " or ".join(map(repr, names))
    return Kind(lambda v: v in names or (empty and v == ""), wanted, text=True)


def _is_rule(v: Any) -> bool:
    try:
        pattern, axes = v
        re.compile(pattern)
        named = [axis for axis in axes if axis is not None]  # no axis can split two dimensions of one array
        return isinstance(axes, tuple) and set(named) <= {"data", "fsdp", "tensor"} and len(set(named)) == len(named)
    except (TypeError, ValueError, re.error):
        return False


def _is_tuple_of(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, tuple) and all(map(accepts, v))


LIMIT = 2**31  # steps are counted in int32, and seeds are one
_integer, _number = _of(int), _of(int, float)

TEXT = Kind(_of(str), "text", text=True)
SPEC = Kind(_of(str), "a spec string such as 'name(key=1.0)'", text=True)
SPECS = Kind(_is_tuple_of(_of(str)), "a tuple of spec strings")
SCHEDULE = Kind(_of(str), "a number, or a schedule such as 'cosine(start=0.9, end=0.1)'", text=True)
FLAG = Kind(_of(bool), "True or False")
COUNT = Kind(lambda v: _integer(v) and 0 <= v < LIMIT, "a whole number, 0 or more, below 2^31")
POSITIVE = Kind(lambda v: _integer(v) and 0 < v < LIMIT, "a whole number, 1 or more, below 2^31")
SIZE = Kind(lambda v: _integer(v) and (v > 0 or v == -1), "a whole number, 1 or more, or -1")
NUMBER = Kind(lambda v: _number(v) and 0 <= v < math.inf, "a finite number, 0 or more")
ADDRESS = Kind(
    lambda v: v in ("", "auto") or (isinstance(v, str) and re.fullmatch(r"[^\s:]+:\d{1,5}", v) is not None),
    "'auto', or the host:port of process 0, such as 'node0:1234'",
    text=True,
)
DTYPE = _one_of("float32", "bfloat16")
BITS = _one_of("int8", "fp8", empty=True)
KERNELS = _one_of("xla", "pallas")
BACKEND = _one_of("jit", "pmap")
CLASSES = Kind(_is_tuple_of(lambda c: _integer(c) and c >= -1), "a tuple of class numbers, such as (1, 0, -1)")
PAIRS = Kind(
    _is_tuple_of(lambda p: isinstance(p, tuple) and len(p) == 2 and all(map(_integer, p))),
    "pairs of layers such as ((-1, -1),)",
)
RULES = Kind(
    _is_tuple_of(_is_rule),
    "(regex, axes) pairs such as (('kernel$', ('fsdp', 'tensor')),), an axis being data, fsdp, tensor or None",
)

TERM = {
    "term": Key("", SPEC, "the loss, such as 'kd(temperature=4.0)'; empty: the entry's own name"),
    "weight": Key("1.0", SCHEDULE, "its weight, a number or a schedule"),
    "stream": Key("", TEXT, "the stream that it reads; empty: the loss's own, mostly train"),
}
RULES_DOC = "(path regex, axes of the last dimensions) pairs; empty: the table in parallel/sharding.py"

SCHEMA: dict[str, Any] = {
    "title": Key("", TEXT, "heading of the page"),
    "seed": Key(0, COUNT, "of initialisation, data order and augmentation"),
    "steps": Key(1000, POSITIVE, "optimiser steps of the student, and of the control"),
    "batch_size": Key(128, POSITIVE, "rows of the global batch"),
    "accumulate": Key(1, POSITIVE, "pieces in which the student runs through a batch; saves memory"),
    "chunks": Key(1, POSITIVE, "chunks of a sequence in which the factored head of a language model is computed"),
    "kernels": Key(
        "xla",
        KERNELS,
        "what computes the loss terms of a chunk from its logits: 'xla', or on TPUs 'pallas', one kernel for all "
        "terms, which reads each logit once",
    ),
    "dtype": Key("float32", DTYPE, "what students and teachers compute in; parameters stay float32"),
    "student": {
        "model": Key("", SPEC, "the network, such as 'mlp(widths=(64,), classes=10)'"),
        "rules": Key((), RULES, RULES_DOC),
    },
    "teachers": Open(
        {
            "model": Key("", SPEC, "the network"),
            "checkpoint": Key(
                "", TEXT, "folder of a jaxdistill run, with @best, @last or @STEP; empty: train it here first"
            ),
            "cache": Key("", SPEC, "its outputs, written by `jaxdistill cache`: 'outputs(folder=...)'; empty: live"),
            "placement": Key("", SPEC, "devices of its own: 'submesh(devices=2, layers=(1, 2))'; empty: the student's"),
            "quantized": Key(
                "", BITS, "'int8' or 'fp8': kernels are kept, and products computed, in 8 bits; empty: in dtype"
            ),
            "reads": Key("", TEXT, "prefix of the batch fields that it reads, such as 'teacher/' of aligned"),
            "classes": Key(
                (), CLASSES, "its number of each class of the data, -1 for one that it does not know; empty: the same"
            ),
            "steps": Key(0, COUNT, "steps of its training here; 0: needs a checkpoint, or a pretrained model"),
            "rate": Key("", SCHEDULE, "learning rate of its training here; empty: as the student's"),
            "augment": Key((), SPECS, "transforms of its training batches here"),
            "rules": Key((), RULES, RULES_DOC),
        },
        {},
        "the teachers, by name",
    ),
    "fusion": Key("single()", SPEC, "how several teachers become one"),
    "objective": Open(TERM, {}, "what the student minimises: a weighted sum of terms, by name"),
    "task": Open(
        TERM,
        {"cross_entropy": {}},
        "what is minimised without a teacher: by the control, and by teachers trained here",
    ),
    "control": Key(True, FLAG, "train the same student without a teacher, for comparison"),
    "step": Key("offline()", SPEC, "the algorithm of an update"),
    "optimizer": Key("adamw()", SPEC, "the optax transformation that turns gradients into updates"),
    "rate": Key("0.001", SCHEDULE, "learning rate, a number or a schedule"),
    "clip_norm": Key(0.0, NUMBER, "largest norm of the gradient of each role, such as the student; 0: not clipped"),
    "roles": Open(
        {
            "optimizer": Key("adamw()", SPEC, "the optax transformation that turns gradients into updates"),
            "rate": Key("0.001", SCHEDULE, "learning rate"),
        },
        {},
        "an optimiser of its own for a role: student, terms (projectors), fusion (gates), teachers that learn, weights",
    ),
    "data": {
        "name": Key("mnist5k", TEXT, "a TensorFlow Datasets name, or the spec of a registered data set"),
        "train": Key("train", TEXT, "split to learn from, such as 'train[:80%]'"),
        "test": Key("test", TEXT, "split to be evaluated on"),
        "select": Key(
            "",
            SPEC,
            "which of the training records the student and its control learn from, such as 'random(share=0.1)' or "
            "\"hardest(share=0.1, cache='FOLDER')\"; empty: all",
        ),
        "order": Key(
            "",
            SPEC,
            "in which order they come, such as 'tasks(groups=((0, 1), (2, 3)), steps=100)', to the student and its "
            "control; empty: shuffled in every epoch",
        ),
        "folder": Key("", TEXT, "where prepared data lies; empty: $JAXDISTILL_DATA or ~/.cache/jaxdistill/data"),
        "tokens": Key(
            "", SPEC, "how text becomes numbers, such as \"sentences(tokenizer='FOLDER', length=64)\"; empty: no text"
        ),
        "augment": Key((), SPECS, "transforms of the student's training batches, such as ('shift(pixels=2)',)"),
    },
    "streams": Open(
        {
            "split": Key("", TEXT, "which records, such as 'train[90%:]'"),
            "batch_size": Key(0, COUNT, "rows of its batches; 0: as the training batches"),
            "augment": Key((), SPECS, "transforms of its batches"),
        },
        {},
        "further streams that a step or a term reads beside the training batches, by name, such as quiz",
    ),
    "evaluate": {
        "every": Key(200, POSITIVE, "steps from one evaluation (and checkpoint) to the next"),
        "batch_size": Key(512, POSITIVE, "rows of an evaluation batch"),
        "layers": Key(((-1, -1),), PAIRS, "(student layer, teacher layer) pairs whose CKA is measured"),
    },
    "mesh": {
        "backend": Key("jit", BACKEND, "jit over a mesh, or pmap over the rows"),
        "data": Key(-1, SIZE, "devices along data; -1: all that are left"),
        "fsdp": Key(1, SIZE, "devices along fsdp: rows and parameters"),
        "tensor": Key(1, SIZE, "devices along tensor: parameters"),
    },
    "distributed": {
        "coordinator": Key("", ADDRESS, "host:port of process 0; 'auto': found from the cluster; empty: one process"),
        "processes": Key(1, POSITIVE, "how many there are"),
        "process": Key(0, COUNT, "which of them this is"),
    },
    "logging": {
        "every": Key(20, POSITIVE, "steps from one line of the log to the next"),
        "tensorboard": Key(True, FLAG, "write TensorBoard events"),
        "wandb": Key("", TEXT, "Weights & Biases project; empty: none"),
        "trace": Key(0, COUNT, "steps of the student's run to profile, after 10 to warm up; 0: none"),
        "compilation_cache": Key("", TEXT, "folder that keeps compiled programs between runs; empty: none"),
    },
}

# Sections whose keys may differ between a workdir and the config that resumes it.
FREE = ("steps", "logging", "mesh", "distributed")

# Keys that had another name: (section, old name) -> new name, the user's own names being NAME.
RENAMED = {("teachers.NAME", "apart"): "placement"}
