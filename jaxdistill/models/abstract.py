"""Initialise models, and compute the shapes of their outputs without running them."""

from collections.abc import Mapping
from typing import Any

import jax

from jaxdistill.core.errors import ConfigError, message_of, short_repr, typed_message_of, user_location
from jaxdistill.core.interfaces import Model
from jaxdistill.core.types import Array, Outputs, PyTree, Shapes, Variables

BATCH_LOGITS = (
    "its logits compare the images and the texts of one batch: their number changes with the batch size, so they are "
    "no classes that accuracy, losses and caches could use. Choose a model with a fixed number of classes."
)


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


def abstract_outputs(model: Model, path: str, shapes: Shapes, pairs: bool = False) -> tuple[Outputs, Variables]:
    """Compute shapes and dtypes of a model's outputs and variables with `jax.eval_shape`, without running the model.

    Args:
        model: the model to trace, in training mode.
        path: config key of the model, such as `student.model`, for error messages.
        shapes: shapes and dtypes of a batch, `{field: jax.ShapeDtypeStruct}`.
        pairs: True if the caller reads the embeddings of a model with two towers (an image and a text encoder), not its
            logits.

    Returns:
        The outputs and the variables, with a `jax.ShapeDtypeStruct` in place of each array.

    Raises:
        ConfigError: the model cannot run on such a batch, for example because a field is missing; or its logits are not
            those of classes, but compare the rows of the batch with each other.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))

    def apply(variables: Variables, rows: Shapes) -> Outputs:
        forward = lambda v, b, k: model.apply(v.params, v.state, b, train=True, key=k)
        return _checked_outputs(jax.eval_shape(forward, variables, rows, key), path)

    try:
        variables = _checked_variables(jax.eval_shape(model.init, key, shapes), path)
        outputs = apply(variables, shapes)
        if pairs and has_pairs(outputs):
            return outputs, variables
        if has_pairs(outputs) or outputs.logits.shape[-1] == outputs.logits.shape[0]:
            twice = {name: jax.ShapeDtypeStruct((2 * x.shape[0], *x.shape[1:]), x.dtype) for name, x in shapes.items()}
            if apply(variables, twice).logits.shape[-1] != outputs.logits.shape[-1]:
                raise ConfigError(path, BATCH_LOGITS)
    except ConfigError:
        raise
    except KeyError as error:
        if error.args[0] in shapes or not isinstance(error.args[0], str):
            raise ConfigError(path, message_of(error)) from error
        fields = f"the batches have {', '.join(shapes)}"
        raise ConfigError(path, f"the model reads the field {error}; {fields}{user_location(error)}.") from error
    except Exception as error:
        kinds = ValueError | TypeError | ZeroDivisionError | LookupError | AttributeError
        if not (isinstance(error, kinds) or user_location(error)):
            raise
        image = shapes.get("image")
        if image is not None and len(image.shape) == 2 and not user_location(error):
            cure = "Choose one that reads vectors, such as mlp(widths=(64,), classes=...)"
            problem = f"the model cannot read records of {image.shape[1]} numbers ({message_of(error)})"
            raise ConfigError(path, f"{problem}. {cure}.") from error
        raise ConfigError(path, typed_message_of(error)) from error
    return outputs, variables


def _checked_variables(made: Any, path: str) -> Variables:
    """Require that a model's `init` has returned a pair of dicts of arrays by name, and return the pair as `Variables`.

    Raises:
        ConfigError: `init` has returned something else.
    """
    if not isinstance(made, tuple) or len(made) != 2 or not all(isinstance(part, Mapping) for part in made):
        problem = f"init of the model returns {short_repr(made)}"
        raise ConfigError(path, f"{problem}; return (params, state), two dicts of arrays by name.")
    return Variables(*made)


def _checked_outputs(out: Any, path: str) -> Outputs:
    """Require that a model's `apply` has returned a tuple `(Outputs, state)`, and return the `Outputs`.

    Raises:
        ConfigError: `apply` has returned something else.
    """
    if not isinstance(out, tuple) or len(out) != 2:
        problem = f"apply of the model returns {type(out).__name__}"
        raise ConfigError(path, f"{problem}; return (Outputs(logits=...), state).")
    if not isinstance(out[0], Outputs):
        problem = f"the model returns {type(out[0]).__name__} for a batch"
        raise ConfigError(path, f"{problem}; return jaxdistill.Outputs(logits=...).")
    return out[0]


def has_pairs(out: Outputs) -> bool:
    """Return True for outputs of a model with two towers (encoders), whose logits compare the rows of a batch."""
    return out.text_embedding is not None


def has_no_classes(out: Outputs) -> bool:
    """Return True for outputs of a model without a classification head, whose logits are its embedding."""
    return out.embedding is not None and out.logits is out.embedding


def embeds(model: Model, shapes: Shapes) -> bool:
    """Return True if a model has no classification head: its logits are its embedding. The model is traced, not run.

    Args:
        model: the model.
        shapes: shapes and dtypes of a batch, `{field: jax.ShapeDtypeStruct}`.
    """
    classless = []

    def apply(variables: Variables, rows: Any, key: Any) -> None:
        out, _ = model.apply(variables.params, variables.state, rows, train=False, key=key)
        classless.append(has_no_classes(out))  # here, because `eval_shape` returns copies

    key = jax.eval_shape(lambda: jax.random.key(0))
    jax.eval_shape(apply, Variables(*jax.eval_shape(model.init, key, shapes)), shapes, key)
    return classless[0]
