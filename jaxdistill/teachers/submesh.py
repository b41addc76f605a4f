"""The option `placement`: run a teacher on its own sub-mesh, one batch ahead of the student.

While the student trains on one batch, the teacher runs on the next. The teacher's outputs travel in the batch. The host
dispatches the teacher without waiting for its results. Only the student's devices wait for these results, and the
teacher does not use their memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.interfaces import Model
from jaxdistill.core.registry import placements
from jaxdistill.core.types import NO_VARIABLES, Factored, Shapes, Variables
from jaxdistill.data.pipeline import TEST
from jaxdistill.models.abstract import abstract_outputs
from jaxdistill.parallel.compile import jit_evaluate, move_to_mesh, shard_variables
from jaxdistill.parallel.mesh import build_mesh
from jaxdistill.parallel.sharding import DEFAULT_RULES
from jaxdistill.teachers.codec import (
    Encoding,
    decoding_model,
    encoded_fields,
    encoded_forward,
    head_arrays,
    head_shapes,
)
from jaxdistill.teachers.option import Context, Option
from jaxdistill.teachers.teacher import Fields, Query, Teacher

KEY = "placement"


class Submesh(NamedTuple):
    """The parsed value of a teacher's option `placement`, which runs the teacher on its own devices.

    devices: number of devices that are reserved for the teacher
    encoding: format of the outputs that are sent from the teacher's devices to the student's
    """

    devices: int
    encoding: Encoding


@placements.register
def submesh(devices: int, top: int = 0, layers: tuple[int, ...] = (), features: bool = False) -> Submesh:
    """Run the teacher on its own devices, one batch ahead of the student.

    Args:
        devices: number of devices, taken from the end of the list of all devices. The examples of a batch and the
            parameters are split over them.
        top: send to the student only this many of the largest logits, and the total probability of all other classes;
            0 sends all logits.
        layers: indices of the hidden states to send; 0 is the embedding.
        features: send the inputs of the teacher's head (its last layer) instead of logits. The student's devices get a
            copy of the head once, and multiply the logits out, chunk by chunk. For language models.

    Raises:
        ValueError: `devices` is below 1, `top` or a layer is negative, or both `top` and `features` are set.
    """
    if devices < 1 or top < 0 or any(layer < 0 for layer in layers) or (features and top):
        values = f"devices={devices}, top={top}, layers={layers}, features={features}"
        raise ValueError(
            f"set devices to at least 1, top and layers to at least 0, and one of top and features; got {values}"
        )
    return Submesh(devices, Encoding("", "float32", top, layers, features=features))


def prefix_of(name: str) -> str:
    """Return `placement/NAME/`, the prefix of the batch fields that hold the outputs of the teacher `name`."""
    return f"{KEY}/{name}/"


@dataclass(frozen=True, kw_only=True)
class SubmeshTeacher(Teacher):
    """A teacher that runs on its own devices (a sub-mesh), and whose outputs are sent to the student in the batch.

    Args:
        reader: model that takes the outputs from the batch, for the student's training step; see `decoding_model`
        student_mesh: mesh of the student's devices
        rows: shapes of the arrays of a batch
        encoding: format of the outputs that are sent; for the test examples, all logits are sent
        chunks: number of chunks of a sequence; the logits of one chunk at a time are computed, to save memory
        sent: shape and dtype of the fields that are sent for one example, by stream (named source of batches) and field
            name
    """

    reader: Model
    student_mesh: Mesh
    rows: Shapes
    encoding: Encoding
    chunks: int
    sent: Mapping[str, Fields]

    @property
    def model(self) -> Model:
        """Return the model that the training step applies; it reads the teacher's outputs from the batch."""
        return self.reader

    def fields(self, stream: str) -> Fields:
        """Return the fields of teacher outputs that are added to an example: a dict from field name to (shape, dtype).

        Args:
            stream: name of the training stream (a named source of batches), such as "train".
        """
        return {f"{prefix_of(self.name)}{name}": field for name, field in self.sent[stream].items()}

    def query(self, stream: str, variables: Variables, mesh: Mesh) -> Query:
        """Return a function that runs the teacher on a batch, and moves its encoded outputs to the student's devices.

        Args:
            stream: name of the stream (a named source of batches), or `TEST` for the test examples.
            variables: the teacher's parameters and state, placed on the teacher's devices.
            mesh: the student's mesh of devices.
        """
        encoding = self.encoding._replace(top=0) if stream == TEST else self.encoding
        encode = jit_evaluate(encoded_forward(self.network, encoding, self.chunks), variables, self.mesh)

        def query(batch: Mapping[str, Any]) -> dict[str, Any]:
            return {f"{prefix_of(self.name)}{name}": x for name, x in move_to_mesh(encode(batch), mesh).items()}

        return query

    def argument(self, variables: Variables) -> Variables:
        """Return the variables that the student's training step needs for this teacher, which runs outside the step.

        If features are sent instead of logits, this is a copy of the teacher's head (last layer) on the student's
        devices. Otherwise it is empty.

        Args:
            variables: the teacher's parameters and state.
        """
        if not self.encoding.features:
            return NO_VARIABLES
        head = head_arrays(self.network, variables, self.rows, self.mesh)
        return shard_variables(Variables(jax.device_get(head), {}), self.student_mesh, self.rules or DEFAULT_RULES)


