"""Evaluate a model on the test records outside of its training: an existing teacher, or a quantised student."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxdistill.core.interfaces import Model
from jaxdistill.core.types import Variables
from jaxdistill.data.pipeline import TEST
from jaxdistill.data.stream import evaluation_batches
from jaxdistill.evaluation.evaluator import evaluator, totals
from jaxdistill.evaluation.report.table import ROUNDED
from jaxdistill.models.build import build_model
from jaxdistill.parallel.compile import jit_evaluate, local_row_numbers
from jaxdistill.run.outcomes import outcome_of
from jaxdistill.run.parts import build_quantizer
from jaxdistill.run.resolve import Resolved
from jaxdistill.run.samples import samples
from jaxdistill.run.stages import Stage
from jaxdistill.run.train import Data, Trained
from jaxdistill.teachers.teacher import cost_of

CALIBRATION = 512  # training records that give a rounded model its ranges


def evaluate(
    model: Model, variables: Variables, mesh: Mesh, stage: Stage, data: Data, prefix: str = ""
) -> dict[str, Any]:
    """Evaluate a model alone on the test records, and return a dict of metrics by name, as sums over records.

    Args:
        model: the model.
        variables: its parameters and state.
        mesh: the devices that it runs on.
        stage: the training of the student, with the settings of the evaluation.
        data: records opened for reading, and teacher outputs for them.
        prefix: prefix of the batch fields that the model reads, see `TeacherConfig`; empty if they have none.
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
    stage: Stage, resolved: Resolved, variables: Variables, data: Data
) -> tuple[dict[str, Any], Variables]:
    """Quantise a student after its training in floating point (post-training quantisation), and evaluate it.

    Args:
        stage: the training of this student.
        resolved: the run, whose config names the quantizer.
        variables: the trained parameters and state, in floating point.
        data: records opened for reading; some training records calibrate the ranges of the inputs of matrix products.

    Returns:
        A tuple: the content of result.json for the quantised model, and the variables of this model.
    """
    quantizer = build_quantizer(resolved.config)
    assert quantizer is not None
    model, rows = stage.parts.student, stage.shapes["train"]
    wrapped = quantizer.wrap(model, 0)
    shapes = Variables(*jax.eval_shape(wrapped.init, jax.random.key(0), rows))
    filled = lambda known, wanted: {n: known.get(n, jnp.zeros(x.shape, x.dtype)) for n, x in wanted.items()}
    values = Variables(filled(variables.params, shapes.params), filled(variables.state, shapes.state))
    if jax.process_count() == 1:  # several processes would calibrate on different records, so ranges stay per batch
        floats = build_model(stage.definition.config.student.model, "student.model", stage.definition.config.dtype)
        values = quantizer.calibrate(floats, values, samples(stage.data, CALIBRATION, data.chosen))
    total = evaluate(wrapped, values, resolved.mesh, stage, data)
    cost = cost_of(wrapped, values, rows)
    return outcome_of(ROUNDED, cost, Trained(values, total, {}, 0.0, {})), values
