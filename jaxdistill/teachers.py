"""A teacher that was trained before, read into its shards: of an earlier run, or of the world."""

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxdistill import build
from jaxdistill.checkpoint import CheckpointError, load_variables
from jaxdistill.errors import ConfigError
from jaxdistill.parallel.sharding import DEFAULT_RULES, shardings
from jaxdistill.types import Model, Variables


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
    layout = shardings(shapes, mesh, config.teachers[name].rules or DEFAULT_RULES)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, layout)
    if config.teachers[name].checkpoint:
        try:
            return load_variables(*build.teacher_checkpoint(config, name), abstract)
        except CheckpointError as error:
            raise ConfigError(f"teachers.{name}.checkpoint", f"{error}.") from None
    if model.load is None or config.teachers[name].steps:
        cure = "Train it in a run of its own, and name that run as its checkpoint"
        raise ConfigError(f"teachers.{name}", f"its weights do not exist before the run. {cure}.")
    return model.load(abstract).read()
