"""A teacher as one value, whatever its options: live beside the student, cached, on its own sub-mesh, or in 8 bits.

A run needs three things from a teacher: which fields it adds to a batch, how its outputs reach the student, and what it
costs. The class below is the live teacher, whose network runs inside the student's step. An option of a teacher
(`option.py`) replaces the network, or returns a subclass that overrides the methods for these questions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxdistill.core.interfaces import Model
from jaxdistill.core.types import NO_VARIABLES, Shapes, Variables
from jaxdistill.data.stream import StoredFields
from jaxdistill.evaluation.cost import cost
from jaxdistill.parallel.compile import shard_variables
from jaxdistill.parallel.sharding import DEFAULT_RULES, Rules, shardings, with_shardings

Fields = Mapping[str, tuple[tuple[int, ...], str]]  # shape and dtype of what is added to a record, by name
Query = Callable[[Mapping[str, Any]], dict[str, Any]]  # a batch -> the fields that are added to it


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A teacher whose network runs inside the student's training step; subclasses compute the outputs elsewhere.

    Args:
        name: the teacher's name in the config
        spec: spec string of the network, such as "mlp(widths=(64,), classes=10)"
        network: the model that computes the outputs
        mesh: mesh of the devices that the network runs on
        rules: sharding rules of the parameters; if empty, the default rules are used
        checkpoint: "FOLDER", "FOLDER@best" or "FOLDER@STEP" of an earlier run; empty if no checkpoint is loaded
        steps: number of training steps, if this run trains the teacher before the student; otherwise 0
        seed: random seed of the initial values, if the teacher is trained together with the student
        dtype: dtype of the network's computations
        options: values of the options that change the network, by key, such as "quantized"
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
        """Return the config key of the teacher's section, such as `teachers.big`, for error messages."""
        return f"teachers.{self.name}"

    @property
    def model(self) -> Model:
        """Return the model that the student's training step applies to a batch to get the teacher's outputs."""
        return self.network

    @property
    def prefix(self) -> str:
        """Return the prefix of the batch fields that a teacher with its own tokenizer reads; otherwise empty text."""
        return self.options.get("reads", "")

    @property
    def trained_here(self) -> bool:
        """Return whether this run trains the teacher before the student: `steps` is set, and no checkpoint is."""
        return bool(self.steps) and not self.checkpoint

    @property
    def runs(self) -> bool:
        """Return whether this run applies the teacher's network; False only if the teacher's outputs are cached."""
        return True

    @property
    def has_values(self) -> bool:
        """Return whether the teacher's parameters exist when the student's training begins.

        Parameters come from a checkpoint, a pretrained model, or the training of the teacher in this run.
        """
        return bool(self.checkpoint or self.steps or self.network.load)

    def fields(self, stream: str) -> Fields:
        """Return the fields that the teacher adds to an example: a dict from field name to (shape, dtype).

        It is empty in this base class, whose outputs are computed in the student's training step.

        Args:
            stream: name of the stream (a named source of batches), or `TEST` for the test examples.
        """
        return {}

    def stored(self, stream: str) -> StoredFields | None:
        """Return the teacher outputs that were stored on disk before the run; None in this base class.

        Args:
            stream: name of the stream (a named source of batches), or `TEST` for the test examples.
        """
        return None

    def query(self, stream: str, variables: Variables, mesh: Mesh) -> Query | None:
        """Return a function that computes the teacher's outputs for a batch, before the student's training step.

        The function maps a batch to the fields that are added to it. This base class returns None, because the training
        step computes the outputs.

        Args:
            stream: name of the stream (a named source of batches), or `TEST` for the test examples.
            variables: the teacher's parameters and state, placed on the teacher's mesh.
            mesh: the student's mesh, to which the outputs are moved.
        """
        return None

    def abstract(self, rows: Shapes) -> Variables:
        """Return the shapes, dtypes and shardings of the teacher's parameters and state, without computing them.

        Args:
            rows: shapes of the arrays of a batch.
        """
        key = jax.eval_shape(lambda: jax.random.key(0))
        shapes = Variables(*jax.eval_shape(self.network.init, key, rows))
        return with_shardings(shapes, shardings(shapes, self.mesh, self.rules or DEFAULT_RULES))

    def shard(self, variables: Variables) -> Variables:
        """Place the teacher's parameters and state on the devices of its mesh, sharded by its rules.

        Args:
            variables: the parameters and state.
        """
        return shard_variables(variables, self.mesh, self.rules or DEFAULT_RULES)

    def argument(self, variables: Variables) -> Variables:
        """Return the variables that the student's training step gets for this teacher: all, sharded on its mesh.

        Args:
            variables: the teacher's parameters and state.
        """
        return self.shard(variables)

    def delivered(self) -> Variables:
        """Return the variables that the student's step needs from a teacher whose network does not run; here empty."""
        return NO_VARIABLES

    def cost(self, variables: Variables, rows: Shapes) -> dict[str, Any]:
        """Measure the cost of the teacher's forward pass on one example: `parameters`, `bytes` and `flops`, by name.

        Args:
            variables: the teacher's parameters and state.
            rows: shapes of the arrays of a batch, of which one example is used.
        """
        return cost_of(self.network, variables, rows)

    def replaced(self, **differences: Any) -> "Teacher":
        """Return a copy of the teacher with new values of some fields.

        Args:
            differences: the new values, by field name.
        """
        return replace(self, **differences)


def cost_of(model: Model, variables: Variables, rows: Shapes) -> dict[str, Any]:
    """Measure the cost of a model's forward pass on one example: `parameters`, `bytes` and `flops`, by name.

    With several processes, only the number of parameters is returned, because no process holds all parameters.

    Args:
        model: the model.
        variables: the model's parameters and state.
        rows: shapes of the arrays of a batch, of which one example is used.
    """
    if jax.process_count() > 1:
        return {"parameters": sum(x.size for x in jax.tree.leaves(variables.params))}
    return cost(model, variables, one_example(rows))


def one_example(rows: Shapes) -> dict[str, np.ndarray]:
    """Return a batch of zeros with one example, `{field: [1, ...]}`, with the shapes and dtypes of `rows` otherwise."""
    return {key: np.zeros((1, *x.shape[1:]), x.dtype) for key, x in rows.items()}


def checkpoint_of(text: str) -> tuple[Path, str]:
    """Parse the key `checkpoint` of a teacher into `(folder of checkpoints, which one to load)`.

    The second element is "best", "last" or a step number, as text.

    Args:
        text: "FOLDER", "FOLDER@best", "FOLDER@last" or "FOLDER@STEP"; without "@", the last checkpoint is meant. FOLDER
            is the folder of a run, which stands for the student of that run, or the folder of one model in it.
    """
    path, _, which = text.partition("@")
    folder = Path(path).expanduser()
    student = folder / "student"  # the folder of a run stands for its student
    return (student if student.is_dir() else folder) / "checkpoints", which or "last"


def owner_of(text: str) -> str:
    """Return the name of the model that a checkpoint belongs to: "student", "control" or "teacher NAME".

    The manifests (description files) of checkpoints have this name. It is derived from the folder; if the folder does
    not tell, the result is empty.

    Args:
        text: value of the key `checkpoint` in the config, as for `checkpoint_of`.
    """
    stage = checkpoint_of(text)[0].parent
    if stage.parent.name == "teachers":
        return f"teacher {stage.name}"
    return stage.name if stage.name in ("student", "control") else ""
