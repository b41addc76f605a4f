"""An option of a teacher: one key of `teachers.NAME`, and what it makes of the teacher.

A new option is a file here with one `Option`, its line in `build.OPTIONS`, and its key in `run/schema.py`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxdistill.data.pipeline import Pipeline
from jaxdistill.teachers.teacher import Teacher


class Context(NamedTuple):
    """What options may read.

    data: of the run
    mesh: the student's
    devices: those that the option asked for, which nobody else has
    chunks: pieces of a sequence in which factored heads are computed
    steps: of the student
    needs: the gradients that terms want of models, such as "input_gradients"
    """

    data: Pipeline
    mesh: Mesh
    devices: tuple[jax.Device, ...] = ()
    chunks: int = 1
    steps: int = 0
    needs: frozenset[str] = frozenset()


# What an option may take from a teacher, by name, each with the reason that completes "..., and {reason}":
#   training      a stage of this run trains it before the student
#   learning      the student's step changes it
#   gradients     terms read gradients of its outputs
#   new_records   the step makes records that are in no data set
#   pmap, processes, planning   it works under pmap, with several processes, in `jaxdistill plan`
Lacks = Mapping[str, str]


class Option(NamedTuple):
    """A key of `teachers.NAME`.

    key: its name
    apply: `(teacher, value, context) -> teacher`
    delivers: whether it changes how outputs reach the student; else it changes the network
    lacks: what a teacher with it cannot do
    devices: `value ->` how many devices the teacher has for itself
    check: `(value, path)` raises what is wrong with the value, from its text alone
    """

    key: str
    apply: Callable[[Teacher, Any, Context], Teacher]
    delivers: bool = False
    lacks: Callable[[Any], Lacks] = lambda value: {}
    devices: Callable[[Any, str], int] = lambda value, path: 0
    check: Callable[[Any, str], Any] = lambda value, path: None
