"""Load a teacher's values in their shards: from a checkpoint or a pretrained model, or initialised at random."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxdistill.compress.quantize import dequantized_shapes, quantize_like
from jaxdistill.core.checkpoint import CheckpointError, load_variables
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.types import NO_VARIABLES, Shapes, Variables
from jaxdistill.models.abstract import init_variables
from jaxdistill.teachers.teacher import Teacher, checkpoint_of


def load(teacher: Teacher, rows: Shapes) -> Variables:
    """Load the values of a teacher onto its mesh.

    Args:
        teacher: any but a cached one.
        rows: shapes of a batch.

    Raises:
        ConfigError: the values do not exist before the run, or the checkpoint cannot be read.
    """
    abstract = teacher.abstract(rows)
    if teacher.checkpoint:
        try:
            saved = load_variables(*checkpoint_of(teacher.checkpoint), dequantized_shapes(abstract))
            return quantize_like(saved, abstract)
        except CheckpointError as error:
            raise ConfigError(f"{teacher.path}.checkpoint", f"{error}.") from None
    if teacher.network.load is None or teacher.steps:
        cure = "Train it in a separate run, and set its checkpoint to the folder of that run"
        raise ConfigError(teacher.path, f"its weights do not exist before the run. {cure}.")
    return teacher.network.load(abstract).read()


def initialise(teacher: Teacher, rows: Shapes) -> Variables:
    """Initialise a teacher that the student's step trains: at random, except for values of a pretrained model.

    Args:
        teacher: a live one.
        rows: shapes of a batch.
    """
    abstract = teacher.abstract(rows)
    layout = jax.tree.map(lambda x: x.sharding, abstract)
    start = NO_VARIABLES if teacher.network.load is None else teacher.network.load(abstract).read()
    zeros = {field: jnp.zeros(x.shape, x.dtype) for field, x in rows.items()}
    init = jax.jit(partial(init_variables, teacher.network), out_shardings=tuple(layout))
    return Variables(*init(jax.random.key(teacher.seed), zeros, start))


def checkpoint_error(path: str, checkpoint: str, error: Exception) -> ConfigError:
    """Return the error for a teacher's checkpoint that cannot be used.

    Args:
        path: config path of the teacher.
        checkpoint: the value in the config.
        error: what is wrong.
    """
    cure = "Set it to the folder of a run, or to RUN/teachers/NAME, optionally with @best, @last or @STEP"
    return ConfigError(f"{path}.checkpoint", f"{checkpoint!r}: {error}. {cure}.")
