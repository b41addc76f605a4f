"""Find the weights of a model in its jaxpr, and round the inputs of the products that use these weights.

Nothing in a model's code says which of its arrays are weights, but its jaxpr does. An array that is multiplied with a
value computed from the batch is a weight, and the product says which of its axes are contracted. An array whose rows
are looked up is an embedding. This works for every model, also for a user's own.
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
    """The role of a weight in its model: how products (matrix products and convolutions) use it.

    axes: the contracted axes, counted from the end; (-1,) for an embedding whose rows are looked up
    rank: number of its last axes that take part in one product; the axes before them stack the layers of a scan
    is_factor: True if the weight is a factor of a product; False if its rows are only looked up
    """

    axes: Axes
    rank: int
    is_factor: bool


@struct
class Weight(MarkedArray):
    """A parameter of a model that keeps its name while the model's jaxpr is interpreted.

    Args:
        values: the array, possibly cast, transposed, or one layer of a stack
        range: least and greatest value of the inputs that the weight is multiplied with, `[..., 2]`; None if not known
        name: name of the parameter
        axes: for each axis of `values`, the axis of the parameter, counted from its end
    """

    values: Array
    range: Array | None
    name: Any = dataclasses.field(metadata={"static": True})
    axes: Any = dataclasses.field(metadata={"static": True})

    def plain(self) -> Array:
        """Return the array of floats, without the marks."""
        return self.values

    def original(self, axes: Sequence[int]) -> Axes:
        """Convert axis numbers of `values` to those of the parameter, counted from its end."""
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
    """Run a model, and round the inputs of every product (matrix product or convolution) with a weight.

    Args:
        model: the model.
        params, state, batch, train, key: as in `Model.apply`.
        ranges: least and greatest input of each weight's products, `[..., 2]`, by name of the weight; may be empty.
        round_inputs: function that returns the rounded inputs of a product. It may also collect an array for a weight.
        combine: how to combine the arrays that are collected for a weight with several products.

    Returns:
        A tuple of three: the pair (outputs, new state) of the model; a dict of the collected arrays by name of the
        weight; and a dict of the role of each weight (how products use it) by name of the weight.

    Raises:
        ConfigError: two products of one weight contract different axes.
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
    """Return the role of each weight of a model (how products use it), as a dict by name of the parameter.

    The model is only traced; nothing is computed.

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
    """Record in `roles` that a product contracts some axes of a weight.

    Raises:
        ConfigError: another product of the weight contracts other axes.
    """
    role, known = Role(tuple(sorted(weight.original(axes))), weight.values.ndim, True), roles.get(weight.name)
    if known and known.is_factor and known != role:
        problem = f"products of {weight.name} sum different axes"
        raise ConfigError(PATH, f"{problem}; leave it out by skip={weight.name!r}.")
    roles[weight.name] = role


def _rules(roles: dict[str, Role], round_inputs: RoundInputs) -> dict[str, Rule]:
    """Build the rules, by jaxpr primitive, that follow each weight to its products and record its role in `roles`."""

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
    """Round the features of `Factored` logits, in place, and record the role of the head's kernel.

    `Factored` logits are features and a kernel that are not yet multiplied. Other outputs are not changed.

    Args:
        results: the outputs of the jaxpr as a flat list; the features in it are replaced.
        shapes: the outputs of the model as a tree of shapes.
        roles: dict to which the role of the kernel is added.
        round_inputs: function that returns the rounded inputs of a product.
        collected: receives the arrays that `round_inputs` collects.
    """
    places = {jax.tree_util.keystr(path): n for n, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(shapes))}
    kernel, features = places.get("[0].logits.kernel"), places.get("[0].logits.features")
    if kernel is None or features is None or not isinstance(results[kernel], Weight):
        return
    weight, x = results[kernel], plain(results[features])
    _record(roles, weight, (1 if shapes[0].logits.tied else 0,))
    results[features] = round_inputs(weight, x, (x.ndim - 1,), collected)
