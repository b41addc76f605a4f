"""Convert JAX primitives on elements and shapes to ONNX nodes (onnx.ai/onnx/operators), one function each."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxdistill.export.formats.onnx_graph import Graph, Tensors, Value, constant, emits, is_known, unsupported

ELEMENTWISE = {
    "abs": "Abs", "add": "Add", "ceil": "Ceil", "cos": "Cos", "div": "Div", "eq": "Equal", "erf": "Erf", "exp": "Exp",
    "floor": "Floor", "ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "log": "Log",
    "logistic": "Sigmoid", "lt": "Less", "max": "Max", "min": "Min", "mul": "Mul", "neg": "Neg", "pow": "Pow",
    "sign": "Sign", "sin": "Sin", "sqrt": "Sqrt", "sub": "Sub", "tanh": "Tanh",
}  # fmt: skip
LOGICAL = {
    "and": ("And", "BitwiseAnd"),
    "or": ("Or", "BitwiseOr"),
    "not": ("Not", "BitwiseNot"),
    "xor": ("Xor", "BitwiseXor"),
}
REDUCTIONS = {
    "reduce_max": "ReduceMax",
    "reduce_min": "ReduceMin",
    "reduce_prod": "ReduceProd",
    "reduce_sum": "ReduceSum",
}
int64 = lambda values: np.array(values, np.int64)


def elementwise(graph: Graph, kind: str, equation: Any, inputs: Sequence[Value]) -> Value:
    """Add the node of an elementwise operation, and return its value; broadcasts of its inputs are left to ONNX."""
    extents = [(1,) * (len(equation.outvars[0].aval.shape) - len(value.extent)) + value.extent for value in inputs]
    extent = tuple(next((size for size in sizes if size != 1), 1) for sizes in zip(*extents, strict=True))
    name = graph.node(kind, *(graph.plain(value) for value in inputs))
    aval = equation.outvars[0].aval
    return Value(aval.shape, np.dtype(aval.dtype), None, name, extent)


@emits(*ELEMENTWISE)
def _(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Tensors:
    return [elementwise(graph, ELEMENTWISE[equation.primitive.name], equation, inputs)]


@emits(*LOGICAL)
def _(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Tensors:
    kinds = LOGICAL[equation.primitive.name]
    return [elementwise(graph, kinds[inputs[0].dtype != bool], equation, inputs)]


@emits("select_n")
def _(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Tensors:
    which, *cases = inputs
    if which.dtype != bool or len(cases) != 2:
        raise unsupported("select_n", "of more than two cases")
    return [elementwise(graph, "Where", equation, (which, cases[1], cases[0]))]


@emits("clamp")
def _(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Tensors:
    low, x, high = inputs
    return [_chained(graph, equation, "Min", _chained(graph, equation, "Max", x, low), high)]


def _chained(graph: Graph, equation: Any, kind: str, *inputs: Value) -> Value:
    return elementwise(graph, kind, equation, inputs)


@emits("ne")
def _(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Tensors:
    return [_chained(graph, equation, "Not", elementwise(graph, "Equal", equation, inputs))]


@emits("square")
def _(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Tensors:
    return [elementwise(graph, "Mul", equation, (*inputs, *inputs))]


@emits("rsqrt")
def _(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Tensors:
    return [_chained(graph, equation, "Reciprocal", elementwise(graph, "Sqrt", equation, inputs))]


@emits("erfc")
def _(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Tensors:
    one = constant(np.ones((), inputs[0].dtype))
    return [_chained(graph, equation, "Sub", one, elementwise(graph, "Erf", equation, inputs))]


@emits("log1p")
def _(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Tensors:
    """Convert log(1 + x) by Kahan's formula, which is accurate near 0 too: x log(u) / (u - 1) with u = 1 + x."""
    (x,), one = inputs, constant(np.ones((), inputs[0].dtype))
    u = elementwise(graph, "Add", equation, (x, one))
    rest = _chained(graph, equation, "Sub", u, one)
    is_one = _boolean(elementwise(graph, "Equal", equation, (u, one)))
    safe = _chained(graph, equation, "Where", is_one, one, rest)
    above = _chained(graph, equation, "Mul", x, _chained(graph, equation, "Log", u))
    power = _chained(graph, equation, "Div", above, safe)
    return [_chained(graph, equation, "Where", is_one, x, power)]


