"""Load a teacher's parameters and state onto its mesh: from a checkpoint or a pretrained model, or drawn at random."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxdistill.compress.quantize import dequantized_shapes, quantize_like
from jaxdistill.core.checkpoint import check_variables, load_variables
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.manifest import CheckpointError
from jaxdistill.core.types import NO_VARIABLES, Shapes, Variables
from jaxdistill.models.abstract import init_variables
from jaxdistill.teachers.teacher import Teacher, checkpoint_of, owner_of


def load(teacher: Teacher, rows: Shapes) -> Variables:
    """Load the parameters and state of a teacher onto its device mesh, from its checkpoint or its pretrained model.

    Args:
        teacher: a teacher that runs its network in this run (not one whose outputs are cached on disk).
        rows: shapes of the arrays of a batch.

    Raises:
        ConfigError: the teacher has neither a checkpoint nor pretrained weights, or the checkpoint is of another model.
        CheckpointError: the checkpoint is damaged.
    """
    abstract = teacher.abstract(rows)
    if teacher.checkpoint:
        folder, which = checkpoint_of(teacher.checkpoint)
        try:
            check_variables(folder, which, dequantized_shapes(abstract), owner_of(teacher.checkpoint))
        except CheckpointError as error:
            raise checkpoint_error(teacher.path, teacher.checkpoint, error) from None
        try:
            saved = load_variables(folder, which, dequantized_shapes(abstract))
            return quantize_like(saved, abstract)
        except CheckpointError as error:
            cure = "restore it from a copy, or train it again"
            raise CheckpointError(f"{teacher.path}.checkpoint: {error}; {cure}") from None
    if teacher.network.load is None or teacher.steps:
        cure = "Train it in a separate run, and set its checkpoint to RUN (its student) or RUN/teachers/NAME"
        raise ConfigError(teacher.path, f"its weights do not exist before the run. {cure}.")
    return teacher.network.load(abstract).read()


def initialise(teacher: Teacher, rows: Shapes) -> Variables:
    """Initialise the parameters and state of a teacher that is trained together with the student.

    The values are drawn at random, except for those that a pretrained model provides.

    Args:
        teacher: the teacher, with its random seed.
        rows: shapes of the arrays of a batch.
    """
    abstract = teacher.abstract(rows)
    layout = jax.tree.map(lambda x: x.sharding, abstract)
    start = NO_VARIABLES if teacher.network.load is None else teacher.network.load(abstract).read()
    zeros = {field: jnp.zeros(x.shape, x.dtype) for field, x in rows.items()}
    init = jax.jit(partial(init_variables, teacher.network), out_shardings=tuple(layout))
    return Variables(*init(jax.random.key(teacher.seed), zeros, start))


def checkpoint_error(path: str, checkpoint: str, error: Exception) -> ConfigError:
    """Return the `ConfigError` for a teacher's checkpoint that cannot be used; its message names value and cure.

    Args:
        path: key of the teacher in the config, such as `teachers.big`.
        checkpoint: value of the key `checkpoint` in the config.
        error: the error that was raised, whose message names the problem.
    """
    cure = "Set it to the folder of a run, or to RUN/teachers/NAME, optionally with @best, @last or @STEP"
    return ConfigError(f"{path}.checkpoint", f"{checkpoint!r}: {error}. {cure}.")
