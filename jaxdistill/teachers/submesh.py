"""The option `placement`: a teacher on its own sub-mesh, one batch ahead of the student.

While the student learns from one batch, such a teacher runs through the next. Its outputs travel in the batch. They are
dispatched and not waited for, except by the student's devices, whose memory the teacher does not share.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from jax.sharding import Mesh

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.registry import placements
from jaxdistill.core.types import NO_VARIABLES, Factored, Model, Variables
from jaxdistill.data.pipeline import TEST
from jaxdistill.models.abstract import abstract_outputs
from jaxdistill.parallel.compile import jit_evaluate, moved
from jaxdistill.parallel.mesh import build_mesh
from jaxdistill.teachers.codec import Keep, encoder, fields_of, from_batch
from jaxdistill.teachers.option import Context, Option
from jaxdistill.teachers.teacher import Fields, Query, Teacher

KEY = "placement"


class Submesh(NamedTuple):
    """A teacher's own devices, and which of its outputs are sent to the student. See `submesh`."""

    devices: int
    keep: Keep


@placements.register
def submesh(devices: int, top: int = 0, layers: tuple[int, ...] = ()) -> Submesh:
    """A mesh of the teacher's own, on which it runs one batch ahead of the student.

    Args:
        devices: how many, from the end of all; rows and parameters are split over them.
        top: how many of the largest logits are sent, with the mass of the rest, as for `outputs`; 0: all.
        layers: the hidden states that are sent, by number from 0, the embedding.
    """
    if devices < 1 or top < 0 or any(layer < 0 for layer in layers):
        given = f"devices={devices}, top={top}, layers={layers}"
        raise ValueError(f"give a device or more, and numbers from 0; got {given}")
    return Submesh(devices, Keep("", "float32", top, layers))


def prefix_of(name: str) -> str:
    """The prefix of a teacher's fields in a batch."""
    return f"{KEY}/{name}/"


@dataclass(frozen=True, kw_only=True)
class SubmeshTeacher(Teacher):
    """A teacher on its own sub-mesh.

    Args:
        reader: finds its outputs in the batch
        keep: which outputs are sent; of the test records all logits
        chunks: pieces of a sequence, with a factored head
        sent: shape and dtype of what is sent of a record, by stream
    """

    reader: Model
    keep: Keep
    chunks: int
    sent: Mapping[str, Fields]

    @property
    def model(self) -> Model:
        """Reads the outputs from the batch."""
        return self.reader

    def fields(self, stream: str) -> Fields:
        """The outputs that are sent."""
        return {f"{prefix_of(self.name)}{name}": field for name, field in self.sent[stream].items()}

    def query(self, stream: str, variables: Variables, mesh: Mesh) -> Query:
        """Runs the network on its own mesh, and moves what is kept of the outputs to the student's."""
        keep = self.keep._replace(top=0) if stream == TEST else self.keep
        encode = jit_evaluate(encoder(self.network, keep, self.chunks), variables, self.mesh)

        def query(batch: Mapping[str, Any]) -> dict[str, Any]:
            return {f"{prefix_of(self.name)}{name}": x for name, x in moved(encode(batch), mesh).items()}

        return query

    def argument(self, variables: Variables) -> Variables:
        """Nothing: the student's step does not run the network."""
        return NO_VARIABLES


def _submesh(value: str, path: str) -> Submesh:
    return placements.build(value, path)


def apply(teacher: Teacher, value: str, context: Context) -> Teacher:
    """The teacher on the devices that are its own.

    Raises:
        ConfigError: it has no such layer, or fewer logits than it shall send.
    """
    path, keep = f"{teacher.path}.{KEY}", _submesh(value, f"{teacher.path}.{KEY}").keep
    outputs = {
        stream: abstract_outputs(teacher.network, f"{teacher.path}.model", rows)[0]
        for stream, rows in context.data.shapes.items()
    }
    logits, layers = outputs["train"].logits, len(outputs["train"].hidden_states)
    chunks = context.chunks if isinstance(logits, Factored) else 1
    try:
        sent = {stream: fields_of(each, keep, chunks) for stream, each in outputs.items()}
    except ValueError as error:
        raise ConfigError(path, f"{error}.") from None
    own = {
        "mesh": build_mesh((1, len(context.devices), 1), context.devices),
        "reader": from_batch(prefix_of(teacher.name), logits.shape[-1], layers, reads=teacher.prefix),
    }
    return SubmeshTeacher(**{**vars(teacher), **own}, keep=keep, chunks=chunks, sent=sent)


OPTION = Option(
    KEY,
    apply,
    delivers=True,
    lacks=lambda _: {
        "learning": "a teacher that learns must be beside its student",
        "gradients": "no batch brings them",
        "new_records": "it is queried one batch ahead, before they are made",
        "pmap": "pmap has one mesh",
        "processes": "several processes have one mesh",
        "planning": "a mesh beside the student's is not planned",
    },
    devices=lambda value, path: _submesh(value, path).devices,
    check=_submesh,
)


class Ahead:
    """A stream whose batches bring outputs of teachers, which are queried one batch ahead.

    Its position is that before the batch which is held: a query that was made too early is made again after a resume.

    Args:
        batches: of a stream, with a position: `get_state()`, `set_state(state)`.
        query: adds the outputs to a batch.
    """

    def __init__(self, batches: Any, query: Query):
        self._batches, self._query = batches, query
        self._held: dict[str, Any] | None = None
        self._before: Any = None

    def __next__(self) -> dict[str, Any]:
        batch = self._query(next(self._batches)) if self._held is None else self._held
        self._before = self._batches.get_state()
        self._held = self._query(next(self._batches))
        return batch

    def get_state(self) -> Any:
        """The position from which the stream goes on."""
        return self._batches.get_state() if self._held is None else self._before

    def set_state(self, state: Any) -> None:
        """Goes on from a position."""
        self._batches.set_state(state)
        self._held = None


def joined(queries: Mapping[str, Query]) -> Query:
    """One query that adds the outputs of several teachers to a batch."""

    def query(batch: Mapping[str, Any]) -> dict[str, Any]:
        return {**batch, **{name: x for each in queries.values() for name, x in each(batch).items()}}

    return query
