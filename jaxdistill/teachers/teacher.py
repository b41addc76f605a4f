"""A teacher as one value, whatever its options: live beside the student, cached, on its own sub-mesh, or in 8 bits.

A run asks a teacher three things: which fields it adds to a batch, how its outputs get there, and what it costs. The
class below is the live teacher, whose network runs inside the student's step. An option of a teacher (`option.py`)
replaces its network, or returns a subclass that answers the three otherwise.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from jax.sharding import Mesh

from jaxdistill.core.types import Model, Shapes, Variables
from jaxdistill.data.stream import Beside
from jaxdistill.evaluation.cost import cost
from jaxdistill.parallel.compile import place
from jaxdistill.parallel.sharding import DEFAULT_RULES, Rules, laid_out, shardings

Fields = Mapping[str, tuple[tuple[int, ...], str]]  # shape and dtype of what is added to a record, by name
Query = Callable[[Mapping[str, Any]], dict[str, Any]]  # a batch -> the fields that are added to it


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A live teacher.

    Args:
        name: in the config
        spec: the spec string of its network
        network: computes its outputs
        mesh: the devices that the network runs on
        rules: how its parameters are laid out there; empty: the default table
        checkpoint: "FOLDER", "FOLDER@best" or "FOLDER@STEP" of a run; empty: none
        steps: of its training in this run; 0: none
        seed: of its first values, where the student's step trains it
        dtype: that the network computes in
        options: the values of its options, by key
    """

    name: str
    spec: str
    network: Model
    mesh: Mesh
    rules: Rules = ()
    checkpoint: str = ""
    steps: int = 0
    seed: int = 0
    dtype: str = "float32"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """Its section of the config."""
        return f"teachers.{self.name}"

    @property
    def model(self) -> Model:
        """The model that the student's step applies."""
        return self.network

    @property
    def prefix(self) -> str:
        """The prefix of the batch fields that it reads; empty: it reads the student's."""
        return self.options.get("reads", "")

    @property
    def trained_here(self) -> bool:
        """Whether a stage of the run trains it before the student."""
        return bool(self.steps) and not self.checkpoint

    @property
    def runs(self) -> bool:
        """Whether its network runs in this run, and so needs values."""
        return True

    @property
    def has_values(self) -> bool:
        """Whether its values exist before its student learns: from a checkpoint, a pretrained model or a stage."""
        return bool(self.checkpoint or self.steps or self.network.load)

    def fields(self, stream: str) -> Fields:
        """The fields that it adds to a record of a stream; a live teacher adds none."""
        return {}

    def stored(self, stream: str) -> Beside | None:
        """Its outputs that were written before the run, for the records of a stream; None: there are none."""
        return None

    def query(self, stream: str, variables: Variables, mesh: Mesh) -> Query | None:
        """A function that computes its outputs outside the student's step; None: they are computed inside.

        Args:
            stream: whose batches are given to it, or `TEST`.
            variables: its own, placed.
            mesh: the student's, to which the outputs are moved.
        """
        return None

    def abstract(self, rows: Shapes) -> Variables:
        """Shapes and shardings of its variables.

        Args:
            rows: shapes of a batch.
        """
        key = jax.eval_shape(lambda: jax.random.key(0))
        shapes = Variables(*jax.eval_shape(self.network.init, key, rows))
        return laid_out(shapes, shardings(shapes, self.mesh, self.rules or DEFAULT_RULES))

    def place(self, variables: Variables) -> Variables:
        """Lays its variables out on its devices."""
        return place(variables, self.mesh, self.rules or DEFAULT_RULES)

    def argument(self, variables: Variables) -> Variables:
        """Its variables as the student's step takes them."""
        return self.place(variables)

    def cost(self, variables: Variables, rows: Shapes) -> dict[str, Any]:
        """What a forward pass of one example costs, for the table.

        Args:
            variables: its own.
            rows: shapes of a batch.
        """
        return cost_of(self.network, variables, rows)

    def replaced(self, **differences: Any) -> Self:
        """The same teacher with other fields."""
        return replace(self, **differences)


def cost_of(model: Model, variables: Variables, rows: Shapes) -> dict[str, Any]:
    """What a forward pass of one example costs; with several processes, of which none holds all values, parameters."""
    if jax.process_count() > 1:
        return {"parameters": sum(x.size for x in jax.tree.leaves(variables.params))}
    here = jax.device_put(variables, jax.devices()[0])
    return cost(model, here, {key: np.zeros((1, *x.shape[1:]), x.dtype) for key, x in rows.items()})


def checkpoint_of(text: str) -> tuple[Path, str]:
    """Folder and step ("best", "last" or a number) of a checkpoint as a config names it: FOLDER, or FOLDER@STEP."""
    given, _, which = text.partition("@")
    folder = Path(given).expanduser()
    student = folder / "student"  # a whole run stands for its student
    return (student if student.is_dir() else folder) / "checkpoints", which or "last"
