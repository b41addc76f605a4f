"""A teacher as one value, whatever its options: live beside the student, cached, on its own sub-mesh, or in 8 bits.

A run asks a teacher three things: which fields it adds to a batch, how its outputs get there, and what it costs. The
class below is the live teacher, whose network runs inside the student's step. An option of a teacher (`option.py`)
replaces the network, or returns a subclass that overrides these three methods.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxdistill.core.interfaces import Model
from jaxdistill.core.types import Shapes, Variables
from jaxdistill.data.stream import StoredFields
from jaxdistill.evaluation.cost import cost
from jaxdistill.parallel.compile import place
from jaxdistill.parallel.sharding import DEFAULT_RULES, Rules, shardings, with_shardings

Fields = Mapping[str, tuple[tuple[int, ...], str]]  # shape and dtype of what is added to a record, by name
Query = Callable[[Mapping[str, Any]], dict[str, Any]]  # a batch -> the fields that are added to it


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A live teacher.

    Args:
        name: its name in the config
        spec: spec string of the network
        network: computes the outputs
        mesh: the devices that the network runs on
        rules: sharding rules of the parameters; empty: the default table
        checkpoint: "FOLDER", "FOLDER@best" or "FOLDER@STEP" of a run; empty: none
        steps: training steps in this run; 0: none
        seed: of the initial values, if the student's step trains the teacher
        dtype: of the network's computations
        options: the values of the options, by key
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
        """The path of its section in the config."""
        return f"teachers.{self.name}"

    @property
    def model(self) -> Model:
        """The model that the student's step applies."""
        return self.network

    @property
    def prefix(self) -> str:
        """The prefix of the batch fields that the teacher reads; empty: the student's fields."""
        return self.options.get("reads", "")

    @property
    def trained_here(self) -> bool:
        """True if a stage of the run trains the teacher before the student."""
        return bool(self.steps) and not self.checkpoint

    @property
    def runs(self) -> bool:
        """True if the network runs in this run, and so needs values."""
        return True

    @property
    def has_values(self) -> bool:
        """True if values exist before the student is trained: from a checkpoint, a pretrained model or a stage."""
        return bool(self.checkpoint or self.steps or self.network.load)

    def fields(self, stream: str) -> Fields:
        """Return the fields that the teacher adds to a record of a stream; a live teacher adds none."""
        return {}

    def stored(self, stream: str) -> StoredFields | None:
        """Return the stored outputs for the records of a stream; None: there are none."""
        return None

    def query(self, stream: str, variables: Variables, mesh: Mesh) -> Query | None:
        """Return a function that computes the outputs outside the student's step; None: they are computed inside.

        Args:
            stream: stream of the batches, or `TEST`.
            variables: of the teacher, on its mesh.
            mesh: the student's, to which the outputs are moved.
        """
        return None

    def abstract(self, rows: Shapes) -> Variables:
        """Return the shapes and shardings of the variables.

        Args:
            rows: shapes of a batch.
        """
        key = jax.eval_shape(lambda: jax.random.key(0))
        shapes = Variables(*jax.eval_shape(self.network.init, key, rows))
        return with_shardings(shapes, shardings(shapes, self.mesh, self.rules or DEFAULT_RULES))

    def place(self, variables: Variables) -> Variables:
        """Place variables on the teacher's devices."""
        return place(variables, self.mesh, self.rules or DEFAULT_RULES)

    def argument(self, variables: Variables) -> Variables:
        """Return the variables that the student's step takes as its argument."""
        return self.place(variables)

    def cost(self, variables: Variables, rows: Shapes) -> dict[str, Any]:
        """Return the cost of a forward pass on one example, for the table.

        Args:
            variables: of the teacher.
            rows: shapes of a batch.
        """
        return cost_of(self.network, variables, rows)

    def replaced(self, **differences: Any) -> "Teacher":
        """Return the teacher with other values of some fields."""
        return replace(self, **differences)


def cost_of(model: Model, variables: Variables, rows: Shapes) -> dict[str, Any]:
    """Return the cost of a forward pass on one example.

    With several processes, none of which holds all values, it is only the number of parameters.
    """
    if jax.process_count() > 1:
        return {"parameters": sum(x.size for x in jax.tree.leaves(variables.params))}
    on_one_device = jax.device_put(variables, jax.devices()[0])
    return cost(model, on_one_device, {key: np.zeros((1, *x.shape[1:]), x.dtype) for key, x in rows.items()})


def checkpoint_of(text: str) -> tuple[Path, str]:
    """Return the folder and the step ("best", "last" or a number) of a checkpoint.

    Args:
        text: the value in a config: FOLDER, or FOLDER@STEP.
    """
    path, _, which = text.partition("@")
    folder = Path(path).expanduser()
    student = folder / "student"  # the folder of a run stands for its student
    return (student if student.is_dir() else folder) / "checkpoints", which or "last"
