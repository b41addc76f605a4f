"""A teacher's values before a run, in their shards: of an earlier run, of the world, or at random."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxdistill import build
from jaxdistill.checkpoint import CheckpointError, load_variables
from jaxdistill.errors import ConfigError
from jaxdistill.models.quantized import narrowed_as, widened
from jaxdistill.parallel.sharding import DEFAULT_RULES, laid_out, shardings
from jaxdistill.steps.observe import begin as first_values
from jaxdistill.types import NOTHING, Model, Shapes, Variables


def load(config: ConfigDict, name: str, model: Model, shapes: Variables, mesh: Mesh) -> Variables:
    """The values of a config's teacher.

    Args:
        config: of a run.
        name: of the teacher.
        model: the teacher.
        shapes: of its variables.
        mesh: where they shall lie.

    Raises:
        ConfigError: the weights do not exist before the run, or its checkpoint cannot be read.
    """
    abstract = laid_out(shapes, shardings(shapes, mesh, config.teachers[name].rules or DEFAULT_RULES))
    if config.teachers[name].checkpoint:
        try:
            saved = load_variables(*build.teacher_checkpoint(config, name), widened(abstract))
            return narrowed_as(saved, abstract)
        except CheckpointError as error:
            raise ConfigError(f"teachers.{name}.checkpoint", f"{error}.") from None
    if model.load is None or config.teachers[name].steps:
        cure = "Train it in a run of its own, and name that run as its checkpoint"
        raise ConfigError(f"teachers.{name}", f"its weights do not exist before the run. {cure}.")
    return model.load(abstract).read()


def begin(config: ConfigDict, name: str, model: Model, shapes: Variables, mesh: Mesh, rows: Shapes) -> Variables:
    """The values of a teacher that begins beside its student: at random, but for what a checkpoint of the world gives.

    Args:
        config, name, model, shapes, mesh: as for `load`.
        rows: shapes of a batch.
    """
    layout = shardings(shapes, mesh, config.teachers[name].rules or DEFAULT_RULES)
    start = NOTHING if model.load is None else model.load(laid_out(shapes, layout)).read()
    key = jax.random.key(config.seed + list(config.teachers).index(name) + 1)  # as one that is trained here first
    zeros = {field: jnp.zeros(x.shape, x.dtype) for field, x in rows.items()}
    return Variables(*jax.jit(partial(first_values, model), out_shardings=tuple(layout))(key, zeros, start))
