"""Options of a teacher: an option is one key of `teachers.NAME` and a function that changes the teacher.

A new option is a file here with one `Option`, a line in `build.OPTIONS`, and its key in `run/schema.py`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxdistill.data.pipeline import Pipeline
from jaxdistill.teachers.teacher import Teacher


class Context(NamedTuple):
    """The parts of a run that options may read.

    data: the data pipeline
    mesh: the student's mesh
    devices: the devices that are reserved for the teacher
    chunks: chunks of a sequence in which factored heads are computed
    steps: training steps of the student
    needs: gradients that terms need from models, such as "input_gradients"
    """

    data: Pipeline
    mesh: Mesh
    devices: tuple[jax.Device, ...] = ()
    chunks: int = 1
    steps: int = 0
    needs: frozenset[str] = frozenset()


# Capabilities that a teacher with an option lacks, each with a reason that completes "..., and {reason}":
#   training      a stage of this run trains the teacher before the student
#   learning      the student's step trains the teacher
#   gradients     terms read gradients of the teacher's outputs
#   new_records   the step makes records that are in no data set
#   pmap, processes, planning   the teacher works under pmap, with several processes, in `jaxdistill plan`
Lacks = Mapping[str, str]


class Option(NamedTuple):
    """A key of `teachers.NAME`.

    key: its name
    apply: `(teacher, value, context) -> teacher`
    delivers: whether the option changes how outputs reach the student; otherwise it changes the network
    lacks: `value ->` the capabilities that a teacher with the option lacks
    devices: `(value, path) ->` the number of devices to reserve for the teacher
    check: `(value, path)`; raises an error if the value is wrong, without any data
    """

    key: str
    apply: Callable[[Teacher, Any, Context], Teacher]
    delivers: bool = False
    lacks: Callable[[Any], Lacks] = lambda value: {}
    devices: Callable[[Any, str], int] = lambda value, path: 0
    check: Callable[[Any, str], Any] = lambda value, path: None
