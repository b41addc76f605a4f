"""Initialise models, and compute the shapes of their outputs without running them."""

from collections.abc import Mapping

import jax

from jaxdistill.core.errors import ConfigError, message_of
from jaxdistill.core.interfaces import Model
from jaxdistill.core.types import Array, Outputs, PyTree, Shapes, Variables


def init_variables(model: Model, key: Array, rows: Mapping[str, Array], start: Variables) -> tuple[PyTree, PyTree]:
    """Initialise a model's params and state at random, and replace those that a checkpoint has.

    Args:
        model: the model to initialise.
        key: the key of the random values.
        rows: a batch with the shapes of the model's inputs.
        start: values by name, for example from a checkpoint; they replace the random values of the same name.
    """
    params, state = model.init(key, rows)
    return {**params, **start.params} if start.params else params, {**state, **start.state} if start.state else state


def abstract_outputs(model: Model, path: str, shapes: Shapes) -> tuple[Outputs, Variables]:
    """Compute the shapes of a model's outputs and variables by an abstract trace.

    Args:
        model: the model to trace.
        path: the config path of the model, for error messages.
        shapes: shapes of a batch.

    Raises:
        ConfigError: the model does not fit the batch.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        variables = Variables(*jax.eval_shape(model.init, key, shapes))
        outputs, _ = jax.eval_shape(
            lambda v, b, k: model.apply(v.params, v.state, b, train=True, key=k), variables, shapes, key
        )
    except ConfigError:
        raise
    except (ValueError, TypeError, KeyError, ZeroDivisionError) as error:
        raise ConfigError(path, message_of(error)) from error
    return outputs, variables
