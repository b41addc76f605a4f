"""Find the weights of a model in its trace, and round the inputs of the products that they take part in.

Nothing in a model's code says which of its arrays are weights. Its trace does: an array that is multiplied with a value
computed from the batch is one, and the product says which of its axes are summed. An array whose rows are looked up is
an embedding. So every model is understood, also a user's own.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.interfaces import Model
from jaxdistill.core.jaxpr import run_equation
from jaxdistill.core.marked_arrays import NOTHING, Collected, Combine, MarkedArray, Rule, plain, run_marked
from jaxdistill.core.types import Array, Key, Outputs, Params, PyTree, RowsLike, State, struct

PATH = "student.quantized"  # the config key that errors about weights name
Axes = tuple[int, ...]  # axes of an array, counted from its end: -1 is the last one


class Role(NamedTuple):
    """The role of a weight in its model.

    axes: the axes that its products sum, counted from the end; (-1,) for an embedding whose rows are looked up
    rank: number of its last axes that take part in one product; those before them are the layers of a scan
    is_factor: False: it is only looked up
    """

    axes: Axes
    rank: int
    is_factor: bool


@struct
class Weight(MarkedArray):
    """A trained array of a model on its way through the trace.

    Args:
        values: the floats
        range: least and greatest input of its product, `[..., 2]`; None: not known
        name: its name among the parameters
        axes: for each axis of `values`, the axis of the parameter, counted from its end
    """

    values: Array
    range: Array | None
    name: Any = dataclasses.field(metadata={"static": True})
    axes: Any = dataclasses.field(metadata={"static": True})

    def plain(self) -> Array:
        """Return the floats."""
        return self.values

    def original(self, axes: Sequence[int]) -> Axes:
        """Return which axes of the parameter some axes of `values` are."""
        here = self.axes[-self.values.ndim :]  # a scan has removed the axis of the layers
        return tuple(here[axis] for axis in axes)


RoundInputs = Callable[[Weight, Array, Axes, Collected], Array]
"""Round the inputs of a product: `(weight, inputs, axes of the inputs that are summed, collected) -> inputs`."""


def forward(
    model: Model,
    params: Params,
    state: State,
    batch: RowsLike,
    *,
    train: bool,
    key: Key,
    ranges: Mapping[str, Array],
    round_inputs: RoundInputs,
    combine: Combine = NOTHING,
) -> tuple[tuple[Outputs[Any], State], dict[str, Array], dict[str, Role]]:
    """Run a model, with the inputs of every product of a weight rounded.

    Args:
        model: the model.
        params, state, batch, train, key: as in `Model.apply`.
        ranges: least and greatest input of products, `[..., 2]`, by name of the weight; may be empty.
        round_inputs: rounds the inputs of a product.
        combine: combines what `round_inputs` collects of a weight in several products.

    Returns:
        The outputs and the new state; what `round_inputs` has collected, by weight; and the role of each weight.

    Raises:
        ConfigError: two products of one weight sum different axes.
    """
    apply = lambda params, state, batch, key: model.apply(params, state, batch, train=train, key=key)
    traced, shapes = jax.make_jaxpr(apply, return_shape=True)(params, state, batch, key)
    marked = {name: _marked(name, x, ranges.get(name)) for name, x in params.items()}
    is_weight = lambda x: isinstance(x, Weight)
    inputs = jax.tree.leaves((marked, state, batch, key), is_leaf=is_weight)
    roles: dict[str, Role] = {}
    collected = Collected(combine)
    results = run_marked(traced, inputs, _rules(roles, round_inputs), collected)
    _round_features(results, shapes, roles, round_inputs, collected)
    return jax.tree.unflatten(jax.tree.structure(shapes), map(plain, results)), collected.arrays, roles


def weight_roles(model: Model, params: Params, state: State, batch: RowsLike) -> dict[str, Role]:
    """Return the role of each weight of a model, by name of the parameter. Nothing is computed.

    Args:
        model: the model.
        params, state, batch: its variables and a batch, or their shapes.
    """
    roles: dict[str, Role] = {}

    def run(params: Params, state: State, batch: RowsLike, key: Key) -> PyTree:
        unchanged: RoundInputs = lambda weight, x, axes, collected: x
        out, _, roles_of_weights = forward(
            model, params, state, batch, train=False, key=key, ranges={}, round_inputs=unchanged
        )
        roles.update(roles_of_weights)
        return out

    jax.eval_shape(run, params, state, dict(batch), jax.eval_shape(lambda: jax.random.key(0)))
    return roles


def _marked(name: str, x: Array, span: Array | None) -> Any:
    is_matrix = x.ndim > 1 and jnp.issubdtype(x.dtype, jnp.floating)
    return Weight(x, span, name, tuple(range(-x.ndim, 0))) if is_matrix else x


def _record(roles: dict[str, Role], weight: Weight, axes: Sequence[int]) -> None:
    """Record that a product sums some axes of a weight.

    Raises:
        ConfigError: another product of the weight sums other axes.
    """
    role, known = Role(tuple(sorted(weight.original(axes))), weight.values.ndim, True), roles.get(weight.name)
    if known and known.is_factor and known != role:
        problem = f"products of {weight.name} sum different axes"
        raise ConfigError(PATH, f"{problem}; leave it out by skip={weight.name!r}.")
    roles[weight.name] = role


def _rules(roles: dict[str, Role], round_inputs: RoundInputs) -> dict[str, Rule]:
    """Return the rules that keep weights marked up to their products, and record their roles."""

    def cast(equation: Any, operands: list[Any], collected: Collected) -> list[Any]:
        values = operands[0].values.astype(equation.params["new_dtype"])
        return [dataclasses.replace(operands[0], values=values)]

    def transpose(equation: Any, operands: list[Any], collected: Collected) -> list[Any]:
        (weight,), order = operands, equation.params["permutation"]
        return [dataclasses.replace(weight, values=weight.values.transpose(order), axes=weight.original(order))]

    def gather(equation: Any, operands: list[Any], collected: Collected) -> None:
        weight = operands[0]
        if isinstance(weight, Weight) and weight.values.ndim == 2:
            roles.setdefault(weight.name, Role((-1,), 2, False))

    def product(equation: Any, operands: list[Any], collected: Collected) -> list[Any]:
        number = 1 if isinstance(operands[1], Weight) else 0
        contracted = equation.params["dimension_numbers"][0]
        return multiplied(equation, operands, number, contracted[number], contracted[1 - number], collected)

    def convolution(equation: Any, operands: list[Any], collected: Collected) -> list[Any] | None:
        if not isinstance(operands[1], Weight):
            return None
        numbers = equation.params["dimension_numbers"]
        return multiplied(equation, operands, 1, numbers.rhs_spec[1:], numbers.lhs_spec[1:], collected)

    def multiplied(
        equation: Any, operands: list[Any], number: int, axes: Axes, input_axes: Axes, collected: Collected
    ) -> list[Any]:
        weight, inputs = operands[number], plain(operands[1 - number])
        _record(roles, weight, axes)
        factors = [round_inputs(weight, inputs, input_axes, collected), weight.values]
        return list(run_equation(equation, factors if number == 1 else factors[::-1]))

    return {
        "convert_element_type": cast,
        "transpose": transpose,
        "gather": gather,
        "dot_general": product,
        "conv_general_dilated": convolution,
    }


def _round_features(
    results: list[Any],
    shapes: PyTree,
    roles: dict[str, Role],
    round_inputs: RoundInputs,
    collected: Collected,
) -> None:
    """Round the features of a head that is not multiplied out (`Factored`), and record its kernel.

    Args:
        results: the outputs of the trace; the features among them are replaced.
        shapes: the tree of the outputs.
        roles: gets the role of the kernel.
        round_inputs: rounds the inputs of a product.
        collected: what `round_inputs` returns beside them.
    """
    places = {jax.tree_util.keystr(path): n for n, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(shapes))}
    kernel, features = places.get("[0].logits.kernel"), places.get("[0].logits.features")
    if kernel is None or features is None or not isinstance(results[kernel], Weight):
        return
    weight, x = results[kernel], plain(results[features])
    _record(roles, weight, (1 if shapes[0].logits.tied else 0,))
    results[features] = round_inputs(weight, x, (x.ndim - 1,), collected)
