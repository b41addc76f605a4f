"""The schema of a config: every key with its default, kind and meaning, in one place.

This module does not import JAX, so that errors appear at once.
"""

import ast
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxdistill.core.spec import LARGEST_NUMBER


class Kind(NamedTuple):
    """A kind of config value, such as a positive whole number or a learning-rate schedule.

    accepts: `value -> bool`; True for a value of this kind
    wanted: description of the kind that completes the error message "... is not {wanted}."
    text: True if a value on the command line is taken as plain text, False if it is parsed as a Python literal, such as
        3 or (1, 2)
    """

    accepts: Callable[[Any], bool]
    wanted: str
    text: bool = False

    def read(self, text: str) -> Any:
        """Convert the text of a value on the command line to the value: unchanged, or parsed as a Python literal.

        Raises:
            ValueError: the kind requires a Python literal, and the text is not one.
        """
        if self.text:
            return text
        try:
            return ast.literal_eval({"true": "True", "false": "False"}.get(text.lower(), text))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # everything that literal_eval raises
            raise ValueError(text) from None


class Key(NamedTuple):
    """A config key: its default, the kind of its value, and its meaning."""

    default: Any
    kind: Kind
    doc: str


class OpenSection(NamedTuple):
    """A config section whose entries the user names, such as `teachers`, where each teacher is an entry.

    entry: the keys that each entry has, by name
    default: the entries of a config that does not set this section, by name
    doc: meaning of the section
    """

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
        named = [axis for axis in axes if axis is not None]  # one mesh axis cannot split two dimensions of an array
        texts = isinstance(pattern, str) and isinstance(axes, tuple)  # a pattern of bytes is not JSON
        return texts and set(named) <= {"data", "fsdp", "tensor"} and len(set(named)) == len(named)
    except (TypeError, ValueError, re.error):
        return False


def _is_tuple_of(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, tuple) and all(map(accepts, v))


def _is_address(v: str) -> bool:
    address = re.fullmatch(r"[^\s:]+:(\d{1,5})", v)
    return address is not None and 0 < int(address[1]) < 2**16


def _is_text(v: Any) -> bool:
    # a lone surrogate cannot be encoded in UTF-8
    return isinstance(v, str) and not any("\ud800" <= letter <= "\udfff" for letter in v)


LIMIT = 2**31  # steps and seeds are int32
_integer, _number = _of(int), _of(int, float)

TEXT = Kind(_is_text, "text that UTF-8 can express", text=True)
SPEC = Kind(_is_text, "a spec string such as 'name(key=1.0)'", text=True)
SPECS = Kind(_is_tuple_of(_is_text), "a tuple of spec strings")
SCHEDULE = Kind(_of(str), "a number, or a schedule such as 'cosine(start=0.9, end=0.1)'", text=True)
FLAG = Kind(_of(bool), "True or False")
COUNT = Kind(lambda v: _integer(v) and 0 <= v < LIMIT, "a whole number, 0 or more, below 2^31")
POSITIVE = Kind(lambda v: _integer(v) and 0 < v < LIMIT, "a whole number, 1 or more, below 2^31")
SIZE = Kind(lambda v: _integer(v) and (v > 0 or v == -1), "a whole number, 1 or more, or -1")
NUMBER = Kind(lambda v: _number(v) and 0 <= v <= LARGEST_NUMBER, "a number from 0 to 1e30")
ADDRESS = Kind(
    lambda v: v in ("", "auto") or (isinstance(v, str) and _is_address(v)),
    "'auto', or the host:port of process 0, such as 'node0:1234', with a port from 1 to 65535",
    text=True,
)
REDUCTION = _one_of("token", "text")
DTYPE = _one_of("float32", "bfloat16")
BITS = _one_of("int8", "fp8", empty=True)
KERNELS = _one_of("xla", "pallas")
BACKEND = _one_of("jit", "pmap")
CLASSES = Kind(_is_tuple_of(lambda c: _integer(c) and c >= -1), "a tuple of class numbers, such as (1, 0, -1)")
PAIRS = Kind(
    _is_tuple_of(lambda p: isinstance(p, tuple) and len(p) == 2 and all(map(_integer, p))),
    "a tuple of pairs of layers such as ((-1, -1),)",
)
RULES = Kind(
    _is_tuple_of(_is_rule),
    "(regex, axes) pairs such as (('kernel$', ('fsdp', 'tensor')),), an axis being data, fsdp, tensor or None",
)

