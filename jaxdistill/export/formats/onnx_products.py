"""Convert products, convolutions, gathers and loops of JAX to ONNX nodes (onnx.ai/onnx/operators)."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxdistill.export.formats.onnx_graph import Graph, Tensors, Value, constant, emits, product, read, unsupported
from jaxdistill.export.formats.onnx_operators import int64


@emits("gather")
def _(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Tensors:
    """Convert a gather of whole slices, such as `jnp.take` or strided indexing, to ONNX nodes."""
    (x, index), d = inputs, equation.params["dimension_numbers"]
    axes, sizes = list(d.start_index_map), equation.params["slice_sizes"]
    rest = [n for n in range(len(sizes)) if n not in axes]
    are_whole = all(sizes[n] == x.shape[n] for n in rest)
    if are_whole and index.array is not None and index.array.ndim == 1 and not d.collapsed_slice_dims:  # one window
        ends = index.array + [sizes[n] for n in axes]
        return [graph.node("Slice", graph.whole(x), int64(index.array), int64(ends), int64(axes))]
    if tuple(sorted(axes)) != d.collapsed_slice_dims or d.operand_batching_dims or not are_whole:
        raise unsupported("gather", "of slices that are not whole")
    offsets, count = list(d.offset_dims), len(equation.outvars[0].aval.shape)
    looked_up = [place for place in range(count) if place not in offsets]
    if grid := _grid(index, [x.shape[axis] for axis in axes]):  # rows and columns at equal distances: x[:, ::2, 1::2]
        starts, ends, steps = map(int64, zip(*grid, strict=True))
        gathered = graph.node("Slice", graph.whole(x), starts, ends, int64(axes), steps)
        order = [rest[offsets.index(n)] if n in offsets else axes[looked_up.index(n)] for n in range(count)]
    elif len(axes) == 1:
        (axis,), numbers = axes, graph.reshaped(graph.whole(index), index.shape[:-1])
        if equation.params["mode"] == jax.lax.GatherScatterMode.CLIP:
            last = np.array(x.shape[axis] - 1, index.dtype)
            numbers = graph.node("Min", graph.node("Max", numbers, np.zeros((), index.dtype)), last)
        gathered = graph.node("Gather", graph.whole(x), numbers, axis=axis)
        after = lambda n: n if n < axis else n + len(looked_up)
        order = [after(offsets.index(n)) if n in offsets else axis + looked_up.index(n) for n in range(count)]
    else:
        from onnx import TensorProto

        first = graph.node("Transpose", graph.whole(x), perm=[*axes, *rest])
        gathered = graph.node("GatherND", first, graph.node("Cast", graph.whole(index), to=TensorProto.INT64))
        place = lambda n: len(looked_up) + offsets.index(n) if n in offsets else looked_up.index(n)
        order = [place(n) for n in range(count)]
    return [gathered if order == sorted(order) else graph.node("Transpose", gathered, perm=order)]


def _grid(index: Value, sizes: Sequence[Any]) -> list[tuple[int, int, int]]:
    """Return `(start, end, step)` of each axis if constant indices form a grid, as those of `x[:, ::2, 1::2]` do.

    The list is empty if the indices form no grid.

    Args:
        index: the indices, `[n, m, ..., axes]`.
        sizes: size of each axis; a grid has no index beyond it.
    """
    if index.array is None or index.array.ndim != len(sizes) + 1:
        return []
    slices = []
    for axis, size in enumerate(sizes):
        numbers = np.moveaxis(index.array[..., axis], axis, 0)
        line = numbers.reshape(len(numbers), -1)[:, 0]
        steps = np.unique(np.diff(line)) if len(line) > 1 else np.ones(1, int)
        if (
            (numbers.reshape(len(numbers), -1) != line[:, None]).any()
            or len(steps) != 1
            or steps[0] < 1
            or not (line[0] >= 0 and line[-1] < size)
        ):
            return []
        slices.append((int(line[0]), int(line[-1]) + 1, int(steps[0])))
    return slices


@emits("dot_general")
def _(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Tensors:
    (x, y), (contracted, batch) = inputs, equation.params["dimension_numbers"]
    (cx, cy), (bx, by) = contracted, batch
    if not bx and cx == (len(x.shape) - 1,) and len(y.shape) == 2:  # inputs times a kernel
        if y.array is not None and cy == (1,):
            y = constant(y.array.T, f"{y.label}/transposed" if y.label else "")
        elif cy == (1,):
            y = Value(y.shape[::-1], y.dtype, None, graph.node("Transpose", graph.whole(y), perm=[1, 0]), y.shape[::-1])
        return [graph.node("MatMul", graph.whole(x), graph.whole(y))]
    fx, fy = ([n for n in range(len(v.shape)) if n not in (*b, *c)] for v, b, c in ((x, bx, cx), (y, by, cy)))
    left = _matrices(graph, x, bx, fx, cx)
    right = _matrices(graph, y, by, cy, fy)
    return [graph.reshaped(graph.node("MatMul", left, right), equation.outvars[0].aval.shape)]


def _matrices(graph: Graph, x: Value, batch: Sequence[int], rows: Sequence[int], columns: Sequence[int]) -> str:
    """Transpose and reshape a value to `[*batch, rows, columns]`, each group of dimensions merged into one."""
    order, size = [*batch, *rows, *columns], lambda places: product([x.shape[n] for n in places])
    name = graph.whole(x)
    if order != sorted(order):
        name = graph.node("Transpose", name, perm=order)
    if len(rows) == len(columns) == 1:
        return name
    return graph.reshaped(name, (*(x.shape[n] for n in batch), size(rows), size(columns)))


@emits("conv_general_dilated")
def _(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Tensors:
    (x, kernel), p = inputs, equation.params
    numbers = p["dimension_numbers"]
    if any(size != 1 for size in p["lhs_dilation"]) or p["batch_group_count"] != 1:
        raise unsupported("conv_general_dilated", "with dilated inputs")
    image = graph.node("Transpose", graph.whole(x), perm=list(numbers.lhs_spec))
    if kernel.array is not None:
        turned = graph.constant(
            kernel.array.transpose(numbers.rhs_spec), f"{kernel.label}/transposed" if kernel.label else ""
        )
    else:
        turned = graph.node("Transpose", graph.whole(kernel), perm=list(numbers.rhs_spec))
    low, high = zip(*p["padding"], strict=True)
    product = graph.node(
        "Conv",
        image,
        turned,
        strides=list(p["window_strides"]),
        pads=[*low, *high],
        dilations=list(p["rhs_dilation"]),
        group=p["feature_group_count"],
    )
    return [graph.node("Transpose", product, perm=[int(n) for n in np.argsort(numbers.out_spec)])]


@emits("reduce_window_max", "reduce_window_sum")
def _(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Tensors:
    """Convert pooling over height and width of `[rows, height, width, channels]` to ONNX nodes."""
    p = equation.params
    window, strides, padding = p["window_dimensions"], p["window_strides"], p["padding"]
    inside = window[0] == window[-1] == strides[0] == strides[-1] == 1 and not any((*padding[0], *padding[-1]))
    if not inside or len(window) != 4 or any(n != 1 for n in (*p["base_dilation"], *p["window_dilation"])):
        raise unsupported(equation.primitive.name, "over other axes than height and width")
    low, high = zip(*padding[1:3], strict=True)
    shapes: dict[str, Any] = {"kernel_shape": list(window[1:3]), "strides": list(strides[1:3]), "pads": [*low, *high]}
    image = graph.node("Transpose", graph.whole(inputs[0]), perm=[0, 3, 1, 2])
    if equation.primitive.name == "reduce_window_max":
        pooled = graph.node("MaxPool", image, **shapes)
    else:
        mean = graph.node("AveragePool", image, count_include_pad=1, **shapes)
        pooled = graph.node("Mul", mean, np.array(window[1] * window[2], inputs[0].dtype))
    return [graph.node("Transpose", pooled, perm=[0, 2, 3, 1])]


@emits("scan")
def _(graph: Graph, equation: Any, inputs: Sequence[Value]) -> Tensors:
    """Unroll a `scan`, a loop of fixed length, such as that over the layers of a transformer."""
    p = equation.params
    body = p["jaxpr"]
    kept, carried, _ = (len(part) for part in p["ft_in"].unpack())
    fixed, carry, sequences = inputs[:kept], list(inputs[kept : kept + carried]), inputs[kept + carried :]
    inner = [constant(x) for x in getattr(body, "consts", ())]
    stacked: list[list[Value]] = []
    for step in range(p["length"])[:: -1 if p["reverse"] else 1]:
        operands = [*fixed, *carry, *(_element(graph, x, step) for x in sequences)]
        outputs = read(graph, getattr(body, "jaxpr", body), inner, operands)
        carry = outputs[:carried]
        stacked.append(outputs[carried:])
    ordered = stacked[::-1] if p["reverse"] else stacked
    results = [graph.node("Concat", *(_lifted(graph, x) for x in each), axis=0) for each in zip(*ordered, strict=True)]
    return [*carry, *results]


def _element(graph: Graph, x: Value, number: int) -> Value:
    """Return element `number` of a value along its first axis, without this axis."""
    shape, place = x.shape[1:], min(number, x.extent[0] - 1)
    if x.array is not None:
        return Value(shape, x.dtype, x.array[place], "", x.extent[1:], f"{x.label}/{number}" if x.label else "")
    name = graph.node("Gather", graph.plain(x), int64(place), axis=0)
    return Value(shape, x.dtype, None, name, x.extent[1:])


def _lifted(graph: Graph, x: Value) -> str:
    return graph.node("Unsqueeze", graph.whole(x), int64([0]))
