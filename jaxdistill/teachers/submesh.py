"""The option `placement`: run a teacher on its own sub-mesh, one batch ahead of the student.

While the student trains on one batch, the teacher runs on the next. Its outputs travel in the batch. The host
dispatches the teacher without waiting for its results. Only the student's devices wait for them, and they do not share
their memory with the teacher.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from jax.sharding import Mesh

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.interfaces import Model
from jaxdistill.core.registry import placements
from jaxdistill.core.types import NO_VARIABLES, Factored, Variables
from jaxdistill.data.pipeline import TEST
from jaxdistill.models.abstract import abstract_outputs
from jaxdistill.parallel.compile import jit_evaluate, move_to_mesh
from jaxdistill.parallel.mesh import build_mesh
from jaxdistill.teachers.codec import Encoding, decoding_model, encoded_fields, encoded_forward
from jaxdistill.teachers.option import Context, Option
from jaxdistill.teachers.teacher import Fields, Query, Teacher

KEY = "placement"


class Submesh(NamedTuple):
    """The number of devices of a sub-mesh, and the format of the outputs that it sends. See `submesh`."""

    devices: int
    encoding: Encoding


@placements.register
def submesh(devices: int, top: int = 0, layers: tuple[int, ...] = ()) -> Submesh:
    """Run the teacher on its own mesh, one batch ahead of the student.

    Args:
        devices: number of devices, taken from the end of all; rows and parameters are split over them.
        top: number of the largest logits to send, with the probability mass of the rest, as for `outputs`; 0: all.
        layers: numbers of the hidden states to send; 0 is the embedding.
    """
    if devices < 1 or top < 0 or any(layer < 0 for layer in layers):
        values = f"devices={devices}, top={top}, layers={layers}"
        raise ValueError(f"set devices to at least 1, top and layers to at least 0; got {values}")
    return Submesh(devices, Encoding("", "float32", top, layers))


def prefix_of(name: str) -> str:
    """Return the prefix of a teacher's fields in a batch."""
    return f"{KEY}/{name}/"


@dataclass(frozen=True, kw_only=True)
class SubmeshTeacher(Teacher):
    """A teacher on its own sub-mesh.

    Args:
        reader: reads the outputs from the batch
        encoding: format of the outputs that are sent; for the test records, with all logits
        chunks: chunks of a sequence, with a factored head
        sent: shape and dtype of the fields that are sent for a record, by stream
    """

    reader: Model
    encoding: Encoding
    chunks: int
    sent: Mapping[str, Fields]

    @property
    def model(self) -> Model:
        """The model that reads the outputs from the batch."""
        return self.reader

    def fields(self, stream: str) -> Fields:
        """Return the fields that are sent."""
        return {f"{prefix_of(self.name)}{name}": field for name, field in self.sent[stream].items()}

    def query(self, stream: str, variables: Variables, mesh: Mesh) -> Query:
        """Return a query that runs the network on its own mesh and moves the encoded outputs to the student's."""
        encoding = self.encoding._replace(top=0) if stream == TEST else self.encoding
        encode = jit_evaluate(encoded_forward(self.network, encoding, self.chunks), variables, self.mesh)

        def query(batch: Mapping[str, Any]) -> dict[str, Any]:
            return {f"{prefix_of(self.name)}{name}": x for name, x in move_to_mesh(encode(batch), mesh).items()}

        return query

    def argument(self, variables: Variables) -> Variables:
        """Return no variables: the student's step does not run the network."""
        return NO_VARIABLES


def _submesh(value: str, path: str) -> Submesh:
    return placements.build(value, path)


def apply(teacher: Teacher, value: str, context: Context) -> Teacher:
    """Move the teacher to the devices that are reserved for it.

    Raises:
        ConfigError: the teacher has no such layer, no more classes than `top`, or its sequence does not divide into
            chunks.
    """
    path, encoding = f"{teacher.path}.{KEY}", _submesh(value, f"{teacher.path}.{KEY}").encoding
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
    changes = {
        "mesh": build_mesh((1, len(context.devices), 1), context.devices),
        "reader": decoding_model(prefix_of(teacher.name), logits.shape[-1], layers, reads=teacher.prefix),
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
    devices=lambda value, path: _submesh(value, path).devices,
    check=_submesh,
)


class QueryPrefetcher:
    """An iterator over a stream that adds teacher outputs to the batches, and queries the teachers one batch ahead.

    Its position is that before the prefetched batch. So after a resume, this batch is queried again.

    Args:
        batches: of a stream, with a position: `get_state()`, `set_state(state)`.
        query: adds the outputs to a batch.
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
        """Return the position at which iteration goes on."""
        return self._batches.get_state() if self._next is None else self._position

    def set_state(self, state: Any) -> None:
        """Go on from a position."""
        self._batches.set_state(state)
        self._next = None


def join_queries(queries: Mapping[str, Query]) -> Query:
    """Join the queries of several teachers into one, which adds all outputs to a batch."""

    def query(batch: Mapping[str, Any]) -> dict[str, Any]:
        return {**batch, **{name: x for each in queries.values() for name, x in each(batch).items()}}

    return query
