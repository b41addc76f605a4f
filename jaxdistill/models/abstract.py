"""Models on shapes alone: what they return, and how their first values come about."""

from collections.abc import Mapping

import jax

from jaxdistill.core.errors import ConfigError, message_of
from jaxdistill.core.types import Array, Model, Outputs, PyTree, Shapes, Variables


def begin(model: Model, key: Array, rows: Mapping[str, Array], start: Variables) -> tuple[PyTree, PyTree]:
    """A model's first params and state: drawn at random, except for what a checkpoint has.

    Args:
        model: whose values they are.
        key: to draw with.
        rows: a batch.
        start: values that take the place of drawn ones, by name.
    """
    params, state = model.init(key, rows)
    return {**params, **start.params} if start.params else params, {**state, **start.state} if start.state else state


def abstract_outputs(model: Model, path: str, shapes: Shapes) -> tuple[Outputs, Variables]:
    """Shapes of a model's outputs and variables.

    Args:
        model: is run on shapes.
        path: where the config names it, for messages.
        shapes: of a batch.

    Raises:
        ConfigError: the model does not fit the batch.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        values = Variables(*jax.eval_shape(model.init, key, shapes))
        out, _ = jax.eval_shape(
            lambda v, b, k: model.apply(v.params, v.state, b, train=True, key=k), values, shapes, key
        )
    except ConfigError:
        raise
    except (ValueError, TypeError, KeyError, ZeroDivisionError) as error:
        raise ConfigError(path, message_of(error)) from error
    return out, values