def parse_submesh(value: str, path: str) -> Submesh:
    """Parse the value of a teacher's option `placement` into a `Submesh`: the number of devices, and what is sent.

    Args:
        value: spec string of the placement, such as "submesh(devices=2)".
        path: key of the config for error messages, such as `teachers.big.placement`.
    """
    return placements.build(value, path)


def apply(teacher: Teacher, value: str, context: Context) -> Teacher:
    """Return a `SubmeshTeacher`, which runs a teacher on its own devices instead of the student's.

    Args:
        teacher: the teacher, placed on the student's devices.
        value: value of the option `placement`, such as "submesh(devices=2)".
        context: the data, devices and settings of the run.

    Raises:
        ConfigError: the teacher lacks a layer of the option, or has no more classes than its `top`; or the sequence
            does not divide into chunks.
    """
    path, encoding = f"{teacher.path}.{KEY}", parse_submesh(value, f"{teacher.path}.{KEY}").encoding
    outputs = {
        stream: abstract_outputs(teacher.network, f"{teacher.path}.model", rows)[0]
        for stream, rows in context.data.shapes.items()
    }
    logits, layers = outputs["train"].logits, len(outputs["train"].hidden_states)
    chunks = context.chunks if isinstance(logits, Factored) else 1
    try:
        sent = {stream: encoded_fields(each, encoding, chunks) for stream, each in outputs.items()}
    except ValueError as error:
        raise ConfigError(path, f"{error}.") from None
    head = head_shapes(outputs["train"]) if encoding.features else None
    prefix, second = prefix_of(teacher.name), teacher.network.second_prefix
    changes = {
        "mesh": build_mesh((1, len(context.devices), 1), context.devices),
        "reader": decoding_model(prefix, logits.shape[-1], layers, 1.0, teacher.prefix, head, second),
        "student_mesh": context.mesh,
        "rows": context.data.shapes["train"],
    }
    return SubmeshTeacher(**{**vars(teacher), **changes}, encoding=encoding, chunks=chunks, sent=sent)


OPTION = Option(
    KEY,
    apply,
    delivers=True,
    lacks=lambda _: {
        "learning": "a teacher that is trained must share the student's mesh",
        "gradients": "a teacher on a sub-mesh has none",
        "new_records": "it is queried one batch ahead, before they are made",
        "pmap": "pmap has one mesh",
        "processes": "several processes have one mesh",
        "planning": "a mesh beside the student's is not planned",
    },
    devices=lambda value, path: parse_submesh(value, path).devices,
    check=parse_submesh,
)


class QueryPrefetcher:
    """An iterator over batches that adds teacher outputs, which it begins to compute one batch ahead.

    It can save its position. A saved position is that of the last batch that was returned. The batch that was computed
    ahead is computed again after a resume.

    Args:
        batches: iterator over the batches of a stream (a named source of batches), with the methods `get_state()` and
            `set_state(state)`.
        query: function that returns a batch with the teachers' outputs added.
    """

    def __init__(self, batches: Any, query: Query):
        self._batches, self._query = batches, query
        self._next: dict[str, Any] | None = None
        self._position: Any = None

    def __next__(self) -> dict[str, Any]:
        batch = self._query(next(self._batches)) if self._next is None else self._next
        self._position = self._batches.get_state()
        self._next = self._query(next(self._batches))
        return batch

    def get_state(self) -> Any:
        """Return the position after the last batch that was returned, so that `set_state` can continue from there."""
        return self._batches.get_state() if self._next is None else self._position

    def set_state(self, state: Any) -> None:
        """Continue from a position that `get_state` returned."""
        self._batches.set_state(state)
        self._next = None


def join_queries(queries: Mapping[str, Query]) -> Query:
    """Combine the queries of several teachers into one function, which adds the outputs of all teachers to a batch.

    Args:
        queries: functions `batch -> {field: teacher output}`, by teacher name.

    Returns:
        `batch -> batch` with the fields of all teachers added.
    """

    def query(batch: Mapping[str, Any]) -> dict[str, Any]:
        return {**batch, **{name: x for each in queries.values() for name, x in each(batch).items()}}

    return query
