"""Options of a teacher: each is a key of the config section `teachers.NAME`, and a function that changes the teacher.

A new option is a file in this folder with one `Option`, a line in `build.OPTIONS`, and its key in `run/schema.py`.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
from jax.sharding import Mesh

from jaxdistill.data.pipeline import Pipeline
from jaxdistill.teachers.teacher import Teacher


class Context(NamedTuple):
    """The values of a run that an option may read when it changes a teacher.

    data: the data pipeline
    mesh: the student's mesh of devices
    devices: the devices that are reserved for the teacher
    chunks: number of chunks of a sequence; logits of a large vocabulary are computed for one chunk at a time
    steps: number of training steps of the student
    needs: names of the gradients that loss terms need from models, such as "input_gradients"
    """

    data: Pipeline
    mesh: Mesh
    devices: tuple[jax.Device, ...] = ()
    chunks: int = 1
    steps: int = 0
    needs: frozenset[str] = frozenset()


Capability = Literal[
    "training",  # a stage of this run trains the teacher before the student
    "learning",  # the student's step trains the teacher
    "cutting",  # the student can be cut out of the teacher (structured pruning)
    "gradients",  # terms read gradients of the teacher's outputs
    "new_records",  # the step makes records that are in no data set
    "pmap",  # the teacher works under pmap
    "processes",  # the teacher works with several processes
    "planning",  # the teacher works in `jaxdistill plan`
]

# capabilities that a teacher with an option lacks, each with a reason that completes "..., and {reason}"
Lacks = Mapping[Capability, str]


class Option(NamedTuple):
    """An option of a teacher: a key of the config section `teachers.NAME`, such as "cache" or "quantized".

    key: name of the key
    apply: `(teacher, value, context) -> teacher`, where `value` is the value of the key
    delivers: True if the option changes how the teacher's outputs reach the student; False if it changes the network
    lacks: `value -> {capability: reason}`, the capabilities that a teacher with the option lacks, such as "training",
        and why
    devices: `(value, path) -> number` of devices to reserve for the teacher; `path` is the key of the config, such as
        `teachers.big.placement`, for error messages
    check: `(value, path) -> anything`; it raises an error if the value is wrong, without reading any data
    """

    key: str
    apply: Callable[[Teacher, Any, Context], Teacher]
    delivers: bool = False
    lacks: Callable[[Any], Lacks] = lambda value: {}
    devices: Callable[[Any, str], int] = lambda value, path: 0
    check: Callable[[Any, str], Any] = lambda value, path: None