@emits("expm1")
def _(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Tensors:
    """Convert exp(x) - 1 so that it is accurate near 0 too: for small x it is 2 tanh(x / 2) / (1 - tanh(x / 2))."""
    (x,), dtype = inputs, inputs[0].dtype
    number = lambda value: constant(np.array(value, dtype))
    half = _chained(graph, equation, "Tanh", elementwise(graph, "Mul", equation, (x, number(0.5))))
    above = _chained(graph, equation, "Mul", half, number(2))
    near = _chained(graph, equation, "Div", above, _chained(graph, equation, "Sub", number(1), half))
    far = _chained(graph, equation, "Sub", elementwise(graph, "Exp", equation, (x,)), number(1))
    small = _boolean(_chained(graph, equation, "Less", _chained(graph, equation, "Abs", x), number(0.5)))
    return [_chained(graph, equation, "Where", small, near, far)]


def _boolean(x: Value) -> Value:
    return x._replace(dtype=np.dtype(bool))


@emits("integer_pow")
def _(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Tensors:
    power = constant(np.array(equation.params["y"], inputs[0].dtype))
    return [elementwise(graph, "Pow", equation, (*inputs, power))]


@emits("convert_element_type")
def _(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Tensors:
    from onnx import helper

    (x,), dtype = inputs, np.dtype(equation.params["new_dtype"])
    name = graph.node("Cast", graph.plain(x), to=helper.np_dtype_to_tensor_dtype(dtype))
    return [x._replace(array=None, name=name, dtype=dtype)]


@emits("stop_gradient", "copy", "copy_p", "optimization_barrier", "sharding_constraint")
def _(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Tensors:
    return inputs


@emits("broadcast_in_dim")
def _(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Tensors:
    x, shape = inputs[0], equation.outvars[0].aval.shape
    extent = [1] * len(shape)
    for place, size in zip(equation.params["broadcast_dimensions"], x.extent, strict=True):
        extent[place] = size
    if x.array is not None:
        return [Value(shape, x.dtype, x.array.reshape(extent), "", tuple(extent))]
    name = x.name if tuple(extent) == x.extent else graph.reshaped(x.name, tuple(extent))
    return [Value(shape, x.dtype, None, name, tuple(extent))]


@emits("reshape", "squeeze", "expand_dims")
def _(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Tensors:
    return [graph.reshaped(graph.whole(inputs[0]), equation.outvars[0].aval.shape)]


@emits("transpose")
def _(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Tensors:
    (x,), order = inputs, equation.params["permutation"]
    name = graph.node("Transpose", graph.plain(x), perm=list(order))
    extent, shape = (tuple(sizes[place] for place in order) for sizes in (x.extent, x.shape))
    return [Value(shape, x.dtype, None, name, extent)]


@emits("slice")
def _(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Tensors:
    p, shape = equation.params, inputs[0].shape
    starts, ends, steps = p["start_indices"], p["limit_indices"], p["strides"] or (1,) * len(shape)
    cut = [n for n, size in enumerate(shape) if (starts[n], ends[n], steps[n]) != (0, size, 1)]
    if not is_known(tuple(each[n] for n in cut for each in (starts, ends))):
        raise unsupported("slice", "of the rows of a batch")
    chosen = lambda numbers: int64([numbers[n] for n in cut])
    return [graph.node("Slice", graph.whole(inputs[0]), chosen(starts), chosen(ends), int64(cut), chosen(steps))]


@emits("split")
def _(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Tensors:
    sizes, axis = equation.params["sizes"], equation.params["axis"]
    parts = graph.node("Split", graph.whole(inputs[0]), int64(sizes), outputs=len(sizes), axis=axis)
    return parts if isinstance(parts, list) else [parts]


@emits("concatenate")
def _(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Tensors:
    return [graph.node("Concat", *map(graph.whole, inputs), axis=equation.params["dimension"])]


@emits("stack")
def _(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Tensors:
    axis = equation.params["axis"]
    return [graph.node("Concat", *(graph.node("Unsqueeze", graph.whole(x), int64([axis])) for x in inputs), axis=axis)]


@emits("dim_as_value")
def _(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Tensors:
    from onnx import helper

    size = graph.node("Squeeze", graph.dimensions((equation.params["dim"],)))
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(equation.outvars[0].aval.dtype))
    return [graph.node("Cast", size, to=dtype)]


@emits("pad")
def _(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Tensors:
    x, value = inputs
    low, high, inner = zip(*equation.params["padding_config"], strict=True)
    if any(inner) or min(*low, *high) < 0:
        raise unsupported("pad", "between elements, or by less than nothing")
    return [graph.node("Pad", graph.whole(x), int64([*low, *high]), graph.whole(value))]


@emits(*REDUCTIONS)
def _(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Tensors:
    axes = int64(equation.params["axes"])
    return [graph.node(REDUCTIONS[equation.primitive.name], graph.whole(inputs[0]), axes, keepdims=0)]


@emits("reduce_and", "reduce_or")
def _(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Tensors:
    from onnx import TensorProto

    kind = {"reduce_and": "ReduceMin", "reduce_or": "ReduceMax"}[equation.primitive.name]
    numbers = graph.node("Cast", graph.whole(inputs[0]), to=TensorProto.INT32)
    reduced = graph.node(kind, numbers, int64(equation.params["axes"]), keepdims=0)
    return [graph.node("Cast", reduced, to=TensorProto.BOOL)]


@emits("argmax", "argmin")
def _(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Tensors:
    from onnx import helper

    (axis,), kind = equation.params["axes"], {"argmax": "ArgMax", "argmin": "ArgMin"}[equation.primitive.name]
    index = graph.node(kind, graph.whole(inputs[0]), axis=axis, keepdims=0)
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(equation.params["index_dtype"]))
    return [graph.node("Cast", index, to=dtype)]


@emits("cumsum")
def _(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Tensors:
    axis, reverse = equation.params["axis"], int(equation.params["reverse"])
    return [graph.node("CumSum", graph.whole(inputs[0]), int64(axis), reverse=reverse)]


@emits("cummax", "cummin")
def _(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Tensors:
    """Convert a cumulative maximum or minimum, which ONNX lacks, to a reduction under a triangular mask."""
    (x,), axis = inputs, equation.params["axis"]
    size, rest = x.shape[axis], len(x.shape) - axis - 1
    before = (
        np.tril(np.ones((size, size), bool)) if not equation.params["reverse"] else np.triu(np.ones((size, size), bool))
    )
    limits = np.iinfo(x.dtype) if np.issubdtype(x.dtype, np.integer) else np.finfo(x.dtype)
    is_max = equation.primitive.name == "cummax"
    neutral = np.array(limits.min if is_max else limits.max, x.dtype)
    column = graph.node("Unsqueeze", graph.whole(x), int64([axis]))
    table = graph.node("Where", before.reshape(size, size, *[1] * rest), column, neutral)
    return [graph.node("ReduceMax" if is_max else "ReduceMin", table, int64([axis + 1]), keepdims=0)]
