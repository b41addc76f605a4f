"""Teachers on devices of their own, one batch ahead of their student: what they say travels in the batches.

While the student learns from one batch, such a teacher runs through the next: dispatched, and waited for by nobody but
the student's devices, whose memory it does not share.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxdistill import build, fits, meshes, sources
from jaxdistill.build import Parts
from jaxdistill.data.describe import Description
from jaxdistill.errors import ConfigError
from jaxdistill.models.cached import Keep, fields_of, from_batch, saying
from jaxdistill.parallel.compile import jit_evaluate, moved
from jaxdistill.types import Factored, Model, Shapes, Variables

Ask = Callable[[Mapping[str, Any]], dict[str, Any]]  # a batch -> the same with what teachers apart say of it


class Apart(NamedTuple):
    """A teacher on a mesh of its own.

    model: which finds its outputs in the batch
    living: which gives them
    mesh: its own
    keep: what of them is sent of a stream; of the test records all logits
    pieces: of a sequence, with a factored head
    sent: shape and dtype of what is sent of a row, by stream
    """

    model: Model
    living: Model
    mesh: Mesh
    keep: Keep
    pieces: int
    sent: dict[str, dict[str, tuple[tuple[int, ...], str]]]

    def fields(self, name: str, stream: str) -> dict[str, tuple[tuple[int, ...], str]]:
        """What it adds to a record of a stream, under its name: shape and dtype by field."""
        return {f"apart/{name}/{field}": look for field, look in self.sent[stream].items()}


def find(config: ConfigDict, described: Mapping[str, Description]) -> dict[str, Apart]:
    """The teachers apart of a config, by name, on the last of all devices; `meshes.check_mesh` has counted these.

    Raises:
        ConfigError: a teacher has no such layer, or fewer logits than it shall send.
    """
    shapes, free, found = sources.batch_shapes(config, described), jax.devices(), {}
    for name, own in meshes.submeshes(config).items():
        free, devices = free[: -own.devices], free[-own.devices :]
        found[name] = _find(config, name, own.keep, meshes.mesh((1, own.devices, 1), devices), shapes)
    return found


def _find(config: ConfigDict, name: str, keep: Keep, mesh: Mesh, shapes: Mapping[str, Shapes]) -> Apart:
    living, path = build.teacher(config, name), f"teachers.{name}"
    said = {stream: fits.outputs(living, f"{path}.model", rows)[0] for stream, rows in shapes.items()}
    head, states = said["train"].logits, len(said["train"].hidden_states)
    pieces = config.chunks if isinstance(head, Factored) else 1
    try:
        sent = {stream: fields_of(out, keep, pieces) for stream, out in said.items()}
    except ValueError as error:
        raise ConfigError(f"{path}.apart", f"{error}.") from None
    model = from_batch(f"apart/{name}/", head.shape[-1], states)._replace(load=living.load)
    return Apart(model, living, mesh, keep, pieces, sent)


def living(parts: Parts, aparts: Mapping[str, Apart]) -> Parts:
    """A stage's parts with the teachers themselves in place of what they send."""
    named = zip(parts.teacher_names, parts.teachers, strict=True)
    return parts._replace(teachers=tuple(aparts[n].living if n in aparts else model for n, model in named))


def asks(aparts: Mapping[str, Apart], values: Mapping[str, Variables], mesh: Mesh) -> dict[str, Ask]:
    """Whom to ask about a batch, by stream, and of the test records under "test"; nobody, where no teacher is apart.

    Args:
        aparts: the teachers, by name.
        values: their variables, on their meshes.
        mesh: the student's, to which their outputs go.
    """

    def one(stream: str) -> Ask:
        said = {}
        for name, own in aparts.items():
            keep = own.keep._replace(top=0) if stream == "test" else own.keep
            said[name] = jit_evaluate(saying(own.living, keep, own.pieces), values[name], own.mesh)

        def ask(batch: Mapping[str, Any]) -> dict[str, Any]:
            told = {name: moved(say(batch), mesh) for name, say in said.items()}
            return {**batch, **{f"apart/{name}/{field}": x for name, out in told.items() for field, x in out.items()}}

        return ask

    streams = {stream for own in aparts.values() for stream in own.sent}
    return {stream: one(stream) for stream in (*streams, "test")} if aparts else {}


class Ahead:
    """A stream whose batches bring what teachers apart say of them, and for which these are asked one batch ahead.

    Its position is that before the batch which is held: what was asked too early is asked again after a resume.

    Args:
        batches: of a stream, with a position: `get_state()`, `set_state(state)`.
        ask: what is said of one.
    """

    def __init__(self, batches: Any, ask: Ask):
        self._batches, self._ask = batches, ask
        self._held: dict[str, Any] | None = None
        self._before: Any = None

    def __next__(self) -> dict[str, Any]:
        batch = self._ask(next(self._batches)) if self._held is None else self._held
        self._before = self._batches.get_state()
        self._held = self._ask(next(self._batches))
        return batch

    def get_state(self) -> Any:
        """Where the stream goes on."""
        return self._batches.get_state() if self._held is None else self._before

    def set_state(self, state: Any) -> None:
        """Goes on from there."""
        self._batches.set_state(state)
        self._held = None
