"""The values of a teacher before a run, in their shards: of an earlier run, of a pretrained model, or at random."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxdistill.compress.quantize import narrowed_as, widened
from jaxdistill.core.checkpoint import CheckpointError, load_variables
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.types import NO_VARIABLES, Shapes, Variables
from jaxdistill.models.abstract import begin
from jaxdistill.teachers.teacher import Teacher, checkpoint_of


def load(teacher: Teacher, rows: Shapes) -> Variables:
    """Loads the values of a teacher onto its mesh.

    Args:
        teacher: whose outputs are not cached.
        rows: shapes of a batch.

    Raises:
        ConfigError: the values do not exist before the run, or its checkpoint cannot be read.
    """
    abstract = teacher.abstract(rows)
    if teacher.checkpoint:
        try:
            saved = load_variables(*checkpoint_of(teacher.checkpoint), widened(abstract))
            return narrowed_as(saved, abstract)
        except CheckpointError as error:
            raise ConfigError(f"{teacher.path}.checkpoint", f"{error}.") from None
    if teacher.network.load is None or teacher.steps:
        cure = "Train it in a run of its own, and name that run as its checkpoint"
        raise ConfigError(teacher.path, f"its weights do not exist before the run. {cure}.")
    return teacher.network.load(abstract).read()


def initialise(teacher: Teacher, rows: Shapes) -> Variables:
    """The first values of a teacher that the student's step trains: at random, where no pretrained model has them.

    Args:
        teacher: a live one.
        rows: shapes of a batch.
    """
    abstract = teacher.abstract(rows)
    layout = jax.tree.map(lambda x: x.sharding, abstract)
    start = NO_VARIABLES if teacher.network.load is None else teacher.network.load(abstract).read()
    zeros = {field: jnp.zeros(x.shape, x.dtype) for field, x in rows.items()}
    first = jax.jit(partial(begin, teacher.network), out_shardings=tuple(layout))
    return Variables(*first(jax.random.key(teacher.seed), zeros, start))


def no_checkpoint(path: str, checkpoint: str, error: Exception) -> ConfigError:
    """The error for a teacher's checkpoint that cannot be used.

    Args:
        path: of the teacher in the config.
        checkpoint: as the config names it.
        error: what is wrong.
    """
    cure = "Give the folder of a run, or RUN/teachers/NAME, with @best, @last or @STEP"
    return ConfigError(f"{path}.checkpoint", f"{checkpoint!r}: {error}. {cure}.")