TERM = {
    "term": Key("", SPEC, "the loss, such as 'kd(temperature=4.0)'; empty: the loss with the name of the entry"),
    "weight": Key("1.0", SCHEDULE, "weight of the term, a number or a schedule"),
    "stream": Key("", TEXT, "stream that the term reads; empty: the default of the loss, usually train"),
    "reduction": Key(
        "token",
        REDUCTION,
        "mean over all tokens of the batch ('token'), or over the tokens of each text, then over texts ('text')",
    ),
}
RULES_DOC = (
    "sharding rules: (regex of parameter paths, mesh axes of the last dimensions) pairs; empty: the default rules"
)

SCHEMA: dict[str, Any] = {
    "title": Key("", TEXT, "heading of the HTML report"),
    "seed": Key(0, COUNT, "seed of initialisation, data order and augmentation"),
    "steps": Key(1000, POSITIVE, "optimiser steps of the student, and of the control"),
    "batch_size": Key(128, POSITIVE, "rows of the global batch"),
    "accumulate": Key(1, POSITIVE, "gradient accumulation: parts into which each batch is split, which saves memory"),
    "chunks": Key(
        1,
        POSITIVE,
        "chunks of a sequence for which a language model computes its logits, one after the other; saves memory",
    ),
    "kernels": Key(
        "xla",
        KERNELS,
        "backend for the loss terms of a chunk: 'xla', or on TPUs 'pallas', one kernel for all terms, which reads "
        "each logit once",
    ),
    "dtype": Key("float32", DTYPE, "dtype in which students and teachers compute; parameters stay float32"),
    "student": {
        "model": Key("", SPEC, "the network, such as 'mlp(widths=(64,), classes=10)'"),
        "quantized": Key(
            "",
            SPEC,
            "quantisation-aware training of student and control, such as 'aware(weights=4, inputs=8, start=0.5)'; "
            "empty: floats",
        ),
        "masks": Key(
            "",
            SPEC,
            "unstructured pruning of student and control, such as 'sparse(share=0.8)'; empty: every weight may change",
        ),
        "rules": Key((), RULES, RULES_DOC),
    },
    "teachers": OpenSection(
        {
            "model": Key("", SPEC, "the network"),
            "checkpoint": Key(
                "",
                TEXT,
                "folder of a jaxdistill run, for its student, or RUN/teachers/NAME, for a teacher that it trained; "
                "with @best, @last or @STEP; empty: no checkpoint, see steps",
            ),
            "cache": Key(
                "",
                SPEC,
                "outputs written by `jaxdistill cache`: 'outputs(folder=...)'; empty: run the teacher in training",
            ),
            "placement": Key(
                "", SPEC, "separate devices: 'submesh(devices=2, layers=(1, 2))'; empty: the devices of the student"
            ),
            "quantized": Key(
                "", BITS, "'int8' or 'fp8': store kernels and compute matrix products in 8 bits; empty: in dtype"
            ),
            "reads": Key(
                "",
                TEXT,
                "prefix of the batch fields that the teacher reads, such as 'teacher/' with tokens=aligned(...)",
            ),
            "classes": Key(
                (),
                CLASSES,
                "for each class of the data, its number in the teacher, or -1 if the teacher lacks it; empty: the same",
            ),
            "steps": Key(
                0,
                COUNT,
                "steps of training before the student, in this run; 0: use a checkpoint or a pretrained model",
            ),
            "rate": Key("", SCHEDULE, "learning rate of this training; empty: that of the student"),
            "augment": Key((), SPECS, "transforms of the batches of this training"),
            "rules": Key((), RULES, RULES_DOC),
        },
        {},
        "the teachers, by name",
    ),
    "fusion": Key("single()", SPEC, "how the outputs of several teachers are combined"),
    "objective": OpenSection(TERM, {}, "the terms whose weighted sum the student minimises, by name"),
    "task": OpenSection(
        TERM,
        {"cross_entropy": {}},
        "the terms that models without a teacher minimise: the control, and teachers trained in this run",
    ),
    "control": Key(
        True,
        FLAG,
        "train the same network without a teacher too, for comparison; if it is quantized, also one in floats",
    ),
    "step": Key("offline()", SPEC, "the training algorithm, one update at a time"),
    "optimizer": Key("adamw()", SPEC, "the optax transformation that turns gradients into updates"),
    "rate": Key("0.001", SCHEDULE, "learning rate, a number or a schedule"),
    "clip_norm": Key(0.0, NUMBER, "largest norm of the gradient of each role, such as student; 0: no clipping"),
    "roles": OpenSection(
        {
            "optimizer": Key("adamw()", SPEC, "the optax transformation that turns gradients into updates"),
            "rate": Key("0.001", SCHEDULE, "learning rate"),
        },
        {},
        "separate optimisers, by role: student, terms (projectors), fusion (gates), teachers or weights if trained",
    ),
    "data": {
        "name": Key("mnist5k", TEXT, "a TensorFlow Datasets name, or the spec of a registered data set"),
        "train": Key("train", TEXT, "training split, such as 'train[:80%]'"),
        "test": Key("test", TEXT, "evaluation split"),
        "select": Key(
            "",
            SPEC,
            "training records that student and control use, such as 'random(share=0.1)' or "
            "\"hardest(share=0.1, cache='FOLDER')\"; empty: all",
        ),
        "order": Key(
            "",
            SPEC,
            "order of the training records of student and control, such as "
            "'tasks(groups=((0, 1), (2, 3)), steps=100)'; empty: shuffled in every epoch",
        ),
        "folder": Key("", TEXT, "folder of prepared data; empty: $JAXDISTILL_DATA or ~/.cache/jaxdistill/data"),
        "tokens": Key(
            "",
            SPEC,
            "tokenization of text, such as \"sentences(tokenizer='FOLDER', length=64)\"; empty: the data are not text",
        ),
        "augment": Key((), SPECS, "transforms of the student's training batches, such as ('shift(pixels=2)',)"),
    },
    "streams": OpenSection(
        {
            "split": Key("", TEXT, "records of the stream, such as 'train[90%:]'"),
            "batch_size": Key(0, COUNT, "rows of a batch; 0: as in training batches"),
            "augment": Key((), SPECS, "transforms of the batches"),
        },
        {},
        "additional streams that a step or a term reads beside the training batches, by name, such as quiz",
    ),
    "exports": OpenSection(
        {
            "to": Key("onnx", SPEC, "export format, such as \"onnx(int8='dynamic')\"; see `jaxdistill list exporters`"),
            "model": Key("student", TEXT, "the model: student, control, or teachers/NAME"),
            "runtime": Key("", TEXT, "what runs the file; empty: the first runtime of the format"),
            "threads": Key(0, COUNT, "processors that the file may use; 0: those of the device, or one"),
            "device": Key(
                "", SPEC, "what the file is made for, such as 'ethos_u65()'; see `jaxdistill list devices`; empty: any"
            ),
        },
        {},
        "files that are written and measured when the run has ended, by name, such as phone; see `jaxdistill export`",
    ),
    "evaluate": {
        "every": Key(200, POSITIVE, "steps between evaluations, each of which writes a checkpoint"),
        "batch_size": Key(512, POSITIVE, "rows of an evaluation batch"),
        "layers": Key(((-1, -1),), PAIRS, "(student layer, teacher layer) pairs whose CKA is measured"),
    },
    "checkpoints": {
        "bucket": Key(
            "",
            TEXT,
            "address in a bucket below which checkpoints are kept, such as 'gs://bucket/runs'; empty: in the workdir",
        ),
    },
    "mesh": {
        "backend": Key("jit", BACKEND, "'jit' over a mesh, or 'pmap' over rows"),
        "data": Key(-1, SIZE, "devices along the axis data, which splits rows; -1: all remaining devices"),
        "fsdp": Key(1, SIZE, "devices along the axis fsdp, which splits rows and parameters"),
        "tensor": Key(1, SIZE, "devices along the axis tensor, which splits parameters"),
    },
    "distributed": {
        "coordinator": Key("", ADDRESS, "host:port of process 0; 'auto': ask the cluster; empty: one process"),
        "processes": Key(1, POSITIVE, "number of processes"),
        "process": Key(0, COUNT, "number of this process, from 0"),
        "timeout": Key(
            300,
            POSITIVE,
            "seconds to wait for the other processes at the start; missing ones are named, but not with 'auto'",
        ),
    },
    "logging": {
        "every": Key(20, POSITIVE, "steps between lines of the log"),
        "tensorboard": Key(True, FLAG, "write TensorBoard events"),
        "wandb": Key("", TEXT, "Weights & Biases project; empty: none"),
        "trace": Key(0, COUNT, "steps of the student to profile, after 10 warm-up steps; 0: none"),
        "compilation_cache": Key("", TEXT, "folder that keeps compiled programs between runs; empty: none"),
    },
}

# Sections that may be changed when a run is resumed.
CHANGEABLE = ("steps", "logging", "mesh", "distributed", "exports")

# Renamed keys: (section, old name) -> new name; NAME stands for an entry that the user names.
RENAMED = {("teachers.NAME", "apart"): "placement"}
