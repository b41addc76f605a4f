"""Initialise models, and compute the shapes of their outputs without running them."""

from collections.abc import Mapping

import jax

from jaxdistill.core.errors import ConfigError, message_of
from jaxdistill.core.interfaces import Model
from jaxdistill.core.types import Array, Outputs, PyTree, Shapes, Variables


def init_variables(model: Model, key: Array, rows: Mapping[str, Array], start: Variables) -> tuple[PyTree, PyTree]:
    """Initialise a model's params and state at random, then replace the values that a checkpoint provides.

    Args:
        model: the model to initialise.
        key: random key of the initial values.
        rows: a batch, `{field: array}`; its shapes determine the shapes of the params.
        start: arrays by name, usually read from a checkpoint; each replaces the random array of the same name.

    Returns:
        The params and the state, each a flat dict from name to array.
    """
    params, state = model.init(key, rows)
    return {**params, **start.params} if start.params else params, {**state, **start.state} if start.state else state


def abstract_outputs(model: Model, path: str, shapes: Shapes) -> tuple[Outputs, Variables]:
    """Compute shapes and dtypes of a model's outputs and variables with `jax.eval_shape`, without running the model.

    Args:
        model: the model to trace, in training mode.
        path: config key of the model, such as `student.model`, for error messages.
        shapes: shapes and dtypes of a batch, `{field: jax.ShapeDtypeStruct}`.

    Returns:
        The outputs and the variables, with a `jax.ShapeDtypeStruct` in place of each array.

    Raises:
        ConfigError: the model cannot run on such a batch, for example because a field is missing.
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
