"""Evaluate a model on the test records outside of a training: a teacher that exists already, or a rounded student."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxdistill.compress.aware import Quantizer
from jaxdistill.core.interfaces import Model
from jaxdistill.core.types import Shapes, Variables
from jaxdistill.data.pipeline import TEST
from jaxdistill.data.stream import evaluation_batches
from jaxdistill.evaluation.evaluator import evaluator, totals
from jaxdistill.parallel.compile import jit_evaluate, local_row_numbers
from jaxdistill.run.stages import Stage
from jaxdistill.run.train import Data


def evaluate(
    model: Model, variables: Variables, mesh: Mesh, stage: Stage, data: Data, prefix: str = ""
) -> dict[str, Any]:
    """Evaluate a model alone on the test records, and return the metrics as sums over records.

    Args:
        model: the model.
        variables: its parameters and state.
        mesh: the devices that it runs on.
        stage: the training of the student, with the settings of the evaluation.
        data: records opened for reading, and teacher outputs for them.
        prefix: prefix of the batch fields that the model reads, see `TeacherConfig`.
    """
    compiled = jit_evaluate(evaluator(model, (), None, (), prefix), variables, mesh)
    size = stage.settings.evaluate_rows
    batches = evaluation_batches(
        data.test,
        batch_size=size,
        rows=local_row_numbers(mesh, size),
        transforms=stage.data.streams["train"].transforms,
        stored=data.stored[TEST],
    )
    return totals(jax.device_get(compiled(batch)) for batch in batches)


def rounded_afterwards(
    model: Model, quantizer: Quantizer, variables: Variables, rows: Shapes
) -> tuple[Model, Variables]:
    """Return a model that was trained in floats, with weights and inputs rounded: post-training quantisation.

    Running ranges of inputs, which it lacks, are those of each batch.

    Args:
        model: the model, in floats.
        quantizer: how it is rounded.
        variables: its parameters and state.
        rows: shapes of the arrays of a batch.
    """
    wrapped = quantizer.wrap(model, 0)
    shapes = Variables(*jax.eval_shape(wrapped.init, jax.random.key(0), rows))
    filled = lambda known, all_shapes: {n: known.get(n, jnp.zeros(x.shape, x.dtype)) for n, x in all_shapes.items()}
    return wrapped, Variables(filled(variables.params, shapes.params), filled(variables.state, shapes.state))
